"""`as_of`: the newest records at a moment, from history."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasparro.model.record import Record
from kasparro.store import queries
from kasparro.store.cursors import CursorPosition
from kasparro.store.pool import Database
from kasparro.store.row_counts import Totals
from kasparro.store.selection import Filters, Selection
from tests.support.batches import load_records
from tests.support.expected_rows import matches, sorted_keys
from tests.support.json_responses import get_exact, parse_rows, source_ids
from tests.web.conftest import LONG_AGO, Insert

HOUR = timedelta(hours=1)
# Far enough apart to lie in several partitions.
moments = st.integers(0, 9).map(lambda number: LONG_AGO + number * timedelta(days=20))
records = st.builds(
    Record,
    source_id=st.sampled_from("abcd"),
    symbol=st.sampled_from("xyZ"),
    name=st.none(),
    observed_at=moments,
    rank=st.none() | st.integers(1, 4),
    price_usd=st.none() | st.integers(0, 3).map(str),
)


@pytest.mark.slow
@settings(max_examples=60)
@given(
    loaded=st.lists(st.tuples(st.sampled_from(["csv", "coingecko"]), records), max_size=12),
    as_of=moments,
    sort=st.sampled_from(["source", "rank", "-price_usd"]),
    filters=st.builds(
        Filters,
        sources=st.sampled_from([(), ("csv",)]),
        symbols=st.sampled_from([(), ("x", "z")]),
        rank_max=st.none() | st.just(2),
    ),
    limit=st.integers(1, 3),
)
def test_newest_record_of_each_coin_once(
    runner: asyncio.Runner,
    shared_database: Database,
    loaded: list[tuple[str, Record]],
    as_of: Any,
    sort: str,
    filters: Filters,
    limit: int,
) -> None:
    expected: dict[tuple[str, ...], dict[str, Any]] = {}
    for source, record in loaded:
        known = expected.get((source, record.source_id))
        if record.observed_at <= as_of and (known is None or record.observed_at >= known["observed_at"]):
            expected[source, record.source_id] = {
                "source": source,
                "source_id": record.source_id,
                "symbol": record.symbol,
                "rank": record.rank,
                "price_usd": None if record.price_usd is None else int(record.price_usd),
                "observed_at": record.observed_at,
            }
    chosen = [row for row in expected.values() if matches(row, filters)]
    selection = Selection(
        filters=filters,
        sort=sort,
        as_of=as_of,
        fields=("source", "source_id", "symbol", "rank", "price_usd", "observed_at"),
    )

    async def read_all() -> list[dict[str, Any]]:
        async with shared_database.writing() as connection:
            await connection.execute("TRUNCATE unified_data, unified_history, unified_data_versions")
        for source, record in loaded:
            await load_records(shared_database, source, record)
        seen: list[dict[str, Any]] = []
        after: CursorPosition | None = None
        async with shared_database.reading() as connection:
            while True:
                page = await queries.page(connection, Totals(), selection, limit=limit, after=after)
                assert page.total is None
                seen += parse_rows(page.json)
                if (after := page.last) is None:
                    return seen

    assert runner.run(read_all()) == [expected[key] for key in sorted_keys(chosen, sort)]


@pytest.mark.slow
async def test_coins_with_a_record_until_the_moment(
    client: aiohttp.ClientSession, database: Database
) -> None:
    def record(coin: str, hours: int, price: str) -> Record:
        at = LONG_AGO + hours * HOUR
        return Record(source_id=coin, symbol=None, name=None, observed_at=at, price_usd=price, rank=9 - hours)

    await load_records(database, "csv", record("a", 0, "1"), record("b", 1, "5"))
    await load_records(database, "csv", record("a", 2, "3"))
    # A record that is loaded late belongs to its own moment.
    await load_records(database, "csv", record("a", 1, "2"))

    async def prices(query: str) -> dict[str, Any]:
        return {
            row["source_id"]: row["price_usd"] for row in (await get_exact(client, f"/data?{query}"))["data"]
        }

    assert await prices("as_of=2024-06-01T11:59:59.999999Z") == {}
    assert await prices("as_of=2024-06-01T12:00:00Z") == {"a": 1}
    assert await prices("as_of=2024-06-01T13:30:00Z") == {"a": 2, "b": 5}
    assert await prices("as_of=2024-06-01T14:00:00Z&price_usd_max=4") == {"a": 3}
    assert await prices("as_of=9999-01-01T00:00:00Z") == await prices("sort=source") == {"a": 3, "b": 5}
    assert (await get_exact(client, "/data/csv/a?as_of=2024-06-01T13:59:00Z&fields=price_usd")) == {
        "price_usd": 2
    }
    assert (await get_exact(client, "/data/csv/a?as_of=2024-06-01T11:59:00Z", 404))["parameter"] == "as_of"
    page = (await get_exact(client, "/data?as_of=2024-06-01T13:00:00Z&limit=1"))["pagination"]
    assert (page["total"], page["pages"], page["page"]) == (None, None, 1)


@pytest.mark.slow
async def test_date_means_the_end_of_the_day(client: aiohttp.ClientSession, database: Database) -> None:
    midnight = datetime(2024, 6, 2, tzinfo=UTC)
    for price_usd, at in (
        ("1", midnight - timedelta(days=1)),
        ("2", midnight - timedelta(microseconds=1)),
        ("3", midnight),
    ):
        record = Record(source_id="a", symbol=None, name=None, observed_at=at, price_usd=price_usd)
        await load_records(database, "csv", record)

    async def price(as_of: str) -> Any:
        (row,) = (await get_exact(client, f"/data?as_of={as_of}"))["data"]
        assert await get_exact(client, f"/data/csv/a?as_of={as_of}") == row
        async with client.get(f"/data.ndjson?as_of={as_of}") as answer:
            assert msgspec.json.decode(await answer.read())["price_usd"] == row["price_usd"]
        return row["price_usd"]

    assert await price("2024-06-01") == await price("2024-06-01T23:59:59.999999Z") == 2
    assert await price("2024-06-02") == await price("2024-06-02T00:00:00Z") == 3
    assert await price("9999-12-31") == 3
    assert (await get_exact(client, "/data?as_of=2024-05-31"))["data"] == []


async def test_cursor_fits_a_date_and_its_last_moment(
    client: aiohttp.ClientSession, database: Database
) -> None:
    await load_records(
        database, "csv", *(Record(source_id=c, symbol=None, name=None, observed_at=LONG_AGO) for c in "abc")
    )
    page = await get_exact(client, "/data?as_of=2024-06-01&limit=2")
    assert "as_of=2024-06-01T23%3A59%3A59.999999Z" in page["pagination"]["next"]
    assert source_ids(await get_exact(client, page["pagination"]["next"])) == ["c"]
    cursor = page["pagination"]["next_cursor"]
    assert source_ids(await get_exact(client, f"/data?as_of=2024-06-01&limit=2&cursor={cursor}")) == ["c"]
    other = await get_exact(client, f"/data?as_of=2024-06-02&limit=2&cursor={cursor}", 400)
    assert other["parameter"] == "cursor"


@pytest.mark.parametrize(
    "text",
    ["2024-02-30", "20240601", "2024-W22-6", "2024-6-1", "0000-01-01", "2024-06", "today", "", "2024-06-01Z"],
)
async def test_invalid_moment(client: aiohttp.ClientSession, text: str) -> None:
    for path in ("/data", "/data/csv/a", "/data.csv"):
        problem = await get_exact(client, f"{path}?as_of={text}", 400)
        assert problem["parameter"] == "as_of"
        assert problem["allowed"] == (
            "an RFC 3339 time, such as 2024-06-01T12:00:00Z, or a date, such as 2024-06-01, for the end of "
            "that day in UTC"
        )
    # A date could mean the start or the end of the day here, so it is not allowed.
    assert (await get_exact(client, "/data?updated_since=2024-06-01", 400))["parameter"] == "updated_since"


async def test_row_before_its_first_record(
    client: aiohttp.ClientSession, database: Database, insert: Insert
) -> None:
    for hours in (2, 5):
        at = LONG_AGO + hours * HOUR
        await load_records(database, "csv", Record(source_id="a", symbol=None, name=None, observed_at=at))
    # A coin with a single record, the current one.
    await insert({"source_id": "b"})

    for path, as_of, until, first in (
        ("csv/a", "2024-06-01T13:59:59.999999Z", "2024-06-01T13:59:59.999999Z", "2024-06-01T14:00:00Z"),
        ("csv/a", "2024-05-31", "2024-05-31T23:59:59.999999Z", "2024-06-01T14:00:00Z"),
        ("coingecko/b", "2020-01-01T00:00:00%2B01:00", "2019-12-31T23:00:00Z", "2024-06-01T12:00:00Z"),
    ):
        problem = await get_exact(client, f"/data/{path}?as_of={as_of}&fields=price_usd", 404)
        source = path.partition("/")[0]
        assert problem["detail"] == (
            f"{source} has no record with this id until {until}. The first record is of {first}."
        )
        assert (problem["parameter"], problem["allowed"]) == ("as_of", f"a time from {first} on")
        assert await get_exact(client, f"/data/{path}?as_of={first}&fields=price_usd") == {"price_usd": None}

    # An id that never had a record is unknown at any time.
    nosuch = await get_exact(client, "/data/csv/nosuch?as_of=2024-06-01", 404)
    assert (nosuch["parameter"], nosuch["detail"]) == ("source_id", "csv has no record with this id.")
    assert (await get_exact(client, "/data/coingecko/a?as_of=2020-01-01", 404))["parameter"] == "source_id"


async def test_cursor_continues_while_history_grows(
    client: aiohttp.ClientSession, database: Database
) -> None:
    def records(hours: int) -> list[Record]:
        at = LONG_AGO + hours * HOUR
        return [Record(source_id=c, symbol=None, name=None, observed_at=at, rank=hours) for c in "abcde"]

    await load_records(database, "csv", *records(5))
    page = await get_exact(client, "/data?as_of=2024-06-01T17:00:00Z&limit=2")
    ranked = (await get_exact(client, "/data?as_of=2024-06-01T17:00:00Z&limit=2&sort=rank"))["pagination"]
    seen = source_ids(page)
    for hours in (4, 6):
        await load_records(database, "csv", *records(hours))
        cursor = page["pagination"]["next_cursor"]
        page = await get_exact(client, f"/data?as_of=2024-06-01T17:00:00Z&limit=2&cursor={cursor}")
        assert {row["rank"] for row in page["data"]} == {5}
        seen += source_ids(page)
    assert seen == list("abcde")
    problem = await get_exact(
        client,
        f"/data?as_of=2024-06-01T17:00:00Z&limit=2&sort=rank&cursor={ranked['next_cursor']}",
        400,
    )
    assert problem["parameter"] == "cursor"
    assert "only the order by source continues" in problem["detail"]


async def test_asset_is_the_current_one(client: aiohttp.ClientSession, insert: Insert) -> None:
    await insert({"source_id": "a", "asset": "coin"}, {"source_id": "b"})
    page = await get_exact(client, "/data?as_of=2024-06-01T12:00:00Z&asset=coin")
    assert [(row["source_id"], row["asset"]) for row in page["data"]] == [("a", "coin")]


@pytest.mark.slow
async def test_labels_that_the_record_lacks(client: aiohttp.ClientSession, database: Database) -> None:
    def record(hours: int, symbol: str | None = None, rank: int | None = None) -> Record:
        at = LONG_AGO + hours * HOUR
        return Record(
            source_id="a", symbol=symbol, name=symbol, observed_at=at, rank=rank, price_usd=str(hours)
        )

    labels = ("symbol", "name", "rank")
    await load_records(database, "csv", record(1), record(3), record(5), lacks=labels)
    await load_records(database, "csv", record(2, "A", 7))

    async def row(hours: int) -> tuple[Any, ...]:
        at = (LONG_AGO + hours * HOUR).strftime("%Y-%m-%dT%H:%M:%SZ")
        fields = "symbol,name,rank,price_usd,rank_observed_at"
        # A filter by symbol finds the coin at every moment.
        (found,) = (await get_exact(client, f"/data?symbol=a&as_of={at}&fields={fields}"))["data"]
        assert await get_exact(client, f"/data/csv/a?as_of={at}&fields={fields}") == found
        return tuple(found.values())

    then = "2024-06-01T14:00:00.000000Z"
    # Symbol and name identify the coin at any moment; a rank counts from the moment it was reported.
    assert await row(1) == ("A", "A", None, 1, None)
    assert await row(2) == ("A", "A", 7, 2, then)
    assert await row(4) == ("A", "A", 7, 3, then)
    assert await row(5) == ("A", "A", 7, 5, then)
    (now,) = (await get_exact(client, "/data?symbol=A&fields=rank,price_usd,rank_observed_at"))["data"]
    assert now == {"rank": 7, "price_usd": 5, "rank_observed_at": then}


async def test_null_is_not_filled_from_another_record(
    client: aiohttp.ClientSession, database: Database
) -> None:
    first = Record(source_id="a", symbol=None, name="A", observed_at=LONG_AGO)
    second = Record(source_id="a", symbol="A", name="A", observed_at=LONG_AGO + HOUR, rank=1)
    await load_records(database, "csv", first, second)

    found = await get_exact(
        client, "/data/csv/a?as_of=2024-06-01T12:30:00Z&fields=symbol,rank,rank_observed_at"
    )

    assert found == {"symbol": None, "rank": None, "rank_observed_at": None}
