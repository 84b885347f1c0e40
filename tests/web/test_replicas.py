"""Caching with replicas, which cannot listen and may lag."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import aiohttp
import asyncpg
import pytest

from kasparro.store import pool
from kasparro.store.data_version import POLL_S, DataVersion, version_of
from kasparro.store.migrations import migrate
from kasparro.store.pool import Database
from tests.support.batches import T0, load_batches, make_batch, make_record
from tests.support.json_responses import get_json
from tests.support.postgres import Server, Servers, free_port, servers
from tests.support.response_cache import MOVE, cached, wait_for_prices
from tests.web.conftest import serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these servers are for Linux")

PATH = "/data?sort=source_id"


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


async def set_price(server: Server, price: int) -> None:
    """Commit a new price of the coin `a`."""
    async with Database(server.url()) as database:
        at = T0 + timedelta(hours=price)
        await load_batches(database, make_batch(make_record("a", at, price_usd=price)))


async def price_and_tag(
    client: aiohttp.ClientSession, path: str = PATH, seen: str | None = None
) -> tuple[Any, str]:
    """The price and the entity tag of a response to a client that has seen another tag."""
    async with client.get(path, headers={} if seen is None else {"If-None-Match": seen}) as response:
        assert response.status == 200, await response.text()
        (row,) = (await response.json())["data"]
        return row["price_usd"], response.headers["ETag"]


@asynccontextmanager
async def paused(standby: Server) -> AsyncIterator[None]:
    """A block in which the standby replays nothing."""
    async with standby.admin() as connection:
        await connection.execute("SELECT pg_wal_replay_pause()")
        yield
        await connection.execute("SELECT pg_wal_replay_resume()")


@pytest.mark.slow
async def test_client_that_has_seen_a_newer_version_is_answered_from_the_primary(
    installation: Servers,
) -> None:
    primary = await migrated(installation)
    await set_price(primary, 1)
    standby = await installation.standby(primary)
    async with (
        serving(primary.url()) as ahead,
        serving(primary.url(), read_url=standby.url()) as behind,
        paused(standby),
    ):
        await set_price(primary, 2)
        await wait_for_prices(ahead, [2], 5)
        _, tag = await price_and_tag(ahead)
        assert (await price_and_tag(behind))[0] == 1
        _, of_another_path = await price_and_tag(ahead, f"{PATH}&limit=7")
        price, same_tag = await price_and_tag(behind, seen=of_another_path)
        async with behind.get(PATH, headers={"If-None-Match": tag}) as response:
            assert response.status == 304
        assert (price, same_tag) == (2, tag)
        # Nobody else needs the newer version.
        assert (await price_and_tag(behind))[0] == 1


@pytest.mark.slow
async def test_newer_version_that_no_server_has_is_waited_for_or_unavailable(installation: Servers) -> None:
    primary = await migrated(installation)
    await set_price(primary, 1)
    standby = await installation.standby(primary)
    async with (
        serving(primary.url()) as ahead,
        serving(primary.url(), read_url=standby.url()) as behind,
    ):
        async with paused(standby):
            await set_price(primary, 2)
            await wait_for_prices(ahead, [2], 5)
            _, tag = await price_and_tag(ahead)
            await received(standby, primary)
            await primary.end(signal.SIGKILL)
            async with behind.get(PATH, headers={"If-None-Match": tag}) as response:
                problem = await response.json(content_type="application/problem+json")
                assert (response.status, problem["title"]) == (503, "Replica behind")
                assert response.headers["Retry-After"] == "1"
        async with behind.get(PATH, headers={"If-None-Match": tag}) as response:
            assert response.status == 304


async def received(standby: Server, primary: Server) -> None:
    """Wait until the standby has received all that the primary has written."""
    async with primary.admin() as connection:
        newest = await connection.fetchval("SELECT pg_current_wal_flush_lsn()::text")
    async with standby.admin() as connection, asyncio.timeout(10):
        while not await connection.fetchval(  # noqa: ASYNC110 - no event to wait for
            "SELECT pg_last_wal_receive_lsn() >= $1::text::pg_lsn", newest
        ):
            await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_version_that_a_failover_lost_is_forgotten_after_a_moment(installation: Servers) -> None:
    primary = await migrated(installation)
    await set_price(primary, 1)
    standby = await installation.standby(primary)
    both = f"postgresql://kasparro@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/kasparro"
    async with serving(primary.url()) as ahead, serving(both, read_url=standby.url()) as client:
        async with standby.admin() as connection:
            await connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
            await connection.execute("SELECT pg_reload_conf()")
            while await connection.fetchval(  # noqa: ASYNC110 - no event to wait for
                "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver)"
            ):
                await asyncio.sleep(0.01)
        await set_price(primary, 2)
        await wait_for_prices(ahead, [2], 5)
        _, lost = await price_and_tag(ahead)
        await primary.end(signal.SIGKILL)
        async with standby.admin() as connection:
            assert await connection.fetchval("SELECT pg_promote()")
        price, tag = await price_and_tag(client, seen=lost)
        assert (price, tag != lost) == (1, True)
        async with client.get(PATH, headers={"If-None-Match": tag}) as response:
            assert response.status == 304


async def locks(server: Server, *, granted: bool) -> None:
    """Wait until a session has, or waits for, a lock of unified_data."""
    async with server.admin() as connection, asyncio.timeout(20):
        while not await connection.fetchval(  # noqa: ASYNC110 - no event to wait for
            "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'unified_data'::regclass AND granted = $1)",
            granted,
        ):
            await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_reads_go_to_the_primary_while_no_replica_answers(
    installation: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "REPLICA_RETRY_S", 0.1)
    primary = await migrated(installation)
    await set_price(primary, 1)
    standby = await installation.standby(primary)
    async with serving(primary.url(), read_url=standby.url()) as client:
        async with asyncio.timeout(20):
            while (await get_json(client, "/health"))["database"]["lag_s"] != 0:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        async with primary.admin() as connection, connection.transaction():
            await connection.execute("LOCK TABLE unified_data IN ACCESS EXCLUSIVE MODE")
            await locks(standby, granted=True)
            reading = asyncio.create_task(price_and_tag(client))
            await locks(standby, granted=False)
            # The standby ends while a query waits for its answer.
            await standby.end(signal.SIGKILL)
        assert (await reading)[0] == 1
        assert (await price_and_tag(client))[0] == 1
        health = await get_json(client, "/health")
        assert (health["status"], health["database"]["unreachable"]) == ("degraded", ["read"])
        async with client.get("/data.ndjson") as response:
            assert response.status == 200

        await standby.start()
        async with asyncio.timeout(20):
            while (await get_json(client, "/health"))["database"]["lag_s"] is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await get_json(client, "/health"))["database"]["unreachable"] == []


@pytest.mark.slow
async def test_reads_of_the_primary_cannot_write(installation: Servers) -> None:
    primary = await migrated(installation)
    async with (
        Database(primary.url(), f"postgresql://x@127.0.0.1:{free_port()}/x") as database,
        database.reading() as connection,
    ):
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await connection.execute(MOVE)
