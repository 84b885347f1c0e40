"""Forgets what rows of unified_data said before, once no walk by cursor may need it any more."""

from datetime import datetime, timedelta

from kasparro.store.pool import Database
from kasparro.store.sql import statements

_SQL = statements("operations/row_versions.sql")

# How long a walk by cursor can go on after it began, at least.
PAST_KEPT = timedelta(hours=1)


async def forget(database: Database, now: datetime) -> None:
    """Delete what was replaced long before `now`. Raises DatabaseUnavailable."""
    async with database.writing() as connection, connection.transaction():
        latest = await connection.fetchval(_SQL["delete_expired"], now - PAST_KEPT)
        if latest is not None:
            # Only then: every batch has to take its turn at this row.
            await connection.execute(_SQL["expire_cursors"], latest)
