"""Hostile clients: what happens to their requests, and that other clients are served."""

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from kasparro.settings import Settings
from kasparro.store import pool as database_limits
from kasparro.store.pool import Connection, Database
from kasparro.web.http.connections import ConnectionLimits
from kasparro.web.http.protocol import LimitedProtocol, Limits
from tests.conftest import LogEvents
from tests.support.commands import listening_url, started_command
from tests.support.locks import locked_data
from tests.support.metrics import metric_value, scrape
from tests.support.raw_http import LIVE_REQUEST, NO_DATABASE, ImpatientProtocol, connected
from tests.support.requests import fetch
from tests.web.conftest import Insert, serving

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
# An idle service takes about 60 MB.
MEMORY_MB = 300


@asynccontextmanager
async def separate_service(database_url: str) -> AsyncIterator[tuple[aiohttp.ClientSession, int]]:
    """A client of `kasparro serve` in another process, and its pid. Afterwards its log must be short."""
    environment = {
        "DATABASE_URL": database_url,
        "PORT": "0",
        "KASPARRO_INTERVAL": "off",
        "KASPARRO_LOG": "json",
    }
    async with started_command("serve", "--port", "0", **environment) as process:
        url = await listening_url(process)
        assert process.stderr is not None
        # Read while it runs, because a full pipe would block the service.
        log = asyncio.create_task(process.stderr.read())
        try:
            async with aiohttp.ClientSession(url) as client:
                yield client, process.pid
        finally:
            process.terminate()
            lines = (await log).decode()
        assert '"level": "error"' not in lines
        # One line per kind of event and period, whatever the clients did.
        assert lines.count("\n") < 100, lines


