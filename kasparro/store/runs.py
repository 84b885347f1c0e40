"""A run's own records in the database, and the locks that make runs and loops single."""

import asyncio
import secrets
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

import asyncpg
import msgspec
import structlog

from kasparro.concurrency import failure, timeout
from kasparro.errors import DatabaseUnavailable, KasparroError, LeaseLost, one_line
from kasparro.store.loader import sanitize
from kasparro.store.pool import Connection, Database
from kasparro.store.sql import statements

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

log = structlog.get_logger()
_SQL = statements("operations/runs.sql")
_QUALITY = statements("operations/quality.sql")

# The server ends the session of a lock that was silent for so long.
LEASE_S = 15.0
# How often the holder says something. It waits for the answer until one more would be due before the end.
BEAT_S = 5.0
# How long a session has to end in good order.
CLOSE_S = 1.0


class AdvisoryLease:
    """An advisory lock that a session of its own holds, which is a lease: the server ends a session that was
    silent for LEASE_S, and its holder says something every BEAT_S.

    So the lock goes with its holder's process or line, and also where the process stands still or its packets
    are dropped. A holder that hears nothing back gives up before the server gives the lock to another.

    `name` is `run` (one run works on a database at a time) or `lead` (one process runs the loop).
    """

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._statement = _SQL[f"try_{name}"]
        self._name = f"kasparro {name} {secrets.token_hex(4)}"
        self._session: asyncpg.Connection[asyncpg.Record] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.release()

    @property
    def held(self) -> bool:
        """Whether the session that holds the lock is still open, as far as this side can tell."""
        return self._session is not None and not self._session.is_closed()

    async def acquire(self) -> bool:
        """Take the lock unless somebody has it; True where it is ours. Raises DatabaseUnavailable."""
        async with self._turn:
            if self.held:
                return True
            session = await self._database.session(self._name, LEASE_S)
            with self._database.using(session):
                await session.execute(_SQL["terminate_stale_session"], self._name)
                taken: bool = await session.fetchval(self._statement)
            if taken:
                self._end_beat()
                self._session = session
                self._beating = asyncio.create_task(self._beat(session))
                self._beating.add_done_callback(partial(self._beat_ended, session))
            else:
                await _close(session)
            return taken

    @asynccontextmanager
    async def writing(self) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
        """The session that holds the lock, to write what its holder alone may: without the lock there is no
        session. Raises DatabaseUnavailable."""
        async with self._turn:
            if self._session is None:
                raise DatabaseUnavailable("the lock is not ours")
            with self._database.using(self._session):
                yield self._session

    async def release(self) -> None:
        """Give the lock back."""
        self._end_beat()
        session, self._session = self._session, None
        if session is not None:
            await _close(session)

    async def _beat(self, session: "asyncpg.Connection[asyncpg.Record]") -> None:
        try:
            while True:
                await asyncio.sleep(BEAT_S)
                async with self._turn:
                    with self._database.using(session):
                        async with timeout(LEASE_S - 2 * BEAT_S):
                            await session.fetchval(_SQL["beat"])
        except KasparroError as error:
            log.warning("lock lost", lock=self._name, reason=str(error))

    def _beat_ended(self, session: "asyncpg.Connection[asyncpg.Record]", task: asyncio.Task[None]) -> None:
        # The lease would run out unseen. Whoever needs the lock notices that the session is gone.
        if self._beating is task:
            session.terminate()
            if (error := failure(task)) is not None:
                log.error("lock_heartbeat_failed", lock=self._name, reason=one_line(error), exc_info=error)

    def _end_beat(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None


async def _close(session: "asyncpg.Connection[asyncpg.Record]") -> None:
    # In good order, so that the lock is free when this returns; ending the session in any way frees it soon.
    try:
        async with timeout(CLOSE_S):
            await session.close()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        session.terminate()


class Baseline(msgspec.Struct, frozen=True):
    """What earlier passes of a source left, as the JSON that was written: the profile of its fields, and
    figures and anomalies of the passes that were judged, newest first."""

    profile: str | None
    metrics: list[str]
    anomalies: str


class StoredAssessment(msgspec.Struct, frozen=True, kw_only=True):
    """What a pass is found to be, as JSON; without a profile the one that is kept stays."""

    metrics: str | None
    drift: str | None
    anomalies: str | None
    profile: str | None


class RunRecord:
    """What one run writes of itself, from its start to its end."""

    def __init__(self, database: Database, run_id: int) -> None:
        self._database = database
        self.id = run_id

    @classmethod
    async def start(
        cls,
        database: Database,
        trigger: str,
        sources: tuple[str, ...],
        now: datetime,
        *,
        lock: AdvisoryLease | None = None,
    ) -> Self:
        """Begin a run; the caller holds the run lock, so a run that is still `running` has died.

        Given the lock, it is written by the session that holds it: who has lost it meanwhile ends nobody's
        run. Raises DatabaseUnavailable.
        """
        async with (lock or database).writing() as connection, connection.transaction():
            await _interrupt(connection, now)
            run_id = await connection.fetchval(_SQL["start_run"], trigger, now)
            for source in sources:
                await connection.execute(_SQL["start_source"], run_id, source, now)
        return cls(database, run_id)

    async def finish_source(
        self,
        source: str,
        status: str,
        error: str | None,
        now: datetime,
        *,
        calls: int = 0,
        note: str | None = None,
        upstream_unavailable: bool = False,
        judgement: StoredAssessment | None = None,
    ) -> None:
        """Write a source's outcome, and together with it what it is judged to be.

        Raises LeaseLost, DatabaseUnavailable.
        """
        async with self._database.writing() as connection, connection.transaction():
            # An upstream may say what PostgreSQL cannot hold.
            error, note = (None if line is None else sanitize(line) for line in (error, note))
            await self._ours(
                connection,
                _SQL["finish_source"],
                self.id,
                source,
                status,
                now,
                error,
                calls,
                note,
                upstream_unavailable,
            )
            if judgement is not None:
                await connection.execute(
                    _QUALITY["save_assessment"],
                    self.id,
                    source,
                    judgement.metrics,
                    judgement.drift,
                    judgement.anomalies,
                )
                if judgement.profile is not None:
                    await connection.execute(
                        _QUALITY["save_profile"], source, self.id, judgement.profile, now
                    )

    async def past(self, source: str, passes: int) -> Baseline:
        """What the source is judged against: at most so many passes. Raises DatabaseUnavailable."""
        async with self._database.writing() as connection:
            profile = await connection.fetchval(_QUALITY["profile"], source)
            rows = await connection.fetch(_QUALITY["baseline"], source, self.id, passes)
        return Baseline(profile, [row["metrics"] for row in rows], rows[0]["anomalies"] if rows else "[]")

    async def counts(self, source: str) -> asyncpg.Record:
        """The source's figures so far: fetched, valid, rejected, inserted, updated, unchanged.

        Raises DatabaseUnavailable.
        """
        async with self._database.writing() as connection:
            (row,) = await connection.fetch(_SQL["counts"], self.id, source)
        return row

    async def finish(self, status: str, error: str | None, now: datetime) -> None:
        """Write the run's outcome. Raises LeaseLost, DatabaseUnavailable."""
        async with self._database.writing() as connection:
            await self._ours(connection, _SQL["finish_run"], self.id, status, now, error)

    async def abandon(self, status: str, error: str, now: datetime) -> None:
        """End the run and its sources as they are. Raises DatabaseUnavailable."""
        async with self._database.writing() as connection, connection.transaction():
            await connection.execute(_SQL["abandon_sources"], self.id, now, sanitize(error))
            await connection.execute(_SQL["finish_run"], self.id, status, now, sanitize(error))

    async def count_call(self, source: str, month: datetime, limit: int | None) -> bool:
        """Book a call upstream; False where the month's budget is spent. Raises DatabaseUnavailable."""
        async with self._database.writing() as connection:
            booked = await connection.fetchval(_SQL["count_call"], source, month.date().replace(day=1), limit)
        return booked is not None

    async def uncount_call(self, source: str, month: datetime) -> None:
        """Take a booked call back, for nothing was sent upstream. Raises DatabaseUnavailable."""
        async with self._database.writing() as connection:
            await connection.execute(_SQL["uncount_call"], source, month.date().replace(day=1))

    async def calls(self, source: str, month: datetime) -> int:
        """Calls upstream that were booked in this month. Raises DatabaseUnavailable."""
        async with self._database.writing() as connection:
            booked: int = await connection.fetchval(_SQL["calls"], source, month.date().replace(day=1))
        return int(booked)

    async def last_passes(self, source: str, count: int) -> list[asyncpg.Record]:
        """The source's newest passes that asked its upstream, newest first: when they ended, and
        whether because it was dead.

        Raises DatabaseUnavailable.
        """
        async with self._database.writing() as connection:
            return await connection.fetch(_SQL["recent_source_runs"], source, count)

    async def _ours(self, connection: Connection, statement: str, *values: object) -> None:
        if await connection.fetchrow(statement, *values) is None:
            raise LeaseLost(f"run {self.id} was ended by another process")


async def mark_abandoned_runs(database: Database, now: datetime) -> bool:
    """Mark what a process that died left `running`, unless a run is at work; True where there was something.

    Raises DatabaseUnavailable.

    The run lock is taken only where there is something to mark: whoever wants to run meanwhile is refused.
    """
    async with database.writing() as connection:
        if not await connection.fetchval(_SQL["any_running"]):
            return False
    async with AdvisoryLease(database, "run") as lock:
        if not await lock.acquire():
            return False
        async with lock.writing() as session, session.transaction():
            await _interrupt(session, now)
    return True


async def _interrupt(connection: Connection, now: datetime) -> None:
    await connection.execute(_SQL["terminate_open_batches"])
    await connection.execute(_SQL["interrupt_sources"], now)
    for row in await connection.fetch(_SQL["interrupt_runs"], now):
        log.warning("run_marked_interrupted", run=row["id"], reason="its process ended")


async def last_start(database: Database) -> datetime | None:
    """When the newest run that was not cut short began. Raises DatabaseUnavailable."""
    async with database.writing() as connection:
        value: datetime | None = await connection.fetchval(_SQL["last_start"])
    return value


async def dead_sources(database: Database, sources: "Sequence[str]") -> list[str]:
    """Those of these sources whose newest pass failed because its upstream gave nothing to use.

    Raises DatabaseUnavailable.
    """
    async with database.writing() as connection:
        return [row["source"] for row in await connection.fetch(_SQL["unavailable_sources"], sources)]
