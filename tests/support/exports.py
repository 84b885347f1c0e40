"""Exports that are large or unfinished."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from kasparro.store.pool import Connection

# More rows than all buffers between PostgreSQL and a client that does not read can hold.
MANY_ROWS = 60_000


async def insert_many_rows(connection: Connection) -> None:
    """Insert MANY_ROWS rows into unified_data."""
    # Digits of hashes, which compression shortens little.
    digits = "('1.' || translate(encode(sha512(int8send({})), 'hex'), 'abcdef', '123456'))::numeric"
    await connection.execute(
        "INSERT INTO unified_data (source, source_id, rank, price_usd, circulating_supply, total_supply,"
        " max_supply, percent_change_7d, observed_at, first_seen_at, updated_at, content_hash)"
        f" SELECT 'csv', 'coin-' || n, n, n, {', '.join(digits.format(f'4 * n + {k}') for k in range(4))},"
        f" now(), now(), now(), gen_random_uuid() FROM generate_series(1, {MANY_ROWS}) AS n"
    )


@asynccontextmanager
async def unfinished_export(
    client: aiohttp.ClientSession, path: str = "/data.ndjson", coding: str = "identity"
) -> AsyncIterator[aiohttp.ClientResponse]:
    """An export of which the client has read 10 bytes."""
    headers = {"Accept-Encoding": coding}
    async with client.get(path, headers=headers, auto_decompress=False) as response:
        assert response.status == 200
        assert response.headers.get("Content-Encoding", "identity") == coding
        assert await response.content.readexactly(10)
        yield response


async def export_pids(connection: Connection) -> list[int]:
    """The PostgreSQL processes that have an export open."""
    return [
        row[0]
        for row in await connection.fetch(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL"
            " AND application_name = 'kasparro' AND query LIKE 'COPY (%'"
        )
    ]


async def wait_until_no_export(connection: Connection) -> None:
    """Wait until PostgreSQL has no export open."""
    async with asyncio.timeout(20):
        while await export_pids(connection):  # noqa: ASYNC110 - PostgreSQL has no event for it
            await asyncio.sleep(0.02)
