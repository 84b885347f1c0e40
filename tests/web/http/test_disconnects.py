"""A disconnected client leaves no query behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from kasparro.store import pool as limits
from kasparro.store.pool import Connection, Database


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No query times out here."""
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", 600)


@asynccontextmanager
async def requested(client: aiohttp.ClientSession, path: str) -> AsyncIterator[asyncio.StreamReader]:
    """A request on a connection of its own, which is aborted at the end."""
    base = client._base_url
    assert base is not None
    reader, writer = await asyncio.open_connection(base.host, base.port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        yield reader
    finally:
        writer.transport.abort()


async def queries(connection: Connection, count: int) -> None:
    """Wait until this number of the service's queries waits for a lock."""
    async with asyncio.timeout(20):
        while count != await connection.fetchval(  # noqa: ASYNC110 - PostgreSQL has no event for it
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'kasparro' AND state = 'active'"
            " AND wait_event_type = 'Lock' AND datname = current_database()"
        ):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("path", ["/data?q=coin", "/data/csv/coin-1", "/stats"])
async def test_query_of_a_disconnected_client_is_cancelled(
    client: aiohttp.ClientSession, connection: Connection, database: Database, path: str
) -> None:
    async with database.writing() as other, other.transaction():
        await other.execute("LOCK TABLE unified_data, runs IN ACCESS EXCLUSIVE MODE")
        async with requested(client, path):
            await queries(connection, 1)
        await queries(connection, 0)

    async with client.get(path) as response:
        assert response.status in {200, 404}
