"""Caching with replicas, which cannot listen and may lag."""

import asyncio
import sys
from collections.abc import AsyncIterator

import asyncpg
import pytest

from kasparro.store.data_version import POLL_S, DataVersion, version_of
from kasparro.store.migrations import migrate
from kasparro.store.pool import Database
from tests.support.batches import load_batches, make_batch, make_record
from tests.support.postgres import Server, Servers, servers
from tests.support.response_cache import MOVE, cached, wait_for_prices
from tests.web.conftest import serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these servers are for Linux")


@pytest.fixture
async def installation() -> AsyncIterator[Servers]:
    async with servers() as made:
        yield made


async def migrated(installation: Servers) -> Server:
    primary = await installation.primary()
    async with Database(primary.url()) as database:
        await migrate(database)
    return primary


@pytest.mark.slow
async def test_commit_is_seen_through_a_replica(installation: Servers) -> None:
    primary = await migrated(installation)
    standby = await installation.standby(primary)
    async with (
        Database(primary.url()) as database,
        serving(primary.url(), read_url=standby.url()) as client,
    ):
        for price in (1, 2, 3):
            await cached(client, "/data?sort=source_id")
            await load_batches(database, make_batch(make_record("a", price_usd=price)))
            await wait_for_prices(client, [price], 5 * POLL_S)


@pytest.mark.slow
async def test_lagging_replica_is_recognized(installation: Servers) -> None:
    primary = await migrated(installation)
    ahead, behind = await installation.standby(primary), await installation.standby(primary)
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
        for server, same in ((ahead, True), (primary, True), (behind, False)):
            connection = await asyncpg.connect(server.url())
            assert (await version_of(connection) == version.seen) is same
            await connection.close()
