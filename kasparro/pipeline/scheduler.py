"""The background loop of a process: elects a leader, starts runs, and ends them when the service stops."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Self

import structlog

from kasparro.concurrency import failure, timeout
from kasparro.errors import DatabaseUnavailable, LeaseLost, RunInProgress
from kasparro.pipeline.identity import options_of
from kasparro.pipeline.retry_schedule import RetrySchedule
from kasparro.pipeline.run import STOP_GRACE_S, Run
from kasparro.pipeline.source_run import Trigger
from kasparro.settings import Settings
from kasparro.sources import registry
from kasparro.sources.base import utc_now
from kasparro.store.locks import AdvisoryLease
from kasparro.store.pool import Database
from kasparro.store.runs import last_start, mark_abandoned_runs, unavailable_sources
from kasparro.supervision import Supervisor

log = structlog.get_logger()

# How long a run may take to end after it was terminated at shutdown.
TERMINATE_S = 1.0
# How often another process tries to become leader, and how often an unavailable database is tried again.
CHECK_S = 5.0


class Scheduler:
    """The scheduler of one process, as a context manager.

    One of all processes on a database is the leader. Its scheduler starts a run at once and then one per
    interval. The interval is measured on the monotonic clock, so a change of the wall clock does not move a
    run. Sources that failed with a transient error are retried between these runs.

    The loop first calls `prepare`. If the database is unavailable, the loop waits and begins again with
    `prepare`. `supervisor` restarts the loop if it fails. With `runs_at_start=False`, the first run starts
    when the existing schedule says.
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
        # Built once per process, since consecutive runs share the rate limits of the upstreams.
        self._sources = registry.build(settings, settings.sources)
        self._retries = RetrySchedule(settings.interval) if settings.interval else None
        self._supervisor = supervisor or Supervisor()
        self._stop = asyncio.Event()
        self._lease = AdvisoryLease(database, "lead")
        # A process that replaces another one follows the existing schedule.
        self._ran_at_start = not runs_at_start
        self._api_runs: set[asyncio.Task[None]] = set()
        self.next_run_at: datetime | None = None
        """When the next run is due. None during a run, if no run is planned, or if this process does not
        know."""

    async def __aenter__(self) -> Self:
        self._loop = self._supervisor.start("scheduler", self._keep_running)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        running = {self._loop.task, *self._api_runs}
        _, late = await asyncio.wait(running, timeout=STOP_GRACE_S)
        if late:
            log.warning("run_terminated_by_shutdown", reason="its batch did not end in time")
            self._database.terminate()
            for task in late:
                task.cancel()
            await asyncio.wait(late, timeout=TERMINATE_S)

    def stop(self) -> None:
        """Begin to stop: start no more runs, and end the current run after its current batch."""
        self._stop.set()
        self._loop.let_end()

    @property
    def is_leader(self) -> bool:
        """Whether this process starts the scheduled runs."""
        return self._lease.held

    async def trigger(self) -> int:
        """Start a run now and return its id. Raises RunInProgress, DatabaseUnavailable."""
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._run("api", started))
        self._api_runs.add(task)
        task.add_done_callback(self._api_runs.discard)
        task.add_done_callback(lambda ended: _report_error(ended, started))
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
        # Reads may still work, for example on a full disk. So /health has to say that no new data arrives.
        if reason is None:
            self._supervisor.clear("writes")
        else:
            self._supervisor.note("writes", f"runs wait until the database accepts writes: {reason}")

    async def _lead(self) -> None:
        interval, retries = self._settings.interval, self._retries
        if interval is None or retries is None:
            while not self._stop.is_set():
                await mark_abandoned_runs(self._database, self._clock())
                self._show_wait(None)
                await self._pause(CHECK_S)
            return
        first_try = True
        async with self._lease as lease:
            while not await lease.acquire():
                self._show_wait(None)
                if first_try:
                    log.info("another_process_leads")
                first_try = False
                self.next_run_at = await self._next_planned(interval)
                await self._pause(CHECK_S)
                if self._stop.is_set():
                    return
            # The session of the lease is on a server that accepts writes. A run that cannot write reports it.
            self._show_wait(None)
            if not first_try:
                log.info("leadership_taken")
            await mark_abandoned_runs(self._database, self._clock())
            trigger: Trigger = "startup" if first_try and not self._ran_at_start else "schedule"
            due = time.monotonic() + (0 if trigger == "startup" else await self._seconds_left(interval))
            if trigger != "startup":
                await self._adopt_retries(retries)
            self._ran_at_start = True
            while lease.held and not self._stop.is_set():
                left = due - time.monotonic()
                self.next_run_at = self._clock() + timedelta(seconds=left) if left > 0 else None
                wait = min(due, retries.next_at) - time.monotonic()
                if wait > 0:
                    # In short steps, to notice soon that the lease is lost or that a run elsewhere crashed.
                    await self._pause(min(wait, CHECK_S))
                    if await mark_abandoned_runs(self._database, self._clock()):
                        due = min(due, time.monotonic() + await self._seconds_left(interval))
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

    async def _adopt_retries(self, retries: RetrySchedule) -> None:
        # The previous leader would have retried these sources. Its pauses are not known here.
        for source in await unavailable_sources(self._database, [source.name for source in self._sources]):
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
            budget=partial(registry.monthly_calls, self._settings),
            interval=self._settings.interval,
            clock=self._clock,
            retention=self._settings.retention,
            on_wait=self._show_wait,
            assets=options_of(self._settings),
        )
        async with run:
            # The run is inserted, so the database accepts writes.
            self._show_wait(None)
            if started is not None and not started.done():
                started.set_result(run.id)
            try:
                await run.work(self._stop)
            except LeaseLost as error:
                log.warning("run_lease_lost", run=run.id, reason=str(error))
                return
        if self._retries is not None and not self._stop.is_set():
            for source, transient in run.transient_failures.items():
                if transient is None:
                    self._retries.settled(source)
                else:
                    self._retries.failed(source, transient.not_before_s)

    async def _next_planned(self, interval: timedelta) -> datetime | None:
        last = await last_start(self._database)
        return last + interval if last else None

    async def _seconds_left(self, interval: timedelta) -> float:
        """Seconds until the next run is due: one interval after the last run that any process started."""
        planned = await self._next_planned(interval)
        left = (planned - self._clock()).total_seconds() if planned else 0.0
        # A last start in the future means that a clock was set back. Never wait longer than one interval.
        return min(max(left, 0.0), interval.total_seconds())

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with timeout(seconds):
                await self._stop.wait()


def _report_error(ended: asyncio.Task[None], started: asyncio.Future[int]) -> None:
    """Pass the error of a run that did not start to the waiting caller; log the error of one that did."""
    error = failure(ended)
    if started.done():
        if error is not None:
            log.error("run_failed", exc_info=error)
    elif error is not None:
        started.set_exception(error)
