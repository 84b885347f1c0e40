"""How old a source's last success may be."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.pipeline.quality.freshness import RHYTHM, expected_age, overdue

HOUR = timedelta(hours=1)
EXPECTED = timedelta(hours=2, minutes=5)


def steps(*lengths: float) -> list[float]:
    """Starts, newest first, with so many seconds between them."""
    starts = [1e9]
    for length in lengths:
        starts.append(starts[-1] - length)
    return starts


def test_two_intervals_and_five_minutes_are_expected() -> None:
    assert expected_age(HOUR, []) == EXPECTED
    assert expected_age(HOUR, steps(*[60] * 20)) == EXPECTED
    assert expected_age(None, []) is None


def test_without_an_interval_a_steady_rhythm_is_expected_to_go_on() -> None:
    assert expected_age(None, steps(*[3_600, 3_590, 3_610, 3_600] * 2)) == EXPECTED
    assert expected_age(None, steps(*[3_600] * (RHYTHM - 2))) is None


def test_one_pause_breaks_no_rhythm() -> None:
    assert expected_age(None, steps(*[3_600] * 4, 90_000, *[3_600] * 3)) == EXPECTED


@pytest.mark.parametrize("lengths", [[60, 3_000, 10, 7_200, 500, 90, 40_000, 5], [-3_600] * 8, [0] * 8])
def test_runs_by_hand_and_clocks_that_jump_make_no_rhythm(lengths: list[float]) -> None:
    assert expected_age(None, steps(*lengths)) is None


def test_a_source_that_sits_out_runs_is_expected_in_its_own_rhythm() -> None:
    assert expected_age(HOUR, steps(*[6 * 3_600] * 8)) == timedelta(hours=12, minutes=5)


@given(st.floats(-300, EXPECTED.total_seconds()))
def test_younger_than_expected_is_in_time(without_s: float) -> None:
    assert overdue(without_s, 0, EXPECTED) is None


def test_older_than_expected_is_overdue_and_says_by_how_much() -> None:
    assert overdue(7_501, 0, EXPECTED) == "overdue: no success for 2:05:01, expected within 2:05:00"
    assert overdue(9e9, 0, None) is None


def test_a_source_that_no_run_takes_up_is_overdue_once_this_process_has_waited_for_it() -> None:
    assert overdue(None, 7_499, EXPECTED) is None
    assert overdue(None, 7_501, EXPECTED) == (
        "overdue: no run took it up for 2:05:01, expected within 2:05:00"
    )


@pytest.mark.parametrize("expected", [EXPECTED, None])
def test_a_run_of_the_future_says_that_a_clock_was_set_back(expected: timedelta | None) -> None:
    assert overdue(-90_000, 0, expected) == (
        "its last run is dated 1 day, 1:00:00 ahead of the database's clock: a clock was set back"
    )
