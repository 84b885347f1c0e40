"""The service on a real server, and rows for it."""

import asyncio
import os
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import uvicorn
from yarl import URL

from kasparro.settings import Settings
from kasparro.sources.registry import load_settings
from kasparro.store.pool import Connection, Database
from kasparro.store.selection import FIELDS
from kasparro.supervision import Supervisor
from kasparro.web.app import create_app
from kasparro.web.http.protocol import LimitedProtocol
from kasparro.web.server import uvicorn_config
from kasparro.web.service import SchedulerLike
from tests.conftest import url_of_database

LONG_AGO = datetime(2024, 6, 1, 12, 0, tzinfo=UTC)


@asynccontextmanager
async def serving(
    database_url: str,
    settings: Settings | None = None,
    scheduler: SchedulerLike | None = None,
    *,
    http: type[LimitedProtocol] = LimitedProtocol,
    read_url: str | None = None,
    metrics_folder: Path | None = None,
    supervisor: Supervisor | None = None,
    **pools: Any,
) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the service over this database."""
    app = create_app(
        settings or load_settings({}),
        database=Database(database_url, read_url, **pools),
        scheduler=scheduler,
        metrics_folder=metrics_folder,
        supervisor=supervisor,
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        trusted = settings.trusted_proxies if settings else ()
        server = uvicorn.Server(uvicorn_config(app, 1, trusted, http=http))
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


@asynccontextmanager
async def service(
    database_url: str, *arguments: str, **environment: str
) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of `kasparro serve` in another process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kasparro", "serve", "--port", "0", *arguments),
        env={
            **os.environ,
            "DATABASE_URL": database_url,
            "KASPARRO_INTERVAL": "off",
            "KASPARRO_LOG": "json",
        },
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(30):
            while b"listening" not in (line := await process.stderr.readline()):
                assert line
        drained = asyncio.create_task(process.stderr.read())
        url = line.decode().split('"url": "')[1].split('"')[0]
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(url, connector=connector) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()
        await drained


@pytest.fixture
async def client(database_url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a service over a migrated database, with default settings and no scheduler."""
    async with serving(database_url) as session:
        yield session


Insert = Callable[..., Awaitable[None]]


async def insert_rows(connection: Connection, rows: Iterable[dict[str, Any]]) -> None:
    """Insert rows into unified_data. Missing columns get a default or null."""
    defaults = {
        "source": "coingecko",
        "observed_at": LONG_AGO,
        "first_seen_at": LONG_AGO,
        "updated_at": LONG_AGO,
    }
    columns = list(FIELDS)
    await connection.executemany(
        f"INSERT INTO unified_data ({', '.join(columns)}, content_hash) VALUES "
        f"({', '.join(f'${n}' for n in range(1, len(columns) + 1))}, gen_random_uuid())",
        [[(defaults | row).get(column) for column in columns] for row in rows],
    )
    await connection.execute("UPDATE instance SET data_version = data_version + 1")


@pytest.fixture
def insert(connection: Connection) -> Insert:
    """Inserts rows into the test's unified_data."""

    async def put(*rows: dict[str, Any]) -> None:
        await insert_rows(connection, rows)

    return put


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as opened:
        yield opened


@pytest.fixture(scope="module")
def shared_database(runner: asyncio.Runner, server_url: str, template: str) -> Iterator[Database]:
    """One database for all examples of a property test, each in its own transaction."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    stack = AsyncExitStack()

    async def make() -> Database:
        server = await asyncpg.connect(server_url)
        stack.push_async_callback(server.close)
        await server.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        stack.push_async_callback(server.execute, f"DROP DATABASE {name} WITH (FORCE)")
        return await stack.enter_async_context(Database(url_of_database(server_url, name)))

    yield runner.run(make())
    runner.run(stack.aclose())
