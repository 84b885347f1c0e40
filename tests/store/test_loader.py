"""What a batch writes to the tables."""

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
from kasparro.model.batch import BATCH_ROWS, Batch, Checkpoint, CrawledPage
from kasparro.model.profile import Profile
from kasparro.model.record import ID_LIMIT, NAME_LIMIT, SYMBOL_LIMIT, Record
from kasparro.store.loader import REJECTS_LIMIT, Loader
from kasparro.store.pool import Connection, Database
from kasparro.store.runs import RunRecord
from tests.conftest import copied_database
from tests.support.batches import T0, fetch_rows, load_batches, make_batch, make_record, start_loader
from tests.support.locks import query_waits


async def written_tuples(connection: Connection) -> int:
    """Tuples that PostgreSQL has written in the data tables and their partitions, dead or alive."""
    await connection.execute("SELECT pg_stat_force_next_flush(), pg_stat_clear_snapshot()")
    count: int = await connection.fetchval(
        "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables WHERE relname LIKE 'unified%'"
    )
    return count


async def test_values_are_stored_exactly(database: Database, connection: Connection) -> None:
    record = make_record(
        name="比特币 \u200b=1+1 <b>'\"\\N\t\n",
        symbol="",
        price_usd="0.000000000012",
        market_cap_usd="0",
        total_supply="123456789012345678.123456789",
        percent_change_1h="-12.5",
        rank=1,
    )

    assert await load_batches(database, make_batch(record)) == (1, 0, 0)

    (row,) = await fetch_rows(connection, "unified_data")
    assert row["name"] == record.name
    assert row["symbol"] == ""
    assert row["price_usd"] == Decimal("0.000000000012")
    assert row["market_cap_usd"] == 0
    assert row["total_supply"] == Decimal("123456789012345678.123456789")
    assert row["max_supply"] is None
    assert row["observed_at"] == T0
    (history,) = await fetch_rows(connection, "unified_history")
    assert {key: history[key] for key in history if key in row} == {
        key: row[key] for key in history if key in row
    }


async def test_longest_texts_fit_every_index(database: Database, connection: Connection) -> None:
    # Random characters of four bytes each do not compress.
    generator = random.Random(1)
    symbol, source_id, name = (
        "".join(chr(generator.randrange(0x1F300, 0x1FAFF)) for _ in range(limit))
        for limit in (SYMBOL_LIMIT, ID_LIMIT, NAME_LIMIT)
    )

    assert await load_batches(
        database, make_batch(make_record(source_id, symbol=symbol, name=name, rank=1))
    ) == (1, 0, 0)

    (row,) = await fetch_rows(connection, "unified_data")
    assert (row["symbol"], row["source_id"], row["name"]) == (symbol, source_id, name)


async def test_same_batch_again_writes_no_tuple(database: Database, connection: Connection) -> None:
    batch = make_batch(make_record(price_usd="1"), make_record("eth-ethereum", price_usd="2"))
    await load_batches(database, batch)
    before = await written_tuples(connection)

    assert await load_batches(database, batch) == (0, 0, 2)

    assert await written_tuples(connection) == before


async def test_changed_record_updates_its_row_and_extends_history(
    database: Database, connection: Connection
) -> None:
    await load_batches(database, make_batch(make_record(price_usd="1")))

    assert await load_batches(
        database, make_batch(make_record(at=T0 + timedelta(hours=1), price_usd="2"))
    ) == (0, 1, 0)

    (row,) = await fetch_rows(connection, "unified_data")
    assert row["price_usd"] == 2
    assert row["first_seen_at"] < row["updated_at"]
    history = await fetch_rows(connection, "unified_history")
    assert [(moment["price_usd"], moment["observed_at"].month) for moment in history] == [(1, 1), (2, 2)]


async def test_older_record_goes_to_history_only(database: Database, connection: Connection) -> None:
    await load_batches(database, make_batch(make_record(price_usd="2")))

    assert await load_batches(
        database, make_batch(make_record(at=T0 - timedelta(days=3650), price_usd="1"))
    ) == (0, 1, 0)

    (row,) = await fetch_rows(connection, "unified_data")
    assert (row["price_usd"], row["observed_at"]) == (2, T0)
    assert [row["price_usd"] for row in await fetch_rows(connection, "unified_history")] == [1, 2]


async def test_correction_replaces_the_record_of_its_moment(
    database: Database, connection: Connection
) -> None:
    await load_batches(database, make_batch(make_record(price_usd="1")))

    assert await load_batches(database, make_batch(make_record(price_usd="1.5"))) == (0, 1, 0)

    assert await connection.fetchval("SELECT sum(corrected) FROM run_sources") == 1
    assert [row["price_usd"] for row in await fetch_rows(connection, "unified_data")] == [Decimal("1.5")]
    assert [row["price_usd"] for row in await fetch_rows(connection, "unified_history")] == [Decimal("1.5")]


