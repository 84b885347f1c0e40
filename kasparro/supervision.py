"""Restarts background tasks that end, logs why they ended, and reports it for /health."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import msgspec
import structlog

from kasparro.concurrency import cancel_all, failure
from kasparro.errors import KasparroError, one_line

log = structlog.get_logger()

# The pause before a restart: it doubles with each failure in a row.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
# A task that has worked for this long since its restart is healthy again.
HEALTHY_AFTER_S = 60.0

Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class _Problem(msgspec.Struct):
    """`line` is shown until the time `until` (of `time.monotonic`). `failures` counts failures in a row."""

    failures: int
    line: str
    until: float


class Supervisor:
    """The background tasks of one process, and their current and recent problems by name."""

    def __init__(self) -> None:
        self._problems: dict[str, _Problem] = {}

    def start(self, name: str, work: Work) -> "BackgroundTask":
        """Start this work. Restart it whenever it ends, until `stop` or `let_end` is called."""
        return BackgroundTask(self, name, work)

    def record_failure(
        self,
        name: str,
        error: BaseException | None,
        *,
        event: str = "background_task_failed",
        **fields: object,
    ) -> float:
        """Log that a task ended with `error`; None: it returned. Returns the seconds until its restart."""
        known = self._problems.get(name)
        now = time.monotonic()
        failures = known.failures + 1 if known is not None and now < known.until else 1
        pause = min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16), LONGEST_PAUSE_S)
        expected = error is None or isinstance(error, KasparroError)
        reason = "it returned before it was stopped" if error is None else one_line(error)
        log.error(
            event,
            task=name,
            reason=reason,
            failures=failures,
            again_in_s=pause,
            exc_info=None if expected else error,
            **fields,
        )
        # Errors of other kinds may contain SQL or addresses, which /health must not show.
        shown = reason if expected else f"{type(error).__name__}; the log has the details"
        line = f"{name} failed and is started again: {shown}"
        self._problems[name] = _Problem(failures, line, now + pause + HEALTHY_AFTER_S)
        return pause

    def note(self, name: str, line: str) -> None:
        """Show a problem other than a failed task, for `HEALTHY_AFTER_S` seconds or until `clear`."""
        self._problems[name] = _Problem(0, line, time.monotonic() + HEALTHY_AFTER_S)

    def clear(self, name: str) -> None:
        """Forget the problem of this name."""
        self._problems.pop(name, None)

    def problems(self) -> list[str]:
        """The current and recent problems, one line each."""
        now = time.monotonic()
        return [problem.line for problem in self._problems.copy().values() if now < problem.until]


class BackgroundTask:
    """Work that is restarted after a pause whenever it ends, until `stop`.

    A callback of the event loop restarts it, because a task for this could itself end unnoticed.
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
        """The running task, or the last one."""
        return self._task

    def let_end(self) -> None:
        """Let the work end: from now on, do not restart it."""
        self._may_end = True
        if self._timer is not None:
            self._timer.cancel()

    async def stop(self) -> None:
        """Cancel the work and wait until it has ended."""
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
