"""Opens the database of the settings, or an embedded one, and prepares it for use."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import asyncpg
import msgspec
import structlog

from kasparro.embedded.server import EmbeddedPostgres
from kasparro.errors import KasparroError, SettingsError, one_line
from kasparro.settings import Settings
from kasparro.store import connections
from kasparro.store.instance import claim
from kasparro.store.migrations import migrate
from kasparro.store.pool import Database
from kasparro.supervision import Supervisor

log = structlog.get_logger()

# How often the embedded server is checked; a check takes some milliseconds.
CHECK_S = 2.0


@asynccontextmanager
async def database_url(settings: Settings, supervisor: Supervisor) -> AsyncIterator[str]:
    """The URL of the database. Without DATABASE_URL, an embedded server runs meanwhile; if it dies, it is
    started again.

    Raises EmbeddedPostgresError.
    """
    if settings.database_url is not None:
        yield settings.database_url.reveal()
        return
    log.info("embedded_postgres_opening", home=str(settings.home))
    async with EmbeddedPostgres(settings.home) as embedded:
        watching = supervisor.start("embedded_postgres", partial(_keep_alive, embedded, supervisor))
        try:
            yield embedded.dsn
        finally:
            await watching.stop()


async def _keep_alive(embedded: EmbeddedPostgres, supervisor: Supervisor) -> None:
    while True:
        await asyncio.sleep(CHECK_S)
        began = time.monotonic()
        state = await embedded.ensure()
        if state == "restarted":
            error = KasparroError("the server had ended and was started again")
            supervisor.record_failure("embedded_postgres", error, event="embedded_postgres_restarted")
        elif state == "stalled":
            waited_s = round(time.monotonic() - began, 1)
            log.warning("embedded_postgres_stalled", waited_s=waited_s)
            supervisor.note(
                "embedded_postgres",
                f"the embedded PostgreSQL did not answer for {waited_s:g} s; it answers again",
            )


def pools(settings: Settings, url: str) -> Database:
    """The pools for the database at `url`; they read from the replicas of the settings, if there are any."""
    count = settings.database_connections or connections.MOST
    sizes = connections.shares(count)
    return Database(
        url,
        settings.database_read_url.reveal() if settings.database_read_url else None,
        readers=sizes.read,
        slow_readers=sizes.slow,
        exporters=sizes.export,
        writers=sizes.write,
        idle_limit_s=connections.idle_limit_s(count),
    )


async def with_connections(settings: Settings, database: Database, processes: int) -> Settings:
    """The settings with the number of connections of each process; by default a share of what the server
    allows.

    The number is logged. Raises SettingsError if a URL cannot be used.
    """
    allowed = None
    try:
        allowed = await _allowed(database)
    except SettingsError:
        raise
    except (KasparroError, asyncpg.PostgresError) as error:
        log.warning("database_connections_unknown", reason=one_line(error))
    count = settings.database_connections
    if count is None:
        found = allowed or connections.DEFAULT_ALLOWED
        if database.behind_pooler:
            found = min(found, connections.POOLER_ALLOWED)
        count = connections.per_process(found, processes)
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
            "raise max_connections or start fewer workers; otherwise requests wait for each other",
        )
    return msgspec.structs.replace(settings, database_connections=count)


async def _allowed(database: Database) -> int:
    async with database.writing() as connection:
        found = await connections.allowed(connection)
    if database.replicas:
        async with database.probing() as connection:
            found = min(found, await connections.allowed(connection))
    return found


async def prepare(database: Database, *, demo: bool = False) -> None:
    """Migrate the schema, and make sure that real and simulated data do not mix.

    Raises MigrationError, WrongDatabase, DatabaseUnavailable.
    """
    await migrate(database)
    await claim(database, demo=demo)
