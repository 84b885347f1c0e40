"""Keeps real data and the demo's simulated data in different databases."""

from kasparro.errors import WrongDatabase
from kasparro.store.pool import Database
from kasparro.store.sql import statements

_SQL = statements("operations/instance.sql")


async def claim(database: Database, *, demo: bool) -> None:
    """Use this database for real data, or for the demo's.

    Raises WrongDatabase if it already holds the other kind; DatabaseUnavailable.
    """
    async with database.writing() as connection:
        claimed = await connection.fetchval(_SQL["claim"], demo)
    if not claimed:
        raise WrongDatabase(
            "this database holds real data, and the demo's is simulated: unset DATABASE_URL, or set it to an "
            "empty database"
            if demo
            else "this database holds the demo's simulated data, and only kasparro demo may use it: set "
            "DATABASE_URL, or KASPARRO_HOME if DATABASE_URL is unset, to another database"
        )


async def is_demo(database: Database) -> bool:
    """Whether the database is one of the demo. Raises DatabaseUnavailable."""
    async with database.writing() as connection:
        found: bool = await connection.fetchval(_SQL["is_demo"])
    return found


async def end_cursors(database: Database) -> None:
    """Reject all cursors of before, and let streams begin again. Raises DatabaseUnavailable."""
    async with database.writing() as connection:
        await connection.execute(_SQL["new_cursor_key"])
