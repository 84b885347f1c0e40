"""The service behind a real server, and the rows it serves."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
import uvicorn
from yarl import URL

from kasparro.settings import Settings
from kasparro.store.database import Connection, Database
from kasparro.store.reading import FIELDS
from kasparro.web.app import create_app
from kasparro.web.protocol import LimitedProtocol
from kasparro.web.server import configuration
from kasparro.web.service import SchedulerLike

LONG_AGO = datetime(2024, 6, 1, 12, 0, tzinfo=UTC)


@asynccontextmanager
async def serving(
    database_url: str,
    settings: Settings | None = None,
    scheduler: SchedulerLike | None = None,
    *,
    http: type[LimitedProtocol] = LimitedProtocol,
    readers: int = 8,
) -> AsyncIterator[aiohttp.ClientSession]:
    """The service over a database, and a client whose requests go to it."""
    app = create_app(
        settings or Settings(), database=Database(database_url, readers=readers), scheduler=scheduler
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        trusted = settings.trusted_proxies if settings else ()
        server = uvicorn.Server(configuration(app, 1, trusted, http=http))
        task = asyncio.create_task(server.serve([listener]))
        try:
            while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.01)
            base = URL(f"http://127.0.0.1:{listener.getsockname()[1]}")
            async with aiohttp.ClientSession(base) as session:
                yield session
        finally:
            server.should_exit = True
            await task


@pytest.fixture
async def client(database_url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a service over a migrated database, with default settings and no loop."""
    async with serving(database_url) as session:
        yield session


Insert = Callable[..., Awaitable[None]]


async def insert_rows(connection: Connection, rows: Iterable[dict[str, Any]]) -> None:
    """Put rows straight into unified_data; what a row leaves out is null or a usual value."""
    usual = {
        "source": "coingecko",
        "observed_at": LONG_AGO,
        "first_seen_at": LONG_AGO,
        "updated_at": LONG_AGO,
    }
    columns = list(FIELDS)
    await connection.executemany(
        f"INSERT INTO unified_data ({', '.join(columns)}, content_hash) VALUES "
        f"({', '.join(f'${n}' for n in range(1, len(columns) + 1))}, gen_random_uuid())",
        [[(usual | row).get(column) for column in columns] for row in rows],
    )


@pytest.fixture
def insert(connection: Connection) -> Insert:
    """Puts rows into the test's unified_data."""

    async def put(*rows: dict[str, Any]) -> None:
        await insert_rows(connection, rows)

    return put
