"""What the pools tell of what PostgreSQL refuses, and of connections that end before their time."""

from urllib.parse import urlsplit

import asyncpg
import pytest

from kasparro.errors import DatabaseUnavailable
from kasparro.store.pool import Database


async def meet(database: Database, sqlstate: str) -> None:
    """Have the server raise this error."""
    async with database.writing() as connection:
        await connection.execute(
            f"DO $$ BEGIN RAISE EXCEPTION 'so it is' USING ERRCODE = '{sqlstate}'; END $$"
        )


# https://www.postgresql.org/docs/current/errcodes-appendix.html
@pytest.mark.parametrize(
    ("sqlstate", "told"),
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
async def test_what_passes_is_worth_another_try_and_is_told_in_words(
    database: Database, sqlstate: str, told: str
) -> None:
    with pytest.raises(DatabaseUnavailable, match=f"^{told}: so it is$"):
        await meet(database, sqlstate)


@pytest.mark.parametrize("sqlstate", ["42P01", "23505", "22P02", "0A000", "XX000"])
async def test_what_no_repetition_cures_is_not_taken_for_a_server_out_of_reach(
    database: Database, sqlstate: str
) -> None:
    with pytest.raises(asyncpg.PostgresError, match=r"^so it is$"):
        await meet(database, sqlstate)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ALLOW_CONNECTIONS false", "^PostgreSQL is unreachable: .* not currently accepting connections"),
        (
            "SET default_transaction_read_only = on",
            "^no host of PostgreSQL accepts writes: all are standbys or read-only: ",
        ),
    ],
)
async def test_a_database_that_lets_nobody_in_or_write_is_told_so(
    database_url: str, server_url: str, said: str, told: str
) -> None:
    server = await asyncpg.connect(server_url)
    await server.execute(f"ALTER DATABASE {urlsplit(database_url).path[1:]} {said}")
    await server.close()

    async with Database(database_url) as database:
        with pytest.raises(DatabaseUnavailable, match=told):
            async with database.writing():
                pass


async def end_itself(database: Database) -> None:
    async with database.writing() as connection, connection.transaction():
        await connection.execute("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(5)")


async def test_a_session_that_the_server_ended_in_a_transaction_is_told_with_its_reason(
    database: Database,
) -> None:
    with pytest.raises(DatabaseUnavailable, match="administrator command"):
        await end_itself(database)


async def test_sessions_that_ended_leave_their_places_to_others(database: Database) -> None:
    for _ in range(20):
        with pytest.raises(DatabaseUnavailable):
            await end_itself(database)

    async with database.writing() as connection:
        assert await connection.fetchval("SELECT 1") == 1
