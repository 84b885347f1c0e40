"""One run: holds the run lease, runs all sources concurrently and records the outcome."""

import asyncio
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Self

import structlog
from structlog.contextvars import bind_contextvars, unbind_contextvars

from kasparro.concurrency import cancel_all, failure, run_together, timeout
from kasparro.errors import DatabaseUnavailable, KasparroError, LeaseLost, RunInProgress, one_line
from kasparro.model.payload import Retention
from kasparro.pipeline.identity import AssetOptions, Linker, note_failure
from kasparro.pipeline.payloads import PayloadRecorder
from kasparro.pipeline.retry import DatabaseRetry
from kasparro.pipeline.source_run import Outcome, RunOptions, SourceRun, Status, TransientFailure, Trigger
from kasparro.sources import registry
from kasparro.sources.base import Source, utc_now
from kasparro.store import row_versions
from kasparro.store.loader import Loader
from kasparro.store.locks import AdvisoryLease
from kasparro.store.pool import Database
from kasparro.store.runs import RunRecord
from kasparro.tracing import traced

log = structlog.get_logger()

# A stopping service has 10 s. Requests get the first few seconds, the current batch gets the rest.
STOP_GRACE_S = 6.0
# How long a failing run tries to record that it failed.
ABANDON_S = 2.0


def no_limit(source: str) -> int | None:
    """A call budget without a limit."""
    del source
    return None


def ignore_progress(source: str, done: float, total: float | None) -> None:
    """A progress callback that does nothing."""


def ignore_loaded(source: str, records: int) -> None:
    """A callback for loaded batches that does nothing."""


