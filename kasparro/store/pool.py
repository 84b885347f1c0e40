"""Connection pools for reading and writing, and which errors of PostgreSQL are transient."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from kasparro.concurrency import timeout
from kasparro.errors import (
    ConnectionLost,
    DatabaseBusy,
    DatabaseUnavailable,
    SettingsError,
    StatementTimeout,
    one_line,
)
from kasparro.fair_semaphore import FairSemaphore
from kasparro.store.failover import url_per_host
from kasparro.store.sessions import CONNECT_TIMEOUT_S, Sessions

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

# asyncpg's pools give proxies that behave as the connections they stand for.
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"

# Limits of a statement. No client waits longer for a response, and no batch takes longer.
READ_TIMEOUT_S = 15
WRITE_TIMEOUT_S = 300
IDLE_TIMEOUT_S = 60
# Limits of an export: for sorting all rows, and, for the history of an asset, for a client that reads slowly,
# between two pieces.
EXPORT_TIMEOUT_S = 60
EXPORT_IDLE_S = 600
LOCK_TIMEOUT_S = 30
# Requests that may wait for a connection. If a page takes 1 ms, the last of 512 waits for half a second. If
# queries are slow, requests are rejected after QUEUE_S. That time includes connecting. It must be more than
# half of CONNECT_TIMEOUT_S, because a standby that does not answer takes that long.
QUEUED = 512
# One client may use this part of a queue.
QUEUE_PART = 4
QUEUE_S = 3
# A batch waits longer for a connection: no client waits for it, and other batches hold connections for
# seconds.
WRITE_QUEUE_S = 30
# How long a pool keeps an idle connection open.
CONNECTION_IDLE_S = 300.0
# Connections to replicas are renewed this often: another replica may be back, or the one that is used may
# have become the primary.
REPLICA_CONNECTION_S = 60.0
# If no replica answers, all reads go to the primary for this time before one of them tries a replica again.
REPLICA_RETRY_S = 1.0
# For so long, a connection goes from one request to the next without asyncpg's pool in between: to return it
# and to take it again takes longer than a short statement. That pool closes idle and expired connections.
KEPT_S = 1.0
# Between two attempts to connect to a server that has no free connections.
FULL_PAUSE_S = 0.25
# The server ends a statement that takes too long. If it does not even report that, the connection is dead.
DEAD_AFTER_S = 5
# How long an unfinished statement may take to end before its session is closed.
END_TIMEOUT_S = 1

# Transient errors: the server is down, starting, stopping, failing over or full, or the connection was lost.
_TRANSIENT = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionRollbackError,
    # Another session holds a lock, or the database does not allow connections at present.
    asyncpg.ObjectNotInPrerequisiteStateError,
    # A wrong password or name: an operator can correct it, and the service continues without a restart.
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    # asyncpg raises this if the connection was lost between two of its states.
    asyncpg.InternalClientError,
    # A newer version has migrated the database since the statement was prepared. asyncpg prepares it again,
    # but within a transaction only for the next one.
    asyncpg.InvalidCachedStatementError,
)
# Transient errors after which the connection still works; after the first two, the same would happen again at
# once. A standby rolls a query back that conflicts with what it replays.
_USELESS_AGAIN = (asyncpg.InsufficientResourcesError, asyncpg.ObjectNotInPrerequisiteStateError)
_CONNECTED = (
    *_USELESS_AGAIN,
    asyncpg.TransactionRollbackError,
    asyncpg.InvalidCachedStatementError,
)
# A subclass of these errors after which a retry is useless.
_PERMANENT = asyncpg.QueryCanceledError

# Messages for transient errors, by the first class that fits; all others mean that the server is unreachable.
_MESSAGES: tuple[tuple[type[Exception], str], ...] = (
    (asyncpg.DiskFullError, "PostgreSQL has no room left on its disk"),
    (asyncpg.TooManyConnectionsError, "PostgreSQL accepts no more connections"),
    (asyncpg.InsufficientResourcesError, "PostgreSQL lacks memory or other resources"),
    (asyncpg.LockNotAvailableError, "another session holds a lock that we need"),
    (asyncpg.InvalidCachedStatementError, "the schema was changed meanwhile"),
    (asyncpg.TransactionRollbackError, "PostgreSQL rolled a transaction back in favour of another"),
    (
        asyncpg.ReadOnlySQLTransactionError,
        "PostgreSQL accepts no writes: it is a standby, or set to read-only",
    ),
    (
        asyncpg.TargetServerAttributeNotMatched,
        "no host of PostgreSQL accepts writes: all are standbys or read-only",
    ),
    (asyncpg.CannotConnectNowError, "PostgreSQL is starting, stopping or recovering"),
    (asyncpg.InvalidAuthorizationSpecificationError, "PostgreSQL rejects the login"),
    (asyncpg.InvalidCatalogNameError, "PostgreSQL has no such database"),
)

# Only Citus reads this. After a statement of a transaction has written to the shards of a node in parallel, a
# later one cannot join their rows. Whether Citus writes in parallel depends on how busy the nodes are.
_ONE_CONNECTION_TO_EACH_NODE = {"citus.multi_shard_modify_mode": "sequential"}


def is_transient(error: BaseException) -> bool:
    """Whether an error means that PostgreSQL cannot be used at present, so that a retry makes sense."""
    if isinstance(error, asyncpg.InterfaceError):
        # asyncpg raises this error if the connection or the pool is closed, and also if the program misuses
        # it. Only the text, or the error before it, shows which of the two happened.
        before = error.__context__
        return _is_lost(error) or "clos" in str(error) or (before is not None and is_transient(before))
    # Citus has no error class of its own for a connection to another node that was lost.
    if isinstance(error, asyncpg.InternalServerError):
        return "failure on connection marked as essential" in str(error)
    return isinstance(error, DatabaseUnavailable) or (
        isinstance(error, _TRANSIENT) and not isinstance(error, _PERMANENT)
    )


class Database:
    """The connection pools of a process.

    Slow queries have a small pool of their own, so that they cannot take the connections of short ones; so
    have exports, which last as long as their clients read. A pool whose queue is full raises DatabaseBusy at
    once.

    Opening needs no server: a connection is made when it is needed, so a service starts while its database is
    still down. Transient errors are raised as DatabaseUnavailable, an unusable URL as SettingsError, and
    other errors unchanged.

    If no replica answers, reads go to the primary, in sessions that cannot write.
    """

    def __init__(
        self,
        url: str,
        read_url: str | None = None,
        *,
        readers: int = 8,
        slow_readers: int = 2,
        exporters: int = 4,
        writers: int = 6,
        queued: int = QUEUED,
        queue_s: float = QUEUE_S,
        idle_limit_s: float = CONNECTION_IDLE_S,
    ) -> None:
        self._url = url
        self.one_server = read_url is None and len(url_per_host(url)) == 1
        """Whether all reads go to one server, which never shows an older version than before."""
        # The lock of runs, LISTEN and temporary tables need sessions of their own. Reads do not.
        self._primary = Sessions(url, "DATABASE_URL", shareable=False)
        self._replicas = Sessions(read_url, "DATABASE_READ_URL", shareable=True) if read_url else None
        self._read_name = "DATABASE_READ_URL" if read_url else "DATABASE_URL"
        self._readers = readers
        self._slow_readers = slow_readers
        self.exporters = exporters
        self._writers = writers
        self._queued = queued
        self._queue_s = queue_s
        self._idle_limit_s = idle_limit_s

    async def __aenter__(self) -> Self:
        self._write = _Pool(
            await self._primary_pool(self._writers, WRITE_TIMEOUT_S), self._primary, wait_s=WRITE_QUEUE_S
        )
        self._read = await self._reader(self._readers, READ_TIMEOUT_S)
        self._slow = await self._reader(self._slow_readers, READ_TIMEOUT_S)
        self._export = await self._reader(self.exporters, EXPORT_TIMEOUT_S, EXPORT_IDLE_S)
        self._probe = await self._reader(1, READ_TIMEOUT_S)
        readers = (self._probe, self._export, self._slow, self._read)
        self._pools = [*(pool for reader in readers for pool in reader.pools), self._write]
        if self._replicas is not None:
            self._probe_primary = _Pool(
                await self._primary_pool(1, READ_TIMEOUT_S), self._primary, wait_s=self._queue_s
            )
            self._pools.append(self._probe_primary)
        return self

    @property
    def replicas(self) -> bool:
        """Whether reads go to replicas (DATABASE_READ_URL)."""
        return self._replicas is not None

    @property
    def behind_pooler(self) -> bool:
        """Whether DATABASE_URL leads to a pooler. Known after the first connection."""
        return self._primary.pooled

    def server_process(self, connection: Connection) -> int | None:
        """The id of the server process that works for a reader's connection; None if a pooler hides it."""
        hidden = self._readable.pooled or self._readable.shared
        return None if hidden else connection.get_server_pid()

    @property
    def can_listen(self) -> bool:
        """Whether `following` gives a session of its own. Known after its first connection."""
        return not self._readable.shared

    async def _primary_pool(self, size: int, timeout_s: int) -> "asyncpg.Pool[asyncpg.Record]":
        settings = _settings(timeout_s) | _ONE_CONNECTION_TO_EACH_NODE
        return await self._create_pool(self._primary, size, timeout_s, SessionAttribute.read_write, settings)

    async def _reader(self, size: int, timeout_s: int, idle_s: int = IDLE_TIMEOUT_S) -> "_Reader":
        # Readers send few different statements. Each is planned once for each connection, without its values.
        # A plan for the values would take as long as reading a page, and ten times as long if the statement
        # may use all months of the history.
        settings = _settings(timeout_s, idle_s) | {"plan_cache_mode": "force_generic_plan"}
        pool = await self._readers_pool(self._readable, size, timeout_s, self._readable_attributes, settings)
        if self.one_server:
            return _Reader(pool, None, self._read_name)
        # The role of DATABASE_URL may write. Requests must not.
        settings |= {"default_transaction_read_only": "on"}
        primary = await self._readers_pool(
            self._primary, size, timeout_s, SessionAttribute.read_write, settings
        )
        return _Reader(pool, primary, self._read_name)

    async def _readers_pool(
        self,
        sessions: Sessions,
        size: int,
        timeout_s: int,
        attributes: SessionAttribute,
        settings: Mapping[str, str],
    ) -> "_Pool":
        pool = await self._create_pool(sessions, size, timeout_s, attributes, settings)
        renew_s = REPLICA_CONNECTION_S if attributes is SessionAttribute.prefer_standby else None
        return _Pool(pool, sessions, settings, wait_s=self._queue_s, queued=self._queued, renew_s=renew_s)

    async def _create_pool(
        self,
        sessions: Sessions,
        size: int,
        timeout_s: int,
        attributes: SessionAttribute,
        settings: Mapping[str, str],
    ) -> "asyncpg.Pool[asyncpg.Record]":
        return await asyncpg.create_pool(
            sessions.url,
            connect=partial(sessions.open, settings),
            min_size=0,
            max_size=size,
            max_inactive_connection_lifetime=self._idle_limit_s,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=timeout_s + DEAD_AFTER_S,
            target_session_attrs=attributes,
            # Nobody changes anything in a session, and asyncpg's reset would undo its settings. It is also a
            # round trip as long as that of a query.
            reset=_nothing_to_reset,
        )

    @property
    def _readable(self) -> Sessions:
        return self._replicas or self._primary

    @property
    def _readable_attributes(self) -> SessionAttribute:
        return SessionAttribute.prefer_standby if self._replicas else SessionAttribute.any

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in self._pools:
            await pool.close()

    def terminate(self) -> None:
        """Close all connections at once, if the server does not respond and a rollback would wait for it."""
        for pool in self._pools:
            pool.terminate()

    @property
    def reads_primary(self) -> bool:
        """Whether reads go to the primary at present, because no replica answers."""
        return self._read.away or self._probe.away

    def probing(self) -> "AbstractAsyncContextManager[PoolConnectionProxy[asyncpg.Record]]":
        """A connection for reading that is reserved for health checks."""
        return self._probe.connection()

    @asynccontextmanager
    async def probing_primary(self) -> "AsyncIterator[PoolConnectionProxy[asyncpg.Record]]":
        """A connection to the primary that is reserved for health checks. Only if `replicas` is true."""
        with _translated_errors("DATABASE_URL"):
            async with self._probe_primary.connection() as connection:
                yield connection

    def reading(
        self, *, pool: Literal["short", "slow"] = "short", client: str = "", primary: bool = False
    ) -> "AbstractAsyncContextManager[PoolConnectionProxy[asyncpg.Record]]":
        """A connection for reading, to a replica if there is one; of the slow pool for slow queries.

        With `primary`, it is to the server that accepts writes. Waiting clients get connections in rotation,
        and one client cannot fill the queue. Without `client`, the connection is for the service itself.
        Raises ConnectionLost if the connection is lost while it is used.
        """
        return (self._slow if pool == "slow" else self._read).connection(client, primary=primary)

    def exporting(self) -> "AbstractAsyncContextManager[PoolConnectionProxy[asyncpg.Record]]":
        """A connection for an export, which reads piece by piece and may wait long for its client."""
        return self._export.connection()

    @asynccontextmanager
    async def writing(self) -> "AsyncIterator[PoolConnectionProxy[asyncpg.Record]]":
        """A connection to the primary."""
        with _translated_errors("DATABASE_URL", WRITE_TIMEOUT_S):
            async with self._write.connection() as connection:
                yield connection

    @asynccontextmanager
    async def following(self) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
        """A connection outside the pools to the server of the readers, to listen on; statements are short."""
        with _translated_errors(self._read_name):
            connection = await self._readable.open(
                _settings(READ_TIMEOUT_S),
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=QUEUE_S,
                target_session_attrs=self._readable_attributes,
            )
            try:
                yield connection
            finally:
                connection.terminate()

    @property
    def idle(self) -> bool:
        """Whether no request uses or awaits a connection for a short query."""
        return all(pool.idle for pool in self._read.pools)

    def usage(self) -> dict[str, tuple[int, int, int]]:
        """For each pool of readers: its limit of connections, how many are in use, how many requests wait."""
        return {
            "short": self._read.usage(),
            "slow": self._slow.usage(),
            "export": self._export.usage(),
        }

    async def session(self, name: str, lease_s: float) -> "asyncpg.Connection[asyncpg.Record]":
        """A connection to the primary outside the pools, for advisory locks, which last as long as a session.

        Its application name is `name`, and the server ends it if it is silent for `lease_s`. The caller
        closes it.
        """
        lease = f"{lease_s * 1000:.0f}ms"
        settings = _settings(WRITE_TIMEOUT_S) | {
            "application_name": name,
            "idle_session_timeout": lease,
            "idle_in_transaction_session_timeout": lease,
        }
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        with _translated_errors("DATABASE_URL"):
            while True:
                try:
                    return await self._primary.open(
                        settings,
                        test_again=True,
                        timeout=CONNECT_TIMEOUT_S,
                        command_timeout=WRITE_TIMEOUT_S + DEAD_AFTER_S,
                        target_session_attrs=SessionAttribute.read_write,
                    )
                except asyncpg.TooManyConnectionsError:
                    if time.monotonic() + FULL_PAUSE_S > deadline:
                        raise
                    await asyncio.sleep(FULL_PAUSE_S)

    @contextmanager
    def using(self, session: "asyncpg.Connection[asyncpg.Record]") -> Iterator[None]:
        """A block that works on a connection of `session`, with the errors of the pools.

        After an error the connection is closed, because its state is unknown.
        """
        with _translated_errors("DATABASE_URL", WRITE_TIMEOUT_S):
            try:
                yield
            except BaseException:
                session.terminate()
                raise


