"""Queries that have to wait."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kasparro.store.pool import Database

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