class Run:
    """One run, as a context manager: entering takes the run lease and inserts the run, leaving returns the
    lease.

    `budget(source)` is the source's monthly call limit, None for no limit. `retention` says which payloads
    to store, and expired ones are deleted; without it none are stored or deleted. A replay passes
    `fetched_at` instead, the end of the replayed run: records fetched after it win over replayed ones.
    `assets` says how rows are linked to assets; without it none are.

    Entering raises RunInProgress if another run is active, and DatabaseUnavailable.
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
        on_loaded: Callable[[str, int], None] = ignore_loaded,
        clock: Callable[[], datetime] = utc_now,
        retention: Retention | None = None,
        fetched_at: datetime | None = None,
        on_wait: Callable[[str | None], None] = lambda reason: None,
        assets: AssetOptions | None = None,
    ) -> None:
        self._database = database
        self._assets = assets
        self._on_wait = on_wait
        self._sources = sources
        self._options = RunOptions(
            trigger=trigger,
            interval=interval,
            budget=budget,
            on_progress=on_progress,
            on_loaded=on_loaded,
            clock=clock,
        )
        self._clock = clock
        self._retention = retention
        self._fetched_at = fetched_at
        self._lease = AdvisoryLease(database, "run")
        self.transient_failures: dict[str, TransientFailure | None] = {}
        """By source, after `work`: the failure if an early retry may help, else None."""

    async def __aenter__(self) -> Self:
        if not await self._lease.acquire():
            raise RunInProgress("another run is at work on this database")
        trigger, names = self._options.trigger, tuple(source.name for source in self._sources)
        try:
            self._record = await RunRecord.start(
                self._database, trigger, names, self._clock(), lock=self._lease
            )
        except BaseException:
            await self._lease.release()
            raise
        # Every line that is logged in the run has its id, whichever module logs it.
        bind_contextvars(run=self.id)
        log.info("run_started", trigger=trigger, sources=names)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and not isinstance(error, LeaseLost):
                # Best effort. If this fails, the next run marks this one as interrupted.
                with suppress(KasparroError, TimeoutError):
                    async with timeout(ABANDON_S):
                        await self._record.abandon(*_outcome_of_error(error), self._clock())
        finally:
            await self._lease.release()
            unbind_contextvars("run")

    @property
    def trigger(self) -> Trigger:
        """Why the run was started."""
        return self._options.trigger

    @property
    def id(self) -> int:
        """The run's id, as in /runs/{id}."""
        return self._record.id

    @traced("run", lambda self, stop: {"kasparro.run": self.id, "kasparro.trigger": self.trigger})
    async def work(self, stop: asyncio.Event) -> Status:
        """Run all sources and record the outcome. `stop` ends each source after its current batch.

        One source's failure does not affect the others. Raises LeaseLost if another process ended this run,
        and DatabaseUnavailable if the outcome could not be recorded: the next run then marks this one as
        interrupted.
        """
        if self._assets is None:
            return await self._work(stop, None)
        async with Linker(
            *(self._database, self.id, self._assets),
            {source.name for source in self._sources} & set(registry.api_names()),
            self._clock,
            always=self._options.trigger == "replay",
        ) as linker:
            return await self._work(stop, linker)

    async def _work(self, stop: asyncio.Event, linker: Linker | None) -> Status:
        retry = DatabaseRetry(self.id, self._lease, stop, self._on_wait)
        recorder = PayloadRecorder(self._database, self.id, self._retention, retry)
        # This is done before the run, too. Otherwise runs that crash one after another would fill the disk.
        await self._trim(recorder)
        unread = {source.name for source in self._sources}

        def note_read(source: str) -> None:
            unread.discard(source)
            if linker is not None and not unread:
                linker.decide_early()

        source_runs = [
            SourceRun(
                source,
                self._options,
                record=self._record,
                loader=Loader(
                    *(self._database, self.id, source.name, self._fetched_at),
                    limits=None if self._assets is None else self._assets.limits,
                ),
                payloads=recorder,
                retry=retry,
                on_read=partial(note_read, source.name),
            )
            for source in self._sources
        ]
        try:
            ended = await run_together(*(source_run.work(stop) for source_run in source_runs))
        except BaseExceptionGroup as errors:
            raise _root_cause(errors) from errors
        self.transient_failures = {
            source_run.name: source_run.transient_failure for source_run in source_runs
        }
        await self._load_contracts(
            [
                source_run
                for source_run, outcome in zip(source_runs, ended, strict=True)
                if outcome in {"succeeded", "partial"}
            ],
            stop,
        )
        outcomes = set(ended)
        if linker is not None and not stop.is_set():
            await self._link_rows(linker, retry)
        if self._options.trigger == "replay":
            # A source without payloads does not make a replay partial.
            outcomes.discard("skipped")
        status = combined_status(outcomes)
        error = "stopped before its end" if status == "interrupted" else None
        await retry(lambda: self._record.finish(status, error, self._clock()))
        log.info("run_finished", status=status)
        if not stop.is_set():
            await self._trim(recorder)
        return status

    async def _load_contracts(self, source_runs: Sequence[SourceRun], stop: asyncio.Event) -> None:
        """Load the contract lists of sources whose figures are recorded, until `stop`."""
        if self._options.trigger == "forget":
            return
        stopping = asyncio.create_task(stop.wait())
        loading = asyncio.create_task(run_together(*(each.load_contracts() for each in source_runs)))
        try:
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            error = failure(loading) if loading.done() else None
        finally:
            await cancel_all((loading, stopping))
        if error is not None:
            raise _root_cause(error) if isinstance(error, BaseExceptionGroup) else error

    async def _link_rows(self, linker: Linker, retry: DatabaseRetry) -> None:
        """Link the rows to assets. After a failure, the next run tries again; what is loaded is valid."""
        try:
            await retry(linker.link_rows)
        except LeaseLost:
            raise
        except KasparroError as error:
            log.warning("assets_not_resolved", reason=str(error))
            await self._note_unresolved(str(error))
        except Exception as error:
            log.error("assets_not_resolved", reason=one_line(error), exc_info=error)
            await self._note_unresolved(one_line(error))

    async def _note_unresolved(self, reason: str) -> None:
        """Note the reason for /health. Without the database, only the log has it."""
        with suppress(KasparroError):
            await note_failure(self._database, reason)

    async def _trim(self, recorder: PayloadRecorder) -> None:
        """Delete expired payloads and row versions. After a failure, the next run tries again."""
        now = self._clock()
        for trim in (partial(recorder.trim, now), partial(row_versions.delete_expired, self._database, now)):
            try:
                await trim()
            except Exception as error:  # noqa: BLE001 - no error here may fail the run
                log.warning("trim_failed", reason=one_line(error))


def combined_status(outcomes: Set[Outcome]) -> Status:
    """Return a run's status from the outcomes of its sources. A skipped source counts as not succeeded."""
    if "interrupted" in outcomes:
        return "interrupted"
    (first, *others) = outcomes or {"partial"}
    return "partial" if others or first == "skipped" else first


def _outcome_of_error(error: BaseException) -> tuple[Status, str]:
    """Return the status and the reason of a run that this error ended."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        return "interrupted", "terminated before its end"
    if isinstance(error, KasparroError):
        return "failed", str(error)
    return "failed", f"internal error ({type(error).__name__})"


def _root_cause(errors: BaseExceptionGroup) -> BaseException:
    """Return the most useful of several errors: LeaseLost, else DatabaseUnavailable, else the first."""
    for kind in (LeaseLost, DatabaseUnavailable):
        if found := errors.subgroup(kind):
            return _first(found)
    return _first(errors)


def _first(errors: BaseExceptionGroup) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
