"""Opens the database that the settings name, or one of our own, and makes it ready to work with."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import asyncpg
import msgspec
import structlog

from kasparro.embedded.server import EmbeddedPostgres
from kasparro.errors import KasparroError, one_line
from kasparro.settings import Settings
from kasparro.store import connections
from kasparro.store.instance import claim
from kasparro.store.migrations import migrate
from kasparro.store.pool import Database
from kasparro.supervision import Supervisor

log = structlog.get_logger()

# How often somebody looks whether the embedded server still lives; a look takes some milliseconds.
WATCH_S = 2.0


@asynccontextmanager
async def database_url(told: Settings, supervisor: Supervisor) -> AsyncIterator[str]:
    """The URL of the database to work with; where none is told, an embedded server, which runs meanwhile and
    is brought back where it dies.

    Raises EmbeddedPostgresError.
    """
    if told.database_url is not None:
        yield told.database_url.reveal()
        return
    log.info("opening the embedded PostgreSQL", home=str(told.home))
    async with EmbeddedPostgres(told.home) as embedded:
        watching = supervisor.start("embedded_postgres", partial(_keep_alive, embedded, supervisor))
        try:
            yield embedded.dsn
        finally:
            await watching.stop()


async def _keep_alive(embedded: EmbeddedPostgres, supervisor: Supervisor) -> None:
    while True:
        await asyncio.sleep(WATCH_S)
        began = time.monotonic()
        state = await embedded.ensure()
        if state == "restarted":
            error = KasparroError("the server had ended, and was started again")
            supervisor.failed("embedded_postgres", error, event="embedded_postgres_restarted")
        elif state == "stalled":
            waited_s = round(time.monotonic() - began, 1)
            log.warning("embedded_postgres_stalled", waited_s=waited_s)
            supervisor.note(
                "embedded_postgres",
                f"the embedded PostgreSQL did not answer for {waited_s:g} s; it answers again",
            )


def pools(told: Settings, url: str) -> Database:
    """The pools over the database at `url`, reading from the replicas where the settings name some."""
    count = told.database_connections or connections.MOST
    sizes = connections.shares(count)
    return Database(
        url,
        told.database_read_url.reveal() if told.database_read_url else None,
        readers=sizes.read,
        wide_readers=sizes.slow,
        exporters=sizes.export,
        writers=sizes.write,
        idle_limit_s=connections.idle_limit_s(count),
    )


async def with_connections(told: Settings, database: Database, processes: int) -> Settings:
    """The settings with the connections that each of a service's processes may have: by default a share of
    what the server allows. A line in the log says how many these are.
    """
    allowed = None
    try:
        allowed = await _allowed(database)
    except (KasparroError, asyncpg.PostgresError) as error:
        log.warning("database_connections_unknown", reason=one_line(error))
    count = told.database_connections
    if count is None:
        count = connections.per_process(allowed or connections.USUALLY_ALLOWED, processes)
    log.info(
        "database_connections",
        per_process=count,
        processes=processes,
        server_allows=allowed,
        pools=msgspec.to_builtins(connections.shares(count)),
    )
    if allowed is not None and count * processes > allowed:
        log.warning(
            "database_connections_scarce",
            reason=f"PostgreSQL allows {allowed} connections to {processes} processes with {count} each; "
            "raise max_connections or start fewer workers, else requests wait for each other",
        )
    return msgspec.structs.replace(told, database_connections=count)


async def _allowed(database: Database) -> int:
    async with database.writing() as connection:
        found = await connections.allowed(connection)
    if database.replicas:
        async with database.probing() as connection:
            found = min(found, await connections.allowed(connection))
    return found


async def prepare(database: Database, *, demo: bool = False) -> None:
    """Bring the schema up to date, and make sure that real and invented figures do not mix.

    Raises MigrationError, WrongDatabase, DatabaseUnavailable.
    """
    await migrate(database)
    await claim(database, demo=demo)
