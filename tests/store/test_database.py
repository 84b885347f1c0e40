"""What the pools tell of connections that end before their time."""

import pytest

from kasparro.errors import DatabaseUnavailable
from kasparro.store.database import Database


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
