"""Opens sessions of PostgreSQL, directly or through a pooler such as PgBouncer."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from kasparro.errors import SettingsError, one_line
from kasparro.store import failover
from kasparro.store.sql import statements
from kasparro.tracing import trace_queries

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

_SQL = statements("operations/sessions.sql")

CONNECT_TIMEOUT_S = 5
# A pooler accepts clients at once, and lets their first statement wait for a free server connection.
FIRST_STATEMENT_S = 2
# The test for transaction poolers: so many clients ask in turn which server process works for them. A pooler
# may consist of several processes that share nothing; with more clients than processes, two of them meet.
TEST_CLIENTS = 3
TEST_ROUNDS = 4
# The only parameter in the startup message: poolers accept it, and reject most others.
_STARTUP = ("application_name",)
# What matters in the transactions of a shared session. The rest is about connections, which the pooler owns.
_IN_TRANSACTIONS = (
    "timezone",
    "jit",
    "enable_memoize",
    "plan_cache_mode",
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
)
# What PgBouncer and Supavisor say if they accept no more clients.
_FULL = ("no more connections allowed", "max client")

SHARES_SESSIONS = (
    "leads to a pooler in transaction mode, which cannot be used, because the lock that keeps two runs apart "
    "does not hold there: set it to PostgreSQL itself or to a pooler in session mode (Neon: the host without "
    "-pooler; Supabase: port 5432); DATABASE_READ_URL may lead to this pooler"
)


class Sessions:
    """The sessions at one URL.

    A pooler is recognized by the process id in its answer to the startup message. This id belongs to the key
    that cancels a statement. A pooler that changes server processes has to invent it, so it is not the id of
    the process that works for the client.

    In session mode a pooler keeps that process for a client; in transaction mode it may give each transaction
    another one. Locks, LISTEN, settings and prepared statements of a session are lost then. With `shareable`,
    every pooler is used as if it were in transaction mode; otherwise one in transaction mode is rejected.
    """

    def __init__(self, url: str, setting: str, *, shareable: bool) -> None:
        self.url = url
        self._setting = setting
        self._shareable = shareable
        # One test at a time, because its clients take connections of the pooler.
        self._testing = asyncio.Lock()
        self.pooled = False
        """Whether a pooler in session mode is between us and PostgreSQL."""
        self.shared = False
        """Whether a pooler may give the sessions to other clients too. Then nothing may be set for a session,
        and each statement has to be in a block of `transaction`."""

    async def open(
        self, settings: Mapping[str, str], dsn: str | None = None, *, test_again: bool = False, **options: Any
    ) -> "asyncpg.Connection[asyncpg.Record]":
        """A connection with these settings. The options are those of `failover.connect`; asyncpg's pools also
        pass the URL.

        With `test_again`, a pooler is tested even if it kept its sessions before. Raises SettingsError if a
        pooler cannot be used.
        """
        # Several connections may be opened at the same time.
        if self.shared:
            return await self._connect(settings, statement_cache_size=0, **options)
        connection = await self._connect(settings, **options)
        try:
            if await _configure(connection, settings, connection.get_server_pid()):
                return connection
            if not self._shareable:
                async with self._testing:
                    if test_again or not self.pooled:
                        await self._test()
                        self.pooled = True
                await _configure(connection, settings)
                return connection
        except BaseException:
            connection.terminate()
            raise
        # This connection may have named its prepared statements.
        connection.terminate()
        self.shared = True
        return await self._connect(settings, statement_cache_size=0, **options)

    @asynccontextmanager
    async def transaction(
        self, connection: "PoolConnectionProxy[asyncpg.Record]", settings: Mapping[str, str]
    ) -> AsyncIterator[None]:
        """A block in which one server process works for the connection, with these settings.

        It sees one moment of the data, so every block of a transaction inside it may ask for that.
        """
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            names = [name for name in _IN_TRANSACTIONS if name in settings]
            values = [settings[name] for name in names]
            await connection.fetchval(_SQL["configure"], names, values, True, None)
            yield

    async def _connect(
        self, settings: Mapping[str, str], **options: Any
    ) -> "asyncpg.Connection[asyncpg.Record]":
        try:
            connection = await failover.connect(
                self.url, server_settings={name: settings[name] for name in _STARTUP}, **options
            )
        # The errors of poolers have no codes of their own.
        except asyncpg.PostgresError as error:
            text = str(error)
            if "unsupported startup parameter" in text:
                # It is from the URL; we send none that a pooler rejects.
                raise SettingsError(
                    f"{self._setting} leads to a pooler that rejects a parameter of the URL "
                    f"({one_line(error)}): remove it from the URL, or, for PgBouncer, add it to "
                    "ignore_startup_parameters"
                ) from error
            if any(full in text for full in _FULL):
                raise asyncpg.TooManyConnectionsError(text) from error
            raise
        trace_queries(connection)
        return connection

    async def _test(self) -> None:
        """Raise SettingsError if several clients share server processes."""
        async with AsyncExitStack() as stack:
            clients = []
            for _ in range(TEST_CLIENTS):
                client = await failover.connect(
                    self.url,
                    timeout=CONNECT_TIMEOUT_S,
                    target_session_attrs=SessionAttribute.read_write,
                    statement_cache_size=0,
                )
                stack.callback(client.terminate)
                clients.append(client)
            seen: set[tuple[int, int]] = set()
            for turn in range(TEST_ROUNDS):
                # In both directions: a pooler that takes its processes in turn would repeat itself.
                for number in range(TEST_CLIENTS)[:: -1 if turn % 2 else 1]:
                    with _first_statement():
                        process = await clients[number].fetchval(
                            _SQL["server_process"], timeout=FIRST_STATEMENT_S
                        )
                    seen.add((number, process))
        if not len(seen) == len({process for _, process in seen}) == TEST_CLIENTS:
            raise SettingsError(f"{self._setting} {SHARES_SESSIONS}")


async def _configure(
    connection: "asyncpg.Connection[asyncpg.Record]", settings: Mapping[str, str], process: int | None = None
) -> bool:
    """Set up a session, with `process` only if this is its server process; True if it was."""
    given = {name: value for name, value in settings.items() if name not in _STARTUP}
    with _first_statement():
        # Without a name: another client of the server process may have a prepared statement of any name.
        statement = await connection.prepare(_SQL["configure"], name="", timeout=FIRST_STATEMENT_S)
        count = await statement.fetchval([*given], [*given.values()], False, process)
    return bool(count)


@contextmanager
def _first_statement() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise asyncpg.TooManyConnectionsError(
            f"a connection was made, but its first statement had no answer within {FIRST_STATEMENT_S} s; the "
            "pool of a pooler must be larger than KASPARRO_DATABASE_CONNECTIONS"
        ) from None
