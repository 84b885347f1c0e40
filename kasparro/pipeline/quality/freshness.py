"""How old a source's last success may be, and what is said where it is older."""

import itertools
import statistics
from collections.abc import Sequence
from datetime import timedelta

# What a run may take, and clocks may differ, before anybody is told.
PATIENCE = timedelta(minutes=5)
# Starts that make a rhythm: so many successes, the steps between them within a tenth of their median.
RHYTHM = 9
REGULAR = 0.1


def expected_age(interval: timedelta | None, starts: Sequence[float]) -> timedelta | None:
    """How old the last success may be: two steps and some patience. None where no step is known.

    A step is the interval, or what lay between the last successes (their starts in seconds, newest first)
    where that was regular and longer: with the interval off something else starts the runs, and a source
    that passes runs over to spare its budget is not late.
    """
    steps = [step for step in (interval, _rhythm(starts)) if step is not None]
    return 2 * max(steps) + PATIENCE if steps else None


def overdue(without_s: float | None, up_s: float, expected: timedelta | None) -> str | None:
    """Why a source counts as overdue, in a line; None where it does not.

    `without_s` is how long it has gone without a success, since its first attempt where it has had none, and
    None where nobody tried, as far as can be known for the `up_s` seconds that this process looks.
    """
    if without_s is not None and without_s < -PATIENCE.total_seconds():
        ahead = format_duration(-without_s)
        return f"its last run is dated {ahead} ahead of the database's clock: a clock was set back"
    if expected is None:
        return None
    waited_s = up_s if without_s is None else without_s
    if waited_s <= expected.total_seconds():
        return None
    what = "no run took it up" if without_s is None else "no success"
    limit = format_duration(expected.total_seconds())
    return f"overdue: {what} for {format_duration(waited_s)}, expected within {limit}"


def _rhythm(starts: Sequence[float]) -> timedelta | None:
    if len(starts) < RHYTHM:
        return None
    steps = [later - earlier for later, earlier in itertools.pairwise(starts)]
    median = statistics.median(steps)
    off = statistics.median(abs(step - median) for step in steps)
    return timedelta(seconds=median) if median > 0 and off <= REGULAR * median else None


def format_duration(seconds: float) -> str:
    """A time in hours, minutes and seconds: `3:05:00`, `2 days, 4:00:00`."""
    return f"{'-' if seconds < 0 else ''}{timedelta(seconds=round(abs(seconds)))}"
