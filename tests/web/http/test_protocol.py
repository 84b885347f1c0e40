"""What one connection may cost, and what a client hears that asks for more: real sockets, real servers."""

import asyncio
import json
import os
import resource
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from kasparro.settings import Settings
from kasparro.web import server
from kasparro.web.http.protocol import LimitedProtocol, Limits
from kasparro.web.server import uvicorn_config
from tests.conftest import LogEvents
from tests.web.conftest import Insert, serving

NOWHERE = "postgresql://nobody@127.0.0.1:1/nosuch"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


class Hasty(LimitedProtocol):
    """One whose clients have little time."""

    limits = Limits(request_s=0.3, drain_s=0.3)


class Line:
    """A connection of bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer."""
        async with asyncio.timeout(20):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            return (
                int(head[0].split()[1]),
                headers,
                await self.reader.readexactly(int(headers["content-length"])),
            )

    async def refusal(self) -> dict[str, Any]:
        """The problem document that comes next, after which the connection ends."""
        status, headers, body = await self.answer()
        assert headers["content-type"] == "application/problem+json"
        assert headers["connection"] == "close"
        assert {"date", "server-timing", "x-request-id", "x-content-type-options"} <= set(headers)
        problem: dict[str, Any] = json.loads(body)
        assert problem["status"] == status
        assert problem["request_id"] == headers["x-request-id"]
        assert await self.ended() == b""
        return problem | {"headers": headers}

    async def ended(self) -> bytes:
        """What comes until the server ends the connection."""
        async with asyncio.timeout(20):
            return await self.reader.read()

    async def closed_for_writing(self) -> None:
        """Sends on until the server takes no more."""
        async with asyncio.timeout(20):
            while True:
                self.writer.write(b"x" * 65_536)
                try:
                    await self.writer.drain()
                except OSError:
                    return


@asynccontextmanager
async def line(
    client: aiohttp.ClientSession, *, window: int | None = None, address: str = "127.0.0.1"
) -> AsyncIterator[Line]:
    """A connection from an address of the loopback network, with a receive buffer of `window` bytes."""
    host, port = client._base_url.host, client._base_url.port  # type: ignore[union-attr]
    with socket.socket() as plain:
        plain.bind((address, 0))
        if window is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, (host, port))
        reader, writer = await asyncio.open_connection(sock=plain, limit=1_024)
        try:
            yield Line(reader, writer)
        finally:
            writer.transport.abort()


@pytest.mark.parametrize(
    "part",
    [b"G", b"GET /data?q=x", b"GET /data HTTP/1.1\r\nHost: x\r\nX-A: b", b"GET / HTTP/1.1\r\n", b"\r\n"],
)
async def test_half_a_request_ends_in_a_timeout(part: bytes) -> None:
    async with serving(NOWHERE, http=Hasty) as client, line(client) as one:
        one.writer.write(part)
        if part.strip():
            problem = await one.refusal()
            assert (problem["status"], problem["title"]) == (408, "Request Timeout")
        else:
            assert await one.ended() == b""


async def test_a_connection_that_says_nothing_ends() -> None:
    async with serving(NOWHERE, http=Hasty) as client, line(client) as one:
        assert await one.ended() == b""


async def test_bytes_that_come_one_by_one_do_not_lengthen_the_time() -> None:
    async with serving(NOWHERE, http=Hasty) as client, line(client) as one:
        one.writer.write(LIVE + b"GET /health/live HTTP/1.1\r\nX-Slow: ")
        assert (await one.answer())[0] == 200
        drip = asyncio.create_task(_drip(one, b"y"))
        assert (await one.refusal())["status"] == 408
        drip.cancel()


