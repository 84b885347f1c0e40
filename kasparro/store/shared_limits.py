"""Limits that all processes of a database share: the quotas of clients, and their turns to export."""

import asyncio
import secrets
import time
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

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
    from collections.abc import AsyncIterator, Coroutine

T = TypeVar("T")

log = structlog.get_logger()
_SQL = statements("operations/shared_limits.sql")

# A request waits this long for the session, and then this long for the primary. After either, and for a
# moment, each process limits its own clients.
ANSWER_S = 0.5
AWAY_S = 1.0
DELETE_S = 60.0


class Grant(msgspec.Struct, frozen=True):
    """How many requests a process may answer, and the time until the client's quota is full again."""

    requests: int
    full_s: float


class Turn(NamedTuple):
    """The turn of a client with this number. It ends with the session that took it."""

    session: "asyncpg.Connection[asyncpg.Record]"
    client: str
    number: int


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
        # The server would give a session again what it has already.
        self._turns: set[Turn] = set()
        self._task: BackgroundTask | None = None
        # What goes on if its caller is cancelled.
        self._statements: set[asyncio.Task[Any]] = set()

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
        if self._statements:
            await asyncio.wait(self._statements)

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

    async def try_turn(self, client: str, turns: int) -> Turn | None:
        """Take one of the turns of a client; None if others have all of them. Raises DatabaseUnavailable."""
        taking = self._start(self._try_turn(client, turns))
        try:
            await asyncio.wait({taking})
        except asyncio.CancelledError:
            self._start(self._return_turn(taking))
            raise
        return taking.result()

    async def _try_turn(self, client: str, turns: int) -> Turn | None:
        async with self._answering() as session:
            free = [number for number in range(turns) if Turn(session, client, number) not in self._turns]
            number: int | None = await session.fetchval(_SQL["try_turn"], client, free)
            if number is None:
                return None
            turn = Turn(session, client, number)
            self._turns.add(turn)
            return turn

    async def _return_turn(self, taking: asyncio.Task[Turn | None]) -> None:
        with suppress(DatabaseUnavailable):
            if (turn := await taking) is not None:
                await self._end_turn(turn)

    async def end_turn(self, turn: Turn) -> None:
        """Give a turn back."""
        await asyncio.wait({self._start(self._end_turn(turn))})

    async def _end_turn(self, turn: Turn) -> None:
        # Also while the primary is away, a turn lasts as long as its session. So this waits for the session.
        async with self._mutex:
            if turn.session is not self._session:
                return
            try:
                async with self._statement(turn.session):
                    await turn.session.fetchval(_SQL["end_turn"], turn.client, turn.number)
                self._turns.discard(turn)
            except DatabaseUnavailable as error:
                log.debug("turn_ended_with_session", reason=one_line(error))

    def _start(self, statement: "Coroutine[Any, Any, T]") -> asyncio.Task[T]:
        # A cancelled statement would close the session, and with it end all turns of this process.
        task = asyncio.create_task(statement)
        self._statements.add(task)
        task.add_done_callback(self._statements.discard)
        return task

    @asynccontextmanager
    async def _answering(self) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
        session = self._session
        if session is None or self.away:
            raise DatabaseUnavailable("the primary does not answer")
        try:
            async with timeout(ANSWER_S):
                await self._mutex.acquire()
        except TimeoutError as error:
            # Too many requests wait. The session is healthy.
            raise self._now_away(error) from error
        try:
            async with self._statement(session):
                yield session
        finally:
            self._mutex.release()

    @asynccontextmanager
    async def _statement(self, session: "asyncpg.Connection[asyncpg.Record]") -> "AsyncIterator[None]":
        if session.is_closed():
            raise DatabaseUnavailable("the session was lost")
        try:
            with self._database.using(session):
                async with timeout(ANSWER_S):
                    yield
        # Before its migration, a database has no such table.
        except (DatabaseUnavailable, asyncpg.PostgresError) as error:
            raise self._now_away(error) from error

    def _now_away(self, error: Exception) -> DatabaseUnavailable:
        self._away_until = time.monotonic() + AWAY_S
        log.warning("shared_limits_unavailable", reason=one_line(error))
        return DatabaseUnavailable(f"limits cannot be shared: {one_line(error)}")

    async def _keep_session(self) -> None:
        deleted_at = float("-inf")
        lost = asyncio.Event()
        while True:
            try:
                if self._session is None or self._session.is_closed():
                    session = await self._database.session(self._name, LEASE_S)
                    lost.clear()
                    session.add_termination_listener(lambda _: lost.set())
                    # Turns of the lost session are free. Exports that had them go on.
                    self._turns.clear()
                    self._session = session
                async with self._mutex, self._statement(self._session):
                    if time.monotonic() - deleted_at > DELETE_S:
                        await self._session.execute(_SQL["delete_full"])
                        deleted_at = time.monotonic()
                    else:
                        await self._session.execute(_SQL["heartbeat"])
            except KasparroError as error:
                log.debug("shared_limits_wait", reason=one_line(error))
                await asyncio.sleep(AWAY_S)
            else:
                with suppress(TimeoutError):
                    async with timeout(HEARTBEAT_S):
                        await lost.wait()
