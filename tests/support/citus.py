"""Databases distributed with Citus, on the nodes of the coordinator that KASPARRO_TEST_CITUS names."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from kasparro.store.citus import distribute
from kasparro.store.migrations import migrate
from kasparro.store.pool import Connection, Database

COORDINATOR = os.environ.get("KASPARRO_TEST_CITUS")

needs_citus = pytest.mark.skipif(
    COORDINATOR is None,
    reason="KASPARRO_TEST_CITUS names no coordinator of Citus (the URL of a superuser's database)",
)

# Marks of tests that cannot hold on distributed databases. All others must.
on_one_server = pytest.mark.skipif(
    COORDINATOR is not None, reason="Citus plans this otherwise, or refuses it"
)
counts_versions = pytest.mark.skipif(
    COORDINATOR is not None, reason="with Citus, each version is followed by another one without changes"
)


def _url(name: str, host: str | None = None, port: int | None = None) -> str:
    assert COORDINATOR is not None
    parts = urlsplit(COORDINATOR)
    if host is not None:
        account = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        parts = parts._replace(netloc=f"{account}{host}:{port}")
    return urlunsplit(parts._replace(path=f"/{name}"))


async def _execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url, timeout=30)
    try:
        # Each node gets the statements itself.
        with suppress(asyncpg.UndefinedObjectError):
            await connection.execute("SET citus.enable_ddl_propagation = off")
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@asynccontextmanager
async def database_of_nodes(*, workers: bool = True) -> AsyncIterator[str]:
    """The URL of an empty database on all nodes, with the extension. Without `workers`, it knows no worker.

    It is dropped at the end of the block.
    """
    assert COORDINATOR is not None
    name = f"test_{uuid.uuid4().hex[:12]}"
    maintenance = urlsplit(COORDINATOR).path.lstrip("/") or "postgres"
    connection = await asyncpg.connect(COORDINATOR, timeout=30)
    nodes = await connection.fetch(
        "SELECT groupid, nodename, nodeport FROM pg_dist_node WHERE noderole = 'primary' ORDER BY groupid"
    )
    await connection.close()
    coordinator = next((node for node in nodes if node[0] == 0), None)
    others = [(host, port) for group, host, port in nodes if group != 0]
    servers = [(None, None), *others]

    async def on_all(database: str, *statements: str) -> None:
        for host, port in servers:
            await _execute(_url(database, host, port), *statements)

    await on_all(maintenance, f"CREATE DATABASE {name}")
    try:
        await on_all(name, "CREATE EXTENSION citus")
        if workers:
            known = [f"SELECT citus_add_node('{host}', {port})" for host, port in others]
            if coordinator is not None:
                known.insert(0, f"SELECT citus_set_coordinator_host('{coordinator[1]}', {coordinator[2]})")
            await _execute(_url(name), *known)
        yield _url(name)
    finally:
        for host, port in servers:
            # Its maintenance daemon may start again between the end of its sessions and the drop.
            for attempt in range(5):
                try:
                    await _execute(_url(maintenance, host, port), f"DROP DATABASE {name} WITH (FORCE)")
                    break
                except asyncpg.ObjectInUseError:
                    if attempt == 4:
                        raise
                    await asyncio.sleep(0.5)


@asynccontextmanager
async def distributed_database() -> AsyncIterator[str]:
    """The URL of a migrated and distributed database."""
    async with database_of_nodes() as url:
        async with Database(url) as database:
            await migrate(database)
            await distribute(database)
        yield url


async def end_sessions_of_workers(url: str) -> None:
    """End all sessions of a database on the workers; those of the coordinator to them are then lost."""
    connection = await asyncpg.connect(url, timeout=30)
    workers = await connection.fetch("SELECT nodename, nodeport FROM pg_dist_node WHERE groupid <> 0")
    await connection.close()
    for host, port in workers:
        await _execute(
            _url(urlsplit(url).path.lstrip("/"), host, port),
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()",
        )


async def shards(connection: Connection, table: str) -> dict[int, int]:
    """How many rows of a table each node has, by the port of the node; not of the partitioned history."""
    rows = await connection.fetch(
        "SELECT nodeport, sum(result::bigint)::bigint"
        " FROM run_command_on_placements($1, 'SELECT count(*) FROM %s') GROUP BY nodeport",
        table,
    )
    return dict(map(tuple, rows))