async def _drip(one: Line, piece: bytes) -> None:
    while True:
        one.writer.write(piece)
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("piece", [b"\r\n", b"z"])
async def test_what_drips_after_an_answer_keeps_no_connection(
    piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hasty, "connection_made", _short_idle, raising=False)
    async with serving(NOWHERE, http=Hasty) as client, line(client) as one:
        body = b"" if piece == b"\r\n" else b"Content-Length: 900\r\n"
        one.writer.write(b"POST /nosuch HTTP/1.1\r\nHost: x\r\n" + body + b"\r\n")
        assert (await one.answer())[0] == 404
        drip = asyncio.create_task(_drip(one, piece))
        # By a reset, where a piece meets the connection just after its end.
        with suppress(ConnectionResetError):
            assert await one.ended() == b""
        drip.cancel()


def _short_idle(self: LimitedProtocol, transport: asyncio.Transport) -> None:
    self.timeout_keep_alive = 0.3  # type: ignore[assignment]
    LimitedProtocol.connection_made(self, transport)


async def test_a_request_in_pieces_is_answered_in_time() -> None:
    async with serving(NOWHERE) as client, line(client) as one:
        for _ in range(2):
            for byte in LIVE:
                one.writer.write(bytes([byte]))
                await one.writer.drain()
            assert (await one.answer())[0] == 200


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
async def test_what_is_too_large_or_malformed_is_a_problem(request_bytes: bytes, status: int) -> None:
    async with serving(NOWHERE) as client, line(client) as one:
        one.writer.write(request_bytes)
        assert (await one.refusal())["status"] == status


async def test_the_largest_request_that_is_allowed_is_answered() -> None:
    async with serving(NOWHERE) as client, line(client) as one:
        start = b"GET /health/live?" + b"&" * 16_000 + b" HTTP/1.1\r\nHost: x\r\n"
        one.writer.write(start + b"X-A: " + b"x" * (60_000 - len(start)) + b"\r\n\r\n" + LIVE)
        assert [(await one.answer())[0] for _ in range(2)] == [200, 200]


async def test_a_refusal_comes_after_the_answers_before_it() -> None:
    async with serving(NOWHERE) as client, line(client) as one:
        one.writer.write(LIVE * 3 + b"rubbish\r\n\r\n")
        assert [(await one.answer())[0] for _ in range(3)] == [200, 200, 200]
        assert await one.ended() == b""


async def test_requests_ahead_of_their_answers_are_bounded() -> None:
    """A client that sends more requests ahead than allowed gets the answers to those, and no others."""
    async with serving(NOWHERE) as client, line(client) as one:
        one.writer.write(LIVE * 500)
        assert (await one.ended()).count(b"HTTP/1.1 200") == 1 + Limits().pipelined
    async with serving(NOWHERE) as client, line(client) as one:
        for _ in range(10):
            one.writer.write(LIVE * Limits().pipelined)
            assert [(await one.answer())[0] for _ in range(Limits().pipelined)] == [200] * Limits().pipelined


async def test_bytes_of_requests_ahead_are_bounded() -> None:
    """Requests that wait are few, and small together."""
    large = LIVE[:-2] + b"X-A: " + b"x" * 6_000 + b"\r\n\r\n"
    async with serving(NOWHERE) as client, line(client) as one:
        one.writer.write(large * 6)
        assert (await one.ended()).count(b"HTTP/1.1 200") == 3


@pytest.mark.parametrize(
    "path", [b"/nosuch", b"/data?limit=0", b"/data", b"/runs/x"], ids=["404", "400", "503", "404-id"]
)
async def test_a_refusal_of_a_pipelining_client_closes_its_connection(path: bytes) -> None:
    """What waits behind a refused request is not worked on; one request at a time keeps its connection."""
    request = b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving(NOWHERE) as client, line(client) as one:
        for _ in range(3):
            one.writer.write(request)
            assert (await one.answer())[0] >= 400
        one.writer.write(request * 5)
        status, headers, _ = await one.answer()
        assert (status >= 400, headers["connection"]) == (True, "close")
        assert await one.ended() == b""


