"""Distributes the tables of a database by source_id, with the extension Citus (docs/citus.md)."""

import asyncpg

from kasparro.errors import MigrationError, RunInProgress
from kasparro.store.locks import AdvisoryLease
from kasparro.store.pool import Connection, Database
from kasparro.store.sql import statements

_SQL = statements("operations/citus.sql")
_MIGRATIONS = statements("operations/migrations.sql")

# The tables whose rows belong to a coin and grow with the history. All rows of a coin are on one node.
# docs/decisions/0015-citus.md says why the others stay on the coordinator.
DISTRIBUTED = (
    "unified_data",
    "unified_data_versions",
    "unified_history",
    "shared_records",
    "daily_candles",
)
# Each node has a copy of these, because the currency of a row is found by joins on its node.
ON_ALL_NODES = ("archive_files",)
# Moving the rows of a large history takes hours.
TIMEOUT_S = 24 * 3600.0


async def distribute(database: Database) -> list[str]:
    """Distribute the tables of a migrated database; returns the names of those that were not yet.

    All of them are distributed in one transaction, with their rows. Raises MigrationError if the database
    cannot be distributed, RunInProgress if a run is at work, and DatabaseUnavailable.
    """
    async with database.writing() as connection:
        await _require_citus(connection)
    async with AdvisoryLease(database, "run") as lease:
        if not await lease.acquire():
            raise RunInProgress("a run is at work on this database: try again when it has ended")
        async with database.writing() as connection:
            try:
                return await _distribute(connection)
            except (asyncpg.SyntaxOrAccessError, asyncpg.FeatureNotSupportedError) as error:
                raise MigrationError(f"Citus cannot distribute the tables: {error}") from error


async def _require_citus(connection: Connection) -> None:
    if not await connection.fetchval(_SQL["has_extension"]):
        raise MigrationError(
            "this database lacks the extension citus: let a superuser run CREATE EXTENSION citus in it, on "
            "the coordinator and on each worker"
        )
    state = await connection.fetchrow(_SQL["state"])
    # A node that knows no other does not call itself the coordinator.
    if state is None or not state["nodes"]:
        raise MigrationError(
            "the coordinator knows no worker for this database: let a superuser run "
            "SELECT citus_add_node('HOST', PORT) in it for each worker"
        )
    if not state["is_coordinator"]:
        raise MigrationError("this server is a worker of Citus: DATABASE_URL must name the coordinator")


async def _distribute(connection: Connection) -> list[str]:
    tables = [*ON_ALL_NODES, *DISTRIBUTED]
    async with connection.transaction():
        await connection.execute(_MIGRATIONS["lock"])
        await connection.execute(_SQL["settings"])
        known = {name for (name,) in await connection.fetch(_SQL["known"], tables)}
        missing = [name for name in tables if name not in known]
        for name in missing:
            if name in ON_ALL_NODES:
                await connection.execute(_SQL["copy_to_all_nodes"], name, timeout=TIMEOUT_S)
            else:
                colocated = "default" if name == DISTRIBUTED[0] else DISTRIBUTED[0]
                await connection.execute(_SQL["distribute"], name, colocated, timeout=TIMEOUT_S)
    for name in tables:
        await connection.execute(_SQL["drop_local_rows"], name, timeout=TIMEOUT_S)
    return missing
