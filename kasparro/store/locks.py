"""Advisory locks as leases: one run at a time works on a database, and one process leads."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Self

import asyncpg
import structlog

from kasparro.concurrency import failure, timeout
from kasparro.errors import DatabaseUnavailable, KasparroError, SettingsError, one_line
from kasparro.store.pool import Database
from kasparro.store.sessions import SHARES_SESSIONS
from kasparro.store.sql import statements

log = structlog.get_logger()
_SQL = statements("operations/runs.sql")

# The server ends the session of a lock that was silent for this long.
LEASE_S = 15.0
# Time between two heartbeats. The holder waits for the response until one heartbeat before the lease ends.
HEARTBEAT_S = 5.0
# Time for a session to close properly.
CLOSE_S = 1.0


async def has_leader(database: Database) -> bool:
    """Whether any process leads, so that a scheduler starts runs. Raises DatabaseUnavailable."""
    async with database.writing() as connection:
        found: bool = await connection.fetchval(_SQL["has_leader"])
    return found


class AdvisoryLease:
    """An advisory lock that a session of its own holds.

    It is a lease: the server ends the session if it is silent for LEASE_S, and the holder sends a heartbeat
    every HEARTBEAT_S. So the lock ends with its holder's process or connection, and also if the process is
    stopped or its packets are dropped. A holder that gets no response gives up before the server gives the
    lock to another.

    `name` is `run` (one run at a time works on a database), `lead` (one process runs the scheduler) or
    `history` (one process computes candles and thins the history).
    """

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._statement = _SQL[f"try_{name}"]
        self._name = f"kasparro {name} {secrets.token_hex(4)}"
        self._session: asyncpg.Connection[asyncpg.Record] | None = None
        self._heartbeat: asyncio.Task[None] | None = None
        # One statement at a time on the session.
        self._mutex = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.release()

    @property
    def held(self) -> bool:
        """Whether the session that holds the lock is still open, as far as this side knows."""
        return self._session is not None and not self._session.is_closed()

    async def acquire(self) -> bool:
        """Take the lock if it is free; True if it is ours now. Raises DatabaseUnavailable."""
        async with self._mutex:
            if self.held:
                return True
            session = await self._database.session(self._name, LEASE_S)
            with self._database.using(session):
                await session.execute(_SQL["terminate_stale_session"], self._name)
                acquired: bool | None = await session.fetchval(self._statement)
                if acquired is None:
                    raise SettingsError(f"DATABASE_URL {SHARES_SESSIONS}")
            if acquired:
                self._stop_heartbeat()
                self._session = session
                self._heartbeat = asyncio.create_task(self._send_heartbeats(session))
                self._heartbeat.add_done_callback(partial(self._heartbeat_ended, session))
            else:
                await _close(session)
            return acquired

    @asynccontextmanager
    async def writing(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """The session that holds the lock, for what only the holder may write: without the lock there is no
        session. Raises DatabaseUnavailable."""
        async with self._mutex:
            if self._session is None:
                raise DatabaseUnavailable("this process does not hold the lock")
            with self._database.using(self._session):
                await _check(self._session)
                yield self._session

    async def release(self) -> None:
        """Give the lock back."""
        self._stop_heartbeat()
        session, self._session = self._session, None
        if session is not None:
            await _close(session)

    async def _send_heartbeats(self, session: "asyncpg.Connection[asyncpg.Record]") -> None:
        try:
            while True:
                await asyncio.sleep(HEARTBEAT_S)
                async with self._mutex:
                    with self._database.using(session):
                        async with timeout(LEASE_S - 2 * HEARTBEAT_S):
                            await _check(session)
        except KasparroError as error:
            log.warning("lease_lost", lock=self._name, reason=str(error))

    def _heartbeat_ended(
        self, session: "asyncpg.Connection[asyncpg.Record]", task: asyncio.Task[None]
    ) -> None:
        # Without heartbeats the lease would end unnoticed. A closed session tells the holder.
        if self._heartbeat is task:
            session.terminate()
            if (error := failure(task)) is not None:
                log.error("lease_heartbeat_failed", lock=self._name, reason=one_line(error), exc_info=error)

    def _stop_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            self._heartbeat = None


async def _check(session: "asyncpg.Connection[asyncpg.Record]") -> None:
    # A pooler can change its mode at any time, and no test for it is certain.
    if not await session.fetchval(_SQL["holds_lock"]):
        raise DatabaseUnavailable(f"the session has lost its lock: DATABASE_URL {SHARES_SESSIONS}")


async def _close(session: "asyncpg.Connection[asyncpg.Record]") -> None:
    # If it closes properly, the lock is free when this returns; if not, soon after.
    try:
        async with timeout(CLOSE_S):
            await session.execute(_SQL["release_locks"])
            await session.close()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        session.terminate()