def peak_mb(pid: int) -> float:
    """The peak memory of a process."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("this system does not report the memory of a process")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1_024


async def live_status(client: aiohttp.ClientSession) -> int:
    """The status of /health/live on a new connection."""
    async with client.get("/health/live", headers={"Connection": "close"}) as response:
        return response.status


async def test_well_behaved_client_is_served_among_hostile_ones(database_url: str, insert: Insert) -> None:
    """Two hundred clients of five kinds attack. Another client gets every response, health checks too."""
    await insert(*({"source_id": f"{n:05}", "name": f"Coin {n}", "rank": n + 1} for n in range(3_000)))
    async with separate_service(database_url) as (client, pid), asyncio.timeout(120):
        assert await live_status(client) == 200
        attacker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.hostile_clients", str(client._base_url.port), "40"),  # type: ignore[union-attr]
            cwd=ROOT,
        )
        try:
            for number in range(300):
                async with client.get("/data?limit=50") as response:
                    assert response.status == 200
                    assert len((await response.json())["data"]) == 50
                if number % 3 == 0:
                    assert await live_status(client) == 200
                await asyncio.sleep(0.01)
            assert attacker.returncode is None, "the attack ended early"
        finally:
            with suppress(ProcessLookupError):
                attacker.terminate()
            await attacker.wait()
        assert peak_mb(pid) < MEMORY_MB


@pytest.mark.parametrize(
    ("stream", "statuses"),
    [
        (b"GET /health/live\r\n\r\n", [400]),
        (b"GET /health/live HTTP/0.9\r\n\r\n", [400]),
        (b"GET http://elsewhere.example/health/live HTTP/1.1\r\nHost: x\r\n\r\n", [200]),
        (b"GET HTTP://[::1]:80/health/live HTTP/1.1\r\nHost: x\r\n\r\n", [200]),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", [404]),
        (b"GET * HTTP/1.1\r\nHost: x\r\n\r\n", [404]),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", [400]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
        (b"GET /health/live HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n", [200]),
        (
            b"POST /nosuch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-API-Key\r\n\r\n"
            b"1\r\nx\r\n0\r\nX-API-Key: first\r\nAuthorization: Bearer x\r\n\r\n",
            [411],
        ),
        (LIVE_REQUEST[:-2] + b"X-A: b\r\n" * 96 + b"\r\n", [200]),
        (LIVE_REQUEST[:-2] + b"X-A: b\r\n" * 101 + b"\r\n", [431]),
        (LIVE_REQUEST + LIVE_REQUEST[:-2] + b"X-A: b\r\n" * 101 + b"\r\n" + LIVE_REQUEST, [200]),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500, [400]),
        (b"\x00" * 100_000, [400]),
        (b"\r\n" * 50_000 + LIVE_REQUEST, [200]),
        (b"A" * 200_000, [400]),
    ],
)
async def test_odd_streams_are_answered_or_rejected(
    stream: bytes, statuses: list[int], logged: LogEvents, caplog: pytest.LogCaptureFixture
) -> None:
    """Each gets these responses, and its connection is closed if it is rejected. Nothing is logged."""
    async with serving(NO_DATABASE) as client, connected(client) as connection:
        connection.writer.write(stream)
        for status in statuses:
            assert (await connection.response())[0] == status
        connection.writer.write_eof()
        assert b"HTTP/1.1 2" not in await connection.rest()
        assert await live_status(client) == 200
    assert {event["level"] for event in logged.seen} <= {"debug"}
    assert [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}] == []


async def test_expect_is_answered_without_its_body(database_url: str) -> None:
    """No handler reads a body, so a client that waits for 100 (Continue) gets the final response."""
    async with serving(database_url) as client, connected(client) as connection:
        connection.writer.write(
            b"POST /nosuch HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        )
        assert (await connection.response())[0] == 404
        connection.writer.write(b"abc" + LIVE_REQUEST)
        assert (await connection.response())[0] == 200


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"G",
        b"GET /health/live?",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\n",
        LIVE_REQUEST + b"GET /health/live HTTP/1.1\r\nX-Slow: ",
        b"POST /runs HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
        b"POST /runs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
async def test_dripping_bytes_end_in_time_at_every_stage(start: bytes) -> None:
    async with serving(NO_DATABASE, http=ImpatientProtocol) as client, connected(client) as connection:
        connection.writer.write(start)

        async def drip() -> None:
            for number in itertools.count():
                connection.writer.write(b"X-A: b\r\n"[number % 8 : number % 8 + 1])
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        async with asyncio.timeout(20):
            while True:
                try:
                    if not await connection.reader.read(65_536):
                        break
                except ConnectionError:
                    break
        dripping.cancel()
        assert await live_status(client) == 200


async def test_unread_responses_of_all_clients_are_limited(
    monkeypatch: pytest.MonkeyPatch, logged: LogEvents
) -> None:
    """The address with the most unread bytes loses connections, long before their time limit."""

    class PatientProtocol(LimitedProtocol):
        limits = Limits(drain_s=600)

    limits = ConnectionLimits(
        total=64, per_client=32, reserve=8, reserve_per_client=2, unsent_bytes=4_000_000
    )
    monkeypatch.setattr(ConnectionLimits, "of", lambda total: limits)
    requests = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 8
    async with serving(NO_DATABASE, http=PatientProtocol) as client, AsyncExitStack() as stack:
        modest = await stack.enter_async_context(connected(client, window=4_096, address="127.0.0.3"))
        modest.writer.write(requests)
        greedy = []
        for _ in range(30):
            connection = await stack.enter_async_context(connected(client, window=4_096, address="127.0.0.2"))
            connection.writer.write(requests)
            greedy.append(connection)
        (event, *_) = await logged.reached(1, "unread_responses_aborted")
        assert event["address"] == "127.0.0.2"
        await greedy[0].send_until_closed()
        # The other address keeps its connection, and can read its responses.
        for _ in range(2):
            head = await modest.reader.readuntil(b"\r\n\r\n")
            await modest.reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        assert await live_status(client) == 200
    assert {event["level"] for event in logged.seen} <= {"debug", "info"}


async def test_many_different_queries_stay_within_cache_memory(database_url: str, insert: Insert) -> None:
    await insert(*({"source_id": f"{n:05}", "name": f"Coin {n}", "rank": n + 1} for n in range(300)))
    connector = aiohttp.TCPConnector(limit=32)
    async with serving(database_url, Settings(cache_mb=1)) as client:
        async with aiohttp.ClientSession(client._base_url, connector=connector) as flood:
            paths = [f"/data?limit=100&rank_min={n % 150 + 1}&page={1 + n // 150}" for n in range(1_050)]
            found = await asyncio.gather(*(fetch(flood, path) for path in paths))
        assert {status for status, *_ in found} == {200}
        samples = await scrape(client)
        assert 0 < (metric_value(samples, "kasparro_cache_bytes") or 0) <= 2**20


async def test_slow_queries_time_out_and_do_not_delay_others(
    database_url: str,
    database: Database,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`statement_timeout` ends them in PostgreSQL. Their connections can be used again."""
    monkeypatch.setattr(database_limits, "READ_TIMEOUT_S", 1)
    async with serving(database_url, queue_s=60) as client:
        async with locked_data(database):
            slow = [asyncio.create_task(fetch(client, f"/data?q=a{n}")) for n in range(4)]
            while not all(task.done() for task in slow):
                assert (await fetch(client, "/runs"))[0] == 200
                await asyncio.sleep(0.05)
        for status, retry_after, body in (task.result() for task in slow):
            assert (status, retry_after) == (503, "5")
            assert b"query-took-too-long" in body
        assert (await fetch(client, "/data?q=a"))[0] == 200
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'"
    assert await connection.fetchval(waiting) == 1
