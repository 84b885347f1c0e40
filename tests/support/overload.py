"""Queries that wait, and requests that see how the service deals with them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from kasparro.store.pool import Database


@asynccontextmanager
async def locked_data(database: Database) -> AsyncIterator[None]:
    """A block during which every query of unified_data waits."""
    async with database.writing() as connection, connection.transaction():
        await connection.execute("LOCK TABLE unified_data IN ACCESS EXCLUSIVE MODE")
        yield


async def fetch(
    client: aiohttp.ClientSession, path: str, address: str | None = None
) -> tuple[int, str | None, bytes]:
    """The status, Retry-After and body of a response; `address` goes into X-Forwarded-For."""
    headers = {} if address is None else {"X-Forwarded-For": address}
    async with client.get(path, headers=headers) as response:
        return response.status, response.headers.get("Retry-After"), await response.read()
