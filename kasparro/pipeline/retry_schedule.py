"""Decides when a source that failed for a transient reason runs again before the next scheduled run."""

import time
from datetime import timedelta

import structlog

log = structlog.get_logger()

# The pause after a first failure. It doubles with each further failure.
FIRST_PAUSE_S = 30.0


class RetrySchedule:
    """The sources to retry, each with its own pauses.

    A source whose pause would reach the interval is not retried: the next scheduled run comes first.
    """

    def __init__(self, interval: timedelta) -> None:
        self._interval_s = interval.total_seconds()
        self._failures: dict[str, int] = {}
        self._due: dict[str, float] = {}

    def settled(self, source: str) -> None:
        """Note that a source succeeded, or failed in a way that no retry can fix."""
        self._due.pop(source, None)
        if failures := self._failures.pop(source, 0):
            log.info("source_retries_ended", source=source, failures=failures)

    def failed(self, source: str, not_before_s: float = 0.0) -> None:
        """Note a transient failure; `not_before_s` is the wait that the upstream asked for."""
        failures = self._failures[source] = self._failures.get(source, 0) + 1
        pause = max(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16), not_before_s)
        if pause >= self._interval_s:
            self._due.pop(source, None)
            return
        self._due[source] = time.monotonic() + pause
        log.info("source_retry_scheduled", source=source, failures=failures, in_s=round(pause))

    def known(self, source: str) -> bool:
        """Whether the source has failed since it was last settled."""
        return source in self._failures

    @property
    def next_at(self) -> float:
        """When the next retry is due, on the clock of time.monotonic(); infinity if none is."""
        return min(self._due.values(), default=float("inf"))

    def due(self) -> set[str]:
        """The sources to retry now."""
        now = time.monotonic()
        return {source for source, at in self._due.items() if at <= now}
