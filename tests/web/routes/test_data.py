"""GET /data and GET /data/{source}/{source_id}."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import get_args
from urllib.parse import quote

import aiohttp
import msgspec
import pytest
from yarl import URL

from kasparro.store import queries
from kasparro.store.pool import Connection
from kasparro.store.row_counts import Totals
from kasparro.store.selection import FIELDS, ON_REQUEST, Filters, Selection
from kasparro.web.routes.data import DataPage, Record
from kasparro.web.schemas import Sort
from tests.support.citus import on_one_server
from tests.support.json_responses import get_exact, source_ids
from tests.web.conftest import LONG_AGO, Insert, serving


async def test_exact_digits_and_text(client: aiohttp.ClientSession, insert: Insert) -> None:
    name = '比特币 "quoted" \\ <b>\u2028\U0001f680'
    await insert(
        {
            "source": "coinpaprika",
            "source_id": "btc-bitcoin",
            "symbol": "null",
            "name": name,
            "rank": 1,
            "price_usd": Decimal("0.000000000012"),
            "market_cap_usd": Decimal("123456789012345678.123456789"),
            "volume_24h_usd": Decimal(0),
            "circulating_supply": Decimal(10) ** 33,
            "percent_change_1h": Decimal("-1.5"),
            "observed_at": datetime(2024, 6, 1, 12, 0, 0, 123456, tzinfo=UTC),
        }
    )
    async with client.get("/data") as response:
        text = await response.text()
    assert '"price_usd":0.000000000012,"market_cap_usd":123456789012345678.123456789' in text
    assert '"volume_24h_usd":0,"circulating_supply":1000000000000000000000000000000000,' in text
    assert '"total_supply":null' in text
    (row,) = json.loads(text)["data"]
    assert (row["name"], row["symbol"], row["asset"]) == (name, "null", None)
    assert row["observed_at"] == "2024-06-01T12:00:00.123456Z"
    assert row["first_seen_at"] == "2024-06-01T12:00:00.000000Z"
    assert (
        await get_exact(client, "/data/coinpaprika/btc-bitcoin")
        == json.loads(text, parse_float=Decimal)["data"][0]
    )


async def test_fields_and_their_order(client: aiohttp.ClientSession, insert: Insert) -> None:
    await insert({"source_id": "a"})
    contract = [
        *("source", "source_id", "asset", "symbol", "name", "rank"),
        *("price_usd", "market_cap_usd", "volume_24h_usd"),
        *("circulating_supply", "total_supply", "max_supply"),
        *("percent_change_1h", "percent_change_24h", "percent_change_7d"),
        *("observed_at", "first_seen_at", "updated_at"),
    ]
    assert list((await get_exact(client, "/data"))["data"][0]) == contract
    assert list(await get_exact(client, "/data/coingecko/a")) == contract
    assert list(FIELDS) == contract
    assert list(Record.__struct_fields__) == [*contract, *ON_REQUEST]


def test_all_fields_sort_in_both_directions() -> None:
    assert set(get_args(Sort)) == {sign + field for field in FIELDS for sign in ("", "-")}


async def test_response_matches_its_struct(client: aiohttp.ClientSession, insert: Insert) -> None:
    await insert(*({"source_id": f"c{n}", "price_usd": Decimal(n) / 7} for n in range(5)))
    async with client.get("/data?limit=2") as response:
        page = msgspec.json.decode(await response.read(), type=DataPage)
    assert page.data[1].price_usd == Decimal(1) / 7
    assert (page.pagination.total, page.pagination.pages, page.pagination.page) == (5, 3, 1)


async def test_empty_table(client: aiohttp.ClientSession) -> None:
    assert await get_exact(client, "/data") == {
        "data": [],
        "pagination": {"limit": 50, "page": 1, "pages": 0, "total": 0, "next": None, "next_cursor": None},
    }


async def test_page_after_the_end(client: aiohttp.ClientSession, insert: Insert) -> None:
    await insert(*({"source_id": f"c{n}"} for n in range(7)))
    for page in (1_000_000, 2**31 - 1):
        assert await get_exact(client, f"/data?limit=3&page={page}") == {
            "data": [],
            "pagination": {
                "limit": 3,
                "page": page,
                "pages": 3,
                "total": 7,
                "next": None,
                "next_cursor": None,
            },
        }


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["cursor", "page"])
async def test_next_reaches_all_pages(client: aiohttp.ClientSession, insert: Insert, mode: str) -> None:
    await insert(*({"source_id": f"c{n:02}", "rank": n % 4 or None, "name": "a b&c,%"} for n in range(23)))
    start = "/data?limit=4&q=b%26C,%25&source=coingecko,csv&sort=-rank"
    whole = source_ids(await get_exact(client, start.replace("limit=4", "limit=1000")))
    page = await get_exact(client, start if mode == "cursor" else f"{start}&page=1")
    seen, number = source_ids(page), 1
    assert page["pagination"]["page"] == 1
    while (url := page["pagination"]["next"]) is not None:
        assert url.startswith("/data?limit=4&")
        assert "sort=-rank" in url
        assert ("cursor=" in url, "page=" in url) == (mode == "cursor", mode == "page")
        page = await get_exact(client, url)
        seen, number = seen + source_ids(page), number + 1
        assert page["pagination"]["total"] == 23
        assert page["pagination"]["page"] == (number if mode == "page" else None)
    assert page["pagination"]["next_cursor"] is None
    assert seen == whole


@pytest.mark.slow
async def test_filters(client: aiohttp.ClientSession, insert: Insert) -> None:
    await insert(
        {"source_id": "1", "source": "coingecko", "symbol": "BTC", "name": "Bitcoin"},
        {"source_id": "2", "source": "coinpaprika", "symbol": "btc", "name": "Bitcoin Cash"},
        {"source_id": "3", "source": "csv", "symbol": "ETH", "name": "100% _pure_ \\ether"},
        {"source_id": "4", "source": "csv", "symbol": "Ξ", "name": "Эфир"},
        {"source_id": "5", "source": "csv"},
    )
    expected = {
        "source=csv": "345",
        "source=csv,coingecko": "1345",
        "source=csv&source=coingecko": "1345",
        "source=csv,%20csv": "345",
        "symbol=btc": "12",
        "symbol=Btc,eth": "123",
        "symbol=Btc&symbol=eth,nosuch": "123",
        "symbol=%CE%BE": "4",
        "q=BITCOIN": "12",
        "q=bTc": "12",
        "q=%25": "3",
        "q=_": "3",
        "q=%5C": "3",
        "q=bit+coin": "",
        "q=coin%20c": "2",
        "q=%D1%8D%D1%84%D0%B8%D1%80": "4",
        "q=bitcoin&source=coingecko&symbol=BTC": "1",
    }
    for query, rows in expected.items():
        page = await get_exact(client, f"/data?sort=source_id&{query}")
        assert "".join(source_ids(page)) == rows, query
        assert page["pagination"]["total"] == len(rows), query


async def test_filters_by_id_and_asset(client: aiohttp.ClientSession, insert: Insert) -> None:
    await insert(
        {"source_id": "bitcoin", "source": "coingecko", "asset": "btc"},
        {"source_id": "btc-bitcoin", "source": "coinpaprika", "asset": "btc"},
        {"source_id": "bitcoin", "source": "csv"},
        {"source_id": "Bitcoin", "source": "csv", "asset": "BTC"},
    )
    expected = {
        "id=bitcoin": ["coingecko bitcoin", "csv bitcoin"],
        "id=bitcoin&source=csv": ["csv bitcoin"],
        "id=Bitcoin,btc-bitcoin&id=nosuch": ["coinpaprika btc-bitcoin", "csv Bitcoin"],
        "asset=btc": ["coingecko bitcoin", "coinpaprika btc-bitcoin"],
        "asset=btc,BTC&id=bitcoin,Bitcoin": ["coingecko bitcoin", "csv Bitcoin"],
        "asset=nosuch": [],
    }
    for query, rows in expected.items():
        page = await get_exact(client, f"/data?sort=source&{query}")
        assert [f"{row['source']} {row['source_id']}" for row in page["data"]] == rows, query
        assert page["pagination"]["total"] == len(rows), query


@pytest.mark.slow
async def test_ranges_are_inclusive_and_exact(client: aiohttp.ClientSession, insert: Insert) -> None:
    await insert(
        {"source_id": "none"},
        {
            "source_id": "low",
            "rank": 3,
            "price_usd": Decimal("0.1000000000000000055511151231257827"),  # the value of the float 0.1
            "market_cap_usd": Decimal(-1),
            "volume_24h_usd": Decimal(0),
        },
        {
            "source_id": "high",
            "rank": 1,
            "price_usd": Decimal("12345678901234567890.000000000001"),
            "market_cap_usd": Decimal("1e30"),
            "volume_24h_usd": Decimal("1e-30"),
        },
    )
    expected = {
        "rank_max=1": ["high"],
        "rank_min=2": ["low"],
        "rank_min=1&rank_max=3": ["high", "low"],
        "rank_min=3&rank_max=1": [],
        "price_usd_max=0.1": [],
        "price_usd_max=0.1000000000000000055511151231257827": ["low"],
        "price_usd_min=12345678901234567890": ["high"],
        "price_usd_min=12345678901234567890.000000000002": [],
        "price_usd_min=1.2345678901234567890000000000001e19": ["high"],
        "market_cap_usd_min=-1": ["high", "low"],
        "market_cap_usd_max=1e30": ["high", "low"],
        "market_cap_usd_max=9.99e29": ["low"],
        "volume_24h_usd_min=0.0": ["high", "low"],
        "volume_24h_usd_min=.000000000000000000000000000001": ["high"],
        "volume_24h_usd_max=-0": ["low"],
    }
    for query, rows in expected.items():
        page = await get_exact(client, f"/data?{query}")
        assert source_ids(page) == rows, query
        assert page["pagination"]["total"] == len(rows), query


async def test_updated_since_is_inclusive(client: aiohttp.ClientSession, insert: Insert) -> None:
    await insert(
        {"source_id": "before", "updated_at": LONG_AGO - timedelta(microseconds=1)},
        {"source_id": "then", "updated_at": LONG_AGO},
    )
    for moment, rows in {
        "2024-06-01T12:00:00Z": ["then"],
        "2024-06-01T12:00:00.000001Z": [],
        "2024-06-01T11:59:59.999999Z": ["before", "then"],
        "2024-06-01T13:00:00%2B01:00": ["then"],
        "2024-06-01T13:00:00+01:00": ["then"],
        "0001-01-01T00:00:00Z": ["before", "then"],
        "9999-12-31T23:59:59.999999Z": [],
    }.items():
        assert source_ids(await get_exact(client, f"/data?updated_since={moment}")) == rows, moment


async def test_requested_fields_in_the_order_of_the_record(
    client: aiohttp.ClientSession, insert: Insert
) -> None:
    await insert({"source_id": "a", "price_usd": Decimal("1.50"), "symbol": "A"})
    for query, fields in {
        "fields=price_usd,symbol": ["symbol", "price_usd"],
        "fields=updated_at&fields=source,source": ["source", "updated_at"],
        f"fields={','.join(FIELDS)}": list(FIELDS),
    }.items():
        (row,) = (await get_exact(client, f"/data?{query}"))["data"]
        assert list(row) == fields
        assert list(await get_exact(client, f"/data/coingecko/a?{query}")) == fields


async def test_sort_by_a_field_that_is_not_returned(client: aiohttp.ClientSession, insert: Insert) -> None:
    await insert(*({"source_id": f"c{n}", "rank": 9 - n, "symbol": f"S{n}"} for n in range(9)))
    page = await get_exact(client, "/data?fields=symbol&limit=4")
    seen = page["data"]
    while (url := page["pagination"]["next"]) is not None:
        page = await get_exact(client, url)
        seen += page["data"]
    assert seen == [{"symbol": f"S{8 - n}"} for n in range(9)]


async def test_link_header(client: aiohttp.ClientSession, insert: Insert) -> None:
    await insert(*({"source_id": f"c{n}", "name": "a>b"} for n in range(9)))

    async def links(url: str) -> dict[str, str]:
        async with client.get(URL(url, encoded=True)) as response:
            assert response.status == 200
            return {str(name): str(URL(link["url"]).relative()) for name, link in response.links.items()}

    query = "/data?limit=4&q=a%3Eb"
    # A page by number has links by number,
    numbered = [f"/data?limit=4&page={page}&q=a%3Eb" for page in range(5)]
    assert await links(numbered[1]) == {"first": numbered[1], "next": numbered[2]}
    assert await links(numbered[2]) == {"first": numbered[1], "prev": numbered[1], "next": numbered[3]}
    assert await links(numbered[3]) == {"first": numbered[1], "prev": numbered[2]}
    assert await links(f"{query}&page=99") == {"first": numbered[1], "prev": numbered[3]}
    # other pages by cursor.
    first = await links(query)
    cursor = (await get_exact(client, query))["pagination"]["next_cursor"]
    assert first == {"first": query, "next": f"/data?limit=4&cursor={cursor}&q=a%3Eb"}
    second = await links(first["next"])
    assert set(second) == {"first", "next"}
    assert second["first"] == query
    assert source_ids(await get_exact(client, second["next"])) == ["c8"]
    assert await links(second["next"]) == {"first": query}


@on_one_server
async def test_text_search_uses_an_index(connection: Connection) -> None:
    await connection.execute("SET enable_seqscan = off")
    plan = await connection.fetch(
        "EXPLAIN SELECT FROM unified_data WHERE name COLLATE \"default\" ILIKE '%coin%' "
        "OR symbol COLLATE \"default\" ILIKE '%coin%'"
    )
    assert sum("unified_data_by_text" in line[0] for line in plan) == 2


@on_one_server
async def test_pages_of_a_symbol_read_few_rows(connection: Connection, insert: Insert) -> None:
    ranked = ({"source_id": f"{n:04}", "rank": n, "symbol": "BTC" if n % 2 else None} for n in range(1, 4001))
    await insert(*ranked)
    await connection.execute("VACUUM (ANALYZE) unified_data")
    # The setting of the pools for reads.
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    selection = Selection(filters=Filters(symbols=("btc",)))
    async with connection.transaction():
        first = await queries.page(connection, Totals(), selection, limit=10)
        second = await queries.page(connection, Totals(), selection, limit=10, after=first.last)
        read = await connection.fetchval(
            "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'unified_data'"
        )
    assert (first.total, second.total) == (2000, 2000)
    assert [row["rank"] for row in json.loads(f"[{second.json}]")] == list(range(21, 41, 2))
    assert read <= 2 * (10 + 1)


@pytest.mark.parametrize("sort", ["price_usd", "-price_usd", "-observed_at", "name"])
async def test_nulls_last_and_ties_by_key(client: aiohttp.ClientSession, insert: Insert, sort: str) -> None:
    day = timedelta(days=1)
    await insert(
        {"source_id": "none"},
        {"source_id": "low", "price_usd": Decimal(0), "name": "a", "observed_at": LONG_AGO + day},
        {"source_id": "high", "price_usd": Decimal("1e30"), "name": "b", "observed_at": LONG_AGO + 2 * day},
        {"source_id": "high", "source": "csv", "price_usd": Decimal("1e30"), "name": "b"},
    )
    found = [
        (row["source"], row["source_id"]) for row in (await get_exact(client, f"/data?sort={sort}"))["data"]
    ]
    gecko, csv = "coingecko", "csv"
    assert (
        found
        == {
            "price_usd": [(gecko, "low"), (gecko, "high"), (csv, "high"), (gecko, "none")],
            "-price_usd": [(gecko, "high"), (csv, "high"), (gecko, "low"), (gecko, "none")],
            "-observed_at": [(gecko, "high"), (gecko, "low"), (gecko, "none"), (csv, "high")],
            "name": [(gecko, "low"), (gecko, "high"), (csv, "high"), (gecko, "none")],
        }[sort]
    )


PARAMETERS = (
    "limit, page, cursor, symbol, asset, q, rank_min, rank_max, price_usd_min, price_usd_max, "
    "market_cap_usd_min, market_cap_usd_max, volume_24h_usd_min, volume_24h_usd_max, source, id, "
    "updated_since, listed, listed_since, as_of, sort, fields"
)
MOMENT = "an RFC 3339 time, such as 2024-06-01T12:00:00Z"
SORTS = ", ".join(f"{field}, -{field}" for field in sorted(FIELDS))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "parameter", "allowed"),
    [
        ("limit=0", "limit", "a whole number from 1 to 1000"),
        ("limit=1001", "limit", "a whole number from 1 to 1000"),
        ("limit=-1", "limit", "a whole number from 1 to 1000"),
        ("limit=abc", "limit", "a whole number from 1 to 1000"),
        ("limit=", "limit", "a whole number from 1 to 1000"),
        ("limit", "limit", "a whole number from 1 to 1000"),
        ("limit=%205", "limit", "a whole number from 1 to 1000"),
        ("limit=+5", "limit", "a whole number from 1 to 1000"),
        ("limit=%2B5", "limit", "a whole number from 1 to 1000"),
        ("limit=5.0", "limit", "a whole number from 1 to 1000"),
        ("limit=1e2", "limit", "a whole number from 1 to 1000"),
        ("limit=05", "limit", "a whole number from 1 to 1000"),
        ("limit=%D9%A5", "limit", "a whole number from 1 to 1000"),
        ("limit=5&limit=5", "limit", "a whole number from 1 to 1000, once"),
        ("page=0", "page", "a whole number from 1 to 2147483647"),
        ("page=99999999999999999999999", "page", "a whole number from 1 to 2147483647"),
        ("page=1&cursor=x", "page, cursor", "page or cursor, not both"),
        ("nosuch=1", "nosuch", PARAMETERS),
        ("Limit=1", "Limit", PARAMETERS),
        ("id=", "id", "up to 500, separated by commas, of: 1 to 200 characters"),
        ("asset=a,,b", "asset", "up to 500, separated by commas, of: 1 to 200 characters"),
        ("rank_max=0", "rank_max", "a whole number from 1 to 2147483647"),
        ("rank_min=1.5", "rank_min", "a whole number from 1 to 2147483647"),
        ("price_usd_min=", "price_usd_min", "a decimal number"),
        ("price_usd_min=1,5", "price_usd_min", "a decimal number"),
        ("price_usd_max=NaN", "price_usd_max", "a decimal number"),
        ("market_cap_usd_min=Infinity", "market_cap_usd_min", "a decimal number"),
        ("market_cap_usd_max=1e999999999", "market_cap_usd_max", "a decimal number"),
        ("volume_24h_usd_min=0x10", "volume_24h_usd_min", "a decimal number"),
        ("volume_24h_usd_max=1&volume_24h_usd_max=1", "volume_24h_usd_max", "a decimal number, once"),
        ("updated_since=yesterday", "updated_since", MOMENT),
        ("updated_since=2024-06-01", "updated_since", MOMENT),
        ("updated_since=2024-06-01T12:00:00", "updated_since", MOMENT),
        ("updated_since=0001-01-01T00:00:00%2B23:59", "updated_since", MOMENT),
        ("updated_since=1717243200", "updated_since", MOMENT),
        (
            "fields=price",
            "fields",
            f"up to 50, separated by commas, of: {', '.join(sorted((*FIELDS, *ON_REQUEST)))}",
        ),
        ("source=binance", "source", "up to 20, separated by commas, of: coingecko, coinpaprika, csv"),
        ("source=", "source", "up to 20, separated by commas, of: coingecko, coinpaprika, csv"),
        ("symbol=btc,,eth", "symbol", "up to 500, separated by commas, of: 1 to 200 characters"),
        ("q=", "q", "1 to 200 characters"),
        (f"q={'x' * 201}", "q", "1 to 200 characters"),
        ("sort=price", "sort", SORTS),
        ("sort=rank,-price_usd", "sort", SORTS),
        ("q=%00", "q", "any other character"),
        ("q=%FF%FE", "q", "percent-encoded UTF-8"),
        ("q=%C0%AF", "q", "percent-encoded UTF-8"),
        ("q=100%", "q", "%25 for %"),
        ("q=%zz", "q", "%25 for %"),
    ],
)
async def test_invalid_parameter(
    client: aiohttp.ClientSession, query: str, parameter: str, allowed: str
) -> None:
    async with client.get(URL(f"/data?{query}", encoded=True)) as response:
        problem = await response.json(content_type="application/problem+json")
        assert response.status == 400
    assert problem["status"] == 400
    assert problem["parameter"] == parameter
    assert problem["allowed"] == allowed
    assert problem["instance"] == "/data"
    assert problem["request_id"] == response.headers["X-Request-ID"]
    assert problem["title"]
    assert problem["type"]
    assert parameter.split(",", maxsplit=1)[0] in problem["detail"]


@pytest.mark.slow
async def test_list_for_a_single_value(client: aiohttp.ClientSession) -> None:
    async with client.get("/data?sort=rank,-price_usd") as response:
        problem = await response.json(content_type="application/problem+json")
    assert problem["detail"].startswith("sort is 'rank,-price_usd'; allowed: one of these, not a list: asset")


HOSTILE_TEXTS = (
    "'; DROP TABLE unified_data; --",
    "1 OR 1=1",
    '" onload="alert(1)',
    "<script>alert(1)</script>",
    "../../../etc/passwd",
    "${jndi:ldap://x}",
    "\r\nX-Injected: 1",
    "\ud7ff\uffff\U0010ffff",
    "%s%n{0}$1:limit{% if descending %}",
)


@pytest.mark.slow
@pytest.mark.parametrize("text", HOSTILE_TEXTS)
async def test_hostile_text(client: aiohttp.ClientSession, insert: Insert, text: str) -> None:
    await insert({"source_id": "a"})
    validated = ("limit", "page", "cursor", "source", "rank_min", "price_usd_max", "updated_since", "sort")
    for name in (*validated, "fields", text):
        async with client.get("/data", params={name: text}) as response:
            assert response.status == 400
            assert "X-Injected" not in response.headers
    for name in ("symbol", "q", "id", "asset"):
        async with client.get("/data", params={name: text}) as response:
            assert response.status == 200
            assert (await response.json())["data"] == []
    assert (await get_exact(client, "/data"))["pagination"]["total"] == 1


@pytest.mark.slow
async def test_cursor_of_another_query(client: aiohttp.ClientSession, insert: Insert) -> None:
    await insert(*({"source_id": f"c{n}", "symbol": "x"} for n in range(9)))
    pagination = (await get_exact(client, "/data?limit=2&sort=-price_usd&symbol=x"))["pagination"]
    cursor = pagination["next_cursor"]
    good = f"/data?sort=-price_usd&symbol=x&cursor={cursor}"
    assert source_ids(await get_exact(client, good + "&limit=3")) == ["c2", "c3", "c4"]
    middle = len(cursor) // 2
    for bad in (
        f"/data?sort=price_usd&symbol=x&cursor={cursor}",
        f"/data?symbol=x&cursor={cursor}",
        f"/data?sort=-price_usd&cursor={cursor}",
        f"/data?sort=-price_usd&symbol=y&cursor={cursor}",
        f"/runs?cursor={cursor}",
        good[:-1],
        good + "A",
        good + "!",
        good + "==",
        good.replace(
            cursor, cursor[:middle] + ("A" if cursor[middle] != "A" else "B") + cursor[middle + 1 :]
        ),
        good.replace(cursor, "AAAA"),
        good.replace(cursor, "%D0%96"),
        good.replace(cursor, "x" * 4_001),
    ):
        problem = await get_exact(client, bad, 400)
        assert problem["parameter"] == "cursor", bad
        assert problem["allowed"], bad


@pytest.mark.slow
async def test_cursors_survive_a_restart(database_url: str, insert: Insert) -> None:
    await insert(*({"source_id": f"c{n}"} for n in range(3)))
    async with serving(database_url) as before:
        cursor = (await get_exact(before, "/data?limit=2"))["pagination"]["next_cursor"]
    async with serving(database_url) as after:
        assert source_ids(await get_exact(after, f"/data?limit=2&cursor={cursor}")) == ["c2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "source_id", ["bitcoin", "a/b", "a%2Fb", "история", "a b?c#d", "/", "..%2f", "é\u0301", "%", "history"]
)
async def test_row_by_any_id(client: aiohttp.ClientSession, insert: Insert, source_id: str) -> None:
    await insert({"source_id": source_id}, {"source_id": source_id, "source": "csv"})
    row = await get_exact(client, f"/data/csv/{quote(source_id, safe='')}")
    assert (row["source"], row["source_id"]) == ("csv", source_id)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "status", "parameter"),
    [
        ("/data/csv/nosuch", 404, "source_id"),
        ("/data/csv/", 404, "source_id"),
        ("/data/csv/%00", 404, "source_id"),
        ("/data/binance/bitcoin", 404, "source"),
        ("/data/csv/%FF", 400, "source_id"),
        ("/data/csv/x?limit=1", 400, "limit"),
    ],
)
async def test_unknown_row(client: aiohttp.ClientSession, path: str, status: int, parameter: str) -> None:
    assert (await get_exact(client, path, status))["parameter"] == parameter
