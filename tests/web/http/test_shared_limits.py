"""Limits that several processes share, here as several services on one database."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import pytest

from kasparro.settings import Rate, Settings
from kasparro.store import shared_limits
from kasparro.store.pool import Connection, Database
from kasparro.store.shared_limits import SharedLimits
from kasparro.supervision import Supervisor
from tests.web.conftest import serving


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not count as a primary that is away."""
    monkeypatch.setattr(shared_limits, "ANSWER_S", 20)


@asynccontextmanager
async def services(url: str, count: int, rate: Rate | None) -> AsyncIterator[list[aiohttp.ClientSession]]:
    async with AsyncExitStack() as stack:
        settings = Settings(rate_limit=rate, shared_limits=True)
        yield [await stack.enter_async_context(serving(url, settings)) for _ in range(count)]


# A process asks after its first statement.
SHARING = """
SELECT count(*) FROM pg_stat_activity
WHERE
    datname = current_database()
    AND application_name LIKE 'kasparro limits %'
    AND query LIKE '%DELETE FROM shared_quotas%'
    AND state = 'idle'
"""


async def sessions_open(connection: Connection, count: int) -> None:
    """Wait until so many processes share their limits."""
    async with asyncio.timeout(20):
        while await connection.fetchval(SHARING) < count:  # noqa: ASYNC110 - no event to wait for
            await asyncio.sleep(0.01)


@asynccontextmanager
async def limits(database: Database, connection: Connection, count: int = 1) -> AsyncIterator[SharedLimits]:
    async with SharedLimits(database, Supervisor()) as shared:
        await sessions_open(connection, count)
        yield shared


@pytest.mark.parametrize("requests", [10, 100])
async def test_rate_limit_holds_for_all_processes_together(
    database_url: str, connection: Connection, requests: int
) -> None:
    async def status(client: aiohttp.ClientSession) -> int:
        async with client.get("/data?limit=1") as response:
            assert "RateLimit" in response.headers
            return response.status

    async with services(database_url, 2, Rate(requests, 3_600)) as clients:
        await sessions_open(connection, 2)
        found = Counter(
            await asyncio.gather(*(status(client) for client in clients for _ in range(requests)))
        )
        async with clients[0].get("/data") as response:
            assert 0 < int(response.headers["Retry-After"]) <= 3_600

    assert found[429] == requests
    assert found[200] == requests


async def test_requests_that_were_not_needed_return_to_the_quota(
    database: Database, connection: Connection
) -> None:
    async with limits(database, connection) as shared:
        assert (await shared.take("a", 8, 0, 10, 3_600)).requests == 8
        assert (await shared.take("a", 8, 0, 10, 3_600)).requests == 2
        assert (await shared.take("a", 8, 0, 10, 3_600)).requests == 0
        assert (await shared.take("a", 8, 3, 10, 3_600)).requests == 3
        assert (await shared.take("b", 20, 0, 10, 3_600)).requests == 10


async def test_each_process_limits_its_clients_while_the_primary_is_away(
    database_url: str, connection: Connection
) -> None:
    async with services(database_url, 1, Rate(5, 3_600)) as (client,):
        await sessions_open(connection, 1)
        await connection.execute("ALTER TABLE shared_quotas RENAME TO away")
        found = []
        for _ in range(8):
            async with client.get("/data?limit=1") as response:
                found.append(response.status)

    assert found == [200] * 5 + [429] * 3


async def test_turns_of_a_client_are_shared_and_end_with_their_process(
    database: Database, connection: Connection
) -> None:
    async with limits(database, connection) as first:
        async with limits(database, connection, 2) as second:
            assert await first.try_turn("a", 2) == 0
            assert await second.try_turn("a", 2) == 1
            assert await first.try_turn("a", 2) is None
            assert await first.try_turn("b", 2) == 0
            await first.end_turn("a", 0)
            assert await second.try_turn("a", 2) == 0
        async with asyncio.timeout(10):
            while await first.try_turn("a", 2) is None:
                pass


async def test_exports_of_a_client_wait_for_those_of_another_process(
    database_url: str, database: Database, connection: Connection
) -> None:
    async with (
        services(database_url, 1, None) as (client,),
        limits(database, connection, 2) as other,
    ):
        for number in range(2):
            assert await other.try_turn("127.0.0.1", 2) == number
        exporting = asyncio.create_task(client.get("/data.ndjson"))
        await asyncio.wait({exporting}, timeout=0.5)
        assert not exporting.done()
        await other.end_turn("127.0.0.1", 0)
        async with asyncio.timeout(10):
            assert (await exporting).status == 200
