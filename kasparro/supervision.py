"""Sees that no background task of a process ends unnoticed: it is logged, shown and started again."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import msgspec
import structlog

from kasparro.concurrency import cancel_all, failure
from kasparro.errors import KasparroError, one_line

log = structlog.get_logger()

# Pauses before a task is started again: the first, doubled with each failure up to the longest.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
# A task that has worked for so long since it was started again is sound.
HEALTHY_AFTER_S = 60.0

Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class Trouble(msgspec.Struct):
    """What is wrong with a task: how often it failed in a row, a line on it, and until when to show that."""

    failures: int
    line: str
    until: float


class Supervisor:
    """The background tasks of one process, by name, and which of them are in trouble."""

    def __init__(self) -> None:
        self._troubles: dict[str, Trouble] = {}

    def start(self, name: str, work: Work) -> "BackgroundTask":
        """Keep this work going until its task is stopped."""
        return BackgroundTask(self, name, work)

    def record_failure(
        self,
        name: str,
        error: BaseException | None,
        *,
        event: str = "background_task_failed",
        **fields: object,
    ) -> float:
        """Log that a task ended before its time (None: it returned); gives the pause until its next start."""
        known = self._troubles.get(name)
        now = time.monotonic()
        failures = known.failures + 1 if known is not None and now < known.until else 1
        pause = min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16), LONGEST_PAUSE_S)
        expected = error is None or isinstance(error, KasparroError)
        reason = "it returned before the stop" if error is None else one_line(error)
        log.error(
            event,
            task=name,
            reason=reason,
            failures=failures,
            again_in_s=pause,
            exc_info=None if expected else error,
            **fields,
        )
        # Only our own errors have texts for everybody; others may hold SQL or addresses.
        shown = reason if expected else f"{type(error).__name__}; the log has the details"
        line = f"{name} failed and is started again: {shown}"
        self._troubles[name] = Trouble(failures, line, now + pause + HEALTHY_AFTER_S)
        return pause

    def note(self, name: str, line: str) -> None:
        """Show a line under this name for a while, or until `clear`, for what is no failure of a task."""
        self._troubles[name] = Trouble(0, line, time.monotonic() + HEALTHY_AFTER_S)

    def clear(self, name: str) -> None:
        """Show nothing under this name any more."""
        self._troubles.pop(name, None)

    def problems(self) -> list[str]:
        """What is wrong, or was lately, a line each."""
        now = time.monotonic()
        return [trouble.line for trouble in self._troubles.copy().values() if now < trouble.until]


class BackgroundTask:
    """Work that goes on until `stop`: however it ends before, it is started again after a pause.

    Callbacks start it, not another task, which could end unnoticed itself.
    """

    def __init__(self, supervisor: Supervisor, name: str, work: Work) -> None:
        self._supervisor = supervisor
        self._name = name
        self._work = work
        self._may_end = False
        self._timer: asyncio.TimerHandle | None = None
        self._start()

    @property
    def task(self) -> asyncio.Task[None]:
        """The task that works now, or worked last."""
        return self._task

    def let_end(self) -> None:
        """From now on the work may end by itself, and is not started again."""
        self._may_end = True
        if self._timer is not None:
            self._timer.cancel()

    async def stop(self) -> None:
        """Cancel the work and wait for its end."""
        self.let_end()
        await cancel_all({self._task})

    def _start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=self._name)
        self._task.add_done_callback(self._ended)

    async def _run(self) -> None:
        await self._work()

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = failure(task)
        if self._may_end and (error is None or task.cancelled()):
            return
        pause = self._supervisor.record_failure(self._name, error)
        if not self._may_end:
            self._timer = asyncio.get_running_loop().call_later(pause, self._start)
