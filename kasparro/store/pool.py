"""Connections to PostgreSQL: pools for reading and writing, and which of their errors pass."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from kasparro.concurrency import timeout
from kasparro.errors import DatabaseBusy, DatabaseUnavailable, SettingsError, StatementTimeout, one_line
from kasparro.places import Places
from kasparro.store import failover

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

# asyncpg's pools give proxies that behave as the connections they stand for.
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"

CONNECT_TIMEOUT_S = 5
# A reader's query that takes longer is not worth its answer any more; a batch never takes that long.
READ_TIMEOUT_S = 15
WRITE_TIMEOUT_S = 300
IDLE_TIMEOUT_S = 60
# Of an export: what sorting all rows may take, and how long a piece may take to a client that reads slowly.
EXPORT_TIMEOUT_S = 60
EXPORT_IDLE_S = 600
LOCK_TIMEOUT_S = 30
# Readers that wait for a connection: of pages that take a millisecond, so many wait for a fraction of a
# second; where they take long, whoever has waited for so long is sent away. Connecting counts as waiting, for
# which half of CONNECT_TIMEOUT_S may go by until a standby that is silent is given up.
QUEUED = 512
# One client may fill this part of a queue, so that others find room in it.
QUEUE_PART = 4
QUEUE_S = 3
# A batch waits longer for a connection: nobody waits for its answer, and other batches hold them for seconds.
WRITE_QUEUE_S = 30
# How long a pool keeps an idle connection open.
CONNECTION_IDLE_S = 300.0
# Between two attempts at a connection to a server that has no more of them.
FULL_PAUSE_S = 0.25
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
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionRollbackError,
    # A lock that another session holds; or somebody keeps connections out of the database for a while.
    asyncpg.ObjectNotInPrerequisiteStateError,
    # A wrong password or name: a person mends it, and the service goes on without a restart.
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    # What asyncpg raises where the line was cut between two of its states.
    asyncpg.InternalClientError,
)
# A subclass of the above that no repetition cures.
_LASTING = asyncpg.QueryCanceledError

# What to tell of an error that passes, by the first kind that fits; all others are a server out of reach.
_MEANINGS: tuple[tuple[type[Exception], str], ...] = (
    (asyncpg.DiskFullError, "PostgreSQL has no room left on its disk"),
    (asyncpg.TooManyConnectionsError, "PostgreSQL takes no more connections"),
    (asyncpg.InsufficientResourcesError, "PostgreSQL lacks memory or other resources"),
    (asyncpg.LockNotAvailableError, "another session holds a lock that we need"),
    (asyncpg.TransactionRollbackError, "PostgreSQL undid a transaction in favour of another"),
    (asyncpg.ReadOnlySQLTransactionError, "PostgreSQL takes no writes, as a standby or by its settings"),
    (asyncpg.TargetServerAttributeNotMatched, "no host of PostgreSQL takes writes: standbys, or read-only"),
    (asyncpg.CannotConnectNowError, "PostgreSQL is starting, stopping or recovering"),
    (asyncpg.InvalidAuthorizationSpecificationError, "PostgreSQL refuses the login"),
    (asyncpg.InvalidCatalogNameError, "PostgreSQL has no such database"),
)


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
    """The pools, for as long as the program works with its database.

    What may take long reads from a small pool of its own (`wide`), so that it cannot keep the short reads
    from their connections; exports, which last as long as their readers, from another. A pool whose queue is
    full raises DatabaseBusy at once.

    Opening needs no server: connections are made when they are asked for, so a service starts while its
    database is still down. Errors that pass are raised as DatabaseUnavailable, a URL that says nothing
    usable as SettingsError, all others as they are.
    """

    def __init__(
        self,
        url: str,
        read_url: str | None = None,
        *,
        readers: int = 8,
        wide_readers: int = 2,
        exporters: int = 4,
        writers: int = 6,
        queued: int = QUEUED,
        queue_s: float = QUEUE_S,
        idle_limit_s: float = CONNECTION_IDLE_S,
    ) -> None:
        self._url = url
        self._read_url = read_url
        self._read_name = "DATABASE_READ_URL" if read_url else "DATABASE_URL"
        self._readers = readers
        self._wide_readers = wide_readers
        self.exporters = exporters
        self._writers = writers
        self._queued = queued
        self._queue_s = queue_s
        self._idle_limit_s = idle_limit_s

    @property
    def one_server(self) -> bool:
        """Whether all that is read is read from one server, where what was seen once stays seen."""
        return self._read_url is None and "," not in self._url

    async def __aenter__(self) -> Self:
        self._write = _Pool(
            await asyncpg.create_pool(
                self._url,
                connect=failover.connect,
                min_size=0,
                max_size=self._writers,
                max_inactive_connection_lifetime=self._idle_limit_s,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=WRITE_TIMEOUT_S + LINE_TIMEOUT_S,
                target_session_attrs=SessionAttribute.read_write,
                server_settings=_session(WRITE_TIMEOUT_S),
            ),
            wait_s=WRITE_QUEUE_S,
        )
        self._read = await self._readers_pool(self._readers, READ_TIMEOUT_S)
        self._wide = await self._readers_pool(self._wide_readers, READ_TIMEOUT_S)
        self._export = await self._readers_pool(self.exporters, EXPORT_TIMEOUT_S, EXPORT_IDLE_S)
        self._probe = await self._readers_pool(1, READ_TIMEOUT_S)
        self._pools = [self._probe, self._export, self._wide, self._read, self._write]
        if self._read_url is not None:
            self._probe_primary = _Pool(
                await asyncpg.create_pool(
                    self._url,
                    connect=failover.connect,
                    min_size=0,
                    max_size=1,
                    max_inactive_connection_lifetime=self._idle_limit_s,
                    timeout=CONNECT_TIMEOUT_S,
                    command_timeout=READ_TIMEOUT_S + LINE_TIMEOUT_S,
                    target_session_attrs=SessionAttribute.read_write,
                    server_settings=_session(READ_TIMEOUT_S),
                ),
                wait_s=self._queue_s,
            )
            self._pools.append(self._probe_primary)
        return self

    @property
    def replicas(self) -> bool:
        """Whether reads have a database of their own, DATABASE_READ_URL."""
        return self._read_url is not None

    async def _readers_pool(self, size: int, timeout_s: int, idle_s: int = IDLE_TIMEOUT_S) -> "_Pool":
        pool = await asyncpg.create_pool(
            self._read_url or self._url,
            connect=failover.connect,
            min_size=0,
            max_size=size,
            max_inactive_connection_lifetime=self._idle_limit_s,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=timeout_s + LINE_TIMEOUT_S,
            target_session_attrs=self._readable,
            # The few statements of readers are planned once a connection: making a plan for one's values
            # takes as long as a page, and ten times as long where it may reach all months of the history.
            server_settings=_session(timeout_s, idle_s) | {"plan_cache_mode": "force_generic_plan"},
            # Readers leave nothing behind in a session, and cleaning it is as long a way as the query's.
            reset=_nothing_to_reset,
        )
        return _Pool(pool, wait_s=self._queue_s, queued=self._queued)

    @property
    def _readable(self) -> SessionAttribute:
        return SessionAttribute.prefer_standby if self._read_url else SessionAttribute.any

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in self._pools:
            await pool.close()

    def terminate(self) -> None:
        """Cut all connections at once, where the server does not answer and a rollback would wait for it."""
        for pool in self._pools:
            pool.terminate()

    @asynccontextmanager
    async def probing(self) -> "AsyncIterator[PoolConnectionProxy[asyncpg.Record]]":
        """A connection to read with that is kept free for health checks, however busy the readers are."""
        with _told(self._read_name):
            async with self._probe.connection() as connection:
                yield connection

    @asynccontextmanager
    async def probing_primary(self) -> "AsyncIterator[PoolConnectionProxy[asyncpg.Record]]":
        """The same to the primary; only where `replicas`."""
        with _told("DATABASE_URL"):
            async with self._probe_primary.connection() as connection:
                yield connection

    @asynccontextmanager
    async def reading(
        self, *, slow: bool = False, client: str = ""
    ) -> "AsyncIterator[PoolConnectionProxy[asyncpg.Record]]":
        """A connection to read with, from a replica where there is one; `wide` for what may take long.

        Clients that wait get theirs by turns, and no client fills the queue alone. Without `client` it is for
        the service itself.
        """
        with _told(self._read_name):
            async with (self._wide if slow else self._read).connection(client) as connection:
                yield connection

    @asynccontextmanager
    async def exporting(self) -> "AsyncIterator[PoolConnectionProxy[asyncpg.Record]]":
        """A connection to read much with, piece by piece: it may wait long for whoever takes the pieces."""
        with _told(self._read_name):
            async with self._export.connection() as connection:
                yield connection

    @asynccontextmanager
    async def writing(self) -> "AsyncIterator[PoolConnectionProxy[asyncpg.Record]]":
        """A connection to the primary."""
        with _told("DATABASE_URL", WRITE_TIMEOUT_S):
            async with self._write.connection() as connection:
                yield connection

    @asynccontextmanager
    async def following(self) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
        """A connection of its own to where readers read, for who listens there; each statement is short."""
        with _told(self._read_name):
            connection = await failover.connect(
                self._read_url or self._url,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=QUEUE_S,
                target_session_attrs=self._readable,
                server_settings=_session(READ_TIMEOUT_S),
            )
            try:
                yield connection
            finally:
                connection.terminate()

    def figures(self) -> dict[str, tuple[int, int, int]]:
        """Of each pool of readers: how many connections it may have, how many are at work, who waits."""
        return {
            "short": self._read.figures(),
            "slow": self._wide.figures(),
            "export": self._export.figures(),
        }

    async def session(self, name: str, lease_s: float) -> "asyncpg.Connection[asyncpg.Record]":
        """A connection to the primary outside the pool, for what lives as long as a session: advisory locks.

        The server knows it by `name`, and ends it when it was silent for `lease_s`. The caller closes it.
        """
        lease = f"{lease_s * 1000:.0f}ms"
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        with _told("DATABASE_URL"):
            while True:
                try:
                    return await failover.connect(
                        self._url,
                        timeout=CONNECT_TIMEOUT_S,
                        command_timeout=WRITE_TIMEOUT_S + LINE_TIMEOUT_S,
                        target_session_attrs=SessionAttribute.read_write,
                        server_settings=_session(WRITE_TIMEOUT_S)
                        | {
                            "application_name": name,
                            "idle_session_timeout": lease,
                            "idle_in_transaction_session_timeout": lease,
                        },
                    )
                except asyncpg.TooManyConnectionsError:
                    if time.monotonic() + FULL_PAUSE_S > deadline:
                        raise
                    await asyncio.sleep(FULL_PAUSE_S)

    @contextmanager
    def using(self, session: "asyncpg.Connection[asyncpg.Record]") -> Iterator[None]:
        """A block that works on a connection of `session`: its errors are told as those of the pools are,
        and after any the connection is cut, since who knows in which state it is."""
        with _told("DATABASE_URL", WRITE_TIMEOUT_S):
            try:
                yield
            except BaseException:
                session.terminate()
                raise


class _Pool:
    # Connections, and how many may wait for one of them, and how long.
    #
    # A server that takes no more connections is waited for too, while those that are open serve all. A place
    # in the pool stays empty for a moment after a refusal, so that few attempts are made meanwhile.

    def __init__(
        self, pool: "asyncpg.Pool[asyncpg.Record]", *, wait_s: float, queued: int | None = None
    ) -> None:
        self._pool = pool
        self._wait_s = wait_s
        self._most = None if queued is None else pool.get_max_size() + queued
        self._most_each = None if queued is None else max(1, queued // QUEUE_PART)
        self._places = Places(pool.get_max_size())
        self._asking = 0
        self._working = 0

    @asynccontextmanager
    async def connection(self, client: str = "") -> "AsyncIterator[PoolConnectionProxy[asyncpg.Record]]":
        if self._asking == self._most:
            raise self._busy()
        if client and self._places.waiting_of(client) == self._most_each:
            raise DatabaseBusy(f"{self._most_each} requests of this client wait for PostgreSQL already")
        self._asking += 1
        try:
            connection = await self._acquire(client)
            self._working += 1
            try:
                yield connection
            finally:
                self._working -= 1
                # Where the line was cut there is nothing behind the proxy any more, and nothing to end.
                with suppress(asyncpg.InterfaceError):
                    if connection.is_in_transaction():
                        # Cancelled just when it began: nobody is left to end it but its session.
                        connection.terminate()
                try:
                    await self._pool.release(connection)
                finally:
                    self._places.give_back(client)
        finally:
            self._asking -= 1

    async def _acquire(self, client: str) -> "PoolConnectionProxy[asyncpg.Record]":
        deadline = time.monotonic() + self._wait_s
        refused: asyncpg.TooManyConnectionsError | None = None
        while True:
            try:
                await self._places.take(client, deadline - time.monotonic())
            except TimeoutError:
                raise refused or self._busy() from None
            if refused is not None and time.monotonic() >= deadline:
                self._places.give_back(client)
                raise refused
            try:
                return await self._pool.acquire(timeout=deadline - time.monotonic())
            except asyncpg.TooManyConnectionsError as error:
                asyncio.get_running_loop().call_later(FULL_PAUSE_S, self._places.give_back, client)
                refused = error
            except TimeoutError:
                self._places.give_back(client)
                if refused is not None:
                    # The time ran out during an attempt: the refusal before it says why.
                    raise refused from None
                raise
            except BaseException:
                self._places.give_back(client)
                raise

    def figures(self) -> tuple[int, int, int]:
        return self._pool.get_max_size(), self._working, self._asking - self._working

    async def close(self) -> None:
        try:
            async with timeout(CONNECT_TIMEOUT_S):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    def terminate(self) -> None:
        self._pool.terminate()

    def _busy(self) -> DatabaseBusy:
        return DatabaseBusy(f"all {self._pool.get_max_size()} connections to PostgreSQL are busy")


async def _nothing_to_reset(connection: object) -> None:
    pass


@contextmanager
def _told(setting: str, limit_s: float | None = None) -> Iterator[None]:
    """Errors of a block in our words. With `limit_s`, how long a statement in it may take, those of
    cancelled statements too."""
    began = time.monotonic()
    try:
        yield
    except asyncpg.ClientConfigurationError as error:
        raise SettingsError(f"{setting} has a value that cannot be used: {one_line(error)}") from error
    except asyncpg.QueryCanceledError as error:
        if limit_s is None:
            raise
        # The server has one error for both, and tells them apart in a language of its own.
        if time.monotonic() - began >= limit_s:
            raise StatementTimeout(
                f"PostgreSQL ended a statement that took too long: {one_line(error)}"
            ) from error
        raise DatabaseUnavailable(
            f"somebody cancelled a statement in PostgreSQL: {one_line(error)}"
        ) from error
    except Exception as error:
        if isinstance(error, DatabaseUnavailable) or not passes(error):
            raise
        cause = _cause(error)
        meaning = next((text for kind, text in _MEANINGS if isinstance(cause, kind)), None)
        # Never the connection string: asyncpg's texts name hosts and roles, not passwords.
        raise DatabaseUnavailable(f"{meaning or 'PostgreSQL is out of reach'}: {one_line(cause)}") from error


def _cause(error: BaseException) -> BaseException:
    # asyncpg's own errors come after the server's, where a block ends on a connection that is gone.
    while isinstance(error, asyncpg.InterfaceError) and error.__context__ is not None:
        error = error.__context__
    return error


def _session(timeout_s: int, idle_s: int = IDLE_TIMEOUT_S) -> dict[str, str]:
    return {
        "application_name": "kasparro",
        "timezone": "UTC",
        "jit": "off",
        "statement_timeout": f"{timeout_s}s",
        "lock_timeout": f"{LOCK_TIMEOUT_S}s",
        "idle_in_transaction_session_timeout": f"{idle_s}s",
        # A host that vanished would hold its locks for two hours by TCP's own default.
        "tcp_keepalives_idle": "30",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
    }