class _Reader:
    # Reads from one pool, and from that of the primary while the other one has no connection.

    def __init__(self, pool: "_Pool", primary: "_Pool | None", setting: str) -> None:
        self._pool = pool
        self._primary = primary
        self._setting = setting
        self._away_until = float("-inf")

    @property
    def away(self) -> bool:
        return time.monotonic() < self._away_until

    @property
    def pools(self) -> "list[_Pool]":
        return [self._pool] if self._primary is None else [self._pool, self._primary]

    def usage(self) -> tuple[int, int, int]:
        return self._pool.usage()

    def connection(
        self, client: str = "", *, primary: bool = False
    ) -> "AbstractAsyncContextManager[PoolConnectionProxy[asyncpg.Record]]":
        if self._primary is None:
            return _Connected(self._pool, client, self._setting)
        if primary or self.away:
            return _Connected(self._primary, client, "DATABASE_URL")
        return self._replica_or_primary(client, self._primary)

    @asynccontextmanager
    async def _replica_or_primary(
        self, client: str, primary: "_Pool"
    ) -> "AsyncIterator[PoolConnectionProxy[asyncpg.Record]]":
        connected = False
        try:
            async with _Connected(self._pool, client, self._setting) as connection:
                connected = True
                yield connection
        except DatabaseBusy:
            raise
        except DatabaseUnavailable as error:
            # A server that is full answers. What it cannot serve would be too much for the primary as well.
            full = isinstance(error.__cause__, asyncpg.TooManyConnectionsError)
            if connected or full:
                raise
            self._away_until = time.monotonic() + REPLICA_RETRY_S
        if not connected:
            async with _Connected(primary, client, "DATABASE_URL") as connection:
                yield connection


