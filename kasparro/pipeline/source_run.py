"""One source's part in a run, from its first batch to its outcome."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import datetime, timedelta
from typing import Literal

import msgspec
import structlog
from asyncpg import Record

from kasparro.concurrency import failure
from kasparro.errors import DatabaseUnavailable, LeaseLost, NothingToDo, SourceError, StatementTimeout
from kasparro.model.batch import Batch
from kasparro.model.profile import ENOUGH, Profile, merged
from kasparro.model.record import Reject
from kasparro.pipeline import circuit_breaker
from kasparro.pipeline.circuit_breaker import Circuit
from kasparro.pipeline.payloads import PayloadRecorder
from kasparro.pipeline.quality.anomalies import LOOKED_BACK
from kasparro.pipeline.quality.assess import QualityReport, assess
from kasparro.pipeline.retry import DatabaseRetry
from kasparro.sources.base import Source, SourceContext
from kasparro.sources.http import UpstreamError
from kasparro.sources.page_schedule import Month
from kasparro.store.loader import Loader
from kasparro.store.runs import RunRecord

log = structlog.get_logger()

# How many refused files a run logs, and how many its error names. The table of rejects has more.
FILES_LOGGED = 50
FILES_NAMED = 3

Trigger = Literal["startup", "schedule", "retry", "api", "etl", "replay"]
Status = Literal["succeeded", "partial", "failed", "interrupted"]
Outcome = Literal[Status, "skipped"]


class TransientFailure(msgspec.Struct, frozen=True):
    """A pass failed in a way that may be over soon; before `not_before_s` it is no use to try again."""

    not_before_s: float = 0.0


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the passes of one run have in common: what started it, the time between runs where that is known,
    a source's calls a month (None: nothing limits them), who watches their progress, and the clock."""

    trigger: Trigger
    interval: timedelta | None
    budget: Callable[[str], int | None]
    on_progress: Callable[[str, float, float | None], None]
    clock: Callable[[], datetime]


