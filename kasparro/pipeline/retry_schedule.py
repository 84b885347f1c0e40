"""When a source whose pass failed for a transient reason is tried again, before the next scheduled run."""

import time
from datetime import timedelta

import structlog

log = structlog.get_logger()

# The pause after a first failure; it doubles with each further one, up to the interval between runs.
FIRST_PAUSE_S = 30.0


class RetrySchedule:
    """The sources to try again, each with its own pauses. Where a pause would be as long as the interval, the
    scheduled runs are retry enough.
    """

    def __init__(self, interval: timedelta) -> None:
        self._interval_s = interval.total_seconds()
        self._failures: dict[str, int] = {}
        self._due: dict[str, float] = {}

    def settled(self, source: str) -> None:
        """A pass ended well, or in a way that no repetition cures: the next run is soon enough."""
        self._due.pop(source, None)
        if failures := self._failures.pop(source, 0):
            log.info("source_retries_ended", source=source, failures=failures)

    def failed(self, source: str, not_before_s: float = 0.0) -> None:
        """A pass failed for a transient reason; the upstream may have asked to wait for so long."""
        failures = self._failures[source] = self._failures.get(source, 0) + 1
        pause = max(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16), not_before_s)
        if pause >= self._interval_s:
            self._due.pop(source, None)
            return
        self._due[source] = time.monotonic() + pause
        log.info("source_retry_scheduled", source=source, failures=failures, in_s=round(pause))

    def known(self, source: str) -> bool:
        """Whether the last pass that was noted here failed."""
        return source in self._failures

    @property
    def next_at(self) -> float:
        """When the next retry is due, by time.monotonic()."""
        return min(self._due.values(), default=float("inf"))

    def due(self) -> set[str]:
        """The sources to try again now."""
        now = time.monotonic()
        return {source for source, at in self._due.items() if at <= now}
