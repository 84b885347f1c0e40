"""What a batch does to the tables."""

import asyncio
import gc
import itertools
import math
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import msgspec
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kasparro.errors import DatabaseUnavailable, LeaseLost
from kasparro.model.batch import BATCH_ROWS, Batch, BatchBuilder, Checkpoint, CrawledPage
from kasparro.model.profile import Profile
from kasparro.model.record import ID_LIMIT, NAME_LIMIT, SYMBOL_LIMIT, Record, Reject
from kasparro.store.loader import REJECTS_LIMIT, Loader
from kasparro.store.locks import LEASE_S
from kasparro.store.pool import Database
from kasparro.store.runs import RunRecord
from tests.conftest import copied

T0 = datetime(2026, 1, 31, 23, 59, tzinfo=UTC)
Row = dict[str, Any]


def record(source_id: str = "btc-bitcoin", at: datetime = T0, **values: Any) -> Record:
    return Record(**{"symbol": "BTC", "name": "Bitcoin", "source_id": source_id, "observed_at": at, **values})


def batch(*records: Record, rejects: int = 0, checkpoint: Checkpoint | None = None) -> Batch:
    builder = BatchBuilder()
    for one in records:
        builder.add(one)
    for number in range(rejects):
        builder.reject(Reject(reason="bad", field="price", raw=f"raw {number}\x00\udc80"))
    return builder.take(checkpoint)


async def loader(database: Database, source: str = "coinpaprika") -> Loader:
    run = await RunRecord.start(database, "etl", (source,), T0)
    return Loader(database, run.id, source)


async def load(database: Database, *batches: Batch, source: str = "coinpaprika") -> tuple[int, int, int]:
    """Load in a run of its own; gives what it counted as inserted, updated and unchanged."""
    session = await database.session("a run of the tests", LEASE_S)
    try:
        # A service on this database buries runs that nobody holds the lock for.
        await session.execute("SELECT pg_advisory_lock(hashtextextended('kasparro run', 0))")
        run = await RunRecord.start(database, "etl", (source,), T0)
        into = Loader(database, run.id, source)
        for one in batches:
            await into.load(one, datetime.now(UTC))
        counts = await run.counts(source)
    finally:
        await session.close()
    assert counts["valid"] == counts["inserted"] + counts["updated"] + counts["unchanged"]
    assert counts["fetched"] == counts["valid"] + counts["rejected"]
    return counts["inserted"], counts["updated"], counts["unchanged"]


async def rows(connection: "asyncpg.Connection[asyncpg.Record]", table: str) -> list[Row]:
    return [
        dict(row) for row in await connection.fetch(f"SELECT * FROM {table} ORDER BY source_id, observed_at")
    ]


async def written(connection: "asyncpg.Connection[asyncpg.Record]") -> int:
    """Tuples that PostgreSQL has written in the data tables and their partitions, dead or alive."""
    await connection.execute("SELECT pg_stat_force_next_flush(), pg_stat_clear_snapshot()")
    count: int = await connection.fetchval(
        "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables WHERE relname LIKE 'unified%'"
    )
    return count


