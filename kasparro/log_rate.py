"""Limits how often an event is logged, so that clients and libraries cannot fill the log."""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Hashable
from typing import Any

import structlog

EVERY_S = 10.0


class RateLimitedLog:
    """Logs events that clients can cause: at most one line of each event in `every_s` seconds.

    The first event is logged at once. Later events within the period are counted. At the end of the period
    one line is logged for all of them. It has the fields of the last event, and `suppressed`, the number of
    events since the previous line. Use one instance per module, with constant event names, on the event loop:

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
        """Log an unexpected error. Only the first of each type of error has a traceback."""
        kind = type(error).__name__
        self._rate.submit(
            (event, type(error)),
            lambda: self._log.error(event, exc_info=error, **fields),
            lambda suppressed: self._log.error(event, kind=kind, **fields, suppressed=suppressed),
        )

    def _submit(self, write: Callable[..., None], event: str, fields: dict[str, object]) -> None:
        self._rate.submit(
            event,
            lambda: write(event, **fields),
            lambda suppressed: write(event, **fields, suppressed=suppressed),
        )


class LibraryLogRate(logging.Filter):
    """Accepts one record from each line of a library's code in `every_s` seconds.

    Libraries log what their peers do, such as a connection that was reset during a write, with a different
    text each time. The line of code and the type of error identify the event. Records from outside the event
    loop are all accepted, because no client causes them.
    """

    def __init__(self, every_s: float = EVERY_S) -> None:
        super().__init__()
        self._rate = EventRate(every_s)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log this record now."""
        if isinstance(record.msg, dict) or not _on_event_loop():
            # A dict is an event of structlog, from our own code, which uses RateLimitedLog.
            return True
        first = False

        def accept() -> None:
            nonlocal first
            first = True

        # The text without its arguments: formatting can fail, and then the handler reports it.
        name, message = record.name, str(record.msg)
        kind = record.exc_info[0] if record.exc_info else None
        self._rate.submit(
            (name, record.levelno, record.pathname, record.lineno, kind),
            accept,
            lambda suppressed: structlog.get_logger().warning(
                "library_messages_suppressed", logger=name, message=message, suppressed=suppressed
            ),
        )
        return first


class EventRate:
    """Decides what is logged of each key: the first event of a period, then a summary at its end."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._periods: dict[Hashable, _Period] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, key: Hashable, first: Callable[[], None], summary: Callable[[int], None]) -> None:
        """Call `first` now. Within a period of this key, call `summary` at the end of the period instead.

        Only the summary of the last event is called, with the number of events, in the context of that event.
        It must not refer to a traceback, which would keep all objects of the request in memory.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # The timers of the previous loop, which has ended, will never fire.
            self._loop = loop
            self._periods.clear()
        period = self._periods.get(key)
        if period is None:
            self._begin(key, loop)
            first()
        else:
            period.suppressed += 1
            # The fields of contextvars, such as the request id, are of the same event as the others.
            context = contextvars.copy_context()
            period.summary = lambda suppressed: context.run(summary, suppressed)

    def _begin(self, key: Hashable, loop: asyncio.AbstractEventLoop) -> None:
        self._periods[key] = _Period()
        loop.call_later(self._every_s, self._end, key, loop)

    def _end(self, key: Hashable, loop: asyncio.AbstractEventLoop) -> None:
        period = self._periods.pop(key)
        if period.summary is not None:
            self._begin(key, loop)
            period.summary(period.suppressed)


class _Period:
    """The time after a logged line in which further events of its key are counted."""

    def __init__(self) -> None:
        self.suppressed = 0
        self.summary: Callable[[int], None] | None = None


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
