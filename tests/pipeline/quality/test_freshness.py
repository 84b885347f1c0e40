"""When a source is overdue."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.pipeline.quality.freshness import RHYTHM, expected_age, overdue

HOUR = timedelta(hours=1)
EXPECTED = timedelta(hours=2, minutes=5)


def steps(*lengths: float) -> list[float]:
    """Start times, newest first, with these seconds between them."""
    starts = [1e9]
    for length in lengths:
        starts.append(starts[-1] - length)
    return starts


def test_expected_age_from_interval() -> None:
    assert expected_age(HOUR, []) == EXPECTED
    assert expected_age(HOUR, steps(*[60] * 20)) == EXPECTED
    assert expected_age(None, []) is None


def test_expected_age_from_rhythm() -> None:
    assert expected_age(None, steps(*[3_600, 3_590, 3_610, 3_600] * 2)) == EXPECTED
    assert expected_age(None, steps(*[3_600] * (RHYTHM - 2))) is None


def test_one_pause_does_not_break_the_rhythm() -> None:
    assert expected_age(None, steps(*[3_600] * 4, 90_000, *[3_600] * 3)) == EXPECTED


@pytest.mark.parametrize("lengths", [[60, 3_000, 10, 7_200, 500, 90, 40_000, 5], [-3_600] * 8, [0] * 8])
def test_irregular_starts_are_no_rhythm(lengths: list[float]) -> None:
    """Manual runs and changed clocks give no rhythm."""
    assert expected_age(None, steps(*lengths)) is None


def test_longer_rhythm_outranks_interval() -> None:
    """A source that skips runs to save calls is not late."""
    assert expected_age(HOUR, steps(*[6 * 3_600] * 8)) == timedelta(hours=12, minutes=5)


@given(st.floats(-300, EXPECTED.total_seconds()))
def test_within_expected_age_is_not_overdue(without_s: float) -> None:
    assert overdue(without_s, 0, EXPECTED) is None


def test_older_than_expected_age_is_overdue() -> None:
    assert overdue(7_501, 0, EXPECTED) == "overdue: no success for 2:05:01, expected within 2:05:00"
    assert overdue(9e9, 0, None) is None


def test_source_without_attempt_is_overdue_by_uptime() -> None:
    assert overdue(None, 7_499, EXPECTED) is None
    assert overdue(None, 7_501, EXPECTED) == (
        "overdue: no run has included it for 2:05:01, expected within 2:05:00"
    )


@pytest.mark.parametrize("expected", [EXPECTED, None])
def test_run_in_the_future_means_a_changed_clock(expected: timedelta | None) -> None:
    assert overdue(-90_000, 0, expected) == (
        "its last run is dated 1 day, 1:00:00 ahead of the database's clock: a clock was set back"
    )
