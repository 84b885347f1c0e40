"""Snapshot cursors while runs load: all pages show the table as it was at the first page."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import aiohttp
import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)
from yarl import URL

from kasparro.model.batch import BatchBuilder
from kasparro.model.record import Record
from kasparro.store import cursors, queries, row_versions
from kasparro.store.cursors import FAR_VERSIONS, CursorNeedsSlowPool, CursorPosition
from kasparro.store.loader import Loader
from kasparro.store.pool import Connection, Database
from kasparro.store.row_counts import Totals
from kasparro.store.row_versions import CURSOR_LIFETIME
from kasparro.store.runs import RunRecord
from kasparro.store.selection import ASSET_FIELDS, ASSETS, DATA, Filters, RowList, Selection
from kasparro.web.schemas import Sort
from tests.support.assets import make_link, resolve
from tests.support.batches import load_records
from tests.support.citus import counts_versions, on_one_server
from tests.support.expected_rows import DATA_KEY, matches, sorted_keys
from tests.support.json_responses import get_exact, parse_rows, source_ids
from tests.web.conftest import LONG_AGO, serving

values = st.none() | st.integers(0, 3).map(str)
records = st.builds(
    Record,
    source_id=st.sampled_from("abcdefgh"),
    symbol=st.none() | st.sampled_from("xyZ"),
    name=st.none() | st.sampled_from("xyZ"),
    observed_at=st.integers(0, 9).map(lambda hours: LONG_AGO + timedelta(hours=hours)),
    has_source_time=st.booleans(),
    rank=st.none() | st.integers(1, 4),
    price_usd=values,
    market_cap_usd=values,
)
selections = st.builds(
    Selection,
    sort=st.sampled_from(["rank", "-rank", "price_usd", "-price_usd", "updated_at", "source"])
    | st.sampled_from(get_args(Sort)),
    filters=st.just(Filters())
    | st.builds(
        Filters,
        sources=st.sampled_from([(), ("csv",)]),
        symbols=st.sampled_from([(), ("x", "z")]),
        rank_max=st.none() | st.integers(1, 4),
        text=st.none() | st.just("z"),
    ),
)

asset_selections = st.builds(
    Selection,
    rows=st.just(ASSETS),
    sort=st.sampled_from(["rank", "-rank", "price_usd", "-price_usd", "asset", "-source_count"])
    | st.sampled_from([f"{sign}{field}" for sign in ("", "-") for field in ASSET_FIELDS]),
    filters=st.just(Filters())
    | st.builds(
        Filters,
        symbols=st.sampled_from([(), ("x", "z")]),
        rank_max=st.none() | st.integers(1, 4),
        text=st.none() | st.just("z"),
        diverging=st.none() | st.booleans(),
        source_count_min=st.none() | st.integers(0, 2),
    ),
)


class Reader:
    """A client that follows cursors: the rows it must get, and those it has got."""

    def __init__(self, selection: Selection, limit: int, expected: list[Any]) -> None:
        self.selection = selection
        self.limit = limit
        self.expected = expected
        self.seen: list[Any] = []
        self.position: CursorPosition | None = None


async def expected_rows(connection: Connection, selection: Selection) -> list[dict[str, Any]]:
    """The rows of a selection as the table is now, without our statements."""
    table, key = ("unified_data", DATA_KEY) if selection.rows is DATA else ("unified_assets", ("asset",))
    rows = {
        tuple(row[name] for name in key): {field: row[field] for field in selection.rows.fields}
        for row in await connection.fetch(f"SELECT * FROM {table}")
    }
    chosen = [row for row in rows.values() if matches(row, selection.filters)]
    return [rows[found] for found in sorted_keys(chosen, selection.sort, key)]


def machine(runner: asyncio.Runner, database: Database, rows: RowList) -> type[RuleBasedStateMachine]:
    """Readers of a list, loads and links in any order, over one database that each example empties first."""

    class Readers(RuleBasedStateMachine):
        readers = Bundle("readers")

        @initialize()
        def empty(self) -> None:
            self.totals = Totals(rows)

            async def work() -> None:
                async with database.writing() as connection:
                    await connection.execute(
                        "TRUNCATE unified_data, unified_history, unified_data_versions, assets, asset_links,"
                        " unified_assets, unified_assets_versions;"
                        "UPDATE instance SET data_version = data_version + 1"
                    )

            runner.run(work())

        @rule(source=st.sampled_from(["csv", "coingecko"]), loaded=st.lists(records, min_size=1, max_size=8))
        def load(self, source: str, loaded: list[Record]) -> None:
            runner.run(load_records(database, source, *loaded))

        @rule(source=st.sampled_from(["csv", "coingecko"]), ids=st.sets(st.sampled_from("abcdefgh")))
        def link(self, source: str, ids: set[str]) -> None:
            links = [make_link(source, asset=each, source_id=each, method="rule") for each in sorted(ids)]
            runner.run(resolve(database, *links))

        @rule(source=st.sampled_from(["csv", "coingecko"]), source_id=st.sampled_from("abcdefgh"))
        def unlink(self, source: str, source_id: str) -> None:
            runner.run(resolve(database, ended={(source, source_id): LONG_AGO}))

        @rule(
            target=readers,
            selection=selections if rows is DATA else asset_selections,
            limit=st.integers(1, 4),
        )
        def start(self, selection: Selection, limit: int) -> Any:
            async def work() -> Any:
                async with database.reading() as connection:
                    reader = Reader(selection, limit, await expected_rows(connection, selection))
                    await self.step(connection, reader)
                return reader if reader.position is not None else multiple()

            return runner.run(work())

        @rule(target=readers, reader=consumes(readers))
        def read_next(self, reader: Reader) -> Any:
            async def work() -> Any:
                async with database.reading() as connection:
                    await self.step(connection, reader)
                return reader if reader.position is not None else multiple()

            return runner.run(work())

        @rule(reader=consumes(readers))
        def read_all(self, reader: Reader) -> None:
            async def work() -> None:
                async with database.reading() as connection:
                    while reader.position is not None:
                        await self.step(connection, reader)

            runner.run(work())

        async def step(self, connection: Connection, reader: Reader) -> None:
            page = await queries.page(
                connection, self.totals, reader.selection, limit=reader.limit, after=reader.position
            )
            reader.seen += parse_rows(page.json, rows.fields)
            assert page.total == len(reader.expected)
            assert reader.seen == reader.expected[: len(reader.seen)]
            assert (page.last is None) == (len(reader.seen) == len(reader.expected))
            # The position passes through the bytes of a cursor.
            decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(page.last))
            reader.position = None if decoded is None else cursors.position(reader.selection, decoded)

    return Readers


@pytest.mark.slow
@pytest.mark.parametrize("rows", [DATA, ASSETS], ids=["data", "assets"])
def test_pages_show_the_table_as_it_was_at_the_first_page(
    runner: asyncio.Runner, shared_database: Database, rows: RowList
) -> None:
    run_state_machine_as_test(
        machine(runner, shared_database, rows),
        settings=settings(max_examples=60, stateful_step_count=30, suppress_health_check=[*HealthCheck]),
    )


@pytest.mark.slow
@pytest.mark.parametrize("sort", ["rank", "-price_usd", "source"])
async def test_each_row_once_while_all_rows_move(
    client: aiohttp.ClientSession, database: Database, sort: str
) -> None:
    coins = [f"c{n:02}" for n in range(20)]

    def records(hour: int) -> list[Record]:
        # Every load reverses the order.
        ranks = range(1, 21) if hour % 2 else range(20, 0, -1)
        at = LONG_AGO + timedelta(hours=hour)
        return [
            Record(source_id=coin, symbol=None, name=None, observed_at=at, rank=rank, price_usd=str(rank))
            for coin, rank in zip(coins, ranks, strict=True)
        ]

    await load_records(database, "csv", *records(0))
    page = await get_exact(client, f"/data?sort={sort}&limit=3")
    whole = source_ids(await get_exact(client, f"/data?sort={sort}&limit=1000"))
    seen, hour = source_ids(page), 0
    while (cursor := page["pagination"]["next_cursor"]) is not None:
        hour += 1
        await load_records(database, "csv", *records(hour))
        await load_records(database, "coingecko", *records(hour)[: 2 * hour])
        page = await get_exact(client, f"/data?sort={sort}&limit=3&cursor={cursor}")
        seen += source_ids(page)
        assert page["pagination"]["total"] == 20
    assert seen == whole
    assert sorted(seen) == coins
    assert (await get_exact(client, "/data?limit=7"))["pagination"]["total"] == 20 + 2 * hour


async def test_links_skip_no_row_while_rows_move(client: aiohttp.ClientSession, database: Database) -> None:
    def records(hour: int) -> list[Record]:
        # Every load reverses the order.
        ranks = range(6) if hour % 2 else range(6, 0, -1)
        at = LONG_AGO + timedelta(hours=hour)
        return [
            Record(source_id=f"c{n}", symbol=None, name=None, observed_at=at, rank=rank)
            for n, rank in enumerate(ranks)
        ]

    await load_records(database, "csv", *records(0))
    url: str | None = "/data?limit=2"
    seen, hour = [], 0
    while url is not None:
        async with client.get(URL(url, encoded=True)) as response:
            page = await response.json()
            link = response.links.get("next")
        url = page["pagination"]["next"]
        assert url == (None if link is None else str(URL(link["url"]).relative()))
        seen += source_ids(page)
        hour += 1
        await load_records(database, "csv", *records(hour))
    assert seen == ["c5", "c4", "c3", "c2", "c1", "c0"]


@pytest.mark.slow
async def test_cursor_expires_an_hour_after_a_change(
    client: aiohttp.ClientSession, database: Database, connection: Connection
) -> None:
    def records(hour: int) -> list[Record]:
        at = LONG_AGO + timedelta(hours=hour)
        return [Record(source_id=f"c{n}", symbol=None, name=None, observed_at=at) for n in range(4)]

    began = datetime.now(UTC)
    await load_records(database, "csv", *records(0), now=began)
    cursor = (await get_exact(client, "/data?limit=2"))["pagination"]["next_cursor"]
    await load_records(database, "csv", *records(1), now=began)

    await row_versions.delete_expired(database, began + CURSOR_LIFETIME)
    assert source_ids(await get_exact(client, f"/data?limit=2&cursor={cursor}")) == ["c2", "c3"]

    await row_versions.delete_expired(database, began + CURSOR_LIFETIME + timedelta(seconds=1))
    problem = await get_exact(client, f"/data?limit=1&cursor={cursor}", 400)
    assert problem["parameter"] == "cursor"
    assert "its first page is too old" in problem["detail"]
    assert await connection.fetchval("SELECT count(*) FROM unified_data_versions") == 0
    new = (await get_exact(client, "/data?limit=2"))["pagination"]["next_cursor"]
    assert source_ids(await get_exact(client, f"/data?limit=2&cursor={new}")) == ["c2", "c3"]


async def test_cursor_of_a_version_that_no_server_has(
    database_url: str, database: Database, connection: Connection
) -> None:
    await load_records(
        database, "csv", *(Record(source_id=c, symbol=None, name=None, observed_at=LONG_AGO) for c in "ab")
    )
    async with serving(database_url, read_url=database_url) as client:
        cursor = (await get_exact(client, "/data?limit=1"))["pagination"]["next_cursor"]

        await connection.execute("UPDATE instance SET data_version = data_version - 1")
        problem = await get_exact(client, f"/data?limit=1&cursor={cursor}", 400)
        assert "restored" in problem["detail"]

        await connection.execute("UPDATE instance SET data_version = data_version + 1")
        assert source_ids(await get_exact(client, f"/data?limit=1&cursor={cursor}")) == ["b"]


@counts_versions
async def test_old_cursor_uses_the_slow_pool(client: aiohttp.ClientSession, database: Database) -> None:
    def records(hour: int) -> list[Record]:
        at = LONG_AGO + timedelta(hours=hour)
        return [Record(source_id=c, symbol=None, name=None, observed_at=at) for c in "ab"]

    await load_records(database, "csv", *records(0))
    cursor = (await get_exact(client, "/data?limit=1"))["pagination"]["next_cursor"]
    async with database.reading() as connection:
        position = (await queries.page(connection, Totals(), Selection(), limit=1)).last
    for hour in range(1, FAR_VERSIONS + 2):
        async with database.reading() as connection:
            await queries.page(connection, Totals(), Selection(), limit=1, after=position, slow=False)
        await load_records(database, "csv", *records(hour))
    async with database.reading() as connection:
        with pytest.raises(CursorNeedsSlowPool):
            await queries.page(connection, Totals(), Selection(), limit=1, after=position, slow=False)
    assert source_ids(await get_exact(client, f"/data?limit=1&cursor={cursor}")) == ["b"]


async def test_pages_after_a_commit_take_one_statement_each(database: Database) -> None:
    def records(hour: int) -> list[Record]:
        at = LONG_AGO + timedelta(hours=hour)
        return [Record(source_id=c, symbol="A", name=None, observed_at=at) for c in "ab"]

    totals, filtered = Totals(), Selection(filters=Filters(symbols=("A",)))
    await load_records(database, "csv", *records(0))
    async with database.reading() as connection:
        before = await queries.page(connection, totals, filtered, limit=1)

    await load_records(database, "csv", *records(1))
    async with database.reading() as connection:
        # One page shows the service that there is a newer version.
        await queries.page(connection, totals, Selection(), limit=1)
        sent: list[Any] = []
        with connection.query_logger(sent.append):
            again = await queries.page(connection, totals, filtered, limit=1)
            after = await queries.page(connection, totals, filtered, limit=1, after=before.last)
        # asyncpg calls the logger after the statement.
        await asyncio.sleep(0)

    assert len(sent) == 2
    assert again.total == 2
    assert [row["observed_at"] for row in parse_rows(after.json)] == [LONG_AGO]


@on_one_server
async def test_cursor_expires_after_manual_edits(
    client: aiohttp.ClientSession, database: Database, connection: Connection
) -> None:
    await load_records(
        database, "csv", *(Record(source_id=c, symbol=None, name=None, observed_at=LONG_AGO) for c in "abc")
    )
    cursor = (await get_exact(client, "/data?limit=1"))["pagination"]["next_cursor"]
    then = "as_of=2025-01-01T00:00:00Z&limit=1"
    cursor_then = (await get_exact(client, f"/data?{then}"))["pagination"]["next_cursor"]

    # As a person does, or the loader of a version without snapshot cursors.
    await connection.execute(
        "UPDATE unified_data SET source_id = 'z', version = version + 1 WHERE source_id = 'b';"
        "UPDATE instance SET data_version = data_version + 1"
    )
    problem = await get_exact(client, f"/data?limit=1&cursor={cursor}", 400)
    assert problem["parameter"] == "cursor"
    assert "manually" in problem["detail"]
    assert source_ids(await get_exact(client, f"/data?{then}&cursor={cursor_then}")) == ["c"]
    # With another limit, which is not cached.
    later_cursor = (await get_exact(client, "/data?limit=2"))["pagination"]["next_cursor"]
    await load_records(
        database, "coingecko", Record(source_id="d", symbol=None, name=None, observed_at=LONG_AGO)
    )
    assert source_ids(await get_exact(client, f"/data?limit=1&cursor={later_cursor}")) == ["z"]


async def test_cursor_of_a_restored_database(
    client: aiohttp.ClientSession, database: Database, connection: Connection
) -> None:
    await load_records(
        database, "csv", *(Record(source_id=c, symbol=None, name=None, observed_at=LONG_AGO) for c in "ab")
    )
    cursor = (await get_exact(client, "/data?limit=1"))["pagination"]["next_cursor"]

    await connection.execute("UPDATE instance SET data_version = data_version - 1")
    problem = await get_exact(client, f"/data?limit=1&cursor={cursor}", 400)
    assert problem["parameter"] == "cursor"
    assert "Start again without a cursor" in problem["detail"]


@counts_versions
async def test_concurrent_batches_get_their_own_versions(database: Database, connection: Connection) -> None:
    run = await RunRecord.start(database, "etl", ("csv", "coingecko"), LONG_AGO)

    async def batch(source: str) -> None:
        builder = BatchBuilder()
        builder.add(Record(source_id=source, symbol=None, name=None, observed_at=LONG_AGO))
        await Loader(database, run.id, source).load(builder.take(None), LONG_AGO)

    await asyncio.gather(batch("csv"), batch("coingecko"))

    versions = [row[0] for row in await connection.fetch("SELECT version FROM unified_data ORDER BY version")]
    newest = await connection.fetchval("SELECT data_version FROM instance")
    assert versions == [newest - 1, newest]


@pytest.mark.slow
async def test_totals_are_exact(
    client: aiohttp.ClientSession, database: Database, connection: Connection
) -> None:
    def records(*names: str) -> list[Record]:
        return [Record(source_id=n, symbol=n, name=n, observed_at=LONG_AGO) for n in names]

    limits = itertools.count(1)

    async def totals() -> list[int]:
        # A new limit each time, so that no response is cached.
        limit = next(limits)
        queries = ("", "source=csv", "source=csv,csv,coingecko", "symbol=a", "q=a&page=2", "rank_min=1")
        pages = [await get_exact(client, f"/data?limit={limit}&{query}") for query in queries]
        return [page["pagination"]["total"] for page in pages]

    assert await totals() == [0, 0, 0, 0, 0, 0]
    await load_records(database, "csv", *records("a", "b"))
    assert await totals() == [2, 2, 2, 1, 1, 0]
    await load_records(database, "coingecko", *records("a", "c", "d"))
    assert await totals() == [5, 2, 5, 2, 2, 0]
    await load_records(database, "csv", *records("a", "e"))
    assert await totals() == [6, 3, 6, 2, 2, 0]
    await connection.execute(
        "DELETE FROM unified_data WHERE source_id = 'a' OR source = 'coingecko';"
        "UPDATE instance SET data_version = data_version + 1"
    )
    assert await totals() == [2, 2, 2, 0, 0, 0]
    await load_records(database, "csv", *records("a"))
    assert await totals() == [3, 3, 3, 1, 1, 0]


async def test_cursor_shows_earlier_labels_and_rank_time(
    client: aiohttp.ClientSession, database: Database
) -> None:
    def record(coin: str, hours: int, rank: int | None) -> Record:
        at = LONG_AGO + timedelta(hours=hours)
        return Record(source_id=coin, symbol=coin, name=coin, observed_at=at, rank=rank)

    await load_records(database, "csv", record("a", 0, 1), record("b", 0, 2), record("c", 0, 3))
    await load_records(
        database, "csv", *(record(coin, 5, None) for coin in "abc"), lacks=("symbol", "name", "rank")
    )
    fields = "fields=source_id,symbol,rank,rank_observed_at"
    page = await get_exact(client, f"/data?limit=1&{fields}")
    await load_records(database, "csv", record("b", 2, 9))

    cursor = page["pagination"]["next_cursor"]
    page = await get_exact(client, f"/data?limit=1&{fields}&cursor={cursor}")

    then = "2024-06-01T12:00:00.000000Z"
    assert page["data"] == [{"source_id": "b", "symbol": "b", "rank": 2, "rank_observed_at": then}]
    now = await get_exact(client, f"/data/csv/b?{fields}")
    assert (now["rank"], now["rank_observed_at"]) == (9, "2024-06-01T14:00:00.000000Z")
