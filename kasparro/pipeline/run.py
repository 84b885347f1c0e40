"""One run: the sources side by side, under one lock, from its first record to its outcome."""

import asyncio
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Self

import structlog

from kasparro.concurrency import run_together, timeout
from kasparro.errors import DatabaseUnavailable, KasparroError, LeaseLost, RunInProgress, one_line
from kasparro.model.payload import Retention
from kasparro.pipeline.payloads import PayloadRecorder
from kasparro.pipeline.retry import DatabaseRetry
from kasparro.pipeline.source_run import Outcome, RunOptions, SourceRun, Status, TransientFailure, Trigger
from kasparro.sources.base import Source, utc_now
from kasparro.store import row_versions
from kasparro.store.loader import Loader
from kasparro.store.pool import Database
from kasparro.store.runs import AdvisoryLease, RunRecord

log = structlog.get_logger()

# A stopping service has 10 s: requests get the first few, the batch under way the rest.
STOP_GRACE_S = 6.0
# How long a run that broke off tries to write that it did.
ABANDON_S = 2.0


def no_limit(source: str) -> int | None:
    """The budget of a source that has none."""
    del source
    return None


def ignore_progress(source: str, done: float, total: float | None) -> None:
    """Progress that nobody looks at."""


class Run:
    """One run, as a context: entering takes the run lock and writes the run's first record, leaving gives
    the lock back.

    What the sources are answered is kept as `retention` says, and what is beyond it is trimmed. A replay
    gives `fetched_at` in its place: when the run ended whose payloads are read again. What was told since
    stands.

    Entering raises RunInProgress where another run is at work, and DatabaseUnavailable.
    """

    def __init__(
        self,
        database: Database,
        sources: Sequence[Source],
        trigger: Trigger,
        *,
        budget: Callable[[str], int | None] = no_limit,
        interval: timedelta | None = None,
        on_progress: Callable[[str, float, float | None], None] = ignore_progress,
        clock: Callable[[], datetime] = utc_now,
        retention: Retention | None = None,
        fetched_at: datetime | None = None,
        on_wait: Callable[[str | None], None] = lambda reason: None,
    ) -> None:
        self._database = database
        self._on_wait = on_wait
        self._sources = sources
        self._options = RunOptions(
            trigger=trigger, interval=interval, budget=budget, on_progress=on_progress, clock=clock
        )
        self._clock = clock
        self._retention = retention
        self._fetched_at = fetched_at
        self._lock = AdvisoryLease(database, "run")
        self.transient_failures: dict[str, TransientFailure | None] = {}
        """Of each source that has ended: why trying again soon may work; None where it would not help."""

    async def __aenter__(self) -> Self:
        if not await self._lock.acquire():
            raise RunInProgress("another run is at work on this database")
        trigger, names = self._options.trigger, tuple(source.name for source in self._sources)
        try:
            self._record = await RunRecord.start(
                self._database, trigger, names, self._clock(), lock=self._lock
            )
        except BaseException:
            await self._lock.release()
            raise
        self._log = log.bind(run=self.id)
        self._log.info("run_started", trigger=trigger, sources=names)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and not isinstance(error, LeaseLost):
                # Best effort: where even this fails, the next run finds this one and marks it.
                with suppress(KasparroError, TimeoutError):
                    async with timeout(ABANDON_S):
                        await self._record.abandon(*_ended_by(error), self._clock())
        finally:
            await self._lock.release()

    @property
    def id(self) -> int:
        """The run's number, as in /runs/{id}."""
        return self._record.id

    async def work(self, stop: asyncio.Event) -> Status:
        """Work through the sources, which fail apart; `stop` ends each at its next batch border.

        Raises LeaseLost where another process has ended this run, and DatabaseUnavailable where its outcome
        could not be written: the next run then marks it interrupted.
        """
        retry = DatabaseRetry(self.id, self._lock, stop, self._on_wait)
        keeping = PayloadRecorder(self._database, self.id, self._retention, retry)
        # Before as well as after, so that runs that die one after the other do not fill the disk.
        await self._trim(keeping)
        passes = [
            SourceRun(
                source,
                self._options,
                record=self._record,
                loader=Loader(self._database, self.id, source.name, self._fetched_at),
                keeping=keeping,
                retry=retry,
            )
            for source in self._sources
        ]
        try:
            outcomes = set(await run_together(*(each.work(stop) for each in passes)))
        except BaseExceptionGroup as errors:
            raise _root_cause(errors) from errors
        self.transient_failures = {each.name: each.transient_failure for each in passes}
        if self._options.trigger == "replay":
            # What has nothing to be read again is no shortcoming of it.
            outcomes.discard("skipped")
        status = combined_status(outcomes)
        error = "stopped before its end" if status == "interrupted" else None
        await retry(lambda: self._record.finish(status, error, self._clock()))
        self._log.info("run_finished", status=status)
        if not stop.is_set():
            await self._trim(keeping)
        return status

    async def _trim(self, keeping: PayloadRecorder) -> None:
        """Delete what nobody needs any more; where that cannot be, the next run tries again."""
        now = self._clock()
        for trim in (partial(keeping.trim, now), partial(row_versions.forget, self._database, now)):
            try:
                await trim()
            except Exception as error:  # noqa: BLE001 - whatever it is, the run is none the worse for it
                self._log.warning("trim_failed", reason=one_line(error))


def combined_status(outcomes: Set[Outcome]) -> Status:
    """A run's status, from what its sources came to; one that was skipped did not succeed."""
    if "interrupted" in outcomes:
        return "interrupted"
    (only, *others) = outcomes or {"partial"}
    return "partial" if others or only == "skipped" else only


def _ended_by(error: BaseException) -> tuple[Status, str]:
    """The status and the reason of a run that this error ended."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        return "interrupted", "cut off before its end"
    if isinstance(error, KasparroError):
        return "failed", str(error)
    return "failed", f"internal error ({type(error).__name__})"


def _root_cause(errors: BaseExceptionGroup) -> BaseException:
    """Of the errors that ended a run together, the one that says most of what to do about it."""
    for kind in (LeaseLost, DatabaseUnavailable):
        if found := errors.subgroup(kind):
            return (
                _root_cause(found)
                if isinstance(found.exceptions[0], BaseExceptionGroup)
                else found.exceptions[0]
            )
    first = errors.exceptions[0]
    return _root_cause(first) if isinstance(first, BaseExceptionGroup) else first
