"""One source's part in a run: loads its batches, counts its calls, records its outcome."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import datetime, timedelta
from typing import Literal

import msgspec
import structlog
from asyncpg import Record as Row
from structlog.contextvars import bind_contextvars

from kasparro.concurrency import failure
from kasparro.errors import DatabaseUnavailable, LeaseLost, NothingToDo, SourceError, StatementTimeout
from kasparro.model.batch import Batch, BatchBuilder
from kasparro.model.profile import MIN_OBJECTS, Profile, merge_profiles
from kasparro.model.record import Reject
from kasparro.pipeline import circuit_breaker
from kasparro.pipeline.circuit_breaker import Circuit
from kasparro.pipeline.contracts import ContractLoader
from kasparro.pipeline.payloads import PayloadRecorder
from kasparro.pipeline.quality.anomalies import BASELINE_RUNS
from kasparro.pipeline.quality.assess import QualityReport, assess
from kasparro.pipeline.retry import DatabaseRetry
from kasparro.sources.base import Source, SourceContext
from kasparro.sources.http import UpstreamError
from kasparro.sources.page_schedule import MonthlyCalls
from kasparro.store.archive_files import FileConflict, Settled
from kasparro.store.listings import ListReport
from kasparro.store.loader import Loader
from kasparro.store.runs import RunRecord
from kasparro.tracing import traced

log = structlog.get_logger()

# How many rejected files a run logs, and how many its error names. The table `rejects` has more.
FILES_LOGGED = 50
FILES_NAMED = 3

Trigger = Literal["startup", "schedule", "retry", "api", "etl", "replay", "forget"]
Status = Literal["succeeded", "partial", "failed", "interrupted"]
Outcome = Literal[Status, "skipped"]


class TransientFailure(msgspec.Struct, frozen=True):
    """A failure that may go away. A retry before `not_before_s` is useless."""

    not_before_s: float = 0.0


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What all source runs of a run share.

    `interval` is the time between runs, None if unknown. `budget(source)` is the source's monthly call limit,
    None for no limit. `on_progress(source, done, total)` reports progress in the source's unit, and
    `on_loaded(source, records)` the records of each batch.
    """

    trigger: Trigger
    interval: timedelta | None
    budget: Callable[[str], int | None]
    on_progress: Callable[[str, float, float | None], None]
    on_loaded: Callable[[str, int], None]
    clock: Callable[[], datetime]