@pytest.mark.slow
async def test_record_without_a_source_time_is_new_only_with_new_content(
    database: Database, connection: Connection
) -> None:
    await load_batches(database, make_batch(make_record(has_source_time=False, price_usd="1")))

    later = T0 + timedelta(hours=1)
    assert await load_batches(
        database, make_batch(make_record(at=later, has_source_time=False, price_usd="1"))
    ) == (0, 0, 1)
    assert await load_batches(
        database, make_batch(make_record(at=later, has_source_time=False, price_usd="2"))
    ) == (0, 1, 0)

    assert len(await fetch_rows(connection, "unified_history")) == 2


@pytest.mark.slow
async def test_source_and_source_id_identify_a_row(database: Database, connection: Connection) -> None:
    await load_batches(database, make_batch(make_record("one"), make_record("two")))
    await load_batches(database, make_batch(make_record("one")), source="coingecko")

    assert {(row["source"], row["source_id"]) for row in await fetch_rows(connection, "unified_data")} == {
        ("coinpaprika", "one"),
        ("coinpaprika", "two"),
        ("coingecko", "one"),
    }


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    quotes=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=30
    ),
    borders=st.sets(st.integers(1, 29)),
)
async def test_batch_borders_do_not_matter(
    database: Database,
    connection: Connection,
    quotes: list[tuple[str, int, int]],
    borders: set[int],
) -> None:
    await connection.execute("TRUNCATE unified_data, unified_history")
    records = [
        make_record(coin, T0 + timedelta(days=20 * day), price_usd=str(price)) for coin, day, price in quotes
    ]
    edges = [0, *sorted(border for border in borders if border < len(records)), len(records)]
    batches = [make_batch(*records[start:end]) for start, end in itertools.pairwise(edges)]

    inserted, updated, _ = await load_batches(database, *batches)

    history = {(coin, T0 + timedelta(days=20 * day)): price for coin, day, price in quotes}
    newest = {coin: price for (coin, _), price in sorted(history.items(), key=lambda item: item[0])}
    assert {
        (row["source_id"], row["observed_at"]): row["price_usd"]
        for row in await fetch_rows(connection, "unified_history")
    } == history
    assert {
        row["source_id"]: row["price_usd"] for row in await fetch_rows(connection, "unified_data")
    } == newest
    assert inserted == len(newest)
    assert inserted + updated >= len(history)
    if len(batches) == 1:
        # The same batch again changes nothing, even if it has two records of one moment.
        assert await load_batches(database, *batches) == (0, 0, len(records))


async def test_all_rejects_are_counted_and_some_are_stored(
    database: Database, connection: Connection
) -> None:
    loader = await start_loader(database)

    await loader.load(make_batch(make_record(), rejects=REJECTS_LIMIT - 1), T0)
    await loader.load(make_batch(rejects=5), T0)

    assert await connection.fetchval("SELECT rejected FROM run_sources") == REJECTS_LIMIT + 4
    stored = await connection.fetch("SELECT reason, field, raw FROM rejects ORDER BY id")
    assert len(stored) == REJECTS_LIMIT
    assert tuple(stored[0]) == ("bad", "price", "raw 0\\x00\\udc80")
    (counted,) = await connection.fetch("SELECT field, reason, rejects FROM reject_counts")
    assert tuple(counted) == ("price", "bad", REJECTS_LIMIT + 4)


async def test_api_batch_is_compared_with_the_rows_before_it(database: Database) -> None:
    def profiled(*records: Record) -> Batch:
        profile = Profile(objects={"": float(len(records))})
        return msgspec.structs.replace(make_batch(*records), profile=profile)

    earlier = {"a": "2", "b": "0", "c": None, "d": "7", "e": "5", "ranked": "3", "corrected": "8"}
    await load_batches(
        database, make_batch(*(make_record(coin, price_usd=price) for coin, price in earlier.items()))
    )
    loader = await start_loader(database)
    later = T0 + timedelta(minutes=1)

    await loader.load(
        profiled(
            make_record("a", later, price_usd="4"),
            make_record("b", later, price_usd="1"),
            make_record("c", later, price_usd="1"),
            make_record("d", price_usd="7"),
            make_record("e", T0 - timedelta(days=1), price_usd="9"),
            make_record("ranked", price_usd="3.0", rank=2),
            make_record("corrected", price_usd="4"),
            make_record("new", later, price_usd="1"),
            make_record("untimed", later, has_source_time=False, price_usd="1"),
        ),
        T0 + timedelta(minutes=2),
    )

    moves = sorted(zip(loader.price_moves.gaps, loader.price_moves.moves, strict=True))
    assert [gap for gap, _ in moves] == [0.0, 60.0]
    assert [move for _, move in moves] == pytest.approx([-math.log(2), math.log(2)])
    assert sorted(loader.price_moves.ages) == [60.0] * 4 + [120.0] * 3 + [86_520.0]


