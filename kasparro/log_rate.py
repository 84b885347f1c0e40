"""Bounds how often an event is logged, so that clients and libraries cannot fill the log."""

import asyncio
import logging
from collections.abc import Callable, Hashable
from typing import Any

import structlog

EVERY_S = 10.0


class RateLimitedLog:
    """Logs what clients can cause: one line of each event per `every_s` seconds, with a count.

    The first event is written at once. Later ones within the period are counted. When it ends, one line
    stands for them all: it has the fields of the last one, and `suppressed`, the number of events since the
    line before. Use one instance per module, with constant event names, on the event loop:

        client_log = RateLimitedLog(structlog.get_logger())
        client_log.warning("connection_limit_reached", limit=limit)
    """

    def __init__(self, log: Any, every_s: float = EVERY_S) -> None:
        self._log = log
        self._rate = EventRate(every_s)

    def info(self, event: str, **fields: object) -> None:
        """Log an event that is normal operation."""
        self._submit(self._log.info, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log an event that an operator may want to act on."""
        self._submit(self._log.warning, event, fields)

    def fault(self, event: str, error: BaseException, **fields: object) -> None:
        """Log a fault of ours as an error; of each kind of error only the first has its traceback."""
        kind = type(error).__name__
        self._rate.submit(
            (event, type(error)),
            lambda: self._log.error(event, exc_info=error, **fields),
            lambda suppressed: self._log.error(event, kind=kind, **fields, suppressed=suppressed),
        )

    def _submit(self, say: Callable[..., None], event: str, fields: dict[str, object]) -> None:
        self._rate.submit(
            event,
            lambda: say(event, **fields),
            lambda suppressed: say(event, **fields, suppressed=suppressed),
        )


class LibraryLogRate(logging.Filter):
    """Lets one record of each place in a library's code through per `every_s` seconds.

    Libraries log what their peers do (a connection that was reset while it was written to), in words that
    differ each time. The place and the kind of error name the event. Outside of the event loop, where no
    client acts, everything passes.
    """

    def __init__(self, every_s: float = EVERY_S) -> None:
        super().__init__()
        self._rate = EventRate(every_s)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log this record now."""
        if isinstance(record.msg, dict) or not _on_event_loop():
            # A dict is an event of structlog: our own code says what it limits.
            return True
        first = False

        def let_through() -> None:
            nonlocal first
            first = True

        # Not its arguments: formatting may fail, which is for the handler to report.
        name, message = record.name, str(record.msg)
        kind = record.exc_info[0] if record.exc_info else None
        self._rate.submit(
            (name, record.levelno, record.pathname, record.lineno, kind),
            let_through,
            lambda suppressed: structlog.get_logger().warning(
                "library_messages_suppressed", logger=name, message=message, suppressed=suppressed
            ),
        )
        return first


class EventRate:
    """Decides which events are written: of each key the first of a period, then a summary at its end."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._periods: dict[Hashable, _Period] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, key: Hashable, first: Callable[[], None], summary: Callable[[int], None]) -> None:
        """Call `first` now; or, within a period of this key, keep `summary` for the period's end.

        The summary of the last event is called, with the number of events. It must hold no traceback, which
        would hold what the request worked with.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # The timers of another loop, which has ended, would never end their periods.
            self._loop = loop
            self._periods.clear()
        period = self._periods.get(key)
        if period is None:
            self._begin(key, loop)
            first()
        else:
            period.suppressed += 1
            period.summary = summary

    def _begin(self, key: Hashable, loop: asyncio.AbstractEventLoop) -> None:
        self._periods[key] = _Period()
        loop.call_later(self._every_s, self._end, key, loop)

    def _end(self, key: Hashable, loop: asyncio.AbstractEventLoop) -> None:
        period = self._periods.pop(key)
        if period.summary is not None:
            self._begin(key, loop)
            period.summary(period.suppressed)


class _Period:
    # The time after a line of an event in which there is no other.

    def __init__(self) -> None:
        self.suppressed = 0
        self.summary: Callable[[int], None] | None = None


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