class _Connected(AbstractAsyncContextManager["PoolConnectionProxy[asyncpg.Record]"]):
    # A connection of a pool of readers, with Kasparro's own errors. It is a class, and so is _Lease, because
    # each generator in their place would take a fiftieth of the time of a short request.

    __slots__ = ("_lease", "_pool", "_setting")

    def __init__(self, pool: "_Pool", client: str, setting: str) -> None:
        self._pool = pool
        self._lease = pool.connection(client)
        self._setting = setting

    async def __aenter__(self) -> "PoolConnectionProxy[asyncpg.Record]":
        try:
            return await self._lease.__aenter__()
        except Exception:
            with _translated_errors(self._setting):
                raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            try:
                await self._lease.__aexit__(None, None, None)
            except Exception:
                with _translated_errors(self._setting):
                    raise
            return
        with _translated_errors(self._setting):
            try:
                await self._raise_translated(error)
            except BaseException as translated:
                await self._lease.__aexit__(type(translated), translated, translated.__traceback__)
                raise

    async def _raise_translated(self, error: BaseException) -> None:
        with _translated_errors(self._setting, lost=True):
            if is_transient(error) and not isinstance(error, (DatabaseUnavailable, *_CONNECTED)):
                # The others of the pool are probably lost too, even if nobody has noticed.
                await self._pool.renew()
            raise error


