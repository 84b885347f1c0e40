"""The middleware: headers of every response, rejected requests, errors, and the access log."""

import asyncio
import re
from collections.abc import AsyncIterator

import aiohttp
import pytest

from kasparro.settings import ApiKey, Secret, Settings
from kasparro.store.pool import Connection
from kasparro.web.service import Service
from tests.conftest import LogEvents
from tests.support.exports import export_pids, insert_many_rows, unfinished_export
from tests.support.raw_http import LIVE_REQUEST, NO_DATABASE, connected
from tests.support.requests import status
from tests.support.response_cache import cached
from tests.web.conftest import Insert, serving

pytestmark = pytest.mark.slow

KEYS = (ApiKey("alice", Secret("first-secret")), ApiKey("bob", Secret("other-secret")))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/data", 200),
        ("/data?limit=0", 400),
        ("/nosuch", 404),
        ("/docs/nosuch.js", 404),
        ("/data/csv/x", 404),
    ],
)
async def test_every_response_has_id_and_timing(
    client: aiohttp.ClientSession, path: str, expected: int
) -> None:
    async with client.get(path) as response:
        assert response.status == expected
        assert re.fullmatch(r"[0-9a-f]{32}", response.headers["X-Request-ID"])
        assert re.match(r"total;dur=\d+\.\d\d", response.headers["Server-Timing"])
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        if expected == 200:
            assert re.search(r", db;dur=\d+\.\d\d$", response.headers["Server-Timing"])


async def test_unhandled_error_is_a_problem_without_internals(
    client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: Service, connection: object) -> bytes:
        raise RuntimeError("SELECT secret FROM table")

    monkeypatch.setattr(Service, "signing_key", fail)
    async with client.get("/data", headers={"X-Request-ID": "abc"}) as response:
        text = await response.text()
        problem = await response.json(content_type="application/problem+json")
    assert response.status == problem["status"] == 500
    assert problem["request_id"] == response.headers["X-Request-ID"] == "abc"
    assert "Server-Timing" in response.headers
    assert "secret" not in text
    assert "Traceback" not in text


