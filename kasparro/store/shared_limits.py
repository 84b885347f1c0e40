"""Limits that all processes of a database share: the quotas of clients, and their turns to export."""

import asyncio
import secrets
import time
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import asyncpg
import msgspec
import structlog

from kasparro.concurrency import timeout
from kasparro.errors import DatabaseUnavailable, KasparroError, one_line
from kasparro.store.locks import HEARTBEAT_S, LEASE_S
from kasparro.store.pool import Database
from kasparro.store.sql import statements
from kasparro.supervision import BackgroundTask, Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log = structlog.get_logger()
_SQL = statements("operations/shared_limits.sql")

# A request waits this long for the primary. Then, and for a moment, each process limits its own clients.
ANSWER_S = 0.5
AWAY_S = 1.0
DELETE_S = 60.0


class Grant(msgspec.Struct, frozen=True):
    """How many requests a process may answer, and the time until the client's quota is full again."""

    requests: int
    full_s: float


class SharedLimits:
    """One session on the primary of this process, for its short statements and its advisory locks.

    The session is a lease: if this process dies or is cut off, its turns are free again.
    """

    def __init__(self, database: Database, supervisor: Supervisor) -> None:
        self._database = database
        self._supervisor = supervisor
        self._name = f"kasparro limits {secrets.token_hex(4)}"
        self._session: asyncpg.Connection[asyncpg.Record] | None = None
        # One statement at a time on the session.
        self._mutex = asyncio.Lock()
        self._away_until = float("-inf")
        self._turns: dict[str, set[int]] = {}
        self._task: BackgroundTask | None = None

    async def __aenter__(self) -> Self:
        self._task = self._supervisor.start("shared_limits", self._keep_session)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            await self._task.stop()
        if self._session is not None:
            self._session.terminate()

    @property
    def away(self) -> bool:
        """Whether there is no session, or the primary did not answer a moment ago."""
        return self._session is None or self._session.is_closed() or time.monotonic() < self._away_until

    async def take(self, client: str, count: int, unused: int, requests: int, seconds: int) -> Grant:
        """Take up to `count` requests from a client's quota of `requests` in `seconds`. `unused` is how many
        of those that were taken before are given back. Raises DatabaseUnavailable."""
        async with self._answering() as session:
            (row,) = await session.fetch(_SQL["take"], client, count, requests, seconds, unused)
        return Grant(row["granted"], row["full_s"])

    async def try_turn(self, client: str, turns: int) -> int | None:
        """Take one of the turns of a client; its number, None if others have all of them.

        Raises DatabaseUnavailable.
        """
        async with self._answering() as session:
            mine = self._turns.setdefault(client, set())
            free = [number for number in range(turns) if number not in mine]
            number: int | None = await session.fetchval(_SQL["try_turn"], client, free)
            if number is not None:
                mine.add(number)
            return number

    async def end_turn(self, client: str, number: int) -> None:
        """Give a turn back."""
        self._turns.get(client, set()).discard(number)
        if not self._turns.get(client):
            self._turns.pop(client, None)
        # Without its session, the turn is free already.
        if self._session is not None:
            try:
                async with self._answering() as session:
                    await session.fetchval(_SQL["end_turn"], client, number)
            except DatabaseUnavailable as error:
                log.debug("turn_ended_with_session", reason=one_line(error))

    @asynccontextmanager
    async def _answering(self) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
        session = self._session
        if session is None or self.away:
            raise DatabaseUnavailable("the primary does not answer")
        try:
            async with timeout(ANSWER_S), self._mutex:
                with self._database.using(session):
                    yield session
        # Before its migration, a database has no such table.
        except (DatabaseUnavailable, TimeoutError, asyncpg.PostgresError) as error:
            self._away_until = time.monotonic() + AWAY_S
            log.warning("shared_limits_unavailable", reason=one_line(error))
            raise DatabaseUnavailable(f"limits cannot be shared: {one_line(error)}") from error

    async def _keep_session(self) -> None:
        deleted_at = float("-inf")
        while True:
            try:
                if self._session is None or self._session.is_closed():
                    session = await self._database.session(self._name, LEASE_S)
                    # Turns of the lost session are free. Exports that had them go on.
                    self._turns.clear()
                    self._session, self._away_until = session, float("-inf")
                async with self._answering() as session:
                    if time.monotonic() - deleted_at > DELETE_S:
                        await session.execute(_SQL["delete_full"])
                        deleted_at = time.monotonic()
                    else:
                        await session.execute(_SQL["heartbeat"])
                pause_s = HEARTBEAT_S
            except KasparroError as error:
                log.debug("shared_limits_wait", reason=one_line(error))
                pause_s = AWAY_S
            await asyncio.sleep(pause_s)