async def test_values_come_to_rest_as_they_went_in(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    odd = record(
        name="比特币 \u200b=1+1 <b>'\"\\N\t\n",
        symbol="",
        price_usd="0.000000000012",
        market_cap_usd="0",
        total_supply="123456789012345678.123456789",
        percent_change_1h="-12.5",
        rank=1,
    )

    assert await load(database, batch(odd)) == (1, 0, 0)

    (row,) = await rows(connection, "unified_data")
    assert row["name"] == odd.name
    assert row["symbol"] == ""
    assert row["price_usd"] == Decimal("0.000000000012")
    assert row["market_cap_usd"] == 0
    assert row["total_supply"] == Decimal("123456789012345678.123456789")
    assert row["max_supply"] is None
    assert row["observed_at"] == T0
    (history,) = await rows(connection, "unified_history")
    assert {key: history[key] for key in history if key in row} == {
        key: row[key] for key in history if key in row
    }


async def test_the_longest_texts_fit_every_index(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    # Four bytes each, and no two alike, so that nothing packs them.
    chance = random.Random(1)
    symbol, source_id, name = (
        "".join(chr(chance.randrange(0x1F300, 0x1FAFF)) for _ in range(limit))
        for limit in (SYMBOL_LIMIT, ID_LIMIT, NAME_LIMIT)
    )

    assert await load(database, batch(record(source_id, symbol=symbol, name=name, rank=1))) == (1, 0, 0)

    (row,) = await rows(connection, "unified_data")
    assert (row["symbol"], row["source_id"], row["name"]) == (symbol, source_id, name)


async def test_the_same_batch_again_writes_no_tuple(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    told = batch(record(price_usd="1"), record("eth-ethereum", price_usd="2"))
    await load(database, told)
    before = await written(connection)

    assert await load(database, told) == (0, 0, 2)

    assert await written(connection) == before


async def test_a_changed_record_updates_its_row_and_is_appended_to_history(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await load(database, batch(record(price_usd="1")))

    assert await load(database, batch(record(at=T0 + timedelta(hours=1), price_usd="2"))) == (0, 1, 0)

    (row,) = await rows(connection, "unified_data")
    assert row["price_usd"] == 2
    assert row["first_seen_at"] < row["updated_at"]
    assert [(h["price_usd"], h["observed_at"].month) for h in await rows(connection, "unified_history")] == [
        (1, 1),
        (2, 2),
    ]


async def test_an_older_record_goes_to_history_only(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await load(database, batch(record(price_usd="2")))

    assert await load(database, batch(record(at=T0 - timedelta(days=3650), price_usd="1"))) == (0, 1, 0)

    (row,) = await rows(connection, "unified_data")
    assert (row["price_usd"], row["observed_at"]) == (2, T0)
    assert [h["price_usd"] for h in await rows(connection, "unified_history")] == [1, 2]


async def test_a_correction_of_a_moment_replaces_it(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await load(database, batch(record(price_usd="1")))

    assert await load(database, batch(record(price_usd="1.5"))) == (0, 1, 0)

    assert await connection.fetchval("SELECT sum(corrected) FROM run_sources") == 1
    assert [row["price_usd"] for row in await rows(connection, "unified_data")] == [Decimal("1.5")]
    assert [row["price_usd"] for row in await rows(connection, "unified_history")] == [Decimal("1.5")]


async def test_a_record_without_a_time_of_its_own_is_new_only_when_its_content_is(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await load(database, batch(record(has_source_time=False, price_usd="1")))

    later = T0 + timedelta(hours=1)
    assert await load(database, batch(record(at=later, has_source_time=False, price_usd="1"))) == (0, 0, 1)
    assert await load(database, batch(record(at=later, has_source_time=False, price_usd="2"))) == (0, 1, 0)

    assert len(await rows(connection, "unified_history")) == 2


async def test_sources_and_ids_identify_and_symbols_do_not(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await load(database, batch(record("one"), record("two")))
    await load(database, batch(record("one")), source="coingecko")

    assert {(row["source"], row["source_id"]) for row in await rows(connection, "unified_data")} == {
        ("coinpaprika", "one"),
        ("coinpaprika", "two"),
        ("coingecko", "one"),
    }


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    told=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=30
    ),
    cuts=st.sets(st.integers(1, 29)),
)
async def test_any_cutting_into_batches_ends_in_the_same_tables(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    told: list[tuple[str, int, int]],
    cuts: set[int],
) -> None:
    await connection.execute("TRUNCATE unified_data, unified_history")
    records = [record(coin, T0 + timedelta(days=20 * day), price_usd=str(price)) for coin, day, price in told]
    borders = [0, *sorted(cut for cut in cuts if cut < len(records)), len(records)]
    parts = [batch(*records[a:b]) for a, b in itertools.pairwise(borders)]

    inserted, updated, _ = await load(database, *parts)

    history = {(coin, T0 + timedelta(days=20 * day)): price for coin, day, price in told}
    newest = {coin: price for (coin, _), price in sorted(history.items(), key=lambda item: item[0])}
    assert {
        (row["source_id"], row["observed_at"]): row["price_usd"]
        for row in await rows(connection, "unified_history")
    } == history
    assert {row["source_id"]: row["price_usd"] for row in await rows(connection, "unified_data")} == newest
    assert inserted == len(newest)
    assert inserted + updated >= len(history)
    if len(parts) == 1:
        # Told again as a whole it is known, also where it tells one moment twice.
        assert await load(database, *parts) == (0, 0, len(records))


async def test_rejects_are_counted_all_and_kept_up_to_a_bound(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    into = await loader(database)

    await into.load(batch(record(), rejects=REJECTS_LIMIT - 1), T0)
    await into.load(batch(rejects=5), T0)

    assert await connection.fetchval("SELECT rejected FROM run_sources") == REJECTS_LIMIT + 4
    kept = await connection.fetch("SELECT reason, field, raw FROM rejects ORDER BY id")
    assert len(kept) == REJECTS_LIMIT
    assert tuple(kept[0]) == ("bad", "price", "raw 0\\x00\\udc80")
    (counted,) = await connection.fetch("SELECT field, reason, rejects FROM reject_counts")
    assert tuple(counted) == ("price", "bad", REJECTS_LIMIT + 4)


async def test_an_apis_batch_is_compared_with_what_was_there_before_it(database: Database) -> None:
    def noted(*records: Record) -> Batch:
        profile = Profile(objects={"": float(len(records))})
        return msgspec.structs.replace(batch(*records), profile=profile)

    earlier = {"a": "2", "b": "0", "c": None, "d": "7", "e": "5", "ranked": "3", "corrected": "8"}
    await load(database, batch(*(record(coin, price_usd=price) for coin, price in earlier.items())))
    into = await loader(database)
    later = T0 + timedelta(minutes=1)

    await into.load(
        noted(
            record("a", later, price_usd="4"),
            record("b", later, price_usd="1"),
            record("c", later, price_usd="1"),
            record("d", price_usd="7"),
            record("e", T0 - timedelta(days=1), price_usd="9"),
            record("ranked", price_usd="3.0", rank=2),
            record("corrected", price_usd="4"),
            record("new", later, price_usd="1"),
            record("untimed", later, has_source_time=False, price_usd="1"),
        ),
        T0 + timedelta(minutes=2),
    )

    moves = sorted(zip(into.price_moves.gaps, into.price_moves.moves, strict=True))
    assert [gap for gap, _ in moves] == [0.0, 60.0]
    assert [move for _, move in moves] == pytest.approx([-math.log(2), math.log(2)])
    assert sorted(into.price_moves.ages) == [60.0] * 4 + [120.0] * 3 + [86_520.0]


async def test_archives_are_compared_with_nothing(database: Database) -> None:
    into = await loader(database, "csv")
    await into.load(batch(record(price_usd="1")), T0)

    assert not into.price_moves.ages


async def test_a_checkpoint_commits_with_its_batch(database: Database) -> None:
    into = await loader(database, "csv")
    point = Checkpoint(key="sha256:1", name="a.csv", position=2, complete=False)

    assert await into.checkpoint(point.key) is None
    await into.load(batch(record(), checkpoint=point), T0)

    assert await into.checkpoint(point.key) == point


@pytest.mark.parametrize(
    "table",
    [
        *("unified_data", "unified_history", "rejects", "reject_counts", "checkpoints", "pages"),
        *("insert_counters", "instance"),
    ],
)
async def test_a_batch_that_breaks_off_at_any_of_its_statements_leaves_nothing(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", table: str
) -> None:
    into = await loader(database)
    walked = CrawledPage(
        number=1,
        crawl_started_at=T0,
        remaining_pages=(2,),
        fetched_at=T0,
        read_at=T0,
        records=1,
        is_last=False,
        request_fingerprint="r",
        etag="e",
    )
    told = msgspec.structs.replace(
        batch(record(), rejects=2, checkpoint=Checkpoint(key="k", name="k", position=1, complete=True)),
        page=walked,
    )
    await connection.execute(f"ALTER TABLE {table} RENAME TO hidden")
    with pytest.raises(asyncpg.UndefinedTableError):
        await into.load(told, T0)
    await connection.execute(f"ALTER TABLE hidden RENAME TO {table}")

    for one in ("unified_data", "unified_history", "rejects", "reject_counts", "checkpoints", "pages"):
        assert await connection.fetchval(f"SELECT count(*) FROM {one}") == 0, one
    assert await connection.fetchval("SELECT max(fetched + batches) FROM run_sources") == 0
    await into.load(told, T0)
    assert await into.checkpoint("k") == told.checkpoint
    assert await into.pages() == [walked]
    assert await connection.fetchval("SELECT max(fetched) FROM run_sources") == 3


async def test_a_run_that_was_marked_interrupted_writes_nothing_more(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    into = await loader(database)
    await RunRecord.start(database, "etl", ("csv",), T0)

    with pytest.raises(LeaseLost):
        await into.load(batch(record()), T0)

    assert await rows(connection, "unified_data") == []
    assert await connection.fetchval("SELECT status FROM runs ORDER BY id LIMIT 1") == "interrupted"


async def test_a_batch_whose_commit_went_through_unheard_is_not_counted_twice(database: Database) -> None:
    run = await RunRecord.start(database, "etl", ("csv",), T0)
    told = batch(record())
    await Loader(database, run.id, "csv").load(told, T0)

    # A loader that has heard of no commit tries the same batch again.
    await Loader(database, run.id, "csv").load(told, T0)

    counts = await run.counts("csv")
    assert (counts["fetched"], counts["inserted"], counts["unchanged"]) == (1, 1, 0)


def test_a_connection_that_ends_during_copy_is_a_transient_error(server_url: str, template: str) -> None:
    # On uvloop, as in the service: its transports raise where asyncio's ignore a write after the end.
    reported: list[dict[str, Any]] = []
    errors: list[Exception] = []
    full = batch(*(record(f"coin-{number}", name="n" * 200) for number in range(BATCH_ROWS)))

    async def terminate_copies(url: str) -> None:
        connection = await asyncpg.connect(url)
        try:
            while True:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND state = 'active' AND query LIKE 'COPY%'"
                )
        finally:
            connection.terminate()

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
        async with copied(server_url, template) as url, Database(url) as database:
            into = await loader(database)
            terminating = asyncio.create_task(terminate_copies(url))
            try:
                for _ in range(20):
                    # A COPY that waits for its dead connection would wait for ever.
                    try:
                        async with asyncio.timeout(30):
                            await into.load(full, datetime.now(UTC))
                    except Exception as error:  # noqa: BLE001 - the assertion below tells which are allowed
                        errors.append(error)
            finally:
                terminating.cancel()
                await asyncio.wait({terminating})
        gc.collect()
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())

    assert errors
    assert {type(error) for error in errors} == {DatabaseUnavailable}
    assert reported == []
