"""Opens the database that the settings name, or one of our own, and makes it ready to work with."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kasparro.settings import Settings
from kasparro.store.database import Database
from kasparro.store.embedded import EmbeddedPostgres
from kasparro.store.instance import claim
from kasparro.store.migrations import migrate


@asynccontextmanager
async def database_url(told: Settings) -> AsyncIterator[tuple[str, EmbeddedPostgres | None]]:
    """The URL of the database to work with; where none is told, an embedded server, which runs meanwhile.

    Raises EmbeddedPostgresError.
    """
    if told.database_url is not None:
        yield told.database_url.reveal(), None
    else:
        async with EmbeddedPostgres(told.home) as embedded:
            yield embedded.dsn, embedded


def pools(told: Settings, url: str) -> Database:
    """The pools over the database at `url`, reading from the replicas where the settings name some."""
    return Database(url, told.database_read_url.reveal() if told.database_read_url else None)


async def prepare(database: Database, *, demo: bool = False) -> None:
    """Bring the schema up to date, and make sure that real and invented figures do not mix.

    Raises MigrationError, WrongDatabase, DatabaseUnavailable.
    """
    await migrate(database)
    await claim(database, demo=demo)