@pytest.mark.parametrize("kind", [b"websocket", b"h2c", b"TLS/1.2", b"\xff"])
async def test_an_upgrade_is_answered_and_ends_the_connection(
    kind: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is upgraded to, and what follows the request is not taken for another one."""
    upgrade = LIVE[:-2] + b"Connection: Upgrade\r\nUpgrade: " + kind + b"\r\n\r\n"
    async with serving(NOWHERE) as client:
        for sent, answers in ((upgrade, 1), (upgrade + LIVE, 1), (LIVE + upgrade + LIVE * 3, 2)):
            async with line(client) as one:
                one.writer.write(sent)
                found = [await one.answer() for _ in range(answers)]
                assert [status for status, *_ in found] == [200] * answers
                assert found[-1][1]["connection"] == "close"
                assert await one.ended() == b""
    assert not caplog.records


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
async def test_a_request_without_one_valid_host_is_refused(headers: bytes) -> None:
    """RFC 9112, 3.2; also where the answer is ready, and where the path is open to all."""
    for path in (b"/health/live", b"/docs", b"/data"):
        async with serving(NOWHERE) as client, line(client) as one:
            one.writer.write(b"GET " + path + b" HTTP/1.1\r\n" + headers + b"\r\n" + LIVE)
            problem = await one.refusal()
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
async def test_valid_hosts_are_taken(host: bytes) -> None:
    async with serving(NOWHERE) as client, line(client) as one:
        one.writer.write(b"GET /health/live HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        assert (await one.answer())[0] == 200


async def test_a_client_of_http_1_0_needs_no_host() -> None:
    async with serving(NOWHERE) as client, line(client) as one:
        one.writer.write(b"GET /health/live HTTP/1.0\r\n\r\n")
        status, headers, _ = await one.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await one.ended() == b""


async def test_what_strangers_send_makes_no_lines_in_the_log(logged: LogEvents) -> None:
    async with serving(NOWHERE) as client, line(client) as one:
        one.writer.write(b"rubbish\r\n\r\n")
        await one.refusal()
    assert {event["level"] for event in logged.seen} == {"debug"}


async def test_a_client_that_does_not_read_is_cut_and_holds_no_database_connection(
    database_url: str, insert: Insert
) -> None:
    await insert(*({"source_id": str(n), "name": "x" * 1_000} for n in range(1_000)))
    async with serving(database_url, http=Hasty, readers=1) as client, line(client, window=4_096) as one:
        one.writer.write(b"GET /data?limit=1000 HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
        # Its first answer fills what lies between it and the server.
        assert await one.reader.readexactly(12) == b"HTTP/1.1 200"
        for _ in range(3):
            async with client.get("/data?limit=1") as answer:
                assert answer.status == 200
        await one.closed_for_writing()


async def test_a_client_that_reads_slowly_gets_its_answer() -> None:
    async with serving(NOWHERE, http=Hasty) as client, line(client, window=4_096) as one:
        one.writer.write(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await one.reader.readuntil(b"\r\n\r\n")
        left = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while left:
            left -= len(await one.reader.readexactly(min(65_536, left)))
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("ending", [b"", b"Connection: close\r\n"])
async def test_a_stop_cuts_clients_that_do_not_read_without_an_error(
    ending: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as client_stack, serving(NOWHERE) as client:
        one = await client_stack.enter_async_context(line(client, window=4_096))
        asking = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n"
        one.writer.write(asking + b"\r\n" + asking + ending + b"\r\n")
        assert await one.reader.readexactly(12) == b"HTTP/1.1 200"
        # It stays until the server has gone.
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_stop_ends_a_request_that_takes_too_long_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    busy = asyncio.Event()

    async def hold(*_: object) -> Any:
        busy.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("kasparro.store.tables.tables", hold)
    monkeypatch.setattr("kasparro.web.service.Service.read_connection", hold_connection)
    async with AsyncExitStack() as client_stack, serving(NOWHERE) as client:
        one = await client_stack.enter_async_context(line(client))
        one.writer.write(b"GET /tables HTTP/1.1\r\nHost: x\r\n\r\n")
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
async def apart(loop: str, descriptors: int, log: Path) -> AsyncIterator[tuple[aiohttp.ClientSession, int]]:
    """The service without a database in a process of its own, with so many file descriptors; its pid too."""
    with log.open("wb") as told:
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", sys.executable, "-c", SERVER, loop,
            stdout=asyncio.subprocess.PIPE, stderr=told, env={**os.environ, "PYTHONWARNINGS": "default"},
        )  # fmt: skip
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            yield client, process.pid
    finally:
        process.terminate()
        await process.wait()


async def _live(client: aiohttp.ClientSession) -> int:
    timeout = aiohttp.ClientTimeout(total=5)
    async with client.get("/health/live", timeout=timeout, headers={"Connection": "close"}) as answer:
        return answer.status


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_half_open_connections_of_one_client_keep_nobody_else_out(loop: str, tmp_path: Path) -> None:
    """A client holds its share; others are served, and health is answered to its own address too."""
    log = tmp_path / "log"
    async with apart(loop, 256, log) as (client, _), AsyncExitStack() as stack:
        for number in range(300):
            one = await stack.enter_async_context(line(client, address="127.0.0.2"))
            # Bytes that come later do not lengthen its time.
            one.writer.write(b"GET /health/live HTTP/1.1\r\n" if number % 2 else b"")
        for address in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
            for _ in range(5):
                async with line(client, address=address) as other:
                    other.writer.write(LIVE)
                    assert (await other.answer())[0] == 200
        async with line(client, address="127.0.0.3") as other:
            other.writer.write(b"GET /nosuch HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await other.answer())[0] == 404
        async with line(client, address="127.0.0.2") as own:
            own.writer.write(b"GET /nosuch HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await own.refusal())["type"] == "urn:kasparro:problem:too-many-connections"
    assert log.stat().st_size < 10_000, log.read_text()[:2_000]


async def test_health_is_answered_while_all_connections_are_held(tmp_path: Path) -> None:
    """Clients of many addresses hold every connection and the whole reserve."""
    async with apart("uvloop", 256, tmp_path / "log") as (client, _), AsyncExitStack() as stack:
        for number in range(180):
            await stack.enter_async_context(line(client, address=f"127.0.1.{1 + number % 20}"))
        for path, statuses in (("/health/live", {200}), ("/health", {200, 503}), ("/health/ready", {404})):
            async with line(client) as one:
                one.writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert (await one.answer())[0] in statuses
                # Its place is for the next.
                assert await one.ended() == b""
        async with line(client) as one:
            one.writer.write(b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n")
            problem = await one.refusal()
            assert (problem["status"], problem["headers"]["retry-after"]) == (503, "5")


async def test_giant_requests_take_no_memory(tmp_path: Path) -> None:
    async with apart("uvloop", 1_024, tmp_path / "log") as (client, pid):
        assert await _live(client) == 200
        status = Path(f"/proc/{pid}/status")
        if not status.exists():
            pytest.skip("this system does not tell a process's memory")

        def peak_kb() -> int:
            return int(status.read_text().split("VmHWM:")[1].split()[0])

        before = peak_kb()
        for start in (b"GET /", b"GET / HTTP/1.1\r\nX-A: "):
            async with line(client) as one:
                one.writer.write(start + b"x" * 50_000_000)
                assert (await one.refusal())["status"] in {414, 431}
        assert peak_kb() - before < 10_000


@pytest.mark.parametrize("trusted", ["127.0.0.0/8", "*"])
async def test_a_named_proxy_has_no_share_but_all_connections_are_bounded(
    trusted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kasparro.web.server.CONNECTIONS", 16)
    settings = Settings(trusted_proxies=(trusted,))
    async with serving(NOWHERE, settings) as client, AsyncExitStack() as stack:
        for _ in range(16):
            one = await stack.enter_async_context(line(client))
            one.writer.write(LIVE)
            assert (await one.answer())[0] == 200
        async with line(client) as late:
            late.writer.write(b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await late.refusal())["type"] == "urn:kasparro:problem:too-many-connections"


async def test_floods_beyond_the_limits_log_a_bounded_number_of_lines(
    monkeypatch: pytest.MonkeyPatch, logged: LogEvents
) -> None:
    monkeypatch.setattr("kasparro.web.server.CONNECTIONS", 16)
    async with serving(NOWHERE) as client, AsyncExitStack() as stack:
        for _ in range(100):
            await stack.enter_async_context(line(client))
        for _ in range(5):
            async with line(client) as one:
                one.writer.write(LIVE)
                assert (await one.answer())[0] == 200
    lines = [event for event in logged.seen if event["level"] != "debug"]
    assert [(event["event"], event["address"]) for event in lines] == [
        ("connection_share_reached", "127.0.0.1")
    ]


async def test_a_client_that_hangs_up_with_requests_in_wait_ends_their_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, logged: LogEvents
) -> None:
    """The request being answered hears of it, those behind it never begin, and nothing is logged."""
    begun = 0
    busy, ended = asyncio.Event(), asyncio.Event()

    async def hold(*_: object) -> Any:
        nonlocal begun
        begun += 1
        busy.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr("kasparro.store.tables.tables", hold)
    monkeypatch.setattr("kasparro.web.service.Service.read_connection", hold_connection)
    async with serving(NOWHERE) as client, asyncio.timeout(20):
        async with line(client) as one:
            one.writer.write(b"GET /tables HTTP/1.1\r\nHost: x\r\n\r\n" * 6)
            await busy.wait()
        await ended.wait()
        assert await _live(client) == 200
    assert begun == 1
    assert [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}] == []
    assert {event["level"] for event in logged.seen} <= {"debug"}


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_pipelining_clients_that_hang_up_are_no_errors(loop: str, tmp_path: Path) -> None:
    """At whatever moment: before, while and after answers are written."""
    log = tmp_path / "log"
    asking = b"".join(
        b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n"
        for path in (b"/health/live", b"/docs/swagger-ui-bundle.js", b"/docs", b"/health", b"/health/live")
    )
    async with apart(loop, 1_024, log) as (client, _):
        for number in range(120):
            async with line(client, window=4_096) as one:
                one.writer.write(asking)
                if number % 3:
                    await one.reader.readexactly(12)
                if number % 3 == 2:
                    one.writer.write_eof()
        assert await _live(client) == 200
    assert log.read_text() == ""


@asynccontextmanager
async def hold_connection(*_: object) -> AsyncIterator[None]:
    yield None


async def test_names_of_uvicorn_that_the_protocol_builds_on_are_there() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None: ...

    config = uvicorn_config(app, 1)
    one = LimitedProtocol(config, ServerState(), {})
    for name in (
        "config", "connections", "cycle", "flow", "loop", "parser", "pipeline", "scope", "server_state",
        "timeout_keep_alive", "timeout_keep_alive_task", "transport",
    ):  # fmt: skip
        assert hasattr(one, name), name
    assert config.limit_concurrency is not None
    assert one.limit_concurrency is None


@pytest.mark.parametrize(
    ("told", "raised", "connections"),
    [
        ((1_024, 4_096), (4_096, 4_096), 512),
        ((1_024, 1_000_000), (16_384, 1_000_000), 512),
        ((1_024, resource.RLIM_INFINITY), (16_384, resource.RLIM_INFINITY), 512),
        ((128, 128), None, 64),
        ((100_000, 1_000_000), None, 4_096),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None, 4_096),
    ],
)
def test_connections_are_bounded_by_descriptors_which_are_raised(
    told: tuple[int, int], raised: tuple[int, int] | None, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: told)
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: changes.append(limits))
    server._raise_descriptors()
    assert changes == ([] if raised is None else [raised])
    assert server._connection_limit() == connections
