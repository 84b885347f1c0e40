"""The background loop: when runs happen, in which process, and how they end when the service stops."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

import structlog

from kasparro.concurrency import failure, timeout
from kasparro.errors import DatabaseUnavailable, LeaseLost, RunInProgress
from kasparro.pipeline.retry_schedule import RetrySchedule
from kasparro.pipeline.run import STOP_GRACE_S, Run
from kasparro.pipeline.source_run import Trigger
from kasparro.settings import Settings
from kasparro.sources.base import utc_now
from kasparro.sources.registry import build
from kasparro.store.pool import Database
from kasparro.store.runs import AdvisoryLease, dead_sources, last_start, mark_abandoned_runs
from kasparro.supervision import Supervisor

log = structlog.get_logger()

# What is cut off has this long to notice.
CUT_OFF_S = 1.0
# How often a process that does not lead looks whether it could, and a lost database is asked for again.
CHECK_S = 5.0


class Scheduler:
    """The loop of one process, as a context. Of all processes on a database one leads and runs; it runs at
    its start and then every interval on the steady clock, so that a jump of the wall clock moves nothing.

    A database that is out of reach is waited for, and `prepare` readies it once it answers. Between its runs,
    sources that failed for a transient reason are tried again. `supervisor` keeps the loop going.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        prepare: Callable[[], Awaitable[None]],
        clock: Callable[[], datetime] = utc_now,
        supervisor: Supervisor | None = None,
        runs_at_start: bool = True,
    ) -> None:
        self._settings = settings
        self._database = database
        self._prepare = prepare
        self._clock = clock
        # For as long as the process: two runs within a minute share the limits that the upstreams set.
        self._sources = build(settings, settings.sources)
        self._retries = RetrySchedule(settings.interval) if settings.interval else None
        self._supervisor = supervisor or Supervisor()
        self._stop = asyncio.Event()
        self._lock = AdvisoryLease(database, "lead")
        # A process that replaces another goes on with its schedule.
        self._led = not runs_at_start
        self._runs: set[asyncio.Task[None]] = set()
        self.next_run_at: datetime | None = None
        """When the next run is due, as far as this process knows; None while one works or none will come."""

    async def __aenter__(self) -> Self:
        self._loop = self._supervisor.start("scheduler", self._keep_running)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        working = {self._loop.task, *self._runs}
        _, late = await asyncio.wait(working, timeout=STOP_GRACE_S)
        if late:
            log.warning("run_terminated_by_shutdown")
            self._database.terminate()
            for task in late:
                task.cancel()
            await asyncio.wait(late, timeout=CUT_OFF_S)

    def stop(self) -> None:
        """Begin to end: no further run starts, and the one at work ends at its next batch border."""
        self._stop.set()
        self._loop.let_end()

    @property
    def is_leader(self) -> bool:
        """Whether this process is the one that runs the loop."""
        return self._lock.held

    async def trigger(self) -> int:
        """Start a run now and return its id. Raises RunInProgress, DatabaseUnavailable."""
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._run("api", started))
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)
        task.add_done_callback(lambda ended: _pass_on(ended, started))
        return await started

    async def _keep_running(self) -> None:
        while not self._stop.is_set():
            try:
                await self._prepare()
                await self._lead()
            except DatabaseUnavailable as error:
                log.warning("waiting_for_database", reason=str(error))
                self._show_wait(str(error))
            await self._pause(CHECK_S)

    def _show_wait(self, reason: str | None) -> None:
        # Reads may go on meanwhile, as where a disk is full, so /health has to say that no data comes.
        if reason is None:
            self._supervisor.clear("writes")
        else:
            self._supervisor.note("writes", f"runs wait until the database takes writes: {reason}")

    async def _lead(self) -> None:
        interval, retries = self._settings.interval, self._retries
        if interval is None or retries is None:
            while not self._stop.is_set():
                await mark_abandoned_runs(self._database, self._clock())
                self._show_wait(None)
                await self._pause(CHECK_S)
            return
        first = True
        async with self._lock as lead:
            while not await lead.acquire():
                self._show_wait(None)
                if first:
                    log.info("another_process_leads")
                first = False
                self.next_run_at = await self._planned(interval)
                await self._pause(CHECK_S)
                if self._stop.is_set():
                    return
            # The lease is held by a session that may write; a run that still cannot says so itself.
            self._show_wait(None)
            if not first:
                log.info("leadership_taken")
            await mark_abandoned_runs(self._database, self._clock())
            trigger: Trigger = "startup" if first and not self._led else "schedule"
            due = time.monotonic() + (0 if trigger == "startup" else await self._left(interval))
            if trigger != "startup":
                await self._take_over(retries)
            self._led = True
            while lead.held and not self._stop.is_set():
                left = due - time.monotonic()
                self.next_run_at = self._clock() + timedelta(seconds=left) if left > 0 else None
                wait = min(due, retries.next_at) - time.monotonic()
                if wait > 0:
                    # In short steps, to notice soon that the lead is lost, or that a run elsewhere has died.
                    await self._pause(min(wait, CHECK_S))
                    if await mark_abandoned_runs(self._database, self._clock()):
                        due = min(due, time.monotonic() + await self._left(interval))
                    continue
                try:
                    if left > 0:
                        await self._run("retry", only=retries.due())
                        continue
                    await self._run(trigger)
                except RunInProgress:
                    log.debug("waiting_for_other_run")
                    await self._pause(CHECK_S)
                    continue
                trigger = "schedule"
                while due <= time.monotonic():
                    due += interval.total_seconds()
                log.debug("scheduler_waiting", seconds=round(due - time.monotonic(), 1))

    async def _take_over(self, retries: RetrySchedule) -> None:
        # What the process that led before would have tried again; only it knew the pauses.
        for source in await dead_sources(self._database, [source.name for source in self._sources]):
            if not retries.known(source):
                retries.failed(source)

    async def _run(
        self,
        trigger: Trigger,
        started: asyncio.Future[int] | None = None,
        *,
        only: Collection[str] | None = None,
    ) -> None:
        run = Run(
            self._database,
            [source for source in self._sources if only is None or source.name in only],
            trigger,
            budget=self._settings.monthly_calls,
            interval=self._settings.interval,
            clock=self._clock,
            retention=self._settings.retention,
            on_wait=self._show_wait,
        )
        async with run:
            # It has written its first record.
            self._show_wait(None)
            if started is not None and not started.done():
                started.set_result(run.id)
            try:
                await run.work(self._stop)
            except LeaseLost as lost:
                log.warning("run_lease_lost", run=run.id, reason=str(lost))
                return
        if self._retries is not None and not self._stop.is_set():
            for source, transient in run.transient_failures.items():
                if transient is None:
                    self._retries.settled(source)
                else:
                    self._retries.failed(source, transient.not_before_s)

    async def _planned(self, interval: timedelta) -> datetime | None:
        last = await last_start(self._database)
        return last + interval if last else None

    async def _left(self, interval: timedelta) -> float:
        """Seconds until the next run is due, from when the last one of any process began."""
        planned = await self._planned(interval)
        left = (planned - self._clock()).total_seconds() if planned else 0.0
        # A last start in the future is a clock that was set back: never wait longer than an interval.
        return min(max(left, 0.0), interval.total_seconds())

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with timeout(seconds):
                await self._stop.wait()


def _pass_on(ended: asyncio.Task[None], started: asyncio.Future[int]) -> None:
    """Give the error of a run that never began to whoever waits for its id; log that of one that did."""
    error = failure(ended)
    if started.done():
        if error is not None:
            log.error("run_failed", exc_info=error)
    elif error is not None:
        started.set_exception(error)
