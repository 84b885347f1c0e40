"""Deletes earlier contents of rows that no snapshot cursor can need any more."""

from datetime import datetime, timedelta

from kasparro.store.pool import Database
from kasparro.store.sql import statements

_SQL = statements("operations/row_versions.sql")

# How long a snapshot cursor works, at least.
CURSOR_LIFETIME = timedelta(hours=1)


async def delete_expired(database: Database, now: datetime) -> None:
    """Delete the row versions that were replaced more than CURSOR_LIFETIME before `now`.

    Raises DatabaseUnavailable.
    """
    async with database.writing() as connection, connection.transaction():
        latest = await connection.fetchval(_SQL["delete_expired"], now - CURSOR_LIFETIME)
        if latest is not None:
            # Only if something was deleted, because every batch waits for this row.
            await connection.execute(_SQL["expire_cursors"], latest)