class SourceRun:
    """Runs one source once. `on_read` is called when the source has given its last batch."""

    def __init__(
        self,
        source: Source,
        options: RunOptions,
        *,
        record: RunRecord,
        loader: Loader,
        payloads: PayloadRecorder,
        retry: DatabaseRetry,
        on_read: Callable[[], None],
    ) -> None:
        self._source = source
        self._name = source.name
        self._options = options
        self._clock = options.clock
        self._record = record
        self._loader = loader
        self._payloads = payloads
        self._retry = retry
        self._on_read = on_read
        self._calls = 0
        self._reject_kinds: Counter[str] = Counter()
        self._invalid: Counter[str] = Counter()
        self._files_rejected = 0
        self._first_files: list[Reject] = []
        self._complete_file = False
        self._rejected_keys: set[str | None] = set()
        self._taken_back = 0
        self._forgotten: Settled | None = None
        self._profile: Profile | None = None
        self.name = source.name
        self.transient_failure: TransientFailure | None = None

    @traced("source run", lambda self, stop: {"kasparro.source": self.name})
    async def work(self, stop: asyncio.Event) -> Outcome:
        """Load all batches of the source and record its outcome. `stop` ends it after the current batch. The
        task is this source run's own, and its log lines name the source.

        Raises LeaseLost, and DatabaseUnavailable if the outcome could not be recorded.
        """
        bind_contextvars(source=self._name)
        circuit = await self._circuit()
        if circuit.rests_until is not None and self._options.trigger in {"schedule", "retry"}:
            rest_s = (circuit.rests_until - self._clock()).total_seconds()
            self.transient_failure = TransientFailure(rest_s)
            return await self._skip(
                f"its last {circuit_breaker.FAILURES} runs failed; the next attempt is after "
                f"{circuit.rests_until:%H:%M:%S} UTC"
            )
        context = self._context(circuit)
        stopped, failure, unavailable = False, None, False
        listed: ListReport | None = None
        try:
            stopped = await self._load_all(self._source.extract(context), stop)
            listed = await self._settle_listings(context)
        except NothingToDo as nothing:
            return await self._skip(str(nothing))
        except SourceError as error:
            failure, unavailable = str(error), isinstance(error, UpstreamError)
            if isinstance(error, UpstreamError) and error.transient:
                self.transient_failure = TransientFailure(error.retry_after_s or 0.0)
        except LeaseLost:
            raise
        except (DatabaseUnavailable, StatementTimeout) as error:
            # The outcome may still be recorded: it fits on a full disk, and needs no locked data table.
            stopped, failure = stop.is_set(), str(error)
            if isinstance(error, DatabaseUnavailable):
                self.transient_failure = TransientFailure()
        except Exception as error:
            log.exception("source_failed")
            failure = f"internal error ({type(error).__name__}); the log has the details"
        counts = await self._retry(lambda: self._record.counts(self._name))
        # A rejected file counts as one record, but says nothing about the records that were read.
        rejected, fetched = (counts[name] - self._files_rejected for name in ("rejected", "fetched"))
        if failure is None and rejected * 2 > fetched:
            context.summary.add_problem(self._rejection_summary(rejected, fetched))
        if self._options.trigger != "forget":
            for disagreement in await self._retry(self._loader.disagreements):
                context.summary.add_problem(disagreement)
        if self._forgotten is not None:
            context.summary.note = _forgotten_summary(self._forgotten)
        if self._files_rejected:
            context.summary.add_problem(_files_summary(self._first_files, self._files_rejected))
        quality = None if stopped else await self._assess(context, counts, listed, complete=failure is None)
        loaded = counts["valid"] > self._taken_back or self._complete_file or context.summary.loaded_before
        status, error_line = outcome_of(loaded, stopped, failure, context.summary.problems)
        if error_line and quality and (cause := _likely_cause(quality)) and counts["rejected"]:
            error_line = f"{error_line}; {cause}"
        await self._retry(
            lambda: self._record.finish_source(
                self._name,
                status,
                error_line,
                self._clock(),
                calls=self._calls,
                note=context.summary.note,
                upstream_unavailable=unavailable and status == "failed",
                assessment=quality.stored if quality else None,
                usual_list=_usual_list(context, listed, quality),
            )
        )
        if self._invalid:
            log.warning("invalid_values", fields=dict(sorted(self._invalid.items())))
        log_outcome = log.info if status == "succeeded" else log.warning
        log_outcome(
            "source_finished",
            status=status,
            **counts,
            **({"note": context.summary.note} if context.summary.note else {}),
            **({"error": error_line} if error_line else {}),
        )
        return status

    async def load_contracts(self) -> None:
        """After the outcome: load the contract lists that are due. Raises LeaseLost, DatabaseUnavailable."""
        bind_contextvars(source=self._name)
        calls = self._calls
        contracts = ContractLoader(self._source, self._loader, self._retry, self._record.id)
        await contracts.load(self._context(Circuit(probing=False, rests_until=None)))
        if self._calls > calls:
            await self._retry(lambda: self._record.save_calls(self._name, self._calls))

    async def _circuit(self) -> Circuit:
        runs = await self._retry(
            lambda: self._record.recent_source_runs(self._name, circuit_breaker.FAILURES)
        )
        return circuit_breaker.circuit([circuit_breaker.FinishedRun(*run) for run in runs], self._clock())

    def _context(self, circuit: Circuit) -> SourceContext:
        return SourceContext(
            clock=self._clock,
            file_named=lambda name: self._retry(lambda: self._loader.file_named(name)),
            known_files=lambda name, content: self._retry(lambda: self._loader.known_files(name, content)),
            known_coins=lambda: self._retry(self._loader.known_coins),
            known_pages=lambda: self._retry(self._loader.pages),
            monthly_calls=self._monthly_calls,
            interval=self._options.interval,
            probing=circuit.probing,
            count_call=self._count_call,
            uncount_call=self._uncount_call,
            save_payload=lambda payload: self._payloads.store(self._name, payload),
            progress=lambda done, total: self._options.on_progress(self._name, done, total),
        )

    async def _skip(self, reason: str) -> Literal["skipped"]:
        await self._retry(lambda: self._record.finish_source(self._name, "skipped", reason, self._clock()))
        log.warning("source_skipped", reason=reason)
        return "skipped"

    async def _load_all(self, batches: AsyncGenerator[Batch, None], stop: asyncio.Event) -> bool:
        """Load each batch while the source builds the next one. True if `stop` came before the end."""

        given = False

        async def next_batch() -> Batch | None:
            nonlocal given
            batch = await anext(batches, None)
            if batch is None and given:
                self._on_read()
            given = True
            return batch

        stopping = asyncio.create_task(stop.wait())
        coming = asyncio.create_task(next_batch())
        try:
            while True:
                await asyncio.wait({coming, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if coming.done() and (error := failure(coming)) is not None:
                    raise error
                batch = coming.result() if coming.done() else None
                if coming.done() and batch is None:
                    return False
                if batch is None or stop.is_set():
                    return True
                coming = asyncio.create_task(next_batch())
                if self._options.trigger == "replay" or not _is_unusable(batch):
                    await self._load(batch)
                    self._options.on_loaded(self._name, batch.fetched)
                    continue
                # No record of this page was valid, so the upstream's format has changed and later pages will
                # be no better. Earlier pages stay loaded. The page is not recorded as crawled, so a run that
                # resumes the crawl starts with it.
                await self._load(msgspec.structs.replace(batch, page=None))
                raise SourceError(self._rejection_summary(batch.fetched, batch.fetched))
        finally:
            stopping.cancel()
            coming.cancel()
            await asyncio.wait({coming, stopping})
            await batches.aclose()

    async def _load(self, batch: Batch) -> None:
        if batch.page is not None or batch.profile is not None:
            # An API's batch. A page that has not changed comes without records, and so without a profile.
            self._profile = merge_profiles([self._profile or Profile(), batch.profile or Profile()])
        self._reject_kinds.update(
            f"{reject.field}: {reject.kind}" if reject.field else reject.kind
            for reject in batch.rejects
            if not reject.is_file
        )
        key = None if batch.checkpoint is None else batch.checkpoint.key
        if key in self._rejected_keys:
            # The source does not know that the file is rejected, and still reads it.
            return
        self._invalid.update(value.field for value in batch.invalid)
        try:
            settled = await self._retry(lambda: self._loader.load(batch, self._clock()))
        except FileConflict as conflict:
            self._rejected_keys.add(key)
            batch = _rejected(batch, str(conflict))
            settled = await self._retry(lambda: self._loader.load(batch, self._clock()))
            self._taken_back += settled.removed + settled.changed + settled.kept
        if batch.forgets is not None:
            self._forgotten = settled
        self._complete_file |= batch.checkpoint is not None and batch.checkpoint.complete
        for reject in batch.rejects:
            if reject.is_file:
                self._note_file(reject)

    def _note_file(self, reject: Reject) -> None:
        """Count a rejected file. Only the first ones are logged and named, since there may be thousands."""
        self._files_rejected += 1
        if self._files_rejected <= FILES_NAMED:
            self._first_files.append(reject)
        if self._files_rejected <= FILES_LOGGED:
            fields = {"setting": reject.setting} if reject.setting else {}
            log.warning("file_rejected", file=reject.location, reason=reject.reason, **fields)
        elif self._files_rejected == FILES_LOGGED + 1:
            log.warning("more_files_rejected", logged=FILES_LOGGED)

    async def _settle_listings(self, context: SourceContext) -> ListReport | None:
        """Settle which coins are delisted. Archives list no coins, and a replay reads an old list."""
        if self._profile is None or self._options.trigger == "replay":
            return None
        summary = context.summary
        return await self._retry(
            lambda: self._loader.settle_listings(summary.list_began_at, self._clock(), summary.record_limit)
        )

    async def _assess(
        self, context: SourceContext, counts: Row, listed: ListReport | None, *, complete: bool
    ) -> QualityReport | None:
        # Replayed payloads are old and say nothing about what the upstream sends today.
        profile = self._profile
        if profile is None or self._options.trigger == "replay":
            return None
        baseline = await self._retry(lambda: self._record.baseline(self._name, BASELINE_RUNS))
        return await assess(
            *(self._name, baseline, profile, self._loader.price_moves, listed),
            run_id=self._record.id,
            at=self._clock(),
            fetched=counts["fetched"],
            valid=counts["valid"],
            complete=complete and not context.summary.problems,
            planned=context.summary.planned_share,
            bound=context.summary.record_limit,
        )

    def _rejection_summary(self, rejected: int, fetched: int) -> str:
        most_common = self._reject_kinds.most_common(1)
        return f"{rejected:,} of {fetched:,} records were rejected" + "".join(
            f", most often: {reason}" for reason, _ in most_common
        )

    async def _monthly_calls(self) -> MonthlyCalls | None:
        """Return the month's calls, None for no limit. Raises SourceError if none are left."""
        limit, now = self._options.budget(self._name), self._clock()
        if limit is None:
            return None
        remaining = limit - await self._retry(lambda: self._record.calls(self._name, now))
        if remaining <= 0:
            raise _budget_spent(limit, now)
        return MonthlyCalls(limit=limit, remaining=remaining)

    async def _count_call(self) -> None:
        limit, now = self._options.budget(self._name), self._clock()
        if not await self._retry(lambda: self._record.count_call(self._name, now, limit)):
            raise _budget_spent(limit, now)
        self._calls += 1

    async def _uncount_call(self) -> None:
        await self._retry(lambda: self._record.uncount_call(self._name, self._clock()))
        self._calls -= 1


def outcome_of(
    loaded: bool, stopped: bool, failure: str | None, problems: Sequence[str]
) -> tuple[Status, str | None]:
    """Return a source run's status, and its error in one line.

    After a problem or a failure, the status is `partial` if some of the source is loaded, by this run or
    unchanged by an earlier one, and `failed` if nothing is. So the same input always has the same outcome.
    """
    errors = [*problems, *([failure] if failure else [])]
    line = (
        f"{errors[-1]} (and {len(errors) - 1} more before it)" if len(errors) > 1 else "".join(errors) or None
    )
    if stopped:
        return "interrupted", line or "stopped before its end"
    if errors:
        return ("partial" if loaded else "failed"), line
    return "succeeded", None


def _files_summary(files: Sequence[Reject], count: int) -> str:
    """Return one line about rejected files: the first names, and why the first file was rejected."""
    if count == 1:
        return files[0].summary
    names = ", ".join(reject.location or "" for reject in files)
    more = f" and {count - len(files):,} more" if count > len(files) else ""
    return f"{count:,} files were rejected ({names}{more}); {files[0].summary}"


def _rejected(batch: Batch, reason: str) -> Batch:
    """Return a batch that rejects the file of this one, and takes back what its earlier batches loaded."""
    if batch.checkpoint is None:
        raise AssertionError("only a batch of a file can be in conflict with that file")
    builder = BatchBuilder()
    builder.reject(Reject(reason=reason, location=batch.checkpoint.name))
    checkpoint = msgspec.structs.replace(batch.checkpoint, complete=False, continues=None, replaces=())
    return msgspec.structs.replace(builder.take(checkpoint), rejects_file=reason)


def _forgotten_summary(settled: Settled) -> str:
    """Return one line about what forgetting a file changed."""
    return (
        f"records removed: {settled.removed:,}, now from another file: {settled.changed:,}, "
        f"also in another file: {settled.kept:,}; coins removed: {settled.coins_removed:,}, "
        f"coins with another newest record: {settled.coins_updated:,}"
    )


def _budget_spent(limit: int | None, now: datetime) -> SourceError:
    return SourceError(f"the budget of {limit} calls for {now:%B %Y} is spent; a new one starts on the first")


def _usual_list(
    context: SourceContext, listed: ListReport | None, quality: QualityReport | None
) -> datetime | None:
    """Return when the crawl of a whole list began that later lists are judged by, None if it lacks coins."""
    if listed is None or quality is None:
        return None
    lacking = any(anomaly.kind == "missing-coins" for anomaly in quality.anomalies)
    return None if lacking else context.summary.list_began_at


def _is_unusable(batch: Batch) -> bool:
    """Whether a batch is from an API, large enough to judge, and without any valid record."""
    return batch.profile is not None and not batch.valid and batch.fetched >= MIN_OBJECTS


def _likely_cause(quality: QualityReport) -> str | None:
    """Return the field change that most likely caused the rejects, in one line."""
    changes = [drift for drift in quality.drift if drift.change in {"vanished", "type"}]
    if not changes:
        return None
    more = f" (and {len(changes) - 1} more changes)" if len(changes) > 1 else ""
    return f"{changes[0].summary}{more}"