class _Pool:
    # A pool with a limit on the number and the time of waiting requests.
    #
    # If the server accepts no more connections, requests wait too, and the open connections serve all of
    # them. After a rejected attempt a slot stays empty for a moment, so that few attempts are made.
    #
    # Behind a pooler that shares server processes, each use is one transaction, with the `settings`.

    def __init__(
        self,
        pool: "asyncpg.Pool[asyncpg.Record]",
        sessions: Sessions,
        settings: Mapping[str, str] = MappingProxyType({}),
        *,
        wait_s: float,
        queued: int | None = None,
        renew_s: float | None = None,
    ) -> None:
        self._pool = pool
        self._sessions = sessions
        self._renew_s = renew_s
        self._renewed_at = time.monotonic()
        self._settings = settings
        self._wait_s = wait_s
        self._most = None if queued is None else pool.get_max_size() + queued
        self._most_per_client = None if queued is None else max(1, queued // QUEUE_PART)
        self._slots = FairSemaphore(pool.get_max_size())
        self._requests = 0
        self._in_use = 0
        # Connections between two requests, each with the time until which it is kept.
        self._kept: list[tuple[PoolConnectionProxy[asyncpg.Record], float]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._returning: set[asyncio.Task[None]] = set()

    def connection(self, client: str = "") -> "_Lease":
        return _Lease(self, client)

    def transaction(
        self, connection: "PoolConnectionProxy[asyncpg.Record]"
    ) -> AbstractAsyncContextManager[None] | None:
        if not self._sessions.shared:
            return None
        return self._sessions.transaction(connection, self._settings)

    async def take(self, client: str) -> "tuple[PoolConnectionProxy[asyncpg.Record], float]":
        # A connection for one use, and until when it may be kept afterwards; `give_back` ends the use.
        if self._requests == self._most:
            raise self._busy()
        if client and self._slots.waiting_of(client) == self._most_per_client:
            raise DatabaseBusy(f"{self._most_per_client} requests of this client wait for PostgreSQL already")
        self._requests += 1
        try:
            taken = await self._acquire(client)
        except BaseException:
            self._requests -= 1
            raise
        self._in_use += 1
        return taken

    async def give_back(
        self,
        connection: "PoolConnectionProxy[asyncpg.Record]",
        kept_until: float,
        client: str,
        *,
        failed: bool,
    ) -> None:
        try:
            if failed:
                kept_until = 0.0
                # The others may be lost too.
                self._return_kept()
                await _end_statement(connection)
        finally:
            self._in_use -= 1
            # If the connection was lost, the proxy is empty and there is nothing to end.
            with suppress(asyncpg.InterfaceError):
                if connection.is_in_transaction():
                    # The transaction was cancelled while it began. Only closing the session ends it.
                    connection.terminate()
            try:
                if time.monotonic() < kept_until:
                    self._keep(connection, kept_until)
                else:
                    await self._pool.release(connection)
            finally:
                self._slots.release(client)
                self._requests -= 1

    async def _acquire(self, client: str) -> "tuple[PoolConnectionProxy[asyncpg.Record], float]":
        began = time.monotonic()
        deadline = began + self._wait_s
        if self._renew_s is not None and began - self._renewed_at > self._renew_s:
            await self.renew()
        rejected: asyncpg.TooManyConnectionsError | None = None
        while True:
            try:
                await self._slots.acquire(client, deadline - time.monotonic())
            except TimeoutError:
                raise rejected or self._busy() from None
            if rejected is not None and time.monotonic() >= deadline:
                self._slots.release(client)
                raise rejected
            while self._kept:
                connection, kept_until = self._kept.pop()
                # The proxy of a connection that was lost meanwhile is empty.
                with suppress(asyncpg.InterfaceError):
                    if not connection.is_closed():
                        return connection, kept_until
            try:
                connection = await self._pool.acquire(timeout=deadline - time.monotonic())
                return connection, time.monotonic() + KEPT_S
            except asyncpg.TooManyConnectionsError as error:
                asyncio.get_running_loop().call_later(FULL_PAUSE_S, self._slots.release, client)
                rejected = error
            except TimeoutError:
                self._slots.release(client)
                if rejected is not None:
                    # The time ran out during this attempt. The error of the attempt before it is the reason.
                    raise rejected from None
                raise
            except BaseException:
                self._slots.release(client)
                raise

    async def renew(self) -> None:
        """Close the connections, each when nobody uses it any more."""
        self._renewed_at = time.monotonic()
        await self._pool.expire_connections()
        self._return_kept()

    def _keep(self, connection: "PoolConnectionProxy[asyncpg.Record]", until: float) -> None:
        self._kept.append((connection, until))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(KEPT_S, self._return_kept)

    def _return_kept(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection, _ in self._kept:
            returning = asyncio.create_task(self._pool.release(connection))
            self._returning.add(returning)
            returning.add_done_callback(self._returned)
        self._kept.clear()

    def _returned(self, returning: asyncio.Task[None]) -> None:
        self._returning.discard(returning)
        if not returning.cancelled():
            # A lost connection may fail to close: without this, asyncio would log it as never retrieved.
            returning.exception()

    @property
    def idle(self) -> bool:
        return not self._requests

    def usage(self) -> tuple[int, int, int]:
        return self._pool.get_max_size(), self._in_use, self._requests - self._in_use

    async def close(self) -> None:
        self._return_kept()
        try:
            async with timeout(CONNECT_TIMEOUT_S):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    def terminate(self) -> None:
        self._pool.terminate()

    def _busy(self) -> DatabaseBusy:
        return DatabaseBusy(f"all {self._pool.get_max_size()} connections to PostgreSQL are busy")


class _Lease(AbstractAsyncContextManager["PoolConnectionProxy[asyncpg.Record]"]):
    # A connection of a pool for one block.

    __slots__ = ("_client", "_connection", "_kept_until", "_pool", "_transaction")

    def __init__(self, pool: _Pool, client: str) -> None:
        self._pool = pool
        self._client = client

    async def __aenter__(self) -> "PoolConnectionProxy[asyncpg.Record]":
        self._connection, self._kept_until = await self._pool.take(self._client)
        self._transaction = self._pool.transaction(self._connection)
        if self._transaction is not None:
            try:
                await self._transaction.__aenter__()
            except BaseException:
                await self._give_back(failed=True)
                raise
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = True
        try:
            if self._transaction is not None:
                try:
                    await self._transaction.__aexit__(kind, error, trace)
                except asyncpg.InterfaceError:
                    # Without a connection nothing can be rolled back, and `error` says why it is closed.
                    if error is None:
                        raise
            failed = error is not None
        finally:
            await self._give_back(failed=failed)

    async def _give_back(self, *, failed: bool) -> None:
        await self._pool.give_back(self._connection, self._kept_until, self._client, failed=failed)


async def _nothing_to_reset(connection: object) -> None:
    pass


async def _end_statement(connection: "PoolConnectionProxy[asyncpg.Record]") -> None:
    """End a statement that was prepared, but not executed.

    asyncpg sends the message Sync not after the preparation, but with the execution. If a task is cancelled
    between the two, or its arguments cannot be encoded, the server stays in an implicit transaction, with a
    snapshot and with locks. A statement of the simple protocol ends it.
    """
    ended = False
    try:
        with suppress(Exception):
            await connection.execute("SELECT 1", timeout=END_TIMEOUT_S)
            ended = True
    finally:
        # An empty proxy means that the connection was lost.
        with suppress(asyncpg.InterfaceError):
            if not ended:
                connection.terminate()


@contextmanager
def _translated_errors(setting: str, limit_s: float | None = None, *, lost: bool = False) -> Iterator[None]:
    """Raise the errors of a block as Kasparro's own. `limit_s` is the time limit of its statements; without
    it, the errors of cancelled statements are raised unchanged. If `lost`, the block has a connection."""
    began = time.monotonic()
    try:
        yield
    except asyncpg.ClientConfigurationError as error:
        raise SettingsError(f"{setting} cannot be used: {one_line(error)}") from error
    except asyncpg.QueryCanceledError as error:
        if limit_s is None:
            raise
        # The server has one error for both cases, and only its localised text differs.
        if time.monotonic() - began >= limit_s:
            raise StatementTimeout(
                f"PostgreSQL ended a statement that took too long: {one_line(error)}"
            ) from error
        raise DatabaseUnavailable(f"a statement was cancelled in PostgreSQL: {one_line(error)}") from error
    except Exception as error:
        cause, task = _cause(error), asyncio.current_task()
        if isinstance(cause, asyncio.CancelledError) and task is not None and task.cancelling():
            # The connection is lost too, and the end of its transaction raised asyncpg's error.
            raise cause from None
        if isinstance(error, DatabaseUnavailable) or not is_transient(error):
            raise
        message = next((text for kind, text in _MESSAGES if isinstance(cause, kind)), None)
        if _is_lost(cause):
            message = "the connection was lost"
        # asyncpg's texts name hosts and roles, never the URL with its password.
        text = f"{message or 'PostgreSQL is unreachable'}: {one_line(cause)}"
        # After a timeout, the time of the request is used up.
        lost = lost and not isinstance(cause, (TimeoutError, *_USELESS_AGAIN))
        kind = ConnectionLost if lost else DatabaseUnavailable
        raise kind(text) from error


def _is_lost(error: BaseException) -> bool:
    # The pool takes a lost connection back, and a statement on its proxy then raises this.
    return isinstance(error, asyncpg.InterfaceError) and "released back to the pool" in str(error)


def _cause(error: BaseException) -> BaseException:
    # If a block ends after its connection was lost, asyncpg's own error hides the first one.
    while isinstance(error, asyncpg.InterfaceError) and error.__context__ is not None:
        error = error.__context__
    return error


def _settings(timeout_s: int, idle_s: int = IDLE_TIMEOUT_S) -> dict[str, str]:
    return {
        "application_name": "kasparro",
        "timezone": "UTC",
        "jit": "off",
        # Our look-ups have each key once, so that results which are kept are never used again.
        "enable_memoize": "off",
        "statement_timeout": f"{timeout_s}s",
        "lock_timeout": f"{LOCK_TIMEOUT_S}s",
        "idle_in_transaction_session_timeout": f"{idle_s}s",
        # By TCP's default, a client that vanished would hold its locks for two hours.
        "tcp_keepalives_idle": "30",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
    }
