"""Which errors of PostgreSQL are transient, their messages, and connections that end early."""

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import asyncpg
import pytest

from kasparro.errors import DatabaseUnavailable
from kasparro.store import pool
from kasparro.store.pool import Connection, Database, is_transient


async def raise_on_server(database: Database, sqlstate: str) -> None:
    async with database.writing() as connection:
        await connection.execute(f"DO $$ BEGIN RAISE EXCEPTION 'detail' USING ERRCODE = '{sqlstate}'; END $$")


# https://www.postgresql.org/docs/current/errcodes-appendix.html
@pytest.mark.parametrize(
    ("sqlstate", "message"),
    [
        ("53100", "PostgreSQL has no room left on its disk"),
        ("53300", "PostgreSQL accepts no more connections"),
        ("53200", "PostgreSQL lacks memory or other resources"),
        ("53000", "PostgreSQL lacks memory or other resources"),
        ("55P03", "another session holds a lock that we need"),
        ("40001", "PostgreSQL rolled a transaction back in favour of another"),
        ("40P01", "PostgreSQL rolled a transaction back in favour of another"),
        ("25006", "PostgreSQL accepts no writes: it is a standby, or set to read-only"),
        ("57P03", "PostgreSQL is starting, stopping or recovering"),
        ("57P01", "PostgreSQL is unreachable"),
        ("57P02", "PostgreSQL is unreachable"),
        ("25P03", "PostgreSQL is unreachable"),
        ("08006", "PostgreSQL is unreachable"),
        ("55000", "PostgreSQL is unreachable"),
        ("28000", "PostgreSQL rejects the login"),
        ("28P01", "PostgreSQL rejects the login"),
        ("3D000", "PostgreSQL has no such database"),
        ("57014", "a statement was cancelled in PostgreSQL"),
    ],
)
async def test_transient_error_has_a_message(database: Database, sqlstate: str, message: str) -> None:
    with pytest.raises(DatabaseUnavailable, match=f"^{message}: detail$"):
        await raise_on_server(database, sqlstate)


@pytest.mark.parametrize("sqlstate", ["42P01", "23505", "22P02", "0A000", "XX000"])
async def test_permanent_error_is_raised_unchanged(database: Database, sqlstate: str) -> None:
    with pytest.raises(asyncpg.PostgresError, match=r"^detail$"):
        await raise_on_server(database, sqlstate)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ALLOW_CONNECTIONS false", "^PostgreSQL is unreachable: .* not currently accepting connections"),
        (
            "SET default_transaction_read_only = on",
            "^no host of PostgreSQL accepts writes: all are standbys or read-only: ",
        ),
    ],
)
async def test_closed_or_read_only_database_is_transient(
    database_url: str, server_url: str, change: str, message: str
) -> None:
    server = await asyncpg.connect(server_url)
    await server.execute(f"ALTER DATABASE {urlsplit(database_url).path[1:]} {change}")
    await server.close()

    async with Database(database_url) as database:
        with pytest.raises(DatabaseUnavailable, match=message):
            async with database.writing():
                pass


def test_lost_node_of_citus_is_transient() -> None:
    """Citus has no error class for it; other internal errors of PostgreSQL are faults."""
    lost = asyncpg.InternalServerError("failure on connection marked as essential: worker-1:5432")

    assert is_transient(lost)
    assert not is_transient(asyncpg.InternalServerError("unexpected node type"))


async def test_settings_of_a_session_stay(database: Database) -> None:
    found = []
    for _ in range(3):
        async with database.writing() as connection:
            found.append(await connection.fetchval("SELECT current_setting('statement_timeout')"))
        async with database.reading() as connection:
            found.append(await connection.fetchval("SELECT current_setting('statement_timeout')"))
    assert found == ["5min", "15s"] * 3


async def terminate_own_session(database: Database) -> None:
    async with database.writing() as connection, connection.transaction():
        await connection.execute("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(5)")


async def test_terminated_session_has_the_reason_of_the_server(database: Database) -> None:
    with pytest.raises(DatabaseUnavailable, match="administrator command"):
        await terminate_own_session(database)


