"""Queries that have to wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kasparro.store.pool import Connection, Database

# The number of queries that wait for a lock.
WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


@asynccontextmanager
async def locked_data(database: Database) -> AsyncIterator[None]:
    """A block during which every query of unified_data waits."""
    async with database.writing() as connection, connection.transaction():
        await connection.execute("LOCK TABLE unified_data IN ACCESS EXCLUSIVE MODE")
        yield


async def query_waits(connection: Connection) -> None:
    """Return when a query waits for a lock. A transaction of the connection may hold the lock."""
    async with asyncio.timeout(20):
        while not await connection.fetchval(WAITING):
            # Within a transaction, PostgreSQL repeats what it has read of other sessions.
            await connection.execute("SELECT pg_stat_clear_snapshot()")
            await asyncio.sleep(0.01)
