"""Opens the database that the settings name, or one of our own, and makes it ready to work with."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from kasparro.settings import Settings
from kasparro.store.database import Database
from kasparro.store.embedded import EmbeddedPostgres, EmbeddedPostgresError
from kasparro.store.instance import claim
from kasparro.store.migrations import migrate

log = structlog.get_logger()

# How often somebody looks whether the embedded server still lives; a look takes some milliseconds.
WATCH_S = 2.0


@asynccontextmanager
async def database_url(told: Settings) -> AsyncIterator[str]:
    """The URL of the database to work with; where none is told, an embedded server, which runs meanwhile and
    is brought back where it dies.

    Raises EmbeddedPostgresError.
    """
    if told.database_url is not None:
        yield told.database_url.reveal()
        return
    log.info("opening the embedded PostgreSQL", home=str(told.home))
    async with EmbeddedPostgres(told.home) as embedded:
        watching = asyncio.create_task(_keep_alive(embedded))
        try:
            yield embedded.dsn
        finally:
            watching.cancel()
            await asyncio.wait({watching})


async def _keep_alive(embedded: EmbeddedPostgres) -> None:
    while True:
        await asyncio.sleep(WATCH_S)
        try:
            await embedded.ensure()
        except EmbeddedPostgresError as error:
            log.error("the embedded PostgreSQL cannot be brought back", reason=str(error))


def pools(told: Settings, url: str) -> Database:
    """The pools over the database at `url`, reading from the replicas where the settings name some."""
    return Database(url, told.database_read_url.reveal() if told.database_read_url else None)


async def prepare(database: Database, *, demo: bool = False) -> None:
    """Bring the schema up to date, and make sure that real and invented figures do not mix.

    Raises MigrationError, WrongDatabase, DatabaseUnavailable.
    """
    await migrate(database)
    await claim(database, demo=demo)