@pytest.mark.parametrize("kind", ["reading", "writing"])
async def test_cancelled_task_stays_cancelled_if_its_connection_is_lost_as_well(
    database: Database, kind: str
) -> None:
    """A command that is stopped closes its connections and cancels what it does."""
    begun = asyncio.Event()

    async def use() -> None:
        async with getattr(database, kind)() as connection, connection.transaction():
            begun.set()
            await connection.execute("SELECT pg_sleep(60)")

    using = asyncio.create_task(use())
    await begun.wait()
    await asyncio.sleep(0)
    database.terminate()
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using


async def test_terminated_sessions_free_their_slots(database: Database) -> None:
    for _ in range(20):
        with pytest.raises(DatabaseUnavailable):
            await terminate_own_session(database)

    async with database.writing() as connection:
        assert await connection.fetchval("SELECT 1") == 1


# asyncpg prepares a statement without the message Sync: if it is not executed, the server stays in an
# implicit transaction, in which the next user of the connection could not begin another.


async def give_a_wrong_argument(connection: Connection) -> None:
    await connection.fetchval("SELECT count(*) FROM unified_data WHERE rank = $1", "not a number")


async def cancel_before_execution(connection: Connection) -> None:
    statement = asyncio.ensure_future(connection.fetchval("SELECT count(*) FROM unified_data"))
    while not statement.done():
        await asyncio.sleep(0)
        # The future that the task waits for: the first one that is done is the answer to the preparation.
        waiter = getattr(statement, "_fut_waiter", None)
        if waiter is not None and waiter.done():
            statement.cancel()
    await statement


@pytest.mark.parametrize("end", [give_a_wrong_argument, cancel_before_execution])
async def test_statement_that_was_only_prepared_is_ended(
    database: Database, end: Callable[[Connection], Awaitable[object]]
) -> None:
    processes = []

    async def read() -> None:
        async with database.reading() as connection:
            processes.append(await connection.fetchval("SELECT pg_backend_pid()"))
            await end(connection)

    with pytest.raises((asyncpg.DataError, asyncio.CancelledError)):
        await read()

    async with database.reading() as connection, connection.transaction(isolation="repeatable_read"):
        assert [await connection.fetchval("SELECT pg_backend_pid()")] == processes


async def test_requests_use_one_connection_after_the_other(database: Database) -> None:
    used = set()
    for _ in range(3):
        async with database.reading() as connection:
            used.add(await connection.fetchval("SELECT pg_backend_pid()"))
    assert len(used) == 1


async def test_connection_that_is_lost_between_two_requests_is_replaced(
    database: Database, connection: Connection
) -> None:
    async with database.reading() as reader:
        lost = reader.get_server_pid()
        ended = asyncio.Event()
        reader.add_termination_listener(lambda _: ended.set())
    await connection.execute("SELECT pg_terminate_backend($1)", lost)
    await ended.wait()

    async with database.reading() as reader:
        assert await reader.fetchval("SELECT pg_backend_pid()") != lost


@pytest.mark.parametrize("kind", ["reading", "writing"])
async def test_connection_that_is_lost_between_two_statements_is_a_transient_error(
    database: Database, connection: Connection, kind: str
) -> None:
    async def use() -> None:
        async with getattr(database, kind)() as used:
            ended = asyncio.Event()
            used.add_termination_listener(lambda _: ended.set())
            await connection.execute("SELECT pg_terminate_backend($1)", used.get_server_pid())
            await ended.wait()
            await used.fetchval("SELECT 1")

    with pytest.raises(DatabaseUnavailable, match="connection was lost"):
        await use()


async def test_idle_connection_is_closed(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "KEPT_S", 0.01)
    closed = asyncio.Event()
    async with Database(database_url, idle_limit_s=0.01) as database:
        async with database.reading() as connection:
            connection.add_termination_listener(lambda _: closed.set())
        async with asyncio.timeout(20):
            await closed.wait()
