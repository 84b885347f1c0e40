"""GET /health, /health/live and /health/ready."""

import asyncio
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import pytest

from kasparro.settings import ApiKey, Secret, Settings
from kasparro.store.migrations import migrate
from kasparro.store.pool import Connection, Database
from tests.support.json_responses import get_json
from tests.support.runs import add_run, add_source
from tests.web.conftest import Insert, serving


async def test_ok_before_the_first_run(client: aiohttp.ClientSession) -> None:
    health = await get_json(client, "/health")
    assert health["status"] == health["database"]["status"] == "ok"
    assert health["database"]["latency_ms"] > 0
    assert list(health["sources"]) == ["coinpaprika", "coingecko", "csv"]
    assert health["sources"]["csv"] == {
        "status": None,
        "last_success_at": None,
        "age_s": None,
        "expected_age_s": 7500.0,
        "stale": False,
        "error": None,
        "reasons": [],
    }


@pytest.mark.slow
async def test_degraded_after_a_failed_source(database_url: str, connection: Connection) -> None:
    run_id = await add_run(connection, "partial")
    await add_source(connection, run_id, "coingecko", "failed", error="HTTP 429 from /coins/markets")
    async with serving(database_url, Settings(sources=("coingecko", "csv"))) as client:
        health = await get_json(client, "/health")
        assert health["status"] == "degraded"
        assert health["sources"]["coingecko"]["error"] == "HTTP 429 from /coins/markets"
        assert health["sources"]["coingecko"]["reasons"][0] == "failed: HTTP 429 from /coins/markets"
        assert list(health["sources"]) == ["coingecko", "csv"]
    async with serving(database_url, Settings(sources=("csv",))) as client:
        assert (await get_json(client, "/health"))["status"] == "ok"


@pytest.mark.slow
async def test_unavailable_without_a_database() -> None:
    nowhere = "postgresql://someone:hunter2@127.0.0.1:1/nosuch"
    async with serving(nowhere) as client:
        health = await get_json(client, "/health", 503)
        assert (health["status"], health["database"]["status"]) == ("unavailable", "unreachable")
        assert health["database"]["error"]
        assert "hunter2" not in str(health)
        assert await get_json(client, "/health/live") == {"status": "ok"}
        for path in ("/data", "/data/csv/x", "/stats", "/runs", "/runs/1", "/tables"):
            async with client.get(path) as response:
                problem = await response.json(content_type="application/problem+json")
            assert (response.status, problem["title"]) == (503, "Database unreachable")
            assert response.headers["Retry-After"] == "5"
            assert "127.0.0.1" not in str(problem)
        assert (await get_json(client, "/data?limit=0", 400))["parameter"] == "limit"


async def test_degraded_without_the_primary(database_url: str, insert: Insert) -> None:
    await insert({"source_id": "a"})
    async with serving("postgresql://x@127.0.0.1:1/x", read_url=database_url) as client:
        health = await get_json(client, "/health")
        assert (health["status"], health["database"]["status"]) == ("degraded", "ok")
        assert health["database"]["unreachable"] == ["primary"]
        (reason,) = health["reasons"]
        assert reason.startswith("the primary (DATABASE_URL) cannot be reached: PostgreSQL is unreachable: ")
        assert (await get_json(client, "/data"))["data"]


async def test_degraded_while_requests_read_from_the_primary(database_url: str, insert: Insert) -> None:
    await insert({"source_id": "a"})
    async with serving(database_url, read_url="postgresql://x@127.0.0.1:1/x") as client:
        health = await get_json(client, "/health")
        assert (health["status"], health["database"]["status"]) == ("degraded", "ok")
        assert health["database"]["unreachable"] == ["read"]
        (reason,) = health["reasons"]
        assert reason == "no replica (DATABASE_READ_URL) can be reached; requests read from the primary"
        assert (await get_json(client, "/data"))["data"]


