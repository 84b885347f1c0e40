"""What the pools tell of connections that end before their time."""

import pytest

from kasparro.errors import DatabaseUnavailable
from kasparro.store.database import Database


async def test_a_session_that_the_server_ended_in_a_transaction_is_told_with_its_cause(
    database: Database,
) -> None:
    with pytest.raises(DatabaseUnavailable, match="administrator command"):
        async with database.writing() as connection, connection.transaction():
            pid = await connection.fetchval("SELECT pg_backend_pid()")
            async with database.writing() as other:
                await other.execute("SELECT pg_terminate_backend($1, 5000)", pid)
            await connection.execute("SELECT 1")


async def test_a_session_that_ended_so_leaves_its_place_to_another(database: Database) -> None:
    for _ in range(20):
        with pytest.raises(DatabaseUnavailable):
            async with database.writing() as connection, connection.transaction():
                await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    async with database.writing() as connection:
        assert await connection.fetchval("SELECT 1") == 1
