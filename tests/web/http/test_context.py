"""What every answer carries, whatever became of the request."""

import asyncio
import re
from collections.abc import AsyncIterator

import aiohttp
import pytest

from kasparro.settings import Secret, Settings
from kasparro.web.service import Service
from tests.web.conftest import Insert, serving
from tests.web.routes.test_runs import Loop


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/data", 200),
        ("/data?limit=0", 400),
        ("/nosuch", 404),
        ("/docs/nosuch.js", 404),
        ("/data/csv/x", 404),
    ],
)
async def test_every_answer_has_an_id_and_a_timing(
    client: aiohttp.ClientSession, path: str, status: int
) -> None:
    async with client.get(path) as answer:
        assert answer.status == status
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-ID"])
        assert re.match(r"total;dur=\d+\.\d\d", answer.headers["Server-Timing"])
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        if status == 200:
            assert re.search(r", db;dur=\d+\.\d\d$", answer.headers["Server-Timing"])


@pytest.mark.parametrize(
    ("told", "kept"),
    [("My-id_1.2", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("<b>", False), ("é", False)],
)
async def test_a_fit_request_id_of_the_client_is_kept(
    client: aiohttp.ClientSession, told: str, kept: bool
) -> None:
    async with client.get("/health/live", headers={"X-Request-ID": told}) as answer:
        assert (answer.headers["X-Request-ID"] == told) is kept


async def test_an_unexpected_error_is_a_problem_without_its_insides(
    client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_down(self: Service, connection: object) -> bytes:
        raise RuntimeError("SELECT secret FROM table")

    monkeypatch.setattr(Service, "signing_key", break_down)
    async with client.get("/data", headers={"X-Request-ID": "abc"}) as answer:
        text = await answer.text()
        problem = await answer.json(content_type="application/problem+json")
    assert answer.status == problem["status"] == 500
    assert problem["request_id"] == answer.headers["X-Request-ID"] == "abc"
    assert "Server-Timing" in answer.headers
    assert "secret" not in text
    assert "Traceback" not in text


async def test_a_path_that_is_not_there_is_a_problem(client: aiohttp.ClientSession) -> None:
    for path in ("/nosuch", "/data/", "/data/csv", "/runs/x", "/DATA", "/%3Cscript%3E"):
        async with client.get(path) as answer:
            problem = await answer.json(content_type="application/problem+json")
        assert (answer.status, problem["title"]) == (404, "Not Found"), path


async def test_a_method_that_is_not_there_tells_those_that_are(client: aiohttp.ClientSession) -> None:
    for method in ("POST", "DELETE", "PUT", "PATCH"):
        async with client.request(method, "/data") as answer:
            problem = await answer.json(content_type="application/problem+json")
        assert answer.status == 405
        assert answer.headers["Allow"] == problem["allowed"] == "GET, HEAD, OPTIONS"


async def test_options_tells_the_methods_of_a_path(database_url: str) -> None:
    async with serving(database_url, Settings(admin_token=Secret("x")), Loop()) as client:
        for path, allowed in {
            "/data": "GET, HEAD, OPTIONS",
            "/runs": "GET, HEAD, OPTIONS, POST",
            "/docs": "GET, HEAD, OPTIONS",
        }.items():
            async with client.options(path) as answer:
                assert (answer.status, answer.headers["Allow"]) == (204, allowed)
                assert await answer.read() == b""
                assert "X-Request-ID" in answer.headers
        async with client.options("/nosuch") as answer:
            assert answer.status == 404


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
        async with client.get(path) as whole, client.head(path) as head:
            assert head.status == whole.status
            assert await head.read() == b""
            assert head.headers["Content-Type"] == whole.headers["Content-Type"]
            if path in {"/data", "/docs", "/openapi.json"}:
                assert head.headers["Content-Length"] == whole.headers["Content-Length"]


async def test_bodies_that_nobody_reads_are_refused(client: aiohttp.ClientSession) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"

    async with client.post("/runs", data=chunks()) as answer:
        assert answer.status == 411
    async with client.get("/data", data=b"x") as answer:
        assert answer.status == 400
        assert answer.headers["Connection"] == "close"
    async with client.post("/runs", data=b"x" * 2_000) as answer:
        assert answer.status == 413
        assert "X-Request-ID" in answer.headers


async def test_bytes_that_no_client_library_sends_get_an_answer_too(client: aiohttp.ClientSession) -> None:
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
        status = int((await reader.readline()).split()[1])
        await reader.read()
        writer.close()
        await writer.wait_closed()
        assert status in ({200} if target.endswith(b"&") else {400, 404}), target
