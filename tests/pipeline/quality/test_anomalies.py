"""Which metrics of a run are anomalies."""

import math
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.pipeline.quality.anomalies import HISTORY, Anomaly, RunMetrics, find_anomalies, run_metrics
from kasparro.store.loader import PriceMoves

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def usual(**values: Any) -> RunMetrics:
    """The metrics of an ordinary hourly run over 1,000 coins."""
    defaults: dict[str, Any] = {
        "at": NOON,
        "fetched": 1_000,
        "compared": 800,
        "move": 0.004,
        "shift": 0.001,
        "spread": 0.004,
    }
    return RunMetrics(**defaults | {"gap_s": 3_600.0, "age_s": 60.0} | values)


def found(
    current: RunMetrics,
    earlier: list[RunMetrics] | None = None,
    known: list[Anomaly] | None = None,
    at: datetime = NOON,
) -> list[Anomaly]:
    """The anomalies of `current` as run 42; by default after 20 usual runs."""
    history = [usual()] * 20 if earlier is None else earlier
    return find_anomalies(msgspec.structs.replace(current, at=at), history, known or [], 42)[1]


def kinds(current: RunMetrics, earlier: list[RunMetrics] | None = None) -> list[str]:
    return [anomaly.kind for anomaly in found(current, earlier)]


@given(
    st.lists(
        st.builds(
            usual,
            fetched=st.integers(950, 1_050),
            move=st.floats(1e-6, 0.04),
            gap_s=st.floats(60, 90_000),
            age_s=st.floats(-600, 3_000),
        ),
        max_size=21,
    )
)
def test_ordinary_runs_have_no_anomaly(runs: list[RunMetrics]) -> None:
    for count in range(len(runs)):
        assert kinds(runs[count], runs[:count][::-1]) == []


@pytest.mark.parametrize(
    ("strange", "kind"),
    [
        (usual(fetched=500), "few-records"),
        (usual(fetched=0, compared=0, move=None, shift=None, spread=None), "few-records"),
        (usual(move=0.3, shift=-0.3), "price-jump"),
        (usual(move=6.9, shift=6.9, spread=0.01), "price-jump"),
        (usual(age_s=20_000.0), "stuck"),
        (usual(move=0.0, shift=0.0), "stuck"),
    ],
)
def test_far_metric_is_an_anomaly_after_enough_history(strange: RunMetrics, kind: str) -> None:
    assert kinds(strange) == [kind]
    assert kinds(strange, [usual()] * HISTORY) == [kind]
    assert kinds(strange, [usual()] * (HISTORY - 1)) == []


def test_few_odd_runs_do_not_shift_the_usual_range() -> None:
    odd = [usual(fetched=3, move=5.0, age_s=90_000.0)] * 4
    earlier = [*odd, *[usual()] * 12]

    assert kinds(usual(fetched=500, age_s=20_000.0), earlier) == ["few-records", "stuck"]
    assert kinds(usual(move=1.0, shift=1.0), earlier) == ["price-jump"]
    assert kinds(usual(), earlier) == []


def test_unsteady_source_has_no_anomaly() -> None:
    earlier = [usual(fetched=n * 100, move=n / 10, age_s=n * 9_000.0) for n in (2, 9, 4, 8, 1, 7, 3, 6)]

    assert kinds(usual(fetched=100, move=0.9, shift=0.9, age_s=80_000.0), earlier) == []

    restless = [usual(move=move / 100) for move in (1, 4, 1, 3, 2, 1, 4, 3, 2, 1)]
    assert kinds(usual(move=0.12, shift=0.12), restless) == []
    assert kinds(usual(move=0.12, shift=0.12)) == ["price-jump"]


def test_record_counts_need_the_same_planned_share() -> None:
    earlier = [usual(planned=1.0)] * 10 + [usual(fetched=180, planned=0.18)] * 10

    assert kinds(usual(fetched=175, planned=0.18), earlier) == []
    assert kinds(usual(fetched=175, planned=0.19), earlier) == []
    assert kinds(usual(fetched=500, planned=0.5), earlier) == []
    assert kinds(usual(fetched=175, planned=1.0), earlier) == ["few-records"]
    assert kinds(usual(fetched=100, complete=False), earlier) == []
    assert kinds(usual(fetched=100), [usual(complete=False)] * 20) == []


