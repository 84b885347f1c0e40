"""GET /data/{source}/{source_id}/history and its exports."""

import asyncio
import csv
import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
import yarl

from kasparro.store.pool import Database
from tests.support.batches import load_records, make_record
from tests.support.json_responses import get_exact

URL = "/data/coinpaprika/btc-bitcoin/history"
DAY = timedelta(days=1)


def at(text: str) -> datetime:
    """A moment in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


async def load_prices(
    database: Database, prices: dict[str, str | None], source_id: str = "btc-bitcoin", **values: Any
) -> None:
    """Load records of a coin with these prices at these moments."""
    await load_records(
        database,
        "coinpaprika",
        *(make_record(source_id, at(moment), price_usd=price, **values) for moment, price in prices.items()),
    )


async def lines(client: aiohttp.ClientSession, url: str) -> str:
    async with client.get(url) as response:
        assert response.status == 200, await response.text()
        return await response.text()


async def problem(client: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with client.get(url) as response:
        found: dict[str, Any] = json.loads(await response.read())
        assert response.status == found["status"]
        return found


def encoded(path: str) -> yarl.URL:
    """A URL whose escapes stay as they are."""
    return yarl.URL(path, encoded=True)


PRICES: dict[str, str | None] = {
    "2024-05-31T23:59:59.999999": "67490.10",
    "2024-06-01T00:00:00": "67500.000000000001",
    "2024-06-01T12:30:00": "67000",
    "2024-06-01T23:59:59": "68000.5",
    "2024-06-02T08:00:00": None,
    "2024-06-03T00:00:00": "1e-9",
}


async def test_points_are_the_records_in_the_order_of_time(
    client: aiohttp.ClientSession, database: Database
) -> None:
    await load_prices(database, PRICES, market_cap_usd="1300000000000.50", volume_24h_usd="0")
    await load_prices(database, {"2024-06-01T00:00:00": "3"}, source_id="eth-ethereum")

    page = await get_exact(client, URL)

    assert page["data"] == [
        {
            "observed_at": at(moment).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "price_usd": None if price is None else Decimal(price),
            "market_cap_usd": Decimal("1300000000000.50"),
            "volume_24h_usd": Decimal(0),
        }
        for moment, price in PRICES.items()
    ]
    assert page["pagination"] == {
        "limit": 50,
        "page": None,
        "pages": None,
        "total": None,
        "next": None,
        "next_cursor": None,
    }


def candle(time: str, *figures: str | int) -> dict[str, Any]:
    """A candle as a client sees it."""
    names = ("open", "high", "low", "close", "count")
    moment = at(time).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {"time": moment, **dict(zip(names, map(Decimal, figures), strict=True))}


DAYS = [
    candle("2024-05-31", "67490.1", "67490.1", "67490.1", "67490.1", 1),
    candle("2024-06-01", "67500.000000000001", "68000.5", "67000", "68000.5", 3),
    candle("2024-06-03", "1e-9", "1e-9", "1e-9", "1e-9", 1),
]


async def test_daily_candles_are_of_the_points_of_a_day(
    client: aiohttp.ClientSession, database: Database
) -> None:
    """A point at midnight belongs to the day that begins. Days without a price are left out."""
    await load_prices(database, PRICES)
    assert (await get_exact(client, f"{URL}?interval=1d"))["data"] == DAYS


async def test_hours_and_weeks(client: aiohttp.ClientSession, database: Database) -> None:
    await load_prices(database, PRICES)

    hours = (await get_exact(client, f"{URL}?interval=1h&from=2024-06-01&to=2024-06-01"))["data"]
    weeks = (await get_exact(client, f"{URL}?interval=1w"))["data"]

    assert hours == [
        candle("2024-06-01T00:00", *["67500.000000000001"] * 4, 1),
        candle("2024-06-01T12:00", *["67000"] * 4, 1),
        candle("2024-06-01T23:00", *["68000.5"] * 4, 1),
    ]
    # 2024-06-03 is a Monday.
    assert weeks == [
        candle("2024-05-27", "67490.1", "68000.5", "67000", "68000.5", 4),
        candle("2024-06-03", "1e-9", "1e-9", "1e-9", "1e-9", 1),
    ]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", 6),
        ("from=2024-06-01", 5),
        ("to=2024-06-01", 4),
        ("from=2024-06-01T12:30:00Z&to=2024-06-01T12:30:00Z", 1),
        ("from=2024-06-01T12:30:00.000001Z&to=2024-06-01T23:59:58.999999Z", 0),
        ("from=2025-01-01", 0),
        ("from=2024-06-02&to=2024-06-01", 0),
        ("to=2013-01-01", 0),
        ("from=1900-01-01&to=9999-12-31", 6),
    ],
)
async def test_bounds_are_included(
    client: aiohttp.ClientSession, database: Database, query: str, expected: int
) -> None:
    await load_prices(database, PRICES)
    assert len((await get_exact(client, f"{URL}?{query}"))["data"]) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("from=2024-06-01&to=2024-06-02", DAYS[1:2]),
        # The candle of a day begins with the day.
        ("from=2024-05-31T00:00:01Z&to=2024-06-01T00:00:00Z", DAYS[1:2]),
        ("from=2024-06-02", DAYS[2:]),
        ("to=2024-05-31", DAYS[:1]),
        ("from=0001-01-01", DAYS),
    ],
)
async def test_bounds_of_candles_are_about_their_beginnings(
    client: aiohttp.ClientSession, database: Database, query: str, expected: list[dict[str, Any]]
) -> None:
    await load_prices(database, PRICES)
    assert (await get_exact(client, f"{URL}?interval=1d&{query}"))["data"] == expected


@pytest.mark.parametrize("interval", ["raw", "1h", "1d", "1w"])
async def test_pages_and_exports_have_the_same(
    client: aiohttp.ClientSession, database: Database, interval: str
) -> None:
    """Also over gaps that are much longer than a page."""
    prices: dict[str, str | None] = {
        (at("2016-02-27T22:10") + n * n * n * timedelta(hours=1.7)).replace(tzinfo=None).isoformat(): f"{n}.5"
        for n in range(40)
    }
    await load_prices(database, prices)

    whole = (await get_exact(client, f"{URL}?interval={interval}&limit=1000"))["data"]
    paged, url = [], f"{URL}?interval={interval}&limit=3"
    while url:
        page = await get_exact(client, url)
        paged += page["data"]
        url = page["pagination"]["next"]

    assert paged == whole
    exported = (await lines(client, f"{URL}.ndjson?interval={interval}")).splitlines()
    assert [json.loads(line, parse_float=Decimal, parse_int=Decimal) for line in exported] == whole
    table = list(csv.reader(io.StringIO(await lines(client, f"{URL}.csv?interval={interval}"), newline="")))
    assert table[0] == list(whole[0])
    assert table[1:] == [["" if value is None else str(value) for value in row.values()] for row in whole]


async def test_csv_for_spreadsheets(client: aiohttp.ClientSession, database: Database) -> None:
    await load_prices(database, {"2024-06-01T00:00:00": "0.000000000000000001"})
    assert await lines(client, f"{URL}.csv?interval=1d&spreadsheet=true") == (
        "\ufefftime,open,high,low,close,count\r\n"
        "2024-06-01T00:00:00.000000Z,0.000000000000000001,0.000000000000000001,0.000000000000000001,"
        "0.000000000000000001,1\r\n"
    )


async def test_cursor_is_valid_while_data_arrives(client: aiohttp.ClientSession, database: Database) -> None:
    await load_prices(database, {"2024-06-01T00:00:00": "1", "2024-06-02T00:00:00": "2"})
    first = await get_exact(client, f"{URL}?interval=1d&limit=1")
    await load_prices(database, {"2024-06-01T12:00:00": "1.5", "2024-06-03T00:00:00": "3"})

    second = await get_exact(client, first["pagination"]["next"])
    third = await get_exact(client, second["pagination"]["next"])

    assert [page["data"][0]["close"] for page in (first, second, third)] == [1, 2, 3]
    assert third["pagination"]["next"] is None


async def test_answer_is_cached_until_the_data_changes(
    client: aiohttp.ClientSession, database: Database
) -> None:
    await load_prices(database, {"2024-06-01T00:00:00": "1"})
    async with client.get(f"{URL}?interval=1d") as response:
        tag = response.headers["ETag"]
    async with client.get(f"{URL}?interval=1d", headers={"If-None-Match": tag}) as response:
        assert response.status == 304
    await load_prices(database, {"2024-05-01T00:00:00": "2"})
    # The service learns of the commit a moment later.
    async with asyncio.timeout(10):
        status = 304
        while status == 304:
            async with client.get(f"{URL}?interval=1d", headers={"If-None-Match": tag}) as response:
                status = response.status
    assert status == 200


@pytest.mark.parametrize("end", ["", ".csv", ".ndjson"])
async def test_unknown_coin_is_not_found(client: aiohttp.ClientSession, database: Database, end: str) -> None:
    await load_prices(database, {"2024-06-01T00:00:00": "1"})
    found = await problem(client, f"/data/coinpaprika/nosuch/history{end}")
    assert (found["status"], found["parameter"]) == (404, "source_id")
    found = await problem(client, f"/data/nosuch/btc-bitcoin/history{end}")
    assert (found["status"], found["parameter"]) == (404, "source")


async def test_ids_with_slashes(client: aiohttp.ClientSession, database: Database) -> None:
    """An escaped `/history` is part of the id, and so is an escaped slash within it."""
    await load_prices(database, {"2024-06-01T00:00:00": "1"}, source_id="btc/history")
    await load_prices(database, {"2024-06-01T00:00:00": "2"}, source_id="btc")

    row = encoded("/data/coinpaprika/btc%2Fhistory")
    history = encoded("/data/coinpaprika/btc%2Fhistory/history")
    async with client.get(row) as response:
        assert (await response.json())["source_id"] == "btc/history"
    async with client.get(history) as response:
        assert [point["price_usd"] for point in (await response.json())["data"]] == [1]
    async with client.get(encoded("/data/coinpaprika/btc/history")) as response:
        assert [point["price_usd"] for point in (await response.json())["data"]] == [2]


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("interval=2d", "interval"),
        ("from=yesterday", "from"),
        ("to=2024-13-01", "to"),
        ("page=1", "page"),
        ("limit=1001", "limit"),
        ("cursor=abc", "cursor"),
    ],
)
async def test_bad_parameter_is_named(
    client: aiohttp.ClientSession, database: Database, query: str, parameter: str
) -> None:
    await load_prices(database, {"2024-06-01T00:00:00": "1"})
    found = await problem(client, f"{URL}?{query}")
    assert (found["status"], found["parameter"]) == (400, parameter)
    assert found["allowed"]
