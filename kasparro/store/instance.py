"""What a database is for: real figures, or the invented ones of the demo, never both."""

from kasparro.errors import KasparroError
from kasparro.store.pool import Database
from kasparro.store.sql import statements

_SQL = statements("operations/instance.sql")


class WrongDatabase(KasparroError):
    """Real and invented figures would mix."""


async def claim(database: Database, *, demo: bool) -> None:
    """Use this database for real figures, or for the demo's.

    Raises WrongDatabase where it holds the other kind already, DatabaseUnavailable.
    """
    async with database.writing() as connection:
        claimed = await connection.fetchval(_SQL["claim"], demo)
    if not claimed:
        raise WrongDatabase(
            "this database holds real figures, and the demo's are invented: unset DATABASE_URL, or set it to "
            "an empty database"
            if demo
            else "this database holds the demo's invented figures, and only kasparro demo works on it: real "
            "ones need another, which DATABASE_URL names, or KASPARRO_HOME where that is unset"
        )