@pytest.mark.slow
async def test_unavailable_names_both_databases() -> None:
    nowhere = "postgresql://x@127.0.0.1:1/x"
    async with serving(nowhere, read_url=nowhere) as client:
        health = await get_json(client, "/health", 503)
        assert health["database"]["unreachable"] == ["primary", "read"]
    async with serving(nowhere) as client:
        assert (await get_json(client, "/health", 503))["database"]["unreachable"] == ["primary"]


@pytest.mark.slow
async def test_unavailable_if_the_database_is_missing_or_rejects_the_login(server_url: str) -> None:
    for url in (server_url.rsplit("/", 1)[0] + "/nosuch", server_url.replace("//kasparro", "//stranger")):
        async with serving(url) as client:
            assert (await get_json(client, "/health", 503))["database"]["status"] == "unreachable"
            assert (await get_json(client, "/data", 503))["title"] == "Database unreachable"


@pytest.mark.slow
async def test_unavailable_if_the_database_is_silent() -> None:
    async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(stay_silent, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with silent, serving(f"postgresql://x@127.0.0.1:{port}/x") as client:
        responses = await asyncio.gather(*(get_json(client, "/health", 503) for _ in range(20)))
        assert {response["database"]["status"] for response in responses} == {"unreachable"}
        assert responses[0]["database"]["error"] == "PostgreSQL did not answer within 2 s"


async def test_preparing_before_migrations(empty_database_url: str) -> None:
    async with serving(empty_database_url) as client:
        assert (await get_json(client, "/health", 503))["database"]["status"] == "preparing"
        for path in ("/data", "/stats", "/runs", "/runs/1"):
            assert (await get_json(client, path, 503))["title"] == "Database being prepared"


async def test_ready_if_data_can_be_answered(client: aiohttp.ClientSession) -> None:
    assert await get_json(client, "/health/ready") == {"status": "ok", "reason": None}


async def test_not_ready_before_migrations(empty_database_url: str) -> None:
    async with serving(empty_database_url) as client:
        assert await get_json(client, "/health/ready", 503) == {
            "status": "unavailable",
            "reason": "the database is being prepared: 0001_initial.sql is not applied yet",
        }
        async with Database(empty_database_url) as database:
            await migrate(database)
        assert (await get_json(client, "/health/ready"))["status"] == "ok"
        assert (await get_json(client, "/data"))["data"] == []


@pytest.mark.slow
async def test_not_ready_while_the_database_is_away(database_url: str, server_url: str) -> None:
    name = urlsplit(database_url).path.removeprefix("/")
    server = await asyncpg.connect(server_url)
    try:
        async with serving(database_url) as client:
            assert (await get_json(client, "/health/ready"))["status"] == "ok"
            await server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            await server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
            )
            # The first one meets the terminated connection.
            first, second = [await get_json(client, "/health/ready", 503) for _ in range(2)]
            assert first["status"] == second["status"] == "unavailable"
            assert first["reason"]
            assert "not currently accepting connections" in second["reason"]
            await server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            assert (await get_json(client, "/health/ready"))["status"] == "ok"
    finally:
        await server.close()


@pytest.mark.slow
async def test_not_ready_while_data_cannot_be_read(
    client: aiohttp.ClientSession, connection: Connection
) -> None:
    """The database answers other queries, so /health is ok."""
    async with connection.transaction():
        await connection.execute("LOCK TABLE unified_data IN ACCESS EXCLUSIVE MODE")
        assert await get_json(client, "/health/ready", 503) == {
            "status": "unavailable",
            "reason": "PostgreSQL did not answer within 2 s",
        }
        assert (await get_json(client, "/health"))["status"] == "ok"
    assert (await get_json(client, "/health/ready"))["status"] == "ok"


async def test_ready_is_open_without_a_key(database_url: str) -> None:
    settings = Settings(api_keys=(ApiKey("alice", Secret("a secret of alice")),))
    async with serving(database_url, settings) as client:
        assert (await get_json(client, "/health/ready"))["status"] == "ok"
        assert (await get_json(client, "/data", 401))["status"] == 401