def test_moves_are_scaled_by_the_pause() -> None:
    week = 7 * 24 * 3_600.0

    assert kinds(usual(move=0.08, shift=0.08, gap_s=week)) == []
    assert kinds(usual(move=0.08, shift=0.08)) == ["price-jump"]


def test_few_coins_prove_nothing() -> None:
    assert kinds(usual(compared=19, move=2.0, shift=2.0)) == []
    assert kinds(usual(compared=90, move=2.0, shift=2.0)) == []
    assert kinds(usual(compared=90, move=0.0, shift=0.0)) == []


def test_continued_anomaly_keeps_its_first_run() -> None:
    (first,) = found(usual(fetched=500))
    (second,) = found(usual(fetched=400), known=[first], at=NOON + HOUR)

    assert (first.since_run, first.since, second.since) == (42, NOON, NOON)
    assert second.value == 400


def test_uniform_jump_lasts_until_undone_or_a_day() -> None:
    jump = math.log(0.92)
    (began,) = found(usual(move=-jump, shift=jump, spread=0.004))

    assert began.lasting
    assert began.value == pytest.approx(0.92)
    assert found(usual(), known=[began], at=NOON + 9 * HOUR) == [began]
    assert found(usual(move=-jump, shift=-jump), known=[began], at=NOON + 9 * HOUR) == []
    assert found(usual(), known=[began], at=NOON + 25 * HOUR) == []
    (other,) = found(usual(move=3.0, shift=3.0), known=[began], at=NOON + 9 * HOUR)
    assert other.since == NOON + 9 * HOUR


def test_market_crash_marks_one_run() -> None:
    (crash,) = found(usual(move=0.12, shift=-0.11, spread=0.05))

    assert not crash.lasting
    assert "moved by 12.7% in the median" in crash.detail
    assert found(usual(), known=[crash], at=NOON + HOUR) == []


def test_run_metrics_are_medians() -> None:
    moves = PriceMoves()
    moves.add([5.0, 1.0], [0.1, -0.3], [60.0, 70.0])
    moves.add([], [], [])
    moves.add([3.0], [0.2], [80.0])

    metrics = run_metrics(7, moves, [], at=NOON, complete=True, planned=0.5)

    assert (metrics.fetched, metrics.planned, metrics.compared, metrics.move, metrics.shift) == (
        7,
        0.5,
        3,
        0.2,
        0.1,
    )
    assert metrics.spread == pytest.approx(0.1)
    assert (metrics.gap_s, metrics.age_s) == (70.0, 1.0)
    nothing = run_metrics(0, PriceMoves(), [metrics], at=NOON, complete=True, planned=1.0)
    assert nothing == RunMetrics(at=NOON, fetched=0)


def test_unchanged_feed_ages() -> None:
    earlier: list[RunMetrics] = [usual()] * 9
    for hours, age_s in ((1, 3_660.0), (2, 7_260.0), (3, 10_860.0)):
        metrics = run_metrics(
            1_000, PriceMoves(), earlier, at=NOON + hours * HOUR, complete=True, planned=1.0
        )
        assert metrics.age_s == age_s
        earlier = [metrics, *earlier]

    assert kinds(earlier[0], earlier[1:]) == ["stuck"]
    assert run_metrics(9, PriceMoves(), earlier, at=NOON - HOUR, complete=True, planned=1.0).age_s == 10_860.0


def test_age_is_that_of_the_freshest_tenth() -> None:
    moves = PriceMoves()
    moves.add(random.Random(1).sample([30.0] * 11 + [1e6] * 89, 100), [], [])

    assert run_metrics(100, moves, [], at=NOON, complete=True, planned=1.0).age_s == 30.0
