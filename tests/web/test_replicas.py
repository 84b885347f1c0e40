"""Reading from replicas, which cannot listen and may lag: answers are kept there too, and never too long."""

import asyncio
import sys
from collections.abc import AsyncIterator

import asyncpg
import pytest

from kasparro.store.data_version import POLL_S, DataVersion
from kasparro.store.migrations import migrate
from kasparro.store.pool import Database
from tests.store.test_loader import batch, load, record
from tests.support.postgres import Server, Servers, servers
from tests.support.response_cache import MOVE, cached, wait_for_prices
from tests.web.conftest import serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these servers are for Linux")


@pytest.fixture
async def place() -> AsyncIterator[Servers]:
    async with servers() as made:
        yield made


async def migrated(place: Servers) -> Server:
    primary = await place.primary()
    async with Database(primary.url()) as database:
        await migrate(database)
    return primary


async def test_what_is_committed_on_the_primary_is_seen_through_a_replica(place: Servers) -> None:
    primary = await migrated(place)
    standby = await place.standby(primary)
    async with (
        Database(primary.url()) as database,
        serving(primary.url(), read_url=standby.url()) as client,
    ):
        for price in (1, 2, 3):
            await cached(client, "/data?sort=source_id")
            await load(database, batch(record("a", price_usd=price)))
            await wait_for_prices(client, [price], 5 * POLL_S)


async def test_a_server_that_lags_behind_the_one_that_is_followed_is_found_out(place: Servers) -> None:
    primary = await migrated(place)
    ahead, behind = await place.standby(primary), await place.standby(primary)
    async with behind.admin() as connection:
        await connection.execute("SELECT pg_wal_replay_pause()")
    moved = asyncio.Event()
    async with (
        Database(primary.url(), ahead.url()) as database,
        DataVersion(database, moved.set) as version,
        asyncio.timeout(20),
    ):
        await moved.wait()
        moved.clear()
        async with primary.admin() as connection:
            await connection.execute(MOVE)
        await moved.wait()
        for server, holds in ((ahead, True), (primary, True), (behind, False)):
            connection = await asyncpg.connect(server.url())
            assert await version.holds(connection) is holds
            await connection.close()
