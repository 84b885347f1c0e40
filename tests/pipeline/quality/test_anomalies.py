"""What of a pass counts as far from usual, and what does not."""

import math
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.pipeline.quality.anomalies import HISTORY, Anomaly, RunMetrics, assess, figures
from kasparro.store.loader import PriceMoves

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def usual(**values: Any) -> RunMetrics:
    """An ordinary hour of 1,000 coins."""
    given_: dict[str, Any] = {
        "at": NOON,
        "fetched": 1_000,
        "compared": 800,
        "move": 0.004,
        "shift": 0.001,
        "spread": 0.004,
    }
    return RunMetrics(**given_ | {"gap_s": 3_600.0, "age_s": 60.0} | values)


def found(
    now: RunMetrics,
    past: list[RunMetrics] | None = None,
    before: list[Anomaly] | None = None,
    at: datetime = NOON,
) -> list[Anomaly]:
    return assess(
        msgspec.structs.replace(now, at=at), [usual()] * 20 if past is None else past, before or [], 42
    )


def kinds(now: RunMetrics, past: list[RunMetrics] | None = None) -> list[str]:
    return [one.kind for one in found(now, past)]


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
def test_ordinary_days_have_no_anomaly(passes: list[RunMetrics]) -> None:
    for count in range(len(passes)):
        assert kinds(passes[count], passes[:count][::-1]) == []


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
def test_what_is_far_from_usual_is_told_once_there_is_a_history(strange: RunMetrics, kind: str) -> None:
    assert kinds(strange) == [kind]
    assert kinds(strange, [usual()] * HISTORY) == [kind]
    assert kinds(strange, [usual()] * (HISTORY - 1)) == []


def test_a_few_odd_runs_in_the_history_change_no_judgement() -> None:
    odd = [usual(fetched=3, move=5.0, age_s=90_000.0)] * 4
    past = [*odd, *[usual()] * 12]

    assert kinds(usual(fetched=500, age_s=20_000.0), past) == ["few-records", "stuck"]
    assert kinds(usual(move=1.0, shift=1.0), past) == ["price-jump"]
    assert kinds(usual(), past) == []


def test_a_source_that_is_always_unsteady_is_left_alone() -> None:
    past = [usual(fetched=n * 100, move=n / 10, age_s=n * 9_000.0) for n in (2, 9, 4, 8, 1, 7, 3, 6)]

    assert kinds(usual(fetched=100, move=0.9, shift=0.9, age_s=80_000.0), past) == []

    restless = [usual(move=move / 100) for move in (1, 4, 1, 3, 2, 1, 4, 3, 2, 1)]
    assert kinds(usual(move=0.12, shift=0.12), restless) == []
    assert kinds(usual(move=0.12, shift=0.12)) == ["price-jump"]


def test_passes_are_compared_by_the_share_that_they_set_out_for() -> None:
    past = [usual(planned=1.0)] * 10 + [usual(fetched=180, planned=0.18)] * 10

    assert kinds(usual(fetched=175, planned=0.18), past) == []
    assert kinds(usual(fetched=175, planned=0.19), past) == []
    assert kinds(usual(fetched=500, planned=0.5), past) == []
    assert kinds(usual(fetched=175, planned=1.0), past) == ["few-records"]
    assert kinds(usual(fetched=100, whole=False), past) == []
    assert kinds(usual(fetched=100), [usual(whole=False)] * 20) == []


def test_moves_after_a_pause_are_measured_by_its_length() -> None:
    week = 7 * 24 * 3_600.0

    assert kinds(usual(move=0.08, shift=0.08, gap_s=week)) == []
    assert kinds(usual(move=0.08, shift=0.08)) == ["price-jump"]


def test_prices_of_a_handful_of_coins_prove_nothing() -> None:
    assert kinds(usual(compared=19, move=2.0, shift=2.0)) == []
    assert kinds(usual(compared=90, move=2.0, shift=2.0)) == []
    assert kinds(usual(compared=90, move=0.0, shift=0.0)) == []


def test_what_goes_on_keeps_its_beginning() -> None:
    (first,) = found(usual(fetched=500))
    (second,) = found(usual(fetched=400), before=[first], at=NOON + HOUR)

    assert (first.since_run, first.since, second.since) == (42, NOON, NOON)
    assert second.value == 400


def test_one_factor_for_all_prices_stands_until_it_is_undone_or_a_day_has_passed() -> None:
    jump = math.log(0.92)
    (began,) = found(usual(move=-jump, shift=jump, spread=0.004))

    assert began.lasting
    assert began.value == pytest.approx(0.92)
    assert found(usual(), before=[began], at=NOON + 9 * HOUR) == [began]
    assert found(usual(move=-jump, shift=-jump), before=[began], at=NOON + 9 * HOUR) == []
    assert found(usual(), before=[began], at=NOON + 25 * HOUR) == []
    (other,) = found(usual(move=3.0, shift=3.0), before=[began], at=NOON + 9 * HOUR)
    assert other.since == NOON + 9 * HOUR


def test_a_market_that_falls_is_marked_for_that_run_alone() -> None:
    (crash,) = found(usual(move=0.12, shift=-0.11, spread=0.05))

    assert not crash.lasting
    assert "moved by 12.7% in the median" in crash.detail
    assert found(usual(), before=[crash], at=NOON + HOUR) == []


def test_figures_are_the_medians_of_what_the_batches_told() -> None:
    compared = PriceMoves()
    compared.add([5.0, 1.0], [0.1, -0.3], [60.0, 70.0])
    compared.add([], [], [])
    compared.add([3.0], [0.2], [80.0])

    told = figures(7, compared, [], at=NOON, whole=True, planned=0.5)

    assert (told.fetched, told.planned, told.compared, told.move, told.shift) == (7, 0.5, 3, 0.2, 0.1)
    assert told.spread == pytest.approx(0.1)
    assert (told.gap_s, told.age_s) == (70.0, 1.0)
    nothing = figures(0, PriceMoves(), [told], at=NOON, whole=True, planned=1.0)
    assert nothing == RunMetrics(at=NOON, fetched=0)


def test_a_feed_that_says_that_nothing_has_changed_grows_older() -> None:
    past: list[RunMetrics] = [usual()] * 9
    for hours, age_s in ((1, 3_660.0), (2, 7_260.0), (3, 10_860.0)):
        told = figures(1_000, PriceMoves(), past, at=NOON + hours * HOUR, whole=True, planned=1.0)
        assert told.age_s == age_s
        past = [told, *past]

    assert kinds(past[0], past[1:]) == ["stuck"]
    assert figures(9, PriceMoves(), past, at=NOON - HOUR, whole=True, planned=1.0).age_s == 10_860.0


def test_the_age_is_that_of_the_freshest_tenth_however_old_the_tail_is() -> None:
    compared = PriceMoves()
    compared.add(random.Random(1).sample([30.0] * 11 + [1e6] * 89, 100), [], [])

    assert figures(100, compared, [], at=NOON, whole=True, planned=1.0).age_s == 30.0
