"""Decides when a source is overdue: its last success is older than its interval or rhythm allows."""

import itertools
import statistics
from collections.abc import Sequence
from datetime import timedelta

# Tolerance for the duration of a run and for differing clocks.
PATIENCE = timedelta(minutes=5)
# Successful runs form a rhythm if there are RHYTHM of them and the deviation of the steps between them is
# within REGULAR of the median step.
RHYTHM = 9
REGULAR = 0.1


def expected_age(interval: timedelta | None, starts: Sequence[float]) -> timedelta | None:
    """Return the highest age that the last success may have, None if no step is known.

    It is two steps plus PATIENCE. A step is the interval, or the rhythm of the last successes if that is
    longer. `starts` are their start times in seconds, newest first. The rhythm counts because something else
    may start the runs while the interval is off, and because a source may skip runs to save its call budget.
    """
    steps = [step for step in (interval, _rhythm(starts)) if step is not None]
    return 2 * max(steps) + PATIENCE if steps else None


def overdue(without_s: float | None, up_s: float, expected: timedelta | None) -> str | None:
    """Return in one line why a source is overdue, None if it is not.

    `without_s` is the time since its last success, or since its first attempt if it never succeeded. It is
    None if there was no attempt; then `up_s`, the uptime of this process, counts instead.
    """
    if without_s is not None and without_s < -PATIENCE.total_seconds():
        ahead = format_duration(-without_s)
        return f"its last run is dated {ahead} ahead of the database's clock: a clock was set back"
    if expected is None:
        return None
    waited_s = up_s if without_s is None else without_s
    if waited_s <= expected.total_seconds():
        return None
    what = "no run has included it" if without_s is None else "no success"
    limit = format_duration(expected.total_seconds())
    return f"overdue: {what} for {format_duration(waited_s)}, expected within {limit}"


def _rhythm(starts: Sequence[float]) -> timedelta | None:
    if len(starts) < RHYTHM:
        return None
    steps = [later - earlier for later, earlier in itertools.pairwise(starts)]
    median = statistics.median(steps)
    deviation = statistics.median(abs(step - median) for step in steps)
    return timedelta(seconds=median) if median > 0 and deviation <= REGULAR * median else None


def format_duration(seconds: float) -> str:
    """Format a duration in hours, minutes and seconds: `3:05:00`, `2 days, 4:00:00`."""
    return f"{'-' if seconds < 0 else ''}{timedelta(seconds=round(abs(seconds)))}"
