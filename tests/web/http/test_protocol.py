"""The limits of one connection, on real sockets and real servers."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from kasparro.settings import Settings
from kasparro.web.http.protocol import LimitedProtocol, Limits
from kasparro.web.server import uvicorn_config
from tests.conftest import LogEvents
from tests.support.raw_http import LIVE_REQUEST, NO_DATABASE, ImpatientProtocol, RawConnection, connected
from tests.web.conftest import Insert, serving


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [b"G", b"GET /data?q=x", b"GET /data HTTP/1.1\r\nHost: x\r\nX-A: b", b"GET / HTTP/1.1\r\n", b"\r\n"],
)
async def test_incomplete_request_times_out(part: bytes) -> None:
    async with serving(NO_DATABASE, http=ImpatientProtocol) as client, connected(client) as connection:
        connection.writer.write(part)
        if part.strip():
            problem = await connection.rejection()
            assert (problem["status"], problem["title"]) == (408, "Request Timeout")
        else:
            assert await connection.rest() == b""


@pytest.mark.slow
async def test_silent_connection_is_closed() -> None:
    async with serving(NO_DATABASE, http=ImpatientProtocol) as client, connected(client) as connection:
        assert await connection.rest() == b""


@pytest.mark.slow
async def test_dripping_bytes_do_not_extend_the_deadline() -> None:
    async with serving(NO_DATABASE, http=ImpatientProtocol) as client, connected(client) as connection:
        connection.writer.write(LIVE_REQUEST + b"GET /health/live HTTP/1.1\r\nX-Slow: ")
        assert (await connection.response())[0] == 200
        drip = asyncio.create_task(_drip(connection, b"y"))
        assert (await connection.rejection())["status"] == 408
        drip.cancel()


async def _drip(connection: RawConnection, piece: bytes) -> None:
    while True:
        connection.writer.write(piece)
        await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("piece", [b"\r\n", b"z"])
async def test_dripping_bytes_do_not_keep_an_idle_connection(
    piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImpatientProtocol, "connection_made", _short_idle, raising=False)
    async with serving(NO_DATABASE, http=ImpatientProtocol) as client, connected(client) as connection:
        body = b"" if piece == b"\r\n" else b"Content-Length: 900\r\n"
        connection.writer.write(b"POST /nosuch HTTP/1.1\r\nHost: x\r\n" + body + b"\r\n")
        assert (await connection.response())[0] == 404
        drip = asyncio.create_task(_drip(connection, piece))
        # A piece that arrives just after the close is answered with a reset.
        with suppress(ConnectionResetError):
            assert await connection.rest() == b""
        drip.cancel()


def _short_idle(self: LimitedProtocol, transport: asyncio.Transport) -> None:
    self.timeout_keep_alive = 0.3  # type: ignore[assignment]
    LimitedProtocol.connection_made(self, transport)


async def test_request_in_single_bytes_is_answered() -> None:
    async with serving(NO_DATABASE) as client, connected(client) as connection:
        for _ in range(2):
            for byte in LIVE_REQUEST:
                connection.writer.write(bytes([byte]))
                await connection.writer.drain()
            assert (await connection.response())[0] == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /" + b"x" * 20_000, 414),
        (b"GET /data?q=" + b"x" * 10_000_000, 414),
        (b"GET / HTTP/1.1\r\nX-A: " + b"x" * 100_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nX-A: " + b"x" * 10_000_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 200_000, 431),
        (b"rubbish\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ],
)
async def test_too_large_or_malformed_request_is_a_problem(request_bytes: bytes, status: int) -> None:
    async with serving(NO_DATABASE) as client, connected(client) as connection:
        connection.writer.write(request_bytes)
        assert (await connection.rejection())["status"] == status


async def test_largest_allowed_request_is_answered() -> None:
    async with serving(NO_DATABASE) as client, connected(client) as connection:
        start = b"GET /health/live?" + b"&" * 16_000 + b" HTTP/1.1\r\nHost: x\r\n"
        connection.writer.write(start + b"X-A: " + b"x" * (60_000 - len(start)) + b"\r\n\r\n" + LIVE_REQUEST)
        assert [(await connection.response())[0] for _ in range(2)] == [200, 200]


async def test_rejection_does_not_overtake_earlier_responses() -> None:
    async with serving(NO_DATABASE) as client, connected(client) as connection:
        connection.writer.write(LIVE_REQUEST * 3 + b"rubbish\r\n\r\n")
        assert [(await connection.response())[0] for _ in range(3)] == [200, 200, 200]
        assert await connection.rest() == b""


@pytest.mark.slow
async def test_pipelined_requests_are_limited() -> None:
    """A client that pipelines too many requests gets responses to those within the limit."""
    async with serving(NO_DATABASE) as client, connected(client) as connection:
        connection.writer.write(LIVE_REQUEST * 500)
        assert (await connection.rest()).count(b"HTTP/1.1 200") == 1 + Limits().pipelined
    async with serving(NO_DATABASE) as client, connected(client) as connection:
        for _ in range(10):
            connection.writer.write(LIVE_REQUEST * Limits().pipelined)
            assert [(await connection.response())[0] for _ in range(Limits().pipelined)] == [
                200
            ] * Limits().pipelined


async def test_pipelined_bytes_are_limited() -> None:
    large = LIVE_REQUEST[:-2] + b"X-A: " + b"x" * 6_000 + b"\r\n\r\n"
    async with serving(NO_DATABASE) as client, connected(client) as connection:
        connection.writer.write(large * 6)
        assert (await connection.rest()).count(b"HTTP/1.1 200") == 3


@pytest.mark.parametrize(
    "path", [b"/nosuch", b"/data?limit=0", b"/data", b"/runs/x"], ids=["404", "400", "503", "404-id"]
)
async def test_error_closes_a_pipelining_connection(path: bytes) -> None:
    """Requests behind a failed one are dropped. Without pipelining, the connection stays open."""
    request = b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving(NO_DATABASE) as client, connected(client) as connection:
        for _ in range(3):
            connection.writer.write(request)
            assert (await connection.response())[0] >= 400
        connection.writer.write(request * 5)
        status, headers, _ = await connection.response()
        assert (status >= 400, headers["connection"]) == (True, "close")
        assert await connection.rest() == b""


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c", b"TLS/1.2", b"\xff"])
async def test_upgrade_is_answered_and_closes_the_connection(
    protocol: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """No protocol is upgraded to, and bytes after the request are not parsed as another one."""
    upgrade = LIVE_REQUEST[:-2] + b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n"
    async with serving(NO_DATABASE) as client:
        for sent, count in (
            (upgrade, 1),
            (upgrade + LIVE_REQUEST, 1),
            (LIVE_REQUEST + upgrade + LIVE_REQUEST * 3, 2),
        ):
            async with connected(client) as connection:
                connection.writer.write(sent)
                found = [await connection.response() for _ in range(count)]
                assert [status for status, *_ in found] == [200] * count
                assert found[-1][1]["connection"] == "close"
                assert await connection.rest() == b""
    assert not caplog.records


async def test_malformed_request_is_logged_at_debug_level(logged: LogEvents) -> None:
    async with serving(NO_DATABASE) as client, connected(client) as connection:
        connection.writer.write(b"rubbish\r\n\r\n")
        await connection.rejection()
    assert {event["level"] for event in logged.seen} == {"debug"}


@pytest.mark.slow
async def test_client_that_does_not_read_is_disconnected(database_url: str, insert: Insert) -> None:
    await insert(*({"source_id": str(n), "name": "x" * 1_000} for n in range(1_000)))
    async with (
        serving(database_url, http=ImpatientProtocol, readers=1) as client,
        connected(client, window=4_096) as connection,
    ):
        connection.writer.write(b"GET /data?limit=1000 HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
        # The first response fills all buffers. The others must not hold the only database connection.
        assert await connection.reader.readexactly(12) == b"HTTP/1.1 200"
        for _ in range(3):
            async with client.get("/data?limit=1") as response:
                assert response.status == 200
        await connection.send_until_closed()


@pytest.mark.slow
async def test_slow_reader_gets_its_response() -> None:
    async with (
        serving(NO_DATABASE, http=ImpatientProtocol) as client,
        connected(client, window=4_096) as connection,
    ):
        connection.writer.write(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await connection.reader.readuntil(b"\r\n\r\n")
        remaining = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while remaining:
            remaining -= len(await connection.reader.readexactly(min(65_536, remaining)))
            await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [b"", b"Connection: close\r\n"])
async def test_shutdown_closes_clients_that_do_not_read(
    ending: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as client_stack, serving(NO_DATABASE) as client:
        connection = await client_stack.enter_async_context(connected(client, window=4_096))
        request = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n"
        connection.writer.write(request + b"\r\n" + request + ending + b"\r\n")
        assert await connection.reader.readexactly(12) == b"HTTP/1.1 200"
        # The client stays connected until the server has stopped.
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.slow
async def test_shutdown_cancels_slow_request_without_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    busy = asyncio.Event()

    async def hold(*_: object) -> Any:
        busy.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("kasparro.store.tables.tables", hold)
    monkeypatch.setattr("kasparro.web.service.Service.read_connection", hold_connection)
    async with AsyncExitStack() as client_stack, serving(NO_DATABASE) as client:
        connection = await client_stack.enter_async_context(connected(client))
        connection.writer.write(b"GET /tables HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(20):
            await busy.wait()
    assert [record for record in caplog.records if record.exc_info] == []


SERVER = """
import asyncio, socket, sys
import uvicorn
from kasparro import logs
from kasparro.settings import Settings
from kasparro.store.pool import Database
from kasparro.web.app import create_app
from kasparro.web.server import uvicorn_config
logs.configure(Settings())
app = create_app(Settings(), database=Database("postgresql://nobody@127.0.0.1:1/x"), scheduler=None)
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
server = uvicorn.Server(uvicorn_config(app, 1))
factory = {"uvloop": uvicorn.Config("", log_config=None).get_loop_factory(), "asyncio": None}[sys.argv[1]]
with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(server.serve([listener]))
"""


@asynccontextmanager
async def separate_service(
    loop: str, descriptors: int, log: Path
) -> AsyncIterator[tuple[aiohttp.ClientSession, int]]:
    """A client of a service without a database in another process, and its pid."""
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", sys.executable, "-c", SERVER, loop,
            stdout=asyncio.subprocess.PIPE, stderr=stderr, env={**os.environ, "PYTHONWARNINGS": "default"},
        )  # fmt: skip
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            yield client, process.pid
    finally:
        process.terminate()
        await process.wait()


async def _live_status(client: aiohttp.ClientSession) -> int:
    timeout = aiohttp.ClientTimeout(total=5)
    async with client.get("/health/live", timeout=timeout, headers={"Connection": "close"}) as response:
        return response.status


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_half_open_connections_do_not_shut_out_others(loop: str, tmp_path: Path) -> None:
    """A client has at most its share. Others are served, and its own health checks are answered too."""
    log = tmp_path / "log"
    async with separate_service(loop, 256, log) as (client, _), AsyncExitStack() as stack:
        for number in range(300):
            connection = await stack.enter_async_context(connected(client, address="127.0.0.2"))
            connection.writer.write(b"GET /health/live HTTP/1.1\r\n" if number % 2 else b"")
        for address in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
            for _ in range(5):
                async with connected(client, address=address) as connection:
                    connection.writer.write(LIVE_REQUEST)
                    assert (await connection.response())[0] == 200
        async with connected(client, address="127.0.0.3") as connection:
            connection.writer.write(b"GET /nosuch HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await connection.response())[0] == 404
        async with connected(client, address="127.0.0.2") as connection:
            connection.writer.write(b"GET /nosuch HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await connection.rejection())["type"] == "urn:kasparro:problem:too-many-connections"
    assert log.stat().st_size < 10_000, log.read_text()[:2_000]


@pytest.mark.slow
async def test_health_is_answered_when_all_connections_are_taken(tmp_path: Path) -> None:
    """Clients of many addresses hold every connection and the whole reserve."""
    async with separate_service("uvloop", 256, tmp_path / "log") as (client, _), AsyncExitStack() as stack:
        for number in range(180):
            await stack.enter_async_context(connected(client, address=f"127.0.1.{1 + number % 20}"))
        for path, statuses in (
            ("/health/live", {200}),
            ("/health", {200, 503}),
            ("/health/ready", {200, 503}),
        ):
            async with connected(client) as connection:
                connection.writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert (await connection.response())[0] in statuses
                # The connection is closed, which makes room for the next one.
                assert await connection.rest() == b""
        async with connected(client) as connection:
            connection.writer.write(b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n")
            problem = await connection.rejection()
            assert (problem["status"], problem["headers"]["retry-after"]) == (503, "5")


@pytest.mark.slow
async def test_giant_requests_need_no_memory(tmp_path: Path) -> None:
    async with separate_service("uvloop", 1_024, tmp_path / "log") as (client, pid):
        assert await _live_status(client) == 200
        status = Path(f"/proc/{pid}/status")
        if not status.exists():
            pytest.skip("this system does not report the memory of a process")

        def peak_kb() -> int:
            return int(status.read_text().split("VmHWM:")[1].split()[0])

        before = peak_kb()
        for start in (b"GET /", b"GET / HTTP/1.1\r\nX-A: "):
            async with connected(client) as connection:
                connection.writer.write(start + b"x" * 50_000_000)
                assert (await connection.rejection())["status"] in {414, 431}
        assert peak_kb() - before < 10_000


@pytest.mark.parametrize("trusted", ["127.0.0.0/8", "*"])
async def test_trusted_proxy_is_limited_by_the_total_only(
    trusted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kasparro.web.server.CONNECTIONS", 16)
    settings = Settings(trusted_proxies=(trusted,))
    async with serving(NO_DATABASE, settings) as client, AsyncExitStack() as stack:
        for _ in range(16):
            connection = await stack.enter_async_context(connected(client))
            connection.writer.write(LIVE_REQUEST)
            assert (await connection.response())[0] == 200
        async with connected(client) as connection:
            connection.writer.write(b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await connection.rejection())["type"] == "urn:kasparro:problem:too-many-connections"


async def test_flood_of_connections_logs_few_lines(
    monkeypatch: pytest.MonkeyPatch, logged: LogEvents
) -> None:
    monkeypatch.setattr("kasparro.web.server.CONNECTIONS", 16)
    async with serving(NO_DATABASE) as client, AsyncExitStack() as stack:
        for _ in range(100):
            await stack.enter_async_context(connected(client))
        for _ in range(5):
            async with connected(client) as connection:
                connection.writer.write(LIVE_REQUEST)
                assert (await connection.response())[0] == 200
    lines = [event for event in logged.seen if event["level"] != "debug"]
    assert [(event["event"], event["address"]) for event in lines] == [
        ("connection_share_reached", "127.0.0.1")
    ]


async def test_disconnect_cancels_running_and_pipelined_requests(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, logged: LogEvents
) -> None:
    """The running request is cancelled, those behind it never start, and nothing is logged."""
    started = 0
    busy, ended = asyncio.Event(), asyncio.Event()

    async def hold(*_: object) -> Any:
        nonlocal started
        started += 1
        busy.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr("kasparro.store.tables.tables", hold)
    monkeypatch.setattr("kasparro.web.service.Service.read_connection", hold_connection)
    async with serving(NO_DATABASE) as client, asyncio.timeout(20):
        async with connected(client) as connection:
            connection.writer.write(b"GET /tables HTTP/1.1\r\nHost: x\r\n\r\n" * 6)
            await busy.wait()
        await ended.wait()
        assert await _live_status(client) == 200
    assert started == 1
    assert [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}] == []
    assert {event["level"] for event in logged.seen} <= {"debug"}


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_disconnects_of_pipelining_clients_are_no_errors(loop: str, tmp_path: Path) -> None:
    """They disconnect before, during and after responses are written."""
    log = tmp_path / "log"
    requests = b"".join(
        b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n"
        for path in (b"/health/live", b"/docs/swagger-ui-bundle.js", b"/docs", b"/health", b"/health/live")
    )
    async with separate_service(loop, 1_024, log) as (client, _):
        for number in range(120):
            async with connected(client, window=4_096) as connection:
                connection.writer.write(requests)
                if number % 3:
                    await connection.reader.readexactly(12)
                if number % 3 == 2:
                    connection.writer.write_eof()
        assert await _live_status(client) == 200
    assert log.read_text() == ""


@asynccontextmanager
async def hold_connection(*_: object) -> AsyncIterator[None]:
    yield None


async def test_private_names_of_uvicorn_exist() -> None:
    """If uvicorn renamed a method, the override would silently do nothing."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None: ...

    config = uvicorn_config(app, 1)
    connection = LimitedProtocol(config, ServerState(), {})
    for name in (
        "config", "connections", "cycle", "flow", "loop", "parser", "pipeline", "scope", "server_state",
        "timeout_keep_alive", "timeout_keep_alive_task", "transport",
    ):  # fmt: skip
        assert hasattr(connection, name), name
    for name in (
        "connection_made", "connection_lost", "shutdown", "data_received", "on_message_begin", "on_url",
        "on_header", "on_headers_complete", "on_message_complete", "on_response_complete",
        "_start_asgi_task", "timeout_keep_alive_handler", "pause_writing", "resume_writing",
    ):  # fmt: skip
        assert name in vars(HttpToolsProtocol), name
    assert config.limit_concurrency is not None
    assert connection.limit_concurrency is None
