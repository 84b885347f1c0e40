"""One run: the sources side by side, each from its first batch to its outcome."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence, Set
from contextlib import suppress
from datetime import datetime, timedelta
from types import TracebackType
from typing import Literal, Self, TypeVar

import stamina
import structlog

from kasparro.batch import Batch
from kasparro.errors import (
    DatabaseUnavailable,
    KasparroError,
    NothingDue,
    RunInProgress,
    RunLost,
    SourceError,
    StatementTooLong,
)
from kasparro.payload import Payload, Retention
from kasparro.pipeline import breaker
from kasparro.pipeline.anomalies import LOOKED_BACK
from kasparro.pipeline.judgement import Verdict, judge
from kasparro.profile import ENOUGH, Profile, merged
from kasparro.sources.base import Pass, Source, utc_now
from kasparro.sources.http import UpstreamError
from kasparro.sources.rotation import Month
from kasparro.store import payloads
from kasparro.store.database import Database
from kasparro.store.loader import Loader
from kasparro.store.runs import RunRecord, SessionLock

log = structlog.get_logger()

Trigger = Literal["startup", "schedule", "api", "etl", "replay"]
Status = Literal["succeeded", "partial", "failed", "interrupted"]
Outcome = Literal[Status, "skipped"]
T = TypeVar("T")

# A stopping service has 10 s: requests get the first few, the batch under way the rest.
STOP_GRACE_S = 6.0
# How long a run waits for a database that went away before it gives up.
DATABASE_PATIENCE_S = 300.0
# How long it waits to keep a payload. The records in it matter more, and have the longer patience.
PAYLOAD_PATIENCE_S = 10.0


def no_limit(source: str) -> int | None:
    """The budget of a source that has none."""
    del source
    return None


def unwatched(source: str, done: float, total: float | None) -> None:
    """Progress that nobody looks at."""


class Run:
    """One run, as a context: entering takes the run lock and writes the run's first record, leaving gives
    the lock back.

    What the sources are answered is kept as `retention` says, and what is beyond it is trimmed. A replay
    gives `told_at` in its place: when the run ended whose payloads are read again. What was told since
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
        watch: Callable[[str, float, float | None], None] = unwatched,
        clock: Callable[[], datetime] = utc_now,
        retention: Retention | None = None,
        told_at: datetime | None = None,
    ) -> None:
        self._database = database
        self._sources = sources
        self._trigger: Trigger = trigger
        self._budget = budget
        self._interval = interval
        self._watch = watch
        self._retention = retention
        self._told_at = told_at
        self._payload_bytes = 0
        self._unkept: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._refusals: dict[str, Counter[str]] = defaultdict(Counter)
        self._profiles: dict[str, Profile] = {}
        self._clock = clock
        self._lock = SessionLock(database, "run")
        self._stop = asyncio.Event()
        self._away_since: float | None = None

    async def __aenter__(self) -> Self:
        if not await self._lock.acquire():
            raise RunInProgress("another run is at work on this database")
        try:
            names = tuple(source.name for source in self._sources)
            self._record = await RunRecord.start(
                self._database, self._trigger, names, self._clock(), lock=self._lock
            )
        except BaseException:
            await self._lock.release()
            raise
        self._log = log.bind(run=self.id)
        self._log.info("run started", trigger=self._trigger, sources=names)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, RunLost):
            stopped = isinstance(error, asyncio.CancelledError)
            status: Status = "interrupted" if stopped else "failed"
            reason = "cut off before its end" if stopped else f"internal error ({type(error).__name__})"
            if isinstance(error, KasparroError):
                reason = str(error)
            # Best effort: where even this fails, the next run finds this one and marks it.
            with suppress(KasparroError, TimeoutError):
                async with asyncio.timeout(2):
                    await self._record.abandon(status, reason, self._clock())
        await self._lock.release()

    @property
    def id(self) -> int:
        """The run's number, as in /runs/{id}."""
        return self._record.id

    async def work(self, stop: asyncio.Event) -> Status:
        """Work through the sources, which fail apart; `stop` ends each at its next batch border.

        Raises RunLost where another process has ended this run, and DatabaseUnavailable where its outcome
        could not be written: the next run then marks it interrupted.
        """
        self._stop = stop
        # Before as well as after, so that runs that die one after the other do not fill the disk.
        await self._trim()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._outcome(source, stop)) for source in self._sources]
        except BaseExceptionGroup as errors:
            raise _most_telling(errors) from errors
        outcomes = {task.result() for task in tasks}
        if self._trigger == "replay":
            # What has nothing to be read again is no shortcoming of it.
            outcomes.discard("skipped")
        status = together(outcomes)
        error = "stopped before its end" if status == "interrupted" else None
        await self._persistently(lambda: self._record.finish(status, error, self._clock()))
        self._log.info("run finished", status=status)
        await self._trim()
        return status

    async def _outcome(self, source: Source, stop: asyncio.Event) -> Outcome:
        passes = await self._persistently(lambda: self._record.last_passes(source.name, breaker.FAILURES))
        circuit = breaker.circuit([breaker.Ended(*ended) for ended in passes], self._clock())
        if circuit.rests_until is not None and self._trigger == "schedule":
            return await self._skip(
                source.name,
                f"its last {breaker.FAILURES} passes failed; it is asked again after "
                f"{circuit.rests_until:%H:%M:%S} UTC",
            )
        loader = Loader(self._database, self.id, source.name, self._told_at)
        passing = Pass(
            clock=self._clock,
            checkpoint=lambda key: self._persistently(lambda: loader.checkpoint(key)),
            known_as=lambda name: self._persistently(lambda: loader.known_as(name)),
            pages=lambda: self._persistently(loader.pages),
            month=lambda: self._month(source.name),
            interval=self._interval,
            probing=circuit.probing,
            count_call=lambda: self._count_call(source.name),
            keep=lambda payload: self._keep(source.name, payload),
            progress=lambda done, total: self._watch(source.name, done, total),
        )
        stopped, failure, dead = False, None, False
        try:
            stopped = await self._work_through(source.name, source.extract(passing), loader, stop)
        except NothingDue as nothing:
            return await self._skip(source.name, str(nothing))
        except SourceError as error:
            failure, dead = str(error), isinstance(error, UpstreamError)
        except RunLost:
            raise
        except (DatabaseUnavailable, StatementTooLong) as error:
            # It may still take the outcome: a full disk has room for that, a locked table is another's.
            stopped, failure = stop.is_set(), str(error)
        except Exception as error:
            log.exception("source broke", run=self.id, source=source.name)
            failure = f"internal error ({type(error).__name__}); the log has the details"
        counts = await self._persistently(lambda: self._record.counts(source.name))
        if failure is None and counts["rejected"] * 2 > counts["fetched"]:
            passing.problem(self._refused(source.name, counts["rejected"], counts["fetched"]))
        verdict = None
        profile = self._profiles.get(source.name)
        # What is read again is of the past, which is no measure of what an upstream sends today.
        if profile is not None and not stopped and self._trigger != "replay":
            past = await self._persistently(lambda: self._record.past(source.name, LOOKED_BACK))
            verdict = judge(
                *(source.name, past, profile, loader.compared),
                run_id=self.id,
                at=self._clock(),
                fetched=counts["fetched"],
                valid=counts["valid"],
                whole=failure is None and not passing.problems,
                planned=passing.planned,
            )
        status, line = judged(counts["valid"], stopped, failure, passing.problems)
        if line and verdict and (cause := _cause(verdict)) and counts["rejected"]:
            line = f"{line}; {cause}"
        await self._persistently(
            lambda: self._record.finish_source(
                source.name,
                status,
                line,
                self._clock(),
                calls=self._calls[source.name],
                note=passing.note,
                dead=dead and status == "failed",
                judgement=verdict.judgement if verdict else None,
            )
        )
        say = self._log.info if status == "succeeded" else self._log.warning
        say(
            "source finished",
            source=source.name,
            status=status,
            **counts,
            **({"note": passing.note} if passing.note else {}),
            **({"error": line} if line else {}),
        )
        return status

    async def _skip(self, source: str, reason: str) -> Literal["skipped"]:
        await self._persistently(lambda: self._record.finish_source(source, "skipped", reason, self._clock()))
        self._log.warning("source skipped", source=source, reason=reason)
        return "skipped"

    async def _work_through(
        self, source: str, batches: AsyncGenerator[Batch, None], loader: Loader, stop: asyncio.Event
    ) -> bool:
        """Load each batch while the next is made; True where `stop` came before the end."""

        async def following() -> Batch | None:
            return await anext(batches, None)

        stopping = asyncio.create_task(stop.wait())
        coming = asyncio.create_task(following())
        try:
            while True:
                await asyncio.wait({coming, stopping}, return_when=asyncio.FIRST_COMPLETED)
                batch = coming.result() if coming.done() else None
                if coming.done() and batch is None:
                    return False
                if batch is None or stop.is_set():
                    return True
                coming = asyncio.create_task(following())
                await self._load(source, loader, batch)
                if self._trigger != "replay" and _is_unfit(batch):
                    # What no record of an answer is fit for, those that follow will not be: its shape has
                    # changed. What came before it was whole, and stands.
                    raise SourceError(self._refused(source, batch.fetched, batch.fetched))
        finally:
            stopping.cancel()
            coming.cancel()
            await asyncio.wait({coming, stopping})
            await batches.aclose()

    def _refused(self, source: str, rejected: int, fetched: int) -> str:
        most = self._refusals[source].most_common(1)
        return f"{rejected:,} of {fetched:,} records were rejected" + "".join(
            f", most often: {reason}" for reason, _ in most
        )

    async def _load(self, source: str, loader: Loader, batch: Batch) -> None:
        if batch.page is not None or batch.profile is not None:
            # An API's, be it a page that has not changed and comes without a record.
            known = self._profiles.get(source, Profile())
            self._profiles[source] = merged([known, batch.profile or Profile()])
        self._refusals[source].update(
            f"{reject.field}: {reject.kind}" if reject.field else reject.kind for reject in batch.rejects
        )
        await self._persistently(lambda: loader.load(batch, self._clock()))

    async def _month(self, source: str) -> Month | None:
        """The month's calls. Raises SourceError where none is left."""
        limit, now = self._budget(source), self._clock()
        if limit is None:
            return None
        remaining = limit - await self._persistently(lambda: self._record.calls(source, now))
        if remaining <= 0:
            raise _spent(limit, now)
        return Month(limit=limit, remaining=remaining)

    async def _count_call(self, source: str) -> None:
        limit, now = self._budget(source), self._clock()
        if not await self._persistently(lambda: self._record.count_call(source, now, limit)):
            raise _spent(limit, now)
        self._calls[source] += 1

    async def _keep(self, source: str, payload: Payload) -> None:
        """Store what a call was answered. Where that cannot be, the pass goes on without: its records are
        worth more than their raw text.
        """
        if self._retention is None:
            return
        body = await payloads.compressed(payload.body)
        if self._payload_bytes + len(body) > self._retention.payload_bytes:
            if self._retention.payload_bytes:
                self._not_kept(source, "this run's payloads exceed KASPARRO_RAW_SIZE")
            return
        self._payload_bytes += len(body)
        try:
            await self._persistently(
                lambda: payloads.keep(self._database, self.id, source, payload, body),
                0.0 if self._unkept[source] else PAYLOAD_PATIENCE_S,
            )
        except RunLost:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a full disk or a database in trouble may raise
            self._not_kept(source, " ".join(str(error).split()))

    def _not_kept(self, source: str, reason: str) -> None:
        self._unkept[source] += 1
        if self._unkept[source] == 1:
            self._log.warning("payloads not kept", source=source, reason=reason)

    async def _trim(self) -> None:
        if self._retention is None or self._stop.is_set():
            return
        try:
            await payloads.trim(self._database, self._retention, self._clock())
        except Exception as error:  # noqa: BLE001 - the next run tries again, and this one is none the worse
            self._log.warning("payloads not trimmed", reason=" ".join(str(error).split()))

    async def _persistently(self, call: Callable[[], Awaitable[T]], patience_s: float | None = None) -> T:
        """Do it, again and again while the database is out of reach, and only while the run is ours.

        Patience is the run's: when it is at its end, whatever is left to do is tried once.
        """

        limit_s = DATABASE_PATIENCE_S if patience_s is None else patience_s

        def again(error: Exception) -> bool:
            if not isinstance(error, DatabaseUnavailable):
                return False
            now = time.monotonic()
            self._away_since = self._away_since or now
            return not self._stop.is_set() and now - self._away_since < limit_s

        async for attempt in stamina.retry_context(
            on=again,
            attempts=None,
            timeout=None,
            wait_initial=0.1,
            wait_max=5.0,
            wait_jitter=0.5,
        ):
            with attempt:
                # A restarted server has forgotten the lock; without it another run may have begun.
                if not await self._lock.acquire():
                    raise RunLost(f"run {self.id} lost its lock to another run")
                done = await call()
                self._away_since = None
                return done
        raise AssertionError("unreachable: the last attempt raises")