class SourceRun:
    """One pass over one source: its batches are loaded, its calls booked, its outcome judged and written."""

    def __init__(
        self,
        source: Source,
        options: RunOptions,
        *,
        record: RunRecord,
        loader: Loader,
        keeping: PayloadRecorder,
        retry: DatabaseRetry,
    ) -> None:
        self._source = source
        self._name = source.name
        self._options = options
        self._clock = options.clock
        self._record = record
        self._loader = loader
        self._keeping = keeping
        self._retry = retry
        self._calls = 0
        self._refusals: Counter[str] = Counter()
        self._files_refused = 0
        self._first_files: list[Reject] = []
        self._loaded_whole = False
        self._profile: Profile | None = None
        self.name = source.name
        self.transient_failure: TransientFailure | None = None
        self._log = log.bind(run=record.id, source=source.name)

    async def work(self, stop: asyncio.Event) -> Outcome:
        """Work through the source and write its outcome; `stop` ends it at the next batch border.

        Raises LeaseLost, and DatabaseUnavailable where the outcome could not be written.
        """
        circuit = await self._circuit()
        if circuit.rests_until is not None and self._options.trigger in {"schedule", "retry"}:
            rest_s = (circuit.rests_until - self._clock()).total_seconds()
            self.transient_failure = TransientFailure(rest_s)
            return await self._skip(
                f"its last {circuit_breaker.FAILURES} passes failed; it is asked again after "
                f"{circuit.rests_until:%H:%M:%S} UTC"
            )
        passing = self._passing(circuit)
        stopped, failure, dead = False, None, False
        try:
            stopped = await self._work_through(self._source.extract(passing), stop)
        except NothingToDo as nothing:
            return await self._skip(str(nothing))
        except SourceError as error:
            failure, dead = str(error), isinstance(error, UpstreamError)
            if isinstance(error, UpstreamError) and error.passing:
                self.transient_failure = TransientFailure(error.retry_after_s or 0.0)
        except LeaseLost:
            raise
        except (DatabaseUnavailable, StatementTimeout) as error:
            # It may still take the outcome: a full disk has room for that, a locked table is another's.
            stopped, failure = stop.is_set(), str(error)
            if isinstance(error, DatabaseUnavailable):
                self.transient_failure = TransientFailure()
        except Exception as error:
            log.exception("source_failed", run=self._record.id, source=self._name)
            failure = f"internal error ({type(error).__name__}); the log has the details"
        counts = await self._retry(lambda: self._record.counts(self._name))
        # A refused file counts as one record, but says nothing of the records that were read.
        rejected, fetched = (counts[name] - self._files_refused for name in ("rejected", "fetched"))
        if failure is None and rejected * 2 > fetched:
            passing.problem(self._refused(rejected, fetched))
        if self._files_refused:
            passing.problem(_named(self._first_files, self._files_refused))
        verdict = None if stopped else await self._verdict(passing, counts, whole=failure is None)
        loaded = bool(counts["valid"]) or self._loaded_whole or passing.loaded
        status, line = outcome_of(loaded, stopped, failure, passing.problems)
        if line and verdict and (cause := _cause(verdict)) and counts["rejected"]:
            line = f"{line}; {cause}"
        await self._retry(
            lambda: self._record.finish_source(
                self._name,
                status,
                line,
                self._clock(),
                calls=self._calls,
                note=passing.note,
                upstream_unavailable=dead and status == "failed",
                judgement=verdict.judgement if verdict else None,
            )
        )
        say = self._log.info if status == "succeeded" else self._log.warning
        say(
            "source_finished",
            status=status,
            **counts,
            **({"note": passing.note} if passing.note else {}),
            **({"error": line} if line else {}),
        )
        return status

    async def _circuit(self) -> Circuit:
        passes = await self._retry(lambda: self._record.last_passes(self._name, circuit_breaker.FAILURES))
        return circuit_breaker.circuit([circuit_breaker.Ended(*ended) for ended in passes], self._clock())

    def _passing(self, circuit: Circuit) -> SourceContext:
        return SourceContext(
            clock=self._clock,
            checkpoint=lambda key: self._retry(lambda: self._loader.checkpoint(key)),
            checkpoint_named=lambda name: self._retry(lambda: self._loader.checkpoint_named(name)),
            pages=lambda: self._retry(self._loader.pages),
            month=self._month,
            interval=self._options.interval,
            probing=circuit.probing,
            count_call=self._count_call,
            uncount_call=self._uncount_call,
            keep=lambda payload: self._keeping.keep(self._name, payload),
            progress=lambda done, total: self._options.on_progress(self._name, done, total),
        )

    async def _skip(self, reason: str) -> Literal["skipped"]:
        await self._retry(lambda: self._record.finish_source(self._name, "skipped", reason, self._clock()))
        self._log.warning("source_skipped", reason=reason)
        return "skipped"

    async def _work_through(self, batches: AsyncGenerator[Batch, None], stop: asyncio.Event) -> bool:
        """Load each batch while the next is made; True where `stop` came before the end."""

        async def following() -> Batch | None:
            return await anext(batches, None)

        stopping = asyncio.create_task(stop.wait())
        coming = asyncio.create_task(following())
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
                coming = asyncio.create_task(following())
                if self._options.trigger == "replay" or not _is_unfit(batch):
                    await self._load(batch)
                    continue
                # Where no record of an answer was fit, those of the answers that follow will not be: its
                # shape has changed. What came before it was whole, and stands; who goes on with the walk
                # later begins with this page.
                await self._load(msgspec.structs.replace(batch, page=None))
                raise SourceError(self._refused(batch.fetched, batch.fetched))
        finally:
            stopping.cancel()
            coming.cancel()
            await asyncio.wait({coming, stopping})
            await batches.aclose()

    async def _load(self, batch: Batch) -> None:
        if batch.page is not None or batch.profile is not None:
            # An API's, be it a page that has not changed and comes without a record.
            self._profile = merged([self._profile or Profile(), batch.profile or Profile()])
        self._refusals.update(
            f"{reject.field}: {reject.kind}" if reject.field else reject.kind
            for reject in batch.rejects
            if not reject.of_file
        )
        await self._retry(lambda: self._loader.load(batch, self._clock()))
        self._loaded_whole |= batch.checkpoint is not None and batch.checkpoint.complete
        for reject in batch.rejects:
            if reject.of_file:
                self._note_file(reject)

    def _note_file(self, reject: Reject) -> None:
        """Log a refused file and keep the first of them for the outcome; a folder may hold thousands."""
        self._files_refused += 1
        if self._files_refused <= FILES_NAMED:
            self._first_files.append(reject)
        if self._files_refused <= FILES_LOGGED:
            fields = {"setting": reject.setting} if reject.setting else {}
            self._log.warning("file_rejected", file=reject.location, reason=reject.reason, **fields)
        elif self._files_refused == FILES_LOGGED + 1:
            self._log.warning("more_files_rejected", logged=FILES_LOGGED)

    async def _verdict(self, passing: SourceContext, counts: Record, *, whole: bool) -> QualityReport | None:
        # What is read again is of the past, which is no measure of what an upstream sends today.
        profile = self._profile
        if profile is None or self._options.trigger == "replay":
            return None
        past = await self._retry(lambda: self._record.past(self._name, LOOKED_BACK))
        return await assess(
            *(self._name, past, profile, self._loader.compared),
            run_id=self._record.id,
            at=self._clock(),
            fetched=counts["fetched"],
            valid=counts["valid"],
            whole=whole and not passing.problems,
            planned=passing.planned,
            bound=passing.bound,
        )

    def _refused(self, rejected: int, fetched: int) -> str:
        most = self._refusals.most_common(1)
        return f"{rejected:,} of {fetched:,} records were rejected" + "".join(
            f", most often: {reason}" for reason, _ in most
        )

    async def _month(self) -> Month | None:
        """The month's calls. Raises SourceError where none is left."""
        limit, now = self._options.budget(self._name), self._clock()
        if limit is None:
            return None
        remaining = limit - await self._retry(lambda: self._record.calls(self._name, now))
        if remaining <= 0:
            raise _spent(limit, now)
        return Month(limit=limit, remaining=remaining)

    async def _count_call(self) -> None:
        limit, now = self._options.budget(self._name), self._clock()
        if not await self._retry(lambda: self._record.count_call(self._name, now, limit)):
            raise _spent(limit, now)
        self._calls += 1

    async def _uncount_call(self) -> None:
        await self._retry(lambda: self._record.uncount_call(self._name, self._clock()))
        self._calls -= 1


