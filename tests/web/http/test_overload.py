"""Slow queries never delay other requests, and a full queue is reported at once."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp
import pytest

from kasparro.settings import Settings
from kasparro.store.pool import QUEUE_PART, Connection, Database
from tests.support.locks import WAITING, locked_data
from tests.support.requests import fetch
from tests.web.conftest import Insert, serving

pytestmark = pytest.mark.slow

# Shorter than the default queue, which would need more open files than a login shell allows.
QUEUED = 128


@pytest.fixture
async def patient(database_url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a service with short queues and a long queue timeout.

    As a trusted proxy it may open more connections than one client's share.
    """
    settings = Settings(trusted_proxies=("127.0.0.1",))
    async with serving(database_url, settings, queued=QUEUED, queue_s=60) as session:
        yield session


async def test_waiting_slow_queries_do_not_delay_fast_ones(
    patient: aiohttp.ClientSession, connection: Connection, database: Database
) -> None:
    slow = (
        "q=a&symbol=s{}",
        "limit=1000&symbol=s{}",
        "page=500&symbol=s{}",
        "sort=-market_cap_usd&rank_min=1{}",
        "price_usd_min={}",
        "updated_since=2024-06-01T12:00:00Z&source=csv&price_usd_max=1{}",
    )
    connector = aiohttp.TCPConnector(limit=0)
    async with asyncio.timeout(30), aiohttp.ClientSession(patient._base_url, connector=connector) as crowd:
        async with locked_data(database):
            tasks = [
                asyncio.create_task(
                    fetch(crowd, "/data?" + slow[n % len(slow)].format(n), f"192.0.2.{n % 8}")
                )
                for n in range(QUEUED)
            ]
            while await connection.fetchval(WAITING) < 2:
                pass
            for _ in range(20):
                assert (await fetch(patient, "/runs"))[0] == 200
                assert (await fetch(patient, "/data?source=csv&limit=0"))[0] == 400
                # The slow pool has two connections.
                assert await connection.fetchval(WAITING) == 2
        assert {status for status, *_ in await asyncio.gather(*tasks)} == {200}


async def test_full_queue_is_reported_at_once(
    patient: aiohttp.ClientSession, connection: Connection, database: Database
) -> None:
    beyond = 50
    connector = aiohttp.TCPConnector(limit=0)
    async with asyncio.timeout(30), aiohttp.ClientSession(patient._base_url, connector=connector) as crowd:
        async with locked_data(database):
            waiting = {
                asyncio.create_task(fetch(crowd, f"/data?symbol=s{number}", f"192.0.2.{number % 8}"))
                for number in range(8 + QUEUED + beyond)
            }
            rejected: set[asyncio.Task[tuple[int, str | None, bytes]]] = set()
            while len(rejected) < beyond:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                rejected |= done
            for status, retry_after, body in (task.result() for task in rejected):
                assert (status, retry_after) == (503, "1")
                assert json.loads(body)["type"] == "urn:kasparro:problem:too-busy"
            assert (await fetch(patient, "/health"))[0] == 200
        assert {(await task)[0] for task in waiting} == {200}
        assert len(waiting) == 8 + QUEUED


@pytest.mark.parametrize(("query", "connections"), [("symbol=s{}", 8), ("q=s{}", 2)], ids=["short", "slow"])
async def test_one_client_cannot_fill_a_queue(
    patient: aiohttp.ClientSession, database: Database, query: str, connections: int
) -> None:
    beyond = 5
    wait = connections + QUEUED // QUEUE_PART
    connector = aiohttp.TCPConnector(limit=0)
    async with asyncio.timeout(30), aiohttp.ClientSession(patient._base_url, connector=connector) as crowd:
        async with locked_data(database):
            greedy = [
                asyncio.create_task(fetch(crowd, f"/data?{query.format(n)}", "192.0.2.1"))
                for n in range(wait + beyond)
            ]
            rejected = asyncio.as_completed(greedy)
            for _ in range(beyond):
                status, retry_after, body = await next(rejected)
                assert (status, retry_after) == (503, "1")
                assert json.loads(body)["type"] == "urn:kasparro:problem:too-busy"
            other = asyncio.create_task(fetch(crowd, f"/data?{query.format('other')}", "192.0.2.2"))
            done, _ = await asyncio.wait({other}, timeout=0.3)
            assert not done
        found = Counter([(await task)[0] for task in greedy])
        assert (await other)[0] == 200
    assert found == {200: wait, 503: beyond}


async def test_queue_timeout_is_a_503(database_url: str, database: Database) -> None:
    async with serving(database_url, readers=1, queue_s=0.2) as client, asyncio.timeout(20):
        async with locked_data(database):
            first = asyncio.create_task(fetch(client, "/data?symbol=a"))
            found = await asyncio.gather(*(fetch(client, f"/data?symbol={n}") for n in range(5)))
            assert {(status, retry_after) for status, retry_after, _ in found} == {(503, "1")}
        assert (await first)[0] == 200


async def test_mixed_load_is_answered_or_rejected(client: aiohttp.ClientSession, insert: Insert) -> None:
    await insert(*({"source_id": f"{n:05}", "name": f"Coin {n}"} for n in range(3_000)))

    async def many(path: str, times: int) -> list[int]:
        return [(await fetch(client, path.format(n)))[0] for n in range(times)]

    async with asyncio.timeout(60):
        found = await asyncio.gather(
            *(many("/data?limit=1000&sort=name&page=1{}", 5) for _ in range(5)),
            *(many("/data?q=coin%20{}", 20) for _ in range(20)),
            *(many("/data?limit=50&page=1{}", 20) for _ in range(20)),
            *(many("/data?limit=50", 50) for _ in range(20)),
        )
    assert {status for statuses in found for status in statuses} <= {200, 503}
    assert {status for statuses in found[-20:] for status in statuses} == {200}
