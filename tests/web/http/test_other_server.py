"""The application under another ASGI server, without our protocol class."""

import asyncio
import csv
import io
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import hypercorn.asyncio
import hypercorn.config
import msgspec
import pytest
from hypercorn.typing import ASGIFramework
from yarl import URL

from kasparro.settings import Settings
from kasparro.store.pool import Connection, Database
from kasparro.web.app import create_app
from kasparro.web.http.export_queue import ExportQueue
from kasparro.web.routes import exports
from tests.conftest import LogEvents
from tests.support.exports import insert_many_rows, unfinished_export, wait_until_no_export
from tests.web.conftest import Insert

pytestmark = pytest.mark.slow


@asynccontextmanager
async def hypercorn_service(
    database_url: str, settings: Settings | None = None, **pools: Any
) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the service under hypercorn."""
    app = create_app(settings or Settings(), database=Database(database_url, **pools), scheduler=None)
    ended = asyncio.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    base = URL(f"http://127.0.0.1:{listener.getsockname()[1]}")
    config = hypercorn.config.Config()
    # Hypercorn closes the socket.
    config.bind = [f"fd://{listener.detach()}"]
    config.graceful_timeout = 1
    framework: ASGIFramework = app  # type: ignore[assignment]
    serving = asyncio.create_task(hypercorn.asyncio.serve(framework, config, shutdown_trigger=ended.wait))
    try:
        async with aiohttp.ClientSession(base) as client:
            yield client
    finally:
        ended.set()
        await serving


async def test_pages_exports_and_problems(database_url: str, insert: Insert) -> None:
    await insert(*({"source_id": f"{n:03}", "rank": n + 1} for n in range(100)))
    async with hypercorn_service(database_url) as client:
        async with client.get("/data?limit=2") as response:
            assert response.status == 200
            assert [row["rank"] for row in (await response.json())["data"]] == [1, 2]
            # Once more, with the entity tag that the client knows now.
            async with client.get(
                "/data?limit=2", headers={"If-None-Match": response.headers["ETag"]}
            ) as same:
                assert same.status == 304
        async with client.get("/data.csv") as response:
            rows = list(csv.DictReader(io.StringIO(await response.text())))
            assert [row["rank"] for row in rows] == [str(n + 1) for n in range(100)]
        async with client.get("/data?nosuch=1") as response:
            assert response.status == 400
            assert response.content_type == "application/problem+json"


async def test_lifespan_opens_and_closes_the_pools(database_url: str, connection: Connection) -> None:
    count = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1"
    )
    async with hypercorn_service(database_url) as client, client.get("/data") as response:
        assert response.status == 200
        assert await connection.fetchval(count, "kasparro") > 0
    async with asyncio.timeout(10):
        while await connection.fetchval(count, "kasparro"):  # noqa: ASYNC110 - PostgreSQL has no event for it
            await asyncio.sleep(0.02)


async def test_interrupted_export_is_seen_as_incomplete(database_url: str, connection: Connection) -> None:
    await insert_many_rows(connection)
    async with hypercorn_service(database_url) as client, unfinished_export(client, "/data.csv") as response:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'kasparro' AND xact_start IS NOT NULL"
        )
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_aborted_slow_export_is_seen_as_incomplete(
    database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch, logged: LogEvents
) -> None:
    """While other exports wait, the export of a slow reader is aborted."""
    # No reader is fast enough.
    limits = msgspec.structs.replace(ExportQueue.limits, window_s=0.2, min_bytes_per_s=2**40)
    monkeypatch.setattr(ExportQueue, "limits", limits)
    await insert_many_rows(connection)
    settings = Settings(trusted_proxies=("127.0.0.1",))
    async with (
        hypercorn_service(database_url, settings, exporters=1) as client,
        unfinished_export(client) as slow,
    ):
        headers = {"X-Forwarded-For": "192.0.2.1"}
        async with asyncio.timeout(20), client.get("/data.csv?symbol=nosuch", headers=headers) as response:
            assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await slow.read()
    assert [event["event"] for event in logged.seen if event["level"] == "info"] == ["slow_export_aborted"]


async def test_export_beyond_its_time_is_seen_as_incomplete(
    database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "EXPORT_S", 0.0)
    await insert_many_rows(connection)
    async with hypercorn_service(database_url) as client:
        with pytest.raises(aiohttp.ClientError):
            async with client.get("/data.ndjson") as response:
                await response.read()
        await wait_until_no_export(connection)
