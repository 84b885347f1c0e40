"""GET /page/sparklines."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import aiohttp

from kasparro.store.pool import Database
from kasparro.store.sparklines import RecentPrice
from kasparro.web.routes.sparklines import MOST_ASSETS, PARTS, heights
from tests.support.assets import make_link, resolve
from tests.support.batches import load_records, make_record

HOUR = timedelta(hours=1)
START = datetime(2024, 6, 1, tzinfo=UTC)


def line(*prices: tuple[int, str, int], parts: int = 6, max_lag: timedelta = HOUR) -> list[int | None]:
    """The heights of these prices: the part, which lasts an hour, the source and the price."""
    ends = [START + part * HOUR for part in range(1, parts + 1)]
    found = [
        RecentPrice(part, source, START + part * HOUR - HOUR / 2, Decimal(price))
        for part, source, price in prices
    ]
    return heights(found, ends, max_lag)


def test_lowest_is_0_and_highest_is_100() -> None:
    assert line((1, "a", 10), (2, "a", 20), (3, "a", 15), parts=3) == [0, 100, 50]


def test_sources_are_one_line() -> None:
    assert line((1, "a", 10), (1, "b", 14), (2, "a", 16), (2, "b", 18), parts=2) == [0, 100]


def test_price_counts_while_it_is_fresh() -> None:
    # Without the earlier price of the other source, the line would jump.
    jumping = line((1, "a", 10), (1, "b", 20), (2, "a", 11), (3, "b", 21), parts=3, max_lag=2 * HOUR)
    assert jumping == [0, 50, 100]
    assert line((1, "a", 10), (5, "a", 12)) == [0, None, None, None, 100, None]


def test_line_that_hardly_moves_is_in_the_middle() -> None:
    assert line((1, "a", 10), (2, "a", 10), parts=2) == [50, 50]
    assert line((1, "a", 0), (2, "a", 0), parts=2) == [50, 50]
    assert line((1, "a", 9_990), (2, "a", 10_000), parts=2) == [45, 55]


def test_price_may_be_beyond_floats() -> None:
    ends = [START, START + HOUR]
    prices = [
        RecentPrice(1, "a", START, Decimal("1e400")),
        RecentPrice(2, "a", START + HOUR, Decimal("2e400")),
    ]
    assert heights(prices, ends, HOUR) == [0, 100]


async def test_rows_that_do_not_count_are_left_out(client: aiohttp.ClientSession, database: Database) -> None:
    now = datetime.now(UTC)
    for hours, price in ((60, "100"), (1, "110")):
        await load_records(database, "coingecko", make_record(at=now - hours * HOUR, price_usd=price))
    # It is stale: the other quote is much newer.
    await load_records(database, "csv", make_record(at=now - 30 * HOUR, price_usd="500"))
    await resolve(database, make_link("coingecko"), make_link("csv"))

    async with client.get("/page/sparklines?asset=btc-bitcoin,nosuch,btc-bitcoin") as response:
        found = await response.json()

    assert found["parts"] == PARTS
    assert [height for height in found["lines"].pop("btc-bitcoin") if height is not None] == [0, 100]
    assert found["lines"] == {}
    assert datetime.fromisoformat(found["since"]) == now - 60 * HOUR


async def test_no_prices(client: aiohttp.ClientSession) -> None:
    async with client.get("/page/sparklines?asset=nosuch") as response:
        assert await response.json() == {"since": None, "parts": PARTS, "lines": {}}


async def test_number_of_assets_is_limited(client: aiohttp.ClientSession) -> None:
    for query in ("", "?asset=" + ",".join(["a"] * (MOST_ASSETS + 1))):
        async with client.get(f"/page/sparklines{query}") as response:
            assert response.status == 400