async def test_interrupted_response_is_a_warning(
    client: aiohttp.ClientSession,
    connection: Connection,
    logged: LogEvents,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await insert_many_rows(connection)
    async with unfinished_export(client) as response:
        (pid,) = await export_pids(connection)
        await connection.execute("SELECT pg_terminate_backend($1::integer)", pid)
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    (event,) = await logged.reached(1, "response_interrupted", level="warning")
    assert event["path"] == "/data.ndjson"
    assert "PostgreSQL" in event["reason"]
    assert "error" not in {seen["level"] for seen in logged.seen}
    # Our server closes the connection itself, so no exception reaches uvicorn.
    assert [record for record in caplog.records if record.exc_info] == []


async def test_head_is_get_without_the_body(client: aiohttp.ClientSession, insert: Insert) -> None:
    await insert({"source_id": "a"})
    for path in (
        "/data",
        "/data/coingecko/a",
        "/stats",
        "/health",
        "/openapi.json",
        "/docs",
        "/data?limit=0",
    ):
        async with client.get(path) as get, client.head(path) as head:
            assert head.status == get.status
            assert await head.read() == b""
            assert head.headers["Content-Type"] == get.headers["Content-Type"]
            if path in {"/data", "/docs", "/openapi.json"}:
                assert head.headers["Content-Length"] == get.headers["Content-Length"]


async def test_unexpected_bodies_are_rejected(client: aiohttp.ClientSession) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"

    async with client.post("/runs", data=chunks()) as response:
        assert response.status == 411
    async with client.get("/data", data=b"x") as response:
        assert response.status == 400
        assert response.headers["Connection"] == "close"
    async with client.post("/runs", data=b"x" * 2_000) as response:
        assert response.status == 413
        assert "X-Request-ID" in response.headers


async def test_targets_that_no_client_library_sends(client: aiohttp.ClientSession) -> None:
    host, port = client._base_url.host, client._base_url.port  # type: ignore[union-attr]
    for target in (
        b"/data?q=\xff\xfe",
        b"/data?q=%ff",
        b"/\x80",
        b"/data?limit=<script>",
        b"/data?" + b"&" * 500,
    ):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        found = int((await reader.readline()).split()[1])
        await reader.read()
        writer.close()
        await writer.wait_closed()
        assert found in ({200} if target.endswith(b"&") else {400, 404}), target


@pytest.mark.parametrize(
    "headers",
    [
        b"",
        b"Host: a\r\nHost: a\r\n",
        b"Host: a\r\nhost: b\r\n",
        b"Host: a b\r\n",
        b"Host: a, b\r\n",
        b"Host: a/b\r\n",
        b"Host: user@a\r\n",
        b"Host: a:80:80\r\n",
        b"Host: a:http\r\n",
        b"Host: [::1\r\n",
        b"Host: \xff\r\n",
        b"Host: a%zz\r\n",
        b"Host: <script>\r\n",
        b"X-A: b\r\nHost: a\r\nX-C: d\r\nHost:\r\n",
    ],
)
async def test_request_without_one_valid_host_is_rejected(headers: bytes) -> None:
    """RFC 9112, 3.2. This holds for cached responses and for paths that need no key, too."""
    for path in (b"/health/live", b"/docs", b"/data"):
        async with serving(NO_DATABASE) as client, connected(client) as connection:
            connection.writer.write(b"GET " + path + b" HTTP/1.1\r\n" + headers + b"\r\n" + LIVE_REQUEST)
            problem = await connection.rejection()
            assert (problem["status"], problem["title"]) == (400, "Bad Request")


@pytest.mark.parametrize(
    "host",
    [
        b"a",
        b"A.example.org:8000",
        b"127.0.0.1",
        b"[::1]:80",
        b"[fe80::1%25eth0]",
        b"",
        b"a:",
        b"x_y",
        b"a%20b",
    ],
)
async def test_valid_hosts_are_accepted(host: bytes) -> None:
    async with serving(NO_DATABASE) as client, connected(client) as connection:
        connection.writer.write(b"GET /health/live HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        assert (await connection.response())[0] == 200


async def test_http_1_0_needs_no_host() -> None:
    async with serving(NO_DATABASE) as client, connected(client) as connection:
        connection.writer.write(b"GET /health/live HTTP/1.0\r\n\r\n")
        code, headers, _ = await connection.response()
        assert (code, headers["connection"]) == (200, "close")
        assert await connection.rest() == b""


async def test_access_log_names_client_and_request(database_url: str, logged: LogEvents) -> None:
    settings = Settings(api_keys=KEYS, trusted_proxies=("127.0.0.1",))
    async with serving(database_url, settings) as client:
        alice = {"X_API_Key": "first-secret", "X_Forwarded_For": "192.0.2.7"}
        path = "/data?symbol=btc&q=%C3%A9%0A"
        # First from the database, then from the cache.
        assert await status(client, path, **alice) == 200
        await cached(client, path, **{name.replace("_", "-"): value for name, value in alice.items()})
        assert await status(client, "/data?nosuch=1", **alice) == 400
        assert await status(client, "/data?limit=2") == 401
        assert await status(client, "/health/live") == 200
    seen = [event for event in logged.seen if event["event"] == "request_answered"]
    assert {event["level"] for event in seen} == {"debug"}
    fields = ("address", "key", "method", "path", "query", "status")
    found = [tuple(event[field] for field in fields) for event in seen]
    first = ("192.0.2.7", "alice", "GET", "/data", "symbol=btc&q=%C3%A9%0A", 200)
    count = found.count(first)
    assert count >= 2
    assert found == [
        *(first for _ in range(count)),
        ("192.0.2.7", "alice", "GET", "/data", "nosuch=1", 400),
        ("127.0.0.1", None, "GET", "/data", "limit=2", 401),
        ("127.0.0.1", None, "GET", "/health/live", "", 200),
    ]
    for event in seen:
        assert event["ms"] >= 0
        assert event["request_id"]


async def test_access_log_has_no_secret(database_url: str, logged: LogEvents) -> None:
    async with serving(database_url, Settings(api_keys=KEYS)) as client:
        query = "limit=2&x_cg_demo_api_key=first-secret&ACCESS-TOKEN=first-secret&client_secret=a%26b&q=key"
        await status(client, f"/data?{query}", X_API_Key="first-secret")
        await status(client, "/data?key=", Authorization="Bearer first-secret")
    queries = [event["query"] for event in logged.seen if event["event"] == "request_answered"]
    assert queries == ["limit=2&x_cg_demo_api_key=***&ACCESS-TOKEN=***&client_secret=***&q=key", "key="]
    assert "first-secret" not in str(logged.seen)


async def test_slow_and_failed_queries_are_logged_with_the_request_and_the_server_process(
    client: aiohttp.ClientSession,
    connection: Connection,
    logged: LogEvents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def time_out(connection: Connection, *arguments: object, **named: object) -> None:
        await connection.execute("SET LOCAL statement_timeout = 10; SELECT pg_sleep(5)")

    monkeypatch.setattr("kasparro.web.service.SLOW_QUERY_S", 0.0)
    monkeypatch.setattr("kasparro.store.tables.tables", time_out)
    assert await status(client, "/data?symbol=btc&api_key=abc", X_Request_ID="slow") == 400
    assert await status(client, "/data?symbol=btc", X_Request_ID="slow") == 200
    assert await status(client, "/tables", X_Request_ID="failed") == 503

    (slow, *_) = await logged.reached(1, "query_slow", request_id="slow")
    assert (slow["path"], slow["query"]) == ("/data", "symbol=btc")
    assert slow["ms"] > 0
    (failed,) = await logged.reached(1, "query_took_too_long", request_id="failed")
    processes = await connection.fetchval(
        "SELECT array_agg(pid) FROM pg_stat_activity WHERE datname = current_database()"
    )
    assert {slow["postgres_pid"], failed["postgres_pid"]} <= set(processes)