async def test_archive_is_not_compared(database: Database) -> None:
    loader = await start_loader(database, "csv")
    await loader.load(make_batch(make_record(price_usd="1")), T0)

    assert not loader.price_moves.ages


async def test_checkpoint_commits_with_its_batch(database: Database) -> None:
    loader = await start_loader(database, "csv")
    checkpoint = Checkpoint(key="sha256:1", name="a.csv", position=2, complete=False)

    assert await loader.file_named("a.csv") is None
    await loader.load(make_batch(make_record(), checkpoint=checkpoint), T0)

    known = await loader.file_named("a.csv")
    assert known is not None
    assert (known.key, known.position, known.complete) == ("sha256:1", 2, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "table",
    [
        *("unified_data", "unified_history", "rejects", "reject_counts", "archive_files", "pages"),
        *("insert_counters", "instance"),
    ],
)
async def test_batch_that_fails_at_any_statement_leaves_nothing(
    database: Database, connection: Connection, table: str
) -> None:
    loader = await start_loader(database)
    page = CrawledPage(
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
    batch = msgspec.structs.replace(
        make_batch(
            make_record(), rejects=2, checkpoint=Checkpoint(key="k", name="k", position=1, complete=True)
        ),
        page=page,
    )
    await connection.execute(f"ALTER TABLE {table} RENAME TO hidden")
    with pytest.raises(asyncpg.UndefinedTableError):
        await loader.load(batch, T0)
    await connection.execute(f"ALTER TABLE hidden RENAME TO {table}")

    for empty in ("unified_data", "unified_history", "rejects", "reject_counts", "archive_files", "pages"):
        assert await connection.fetchval(f"SELECT count(*) FROM {empty}") == 0, empty
    assert await connection.fetchval("SELECT max(fetched + batches) FROM run_sources") == 0
    await loader.load(batch, T0)
    assert await loader.file_named("k") is not None
    assert await loader.pages() == [page]
    assert await connection.fetchval("SELECT max(fetched) FROM run_sources") == 3


async def test_partition_of_another_session_is_used_when_that_session_has_ended(
    database: Database, connection: Connection
) -> None:
    """Until then, PostgreSQL may not have made it known to all sessions."""
    await connection.execute("SELECT create_history_partition('2024-06-01')")
    creating = connection.transaction()
    await creating.start()
    # The lock of a session that has created it.
    await connection.execute("LOCK TABLE unified_history_2024_06 IN ACCESS EXCLUSIVE MODE")
    async with database.writing() as loading:
        using = asyncio.create_task(loading.execute("SELECT create_history_partition('2024-06-01')"))
        await query_waits(connection)
        await creating.commit()
        await using


@pytest.mark.slow
async def test_interrupted_run_writes_nothing_more(database: Database, connection: Connection) -> None:
    loader = await start_loader(database)
    await RunRecord.start(database, "etl", ("csv",), T0)

    with pytest.raises(LeaseLost):
        await loader.load(make_batch(make_record()), T0)

    assert await fetch_rows(connection, "unified_data") == []
    assert await connection.fetchval("SELECT status FROM runs ORDER BY id LIMIT 1") == "interrupted"


@pytest.mark.slow
async def test_retried_batch_that_was_committed_is_not_counted_twice(database: Database) -> None:
    run = await RunRecord.start(database, "etl", ("csv",), T0)
    batch = make_batch(make_record())
    await Loader(database, run.id, "csv").load(batch, T0)

    # A second loader knows of no commit, as after a connection that was lost during the commit.
    await Loader(database, run.id, "csv").load(batch, T0)

    counts = await run.counts("csv")
    assert (counts["fetched"], counts["inserted"], counts["unchanged"]) == (1, 1, 0)


@pytest.mark.slow
def test_connection_lost_during_copy_is_a_transient_error(server_url: str, template: str) -> None:
    # On uvloop, as in the service: its transports raise on a write after the end, asyncio's ignore it.
    reported: list[dict[str, Any]] = []
    errors: list[Exception] = []
    full = make_batch(*(make_record(f"coin-{number}", name="n" * 200) for number in range(BATCH_ROWS)))

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
        async with copied_database(server_url, template) as url, Database(url) as database:
            loader = await start_loader(database)
            terminating = asyncio.create_task(terminate_copies(url))
            try:
                for _ in range(20):
                    # A COPY must not wait forever for its lost connection.
                    try:
                        async with asyncio.timeout(30):
                            await loader.load(full, datetime.now(UTC))
                    except Exception as error:  # noqa: BLE001 - the assertion below says which are allowed
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