def outcome_of(
    loaded: bool, stopped: bool, failure: str | None, problems: Sequence[str]
) -> tuple[Status, str | None]:
    """A source's status, and its error in one line, from what its pass met.

    What was lost makes it `partial` where something of it is loaded, by this pass or by an earlier one and
    unchanged since, and `failed` where nothing is: the same input has the same outcome each time.
    """
    told = [*problems, *([failure] if failure else [])]
    line = f"{told[-1]} (and {len(told) - 1} more before it)" if len(told) > 1 else "".join(told) or None
    if stopped:
        return "interrupted", line or "stopped before its end"
    if told:
        return ("partial" if loaded else "failed"), line
    return "succeeded", None


def _named(files: Sequence[Reject], count: int) -> str:
    """Refused files in one line: the names of the first, and why the first was refused."""
    if count == 1:
        return files[0].summary
    names = ", ".join(reject.location or "" for reject in files)
    more = f" and {count - len(files):,} more" if count > len(files) else ""
    return f"{count:,} files were refused ({names}{more}); {files[0].summary}"


def _spent(limit: int | None, now: datetime) -> SourceError:
    return SourceError(f"the budget of {limit} calls for {now:%B %Y} is spent; it begins anew on the first")


def _is_unfit(batch: Batch) -> bool:
    """Whether an API's batch is of some size, and no record of it was fit to be taken."""
    return batch.profile is not None and not batch.valid and batch.fetched >= ENOUGH


def _cause(verdict: QualityReport) -> str | None:
    """The change of fields that is the likeliest reason why records were refused, in one line."""
    changes = [one for one in verdict.drift if one.change in {"vanished", "type"}]
    if not changes:
        return None
    more = f" (and {len(changes) - 1} more changes)" if len(changes) > 1 else ""
    return f"{changes[0].summary}{more}"
