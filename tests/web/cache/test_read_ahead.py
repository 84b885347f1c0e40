"""Pages that are read ahead of their requests, for clients that follow cursors."""

import asyncio
from typing import Any

import aiohttp

from kasparro.settings import Settings
from kasparro.store.pool import Database
from kasparro.web.cache.read_ahead import ReadAhead
from tests.support.batches import load_batches, make_batch, make_record
from tests.support.metrics import metric_value, scrape
from tests.support.response_cache import cached, hit
from tests.web.conftest import serving

PAGE = "/data?limit=2&sort=source"
IDS = [f"coin-{number}" for number in range(10)]


async def load(database: Database, price: int) -> None:
    records = [make_record(source_id, price_usd=price) for source_id in IDS]
    await load_batches(database, make_batch(*records))


async def get(client: aiohttp.ClientSession, path: str) -> tuple[dict[str, Any], bool]:
    """A page, and whether it came from the cache."""
    async with client.get(path) as response:
        assert response.status == 200
        return await response.json(), hit(response)


async def second_page(client: aiohttp.ClientSession) -> dict[str, Any]:
    """The second page of a walk, once the first one is in the cache."""
    first = await (await cached(client, PAGE)).json()
    page, _ = await get(client, first["pagination"]["next"])
    return page


async def entries(client: aiohttp.ClientSession, count: int) -> None:
    """Return when the cache has this many entries."""
    async with asyncio.timeout(10):
        while metric_value(await scrape(client), "kasparro_cache_answers") != count:
            pass


async def test_each_page_of_a_walk_is_read_before_it_is_requested(
    database: Database, client: aiohttp.ClientSession
) -> None:
    await load(database, 1)
    page = await second_page(client)
    seen = IDS[:4]
    for count in (3, 4, 5):
        await entries(client, count)
        page, from_cache = await get(client, page["pagination"]["next"])
        assert from_cache
        seen += [row["source_id"] for row in page["data"]]
    assert seen == IDS
    assert page["pagination"]["next"] is None


async def test_page_that_was_read_ahead_is_that_of_the_cursor_after_a_commit(
    database: Database, client: aiohttp.ClientSession
) -> None:
    await load(database, 1)
    page = await second_page(client)
    await entries(client, 3)
    await load(database, 2)
    # The commit has emptied the cache.
    await cached(client, PAGE)

    page, _ = await get(client, page["pagination"]["next"])
    assert [(row["source_id"], row["price_usd"]) for row in page["data"]] == [("coin-4", 1), ("coin-5", 1)]


async def test_nothing_is_read_ahead_of_a_client_without_a_cursor(
    database: Database, client: aiohttp.ClientSession
) -> None:
    await load(database, 1)
    await cached(client, PAGE)
    await cached(client, f"{PAGE}&page=3")
    await entries(client, 2)


async def test_walk_without_a_cache(database: Database, database_url: str) -> None:
    await load(database, 1)
    async with serving(database_url, Settings(cache_mb=0)) as client:
        path, seen = PAGE, []
        while path is not None:
            page, from_cache = await get(client, path)
            assert not from_cache
            seen += [row["source_id"] for row in page["data"]]
            path = page["pagination"]["next"]
    assert seen == IDS


async def test_one_page_is_read_at_a_time_and_only_if_the_database_is_idle(database: Database) -> None:
    ahead, started, proceed = ReadAhead(database), asyncio.Semaphore(0), asyncio.Event()

    async def render() -> None:
        started.release()
        await proceed.wait()
        raise ValueError("the page cannot be read")

    async with database.reading():
        ahead.start(render)
    for _ in range(2):
        ahead.start(render)
    await started.acquire()
    assert started.locked()
    proceed.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    ahead.start(render)
    await started.acquire()
    await ahead.close()
    assert started.locked()
