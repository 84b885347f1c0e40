"""What takes long never keeps the rest from its answers, and a queue that is full says so at once."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from kasparro.settings import Settings
from kasparro.store.pool import QUEUE_PART, Connection, Database
from tests.web.conftest import Insert, serving

# Shorter than a service's queue, whose clients' and server's ends are more open files than a login has.
QUEUED = 128

WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


@asynccontextmanager
async def stuck(database: Database) -> AsyncIterator[None]:
    """Meanwhile every query of unified_data takes for ever."""
    async with database.writing() as connection, connection.transaction():
        await connection.execute("LOCK TABLE unified_data IN ACCESS EXCLUSIVE MODE")
        yield


async def ask(
    client: aiohttp.ClientSession, path: str, of: str | None = None
) -> tuple[int, str | None, bytes]:
    async with client.get(path, headers={} if of is None else {"X-Forwarded-For": of}) as answer:
        return answer.status, answer.headers.get("Retry-After"), await answer.read()


@pytest.fixture
async def patient(database_url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a service whose queues are shorter than usual, and where nobody waits too long.

    As a proxy it has no share of connections, which is smaller than a queue where few files may be open.
    """
    settings = Settings(trusted_proxies=("127.0.0.1",))
    async with serving(database_url, settings, queued=QUEUED, queue_s=60) as session:
        yield session


async def test_however_many_wide_questions_wait_short_ones_are_answered(
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
        async with stuck(database):
            asked = [
                asyncio.create_task(ask(crowd, "/data?" + slow[n % len(slow)].format(n), f"192.0.2.{n % 8}"))
                for n in range(QUEUED)
            ]
            while await connection.fetchval(WAITING) < 2:
                pass
            for _ in range(20):
                assert (await ask(patient, "/runs"))[0] == 200
                assert (await ask(patient, "/data?source=csv&limit=0"))[0] == 400
                # Two connections are all that wide questions get.
                assert await connection.fetchval(WAITING) == 2
        assert {status for status, *_ in await asyncio.gather(*asked)} == {200}


async def test_a_queue_that_is_full_is_told_at_once_and_empties_by_itself(
    patient: aiohttp.ClientSession, connection: Connection, database: Database
) -> None:
    beyond = 50
    connector = aiohttp.TCPConnector(limit=0)
    async with asyncio.timeout(30), aiohttp.ClientSession(patient._base_url, connector=connector) as crowd:
        async with stuck(database):
            waiting = {
                asyncio.create_task(ask(crowd, f"/data?symbol=s{number}", f"192.0.2.{number % 8}"))
                for number in range(8 + QUEUED + beyond)
            }
            refused: set[asyncio.Task[tuple[int, str | None, bytes]]] = set()
            while len(refused) < beyond:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                refused |= done
            for status, retry_after, body in (task.result() for task in refused):
                assert (status, retry_after) == (503, "1")
                assert json.loads(body)["type"] == "urn:kasparro:problem:too-busy"
            assert (await ask(patient, "/health"))[0] == 200
        assert {(await task)[0] for task in waiting} == {200}
        assert len(waiting) == 8 + QUEUED


@pytest.mark.parametrize(("query", "most"), [("symbol=s{}", 8), ("q=s{}", 2)], ids=["short", "slow"])
async def test_no_client_fills_a_queue_alone(
    patient: aiohttp.ClientSession, database: Database, query: str, most: int
) -> None:
    beyond = 5
    wait = most + QUEUED // QUEUE_PART
    connector = aiohttp.TCPConnector(limit=0)
    async with asyncio.timeout(30), aiohttp.ClientSession(patient._base_url, connector=connector) as crowd:
        async with stuck(database):
            greedy = [
                asyncio.create_task(ask(crowd, f"/data?{query.format(n)}", "192.0.2.1"))
                for n in range(wait + beyond)
            ]
            refused = asyncio.as_completed(greedy)
            for _ in range(beyond):
                status, retry_after, body = await next(refused)
                assert (status, retry_after) == (503, "1")
                assert json.loads(body)["type"] == "urn:kasparro:problem:too-busy"
            other = asyncio.create_task(ask(crowd, f"/data?{query.format('other')}", "192.0.2.2"))
            done, _ = await asyncio.wait({other}, timeout=0.3)
            assert not done
        found = Counter([(await task)[0] for task in greedy])
        assert (await other)[0] == 200
    assert found == {200: wait, 503: beyond}


async def test_whoever_waits_too_long_for_a_connection_is_sent_away(
    database_url: str, database: Database
) -> None:
    async with serving(database_url, readers=1, queue_s=0.2) as client, asyncio.timeout(20):
        async with stuck(database):
            first = asyncio.create_task(ask(client, "/data?symbol=a"))
            found = await asyncio.gather(*(ask(client, f"/data?symbol={n}") for n in range(5)))
            assert {(status, retry_after) for status, retry_after, _ in found} == {(503, "1")}
        assert (await first)[0] == 200


async def test_a_load_of_all_kinds_gets_answers_or_is_sent_away(
    client: aiohttp.ClientSession, insert: Insert
) -> None:
    await insert(*({"source_id": f"{n:05}", "name": f"Coin {n}"} for n in range(3_000)))

    async def many(path: str, times: int) -> list[int]:
        return [(await ask(client, path.format(n)))[0] for n in range(times)]

    async with asyncio.timeout(60):
        found = await asyncio.gather(
            *(many("/data?limit=1000&sort=name&page=1{}", 5) for _ in range(5)),
            *(many("/data?q=coin%20{}", 20) for _ in range(20)),
            *(many("/data?limit=50&page=1{}", 20) for _ in range(20)),
            *(many("/data?limit=50", 50) for _ in range(20)),
        )
    assert {status for statuses in found for status in statuses} <= {200, 503}
    assert {status for statuses in found[-20:] for status in statuses} == {200}
