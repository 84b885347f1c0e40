"""Connections to PostgreSQL: a pool for reading, a pool for writing, and which of their errors pass."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from kasparro.errors import DatabaseUnavailable, SettingsError

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

# asyncpg's pools give proxies that behave as the connections they stand for.
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"

CONNECT_TIMEOUT_S = 5
# A reader's query that takes longer is not worth its answer any more; a batch never takes that long.
READ_TIMEOUT_S = 15
WRITE_TIMEOUT_S = 300
LOCK_TIMEOUT_S = 30
# The server ends what takes too long; where it cannot even say so, the line is dead.
LINE_TIMEOUT_S = 5

# What passes by itself: the server is down, starting, stopping, failing over or full, or the line was cut.
_PASSING = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
    # A wrong password or name: a person mends it, and the service goes on without a restart.
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    # What asyncpg raises where the line was cut between two of its states.
    asyncpg.InternalClientError,
)
# A subclass of the above that no repetition cures.
_LASTING = asyncpg.QueryCanceledError


def passes(error: BaseException) -> bool:
    """Whether an error says that PostgreSQL is out of reach for now, so that trying again may work."""
    if isinstance(error, asyncpg.InterfaceError):
        # asyncpg's own errors are of two kinds: the line or the pool is closed, which only the text tells or
        # what happened before, or the program used it wrongly.
        before = error.__context__
        return "clos" in str(error) or (before is not None and passes(before))
    return isinstance(error, DatabaseUnavailable) or (
        isinstance(error, _PASSING) and not isinstance(error, _LASTING)
    )


class Database:
    """The two pools, for as long as the program works with its database.

    Opening needs no server: connections are made when they are asked for, so a service starts while its
    database is still down. Errors that pass are raised as DatabaseUnavailable, a URL that says nothing
    usable as SettingsError, all others as they are.
    """

    def __init__(self, url: str, read_url: str | None = None, *, readers: int = 8, writers: int = 6) -> None:
        self._url = url
        self._read_url = read_url
        self._read_name = "DATABASE_READ_URL" if read_url else "DATABASE_URL"
        self._readers = readers
        self._writers = writers

    async def __aenter__(self) -> Self:
        self._write = await asyncpg.create_pool(
            self._url,
            min_size=0,
            max_size=self._writers,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=WRITE_TIMEOUT_S + LINE_TIMEOUT_S,
            target_session_attrs=SessionAttribute.read_write,
            server_settings=_session(WRITE_TIMEOUT_S),
        )
        self._read = await self._readers_pool(self._readers)
        self._probe = await self._readers_pool(1)
        return self

    async def _readers_pool(self, size: int) -> "asyncpg.Pool[asyncpg.Record]":
        return await asyncpg.create_pool(
            self._read_url or self._url,
            min_size=0,
            max_size=size,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=READ_TIMEOUT_S + LINE_TIMEOUT_S,
            target_session_attrs=SessionAttribute.prefer_standby if self._read_url else SessionAttribute.any,
            server_settings=_session(READ_TIMEOUT_S),
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in (self._probe, self._read, self._write):
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await pool.close()
            except TimeoutError:
                pool.terminate()

    def terminate(self) -> None:
        """Cut all connections at once, where the server does not answer and a rollback would wait for it."""
        for pool in (self._probe, self._read, self._write):
            pool.terminate()

    @asynccontextmanager
    async def probing(self) -> "AsyncIterator[PoolConnectionProxy[asyncpg.Record]]":
        """A connection to read with that is kept free for health checks, however busy the readers are."""
        with _told(self._read_name):
            async with _acquired(self._probe) as connection:
                yield connection

    @asynccontextmanager
    async def reading(self) -> "AsyncIterator[PoolConnectionProxy[asyncpg.Record]]":
        """A connection to read with, from a replica where there is one."""
        with _told(self._read_name):
            async with _acquired(self._read) as connection:
                yield connection

    @asynccontextmanager
    async def writing(self) -> "AsyncIterator[PoolConnectionProxy[asyncpg.Record]]":
        """A connection to the primary."""
        with _told("DATABASE_URL"):
            async with _acquired(self._write) as connection:
                yield connection

    async def session(self) -> "asyncpg.Connection[asyncpg.Record]":
        """A connection to the primary outside the pool, for what lives as long as a session: advisory locks.

        The caller closes it.
        """
        with _told("DATABASE_URL"):
            return await asyncpg.connect(
                self._url,
                timeout=CONNECT_TIMEOUT_S,
                target_session_attrs=SessionAttribute.read_write,
                server_settings=_session(WRITE_TIMEOUT_S),
            )


@asynccontextmanager
async def _acquired(
    pool: "asyncpg.Pool[asyncpg.Record]",
) -> "AsyncIterator[PoolConnectionProxy[asyncpg.Record]]":
    try:
        connection = await pool.acquire(timeout=CONNECT_TIMEOUT_S)
    except TimeoutError:
        if pool.get_size() == pool.get_max_size() and not pool.get_idle_size():
            raise DatabaseUnavailable(
                f"all {pool.get_max_size()} connections to PostgreSQL are busy"
            ) from None
        raise
    try:
        yield connection
    finally:
        await pool.release(connection)


@contextmanager
def _told(setting: str) -> Iterator[None]:
    try:
        yield
    except asyncpg.ClientConfigurationError as error:
        raise SettingsError(f"{setting} has a value that cannot be used: {_line(error)}") from error
    except Exception as error:
        if isinstance(error, DatabaseUnavailable) or not passes(error):
            raise
        raise DatabaseUnavailable(f"PostgreSQL is out of reach: {_line(error)}") from error


def _line(error: BaseException) -> str:
    # One line, and never the connection string: asyncpg's texts name hosts and roles, not passwords.
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}…"


def _session(timeout_s: int) -> dict[str, str]:
    return {
        "application_name": "kasparro",
        "timezone": "UTC",
        "jit": "off",
        "statement_timeout": f"{timeout_s}s",
        "lock_timeout": f"{LOCK_TIMEOUT_S}s",
        "idle_in_transaction_session_timeout": "60s",
        # A host that vanished would hold its locks for two hours by TCP's own default.
        "tcp_keepalives_idle": "30",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
    }
