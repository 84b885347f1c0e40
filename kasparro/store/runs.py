"""A run's own records in the database, and the locks that make runs and loops single."""

import asyncio
from datetime import datetime
from types import TracebackType
from typing import Self

import asyncpg
import msgspec
import structlog

from kasparro.errors import RunLost
from kasparro.store.database import Connection, Database
from kasparro.store.statements import statements

log = structlog.get_logger()
_SQL = statements("operations/runs.sql")
_JUDGEMENT = statements("operations/judgement.sql")
RELEASE_TIMEOUT_S = 1


class SessionLock:
    """An advisory lock that lives as long as a session of its own: it goes when the process or its line dies.

    `name` is `run` (one run works on a database at a time) or `lead` (one process runs the loop).
    """

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._statement = _SQL[f"try_{name}"]
        self._session: asyncpg.Connection[asyncpg.Record] | None = None
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
            session = await self._database.session()
            try:
                taken: bool = await session.fetchval(self._statement)
            except BaseException:
                session.terminate()
                raise
            if taken:
                self._session = session
            else:
                await session.close()
            return taken

    async def release(self) -> None:
        """Give the lock back."""
        session, self._session = self._session, None
        if session is None or session.is_closed():
            return
        try:
            # Whoever asks next is not to wait until the server has noticed that the session is gone.
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await session.execute(_SQL["unlock"])
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            log.debug("the lock goes with its session")
        finally:
            # Ending the session releases its locks, also where the server does not answer any more.
            session.terminate()


class Past(msgspec.Struct, frozen=True):
    """What earlier passes of a source left, as the JSON that was written: the profile of its fields, and
    figures and anomalies of the passes that were judged, newest first."""

    profile: str | None
    figures: list[str]
    anomalies: str


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """What a pass is found to be, as JSON; without a profile the one that is kept stays."""

    figures: str | None
    drift: str | None
    anomalies: str | None
    profile: str | None


class RunRecord:
    """What one run writes of itself, from its start to its end."""

    def __init__(self, database: Database, run_id: int) -> None:
        self._database = database
        self.id = run_id

    @classmethod
    async def start(cls, database: Database, trigger: str, sources: tuple[str, ...], now: datetime) -> Self:
        """Begin a run; the caller holds the run lock, so a run that is still `running` has died.

        Raises DatabaseUnavailable.
        """
        async with database.writing() as connection, connection.transaction():
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
        dead: bool = False,
        judgement: Judgement | None = None,
    ) -> None:
        """Write a source's outcome, and together with it what it is judged to be.

        Raises RunLost, DatabaseUnavailable.
        """
        async with self._database.writing() as connection, connection.transaction():
            await self._ours(
                connection, _SQL["finish_source"], self.id, source, status, now, error, calls, note, dead
            )
            if judgement is not None:
                await connection.execute(
                    _JUDGEMENT["judge_source"],
                    self.id,
                    source,
                    judgement.figures,
                    judgement.drift,
                    judgement.anomalies,
                )
                if judgement.profile is not None:
                    await connection.execute(_JUDGEMENT["remember"], source, self.id, judgement.profile, now)

    async def past(self, source: str, passes: int) -> Past:
        """What the source is judged against: at most so many passes. Raises DatabaseUnavailable."""
        async with self._database.writing() as connection:
            profile = await connection.fetchval(_JUDGEMENT["profile"], source)
            rows = await connection.fetch(_JUDGEMENT["past"], source, self.id, passes)
        return Past(profile, [row["figures"] for row in rows], rows[0]["anomalies"] if rows else "[]")

    async def counts(self, source: str) -> asyncpg.Record:
        """The source's figures so far: fetched, valid, rejected, inserted, updated, unchanged.

        Raises DatabaseUnavailable.
        """
        async with self._database.writing() as connection:
            (row,) = await connection.fetch(_SQL["counts"], self.id, source)
        return row

    async def finish(self, status: str, error: str | None, now: datetime) -> None:
        """Write the run's outcome. Raises RunLost, DatabaseUnavailable."""
        async with self._database.writing() as connection:
            await self._ours(connection, _SQL["finish_run"], self.id, status, now, error)

    async def abandon(self, status: str, error: str, now: datetime) -> None:
        """End the run and its sources as they are. Raises DatabaseUnavailable."""
        async with self._database.writing() as connection, connection.transaction():
            await connection.execute(_SQL["abandon_sources"], self.id, now, error)
            await connection.execute(_SQL["finish_run"], self.id, status, now, error)

    async def count_call(self, source: str, month: datetime, limit: int | None) -> bool:
        """Book a call upstream; False where the month's budget is spent. Raises DatabaseUnavailable."""
        async with self._database.writing() as connection:
            booked = await connection.fetchval(_SQL["count_call"], source, month.date().replace(day=1), limit)
        return booked is not None

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
            return await connection.fetch(_SQL["last_passes"], source, count)

    async def _ours(self, connection: Connection, statement: str, *values: object) -> None:
        if await connection.fetchrow(statement, *values) is None:
            raise RunLost(f"run {self.id} was ended by another process")


async def bury_dead(database: Database, now: datetime) -> None:
    """Mark what a process that died left `running`, unless a run is at work. Raises DatabaseUnavailable.

    The run lock is taken only where there is something to mark: whoever wants to run meanwhile is refused.
    """
    async with database.writing() as connection:
        if not await connection.fetchval(_SQL["any_running"]):
            return
    async with SessionLock(database, "run") as lock:
        if await lock.acquire():
            async with database.writing() as connection, connection.transaction():
                await _interrupt(connection, now)


async def _interrupt(connection: Connection, now: datetime) -> None:
    await connection.execute(_SQL["interrupt_sources"], now)
    for row in await connection.fetch(_SQL["interrupt_runs"], now):
        log.warning("run marked interrupted", run=row["id"], reason="its process ended")


async def last_start(database: Database) -> datetime | None:
    """When the newest run that was not cut short began. Raises DatabaseUnavailable."""
    async with database.writing() as connection:
        value: datetime | None = await connection.fetchval(_SQL["last_start"])
    return value
