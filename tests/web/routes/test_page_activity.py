"""What the view Sources and runs shows: the strip of runs, and how each source is."""

from datetime import timedelta

import pytest

from kasparro.web.routes.page_activity import OUTLYING, STRIP, Source, strip, verdict
from kasparro.web.schemas import Records, RunReport, RunStatus, SourceHealth, SourceStatus
from tests.support.runs import NOON


def make_run(
    run_id: int, took_s: float, changed: int = 0, rejected: int = 0, status: RunStatus = "succeeded"
) -> RunReport:
    """A run that took so long and changed and rejected so many records."""
    return RunReport(
        id=run_id,
        trigger="schedule",
        status=status,
        started_at=NOON,
        finished_at=NOON + timedelta(seconds=took_s),
        duration_s=took_s,
        records=Records(fetched=changed + rejected, updated=changed, rejected=rejected),
        sources=[],
        error=None,
    )


def make_source(name: str, status: SourceStatus | None = "succeeded", **values: object) -> Source:
    """A source with this outcome of its last run."""
    given = {"last_success_at": NOON, "age_s": 1.0, "expected_age_s": 60.0, "stale": False, "error": None}
    given |= values
    reasons = ["it is so"] if given["stale"] or given["error"] else []
    health = SourceHealth(status=status, reasons=reasons, **given)  # type: ignore[arg-type]
    return Source(name=name, health=health, last=None, last_run=None, budget=None)


def test_bars_are_to_scale_and_the_newest_is_the_last() -> None:
    drawn = strip([make_run(3, 10, changed=100), make_run(2, 5, changed=50), make_run(1, 10, changed=100)])

    heights = [(bar.run.id, bar.duration, bar.changed) for bar in drawn.bars]
    assert heights == [(1, 44, 26), (2, 22, 13), (3, 44, 26)]
    assert (drawn.longest_s, drawn.most) == (10, 100)
    assert [bar.x for bar in drawn.bars] == sorted(bar.x for bar in drawn.bars)
    assert drawn.bars[-1].x + drawn.slot == drawn.width


def test_one_long_run_does_not_hide_the_others() -> None:
    drawn = strip([make_run(9, 3_600, changed=1_000_000), *(make_run(n, 10, changed=100) for n in range(8))])

    assert (drawn.longest_s, drawn.most) == (OUTLYING * 10, OUTLYING * 100)
    assert drawn.bars[-1].duration == drawn.top
    assert drawn.bars[0].duration == drawn.top // OUTLYING


def test_rejected_records_are_a_part_of_a_bar() -> None:
    (bar,) = strip([make_run(1, 10, changed=75, rejected=25)]).bars

    assert bar.changed + bar.rejected == 26
    assert bar.rejected == round(26 / 4)


def test_few_rejected_records_are_still_seen() -> None:
    (bar,) = strip([make_run(1, 10, changed=100_000, rejected=1)]).bars

    assert bar.rejected > 0


def test_a_strip_of_nothing() -> None:
    assert strip([]).bars == []
    (bar,) = strip([make_run(1, 0)]).bars
    assert (bar.changed, bar.rejected) == (0, 0)
    assert bar.duration > 0


def test_a_full_strip_begins_at_its_edge() -> None:
    drawn = strip([make_run(n, 1) for n in range(STRIP, 0, -1)])

    assert drawn.bars[0].x == 0
    assert drawn.counts == [("succeeded", STRIP)]


@pytest.mark.parametrize(
    ("source", "state", "words"),
    [
        (make_source("a"), "good", "on time"),
        (make_source("a", None), "waiting", "no run yet"),
        (make_source("a", "failed", error="503"), "bad", "failed"),
        (make_source("a", "partial", error="page 3 is missing"), "odd", "partial"),
        (make_source("a", "failed", error="503", stale=True), "late", "late"),
        # It is late even if it never had a run.
        (make_source("a", None, stale=True), "late", "late"),
    ],
)
def test_how_a_source_is(source: Source, state: str, words: str) -> None:
    assert (source.state, source.words) == (state, words)


def test_verdict_names_the_worst_first() -> None:
    late = make_source("coinpaprika", "failed", error="503", stale=True)
    failed = make_source("csv", "failed", error="no such folder")
    good = make_source("coingecko")

    assert verdict([late, good, failed]) == ("bad", "csv: failed · coinpaprika: late")
    assert verdict([late, good]) == ("late", "coinpaprika: late")
    assert verdict([good]) == ("good", "All sources are on time")
    assert verdict([]) == ("waiting", "No source is switched on")