def _spent(limit: int | None, now: datetime) -> SourceError:
    return SourceError(f"the budget of {limit} calls for {now:%B %Y} is spent; it begins anew on the first")


def together(outcomes: Set[Outcome]) -> Status:
    """A run's status, from what its sources came to; one that was skipped did not succeed."""
    if "interrupted" in outcomes:
        return "interrupted"
    (only, *others) = outcomes or {"partial"}
    return "partial" if others or only == "skipped" else only


def _most_telling(errors: BaseExceptionGroup) -> BaseException:
    """Of the errors that ended a run together, the one that says most of what to do about it."""
    for kind in (RunLost, DatabaseUnavailable):
        if found := errors.subgroup(kind):
            return (
                _most_telling(found)
                if isinstance(found.exceptions[0], BaseExceptionGroup)
                else found.exceptions[0]
            )
    first = errors.exceptions[0]
    return _most_telling(first) if isinstance(first, BaseExceptionGroup) else first


def _is_unfit(batch: Batch) -> bool:
    """Whether an API's batch is of some size, and no record of it was fit to be taken."""
    return batch.profile is not None and not batch.valid and batch.fetched >= ENOUGH


def _cause(verdict: Verdict) -> str | None:
    """The change of fields that is the likeliest reason why records were refused, in one line."""
    changes = [one for one in verdict.drift if one.change in {"vanished", "type"}]
    if not changes:
        return None
    more = f" (and {len(changes) - 1} more changes)" if len(changes) > 1 else ""
    return f"{changes[0].line}{more}"


def judged(
    valid: int, stopped: bool, failure: str | None, problems: Sequence[str]
) -> tuple[Status, str | None]:
    """A source's status, and its error in one line, from what its pass met."""
    told = [*problems, *([failure] if failure else [])]
    line = f"{told[-1]} (and {len(told) - 1} more before it)" if len(told) > 1 else "".join(told) or None
    if stopped:
        return "interrupted", line or "stopped before its end"
    if told:
        return ("partial" if valid else "failed"), line
    return "succeeded", None
