"""Stored candles and thinned months: when they are made, and what they leave as it is."""

import asyncio
import itertools
import os
import signal
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import asyncpg
import pytest

from kasparro.errors import SettingsError
from kasparro.model.batch import Checkpoint
from kasparro.model.history_retention import HistoryRetention, Thinning
from kasparro.sources.archives.forget import ForgottenArchive
from kasparro.sources.archives.source import Archives
from kasparro.sources.registry import load_settings
from kasparro.store import history, history_upkeep
from kasparro.store.locks import AdvisoryLease
from kasparro.store.pool import Connection, Database
from kasparro.store.sql import templates
from tests.support.archives import NOW as ARCHIVES_NOW
from tests.support.batches import load_batches, load_records, make_batch, make_record
from tests.support.histories import keep_up, plain_candles, read_candles, retention
from tests.support.locks import query_waits
from tests.support.runs import ManualClock, run_sources

BEGIN = datetime(2024, 3, 1, tzinfo=UTC)
NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
CLOCK = ManualClock(ARCHIVES_NOW)


def hourly(count: int, first: int = 0) -> dict[datetime, str]:
    """Prices of consecutive hours."""
    return {BEGIN + n * HOUR: f"{100 + (n * 7919) % 50}.25" for n in range(first, first + count)}


async def load(
    database: Database, prices: dict[datetime, str], source_id: str = "bitcoin", source: str = "coingecko"
) -> None:
    """Load a record for each of these prices."""
    await load_records(
        database,
        source,
        *(make_record(source_id, moment, price_usd=price) for moment, price in prices.items()),
    )


async def records(connection: Connection) -> int:
    found: int = await connection.fetchval("SELECT count(*) FROM unified_history")
    return found


async def test_thinned_month_keeps_the_last_record_of_each_day(
    database: Database, connection: Connection
) -> None:
    prices = hourly(100)
    await load(database, prices)

    assert await keep_up(database, NOW, "1d") == 1

    rows = await connection.fetch(
        "SELECT observed_at, price_usd, name, thinned_from, thinned_count FROM unified_history"
        " ORDER BY observed_at"
    )
    last = [max(day) for _, day in itertools.groupby(prices, key=lambda moment: moment.date())]
    assert [row["observed_at"] for row in rows] == last
    assert [str(row["price_usd"]) for row in rows] == [prices[moment] for moment in last]
    assert {row["name"] for row in rows} == {"Bitcoin"}
    assert [row["thinned_count"] for row in rows] == [23, 23, 23, 23, 3]
    expected = plain_candles("1d", [(moment, Decimal(price)) for moment, price in prices.items()])
    assert await read_candles(database, "coingecko", "bitcoin", "1d") == expected


async def test_no_record_stands_for_records_with_other_labels(
    database: Database, connection: Connection
) -> None:
    """An id may mean another coin from some hour of a day on. Neither gets a price of the other."""
    names = {hour: "Bitcoin" if hour < 10 else "Another Coin" for hour in range(24)}
    await load_records(
        database,
        "coingecko",
        *(
            make_record("bitcoin", BEGIN + hour * HOUR, name=name, price_usd="1")
            for hour, name in names.items()
        ),
    )

    assert await keep_up(database, NOW, "1d") == 1

    rows = await connection.fetch(
        "SELECT name, observed_at, thinned_from, thinned_count FROM unified_history ORDER BY observed_at"
    )
    assert [tuple(row) for row in rows] == [
        ("Bitcoin", BEGIN + 9 * HOUR, BEGIN, 9),
        ("Another Coin", BEGIN + 23 * HOUR, BEGIN + 10 * HOUR, 13),
    ]
    (candle,) = await read_candles(database, "coingecko", "bitcoin", "1d")
    assert candle[-1] == 24


async def test_month_is_thinned_by_the_step_of_its_age(database: Database, connection: Connection) -> None:
    prices = {BEGIN + n * HOUR / 4: str(n) for n in range(400)}
    await load(database, prices)
    steps = HistoryRetention((Thinning(timedelta(days=90), "1h"), Thinning(timedelta(days=730), "1d")))
    counts = []
    await keep_up(database, NOW)
    async with AdvisoryLease(database, "history") as lease:
        assert await lease.acquire()
        for days in (89, 90, 729, 730):
            end_of_month = datetime(2024, 4, 1, tzinfo=UTC)
            await history_upkeep.thin(lease, steps, end_of_month + timedelta(days=days))
            counts.append(await records(connection))
    assert counts == [400, 100, 100, 5]


async def test_clock_that_is_ahead_thins_nothing(database: Database, connection: Connection) -> None:
    """Ages count from the newest moment that an upstream sent, if the clock is later."""
    await load(database, hourly(100))
    await connection.execute("UPDATE unified_data SET listing_state = 0")
    assert await keep_up(database, NOW, "1d") == 0
    await load(database, {NOW: "1"}, source_id="ethereum")
    await connection.execute("UPDATE unified_data SET listing_state = 0")
    assert await keep_up(database, NOW + timedelta(days=3_650), "1d") == 1


async def test_changed_month_waits_until_its_candles_are_current(
    database: Database, connection: Connection
) -> None:
    await load(database, hourly(50))
    assert await keep_up(database, NOW, "1d", candles=False) == 0
    assert await records(connection) == 50


async def test_known_records_of_a_thinned_month_are_not_loaded_again(
    database: Database, connection: Connection
) -> None:
    await load(database, hourly(100))
    await keep_up(database, NOW, "1d")
    before = await connection.fetch("SELECT * FROM unified_history ORDER BY observed_at")

    await load(database, hourly(100))

    assert await connection.fetch("SELECT * FROM unified_history ORDER BY observed_at") == before


async def test_known_part_of_a_file_of_a_thinned_month_is_not_loaded_again(
    database: Database, connection: Connection
) -> None:
    """Nothing is left of the batch, because all its moments belong to thinned records."""
    prices = hourly(48)
    whole, part = (
        make_batch(
            *(make_record("btc", moment, price_usd=price) for moment, price in given.items()),
            checkpoint=Checkpoint(key="v1:content", name="hours.csv", position=len(prices), complete=True),
        )
        for given in (prices, dict(list(prices.items())[:20]))
    )
    await load_batches(database, whole, source="csv")
    await keep_up(database, NOW, "1d")
    before = await connection.fetch("SELECT * FROM unified_history ORDER BY observed_at")

    await load_batches(database, part, source="csv")

    assert len(before) == 2
    assert await connection.fetch("SELECT * FROM unified_history ORDER BY observed_at") == before


async def test_late_records_of_a_thinned_month_are_added_and_thinned(
    database: Database, connection: Connection
) -> None:
    """What came before the first or after the last record of a day is new."""
    early, late = hourly(10, first=30), hourly(10, first=100)
    await load(database, early)
    await keep_up(database, NOW, "1d")
    more = {moment + timedelta(minutes=shift): "999" for moment in early for shift in (-600, 600)}
    assert not more.keys() & early.keys()
    first, last = min(early), max(early)
    more = {moment: price for moment, price in more.items() if not first <= moment <= last}

    await load(database, {**late, **more})
    await keep_up(database, NOW + timedelta(days=1), "1d")

    prices = {**early, **late, **more}
    expected = plain_candles("1d", [(moment, Decimal(price)) for moment, price in prices.items()])
    assert await read_candles(database, "coingecko", "bitcoin", "1d") == expected
    assert await records(connection) == len(expected)


async def test_corrected_close_of_a_thinned_day_changes_its_candle(
    database: Database, connection: Connection
) -> None:
    """Also if it was the highest price of the day."""
    moments = [BEGIN + n * HOUR for n in range(3)]
    await load(database, dict(zip(moments, ["5", "4", "9"], strict=True)))
    await keep_up(database, NOW, "1d")
    assert await records(connection) == 1

    await load(database, {moments[-1]: "3"})

    (candle,) = await read_candles(database, "coingecko", "bitcoin", "1d")
    assert list(candle[1:]) == [5, 5, 3, 3, 3]


async def test_day_is_answered_from_records_until_its_candle_is_current(
    database: Database, connection: Connection
) -> None:
    await load(database, hourly(48))
    await keep_up(database, NOW)
    await connection.execute("UPDATE daily_candles SET count = 1000")

    await load(database, {BEGIN + timedelta(hours=24, minutes=1): "1"})

    counts = [candle[5] for candle in await read_candles(database, "coingecko", "bitcoin", "1d")]
    assert counts == [1000, 25]


async def test_batch_that_commits_while_candles_are_computed_is_not_lost(
    database: Database, connection: Connection
) -> None:
    await load(database, hourly(24))
    batch = connection.transaction()
    await batch.start()
    statement = (
        "INSERT INTO unified_history (source, source_id, observed_at, price_usd, recorded_at, content_hash)"
        " VALUES ('coingecko', 'bitcoin', $1, 1000000, now(), gen_random_uuid())"
    )
    await connection.execute(statement, BEGIN + timedelta(minutes=1))
    await connection.execute(
        "INSERT INTO history_months AS known (source, month, changed_from, stale_from, thinned_completely)"
        " VALUES ('coingecko', '2024-03-01', $1, 'infinity', false) ON CONFLICT (source, month)"
        " DO UPDATE SET changed_from = excluded.changed_from"
        " WHERE excluded.changed_from < known.changed_from",
        BEGIN + timedelta(minutes=1),
    )
    computing = asyncio.create_task(keep_up(database, NOW))
    await query_waits(connection)
    await batch.commit()
    await computing
    (candle,) = await read_candles(database, "coingecko", "bitcoin", "1d")
    assert candle[2] == 1_000_000


async def test_month_in_use_is_thinned_when_it_is_free(
    database: Database, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader is not waited for, and nobody waits behind it for longer than an instant."""
    monkeypatch.setattr(history_upkeep, "ATTEMPT_PAUSE_S", 0.01)
    await load(database, hourly(100))
    reader = connection.transaction()
    await reader.start()
    await connection.fetch("SELECT FROM unified_history LIMIT 1")
    thinning = asyncio.create_task(keep_up(database, NOW, "1d"))
    await query_waits(connection)

    await load(database, {NOW: "7"})
    assert len(await read_candles(database, "coingecko", "bitcoin", "1w")) == 3
    await reader.rollback()

    assert await thinning == 1
    assert await records(connection) == 6


async def test_month_that_changes_while_it_is_thinned_stays_as_it_is(
    database: Database, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_upkeep, "ATTEMPT_PAUSE_S", 0.01)
    await load(database, hourly(100))
    reader = connection.transaction()
    await reader.start()
    await connection.fetch("SELECT FROM unified_history LIMIT 1")
    thinning = asyncio.create_task(keep_up(database, NOW, "1d"))
    await query_waits(connection)
    await load(database, {BEGIN + timedelta(minutes=1): "7"})
    await reader.rollback()

    assert await thinning == 0
    assert await records(connection) == 101
    assert await keep_up(database, NOW + timedelta(days=1), "1d") == 1
    assert await records(connection) == 5


async def test_one_process_at_a_time_works(database: Database) -> None:
    async with AdvisoryLease(database, "history") as first, AdvisoryLease(database, "history") as second:
        assert await first.acquire()
        assert not await second.acquire()


def daily_file(path: Path, price: str, *, days: int = 20, hours: range = range(0, 24, 6)) -> Path:
    """Write an archive of Bitcoin with a price every few hours of March 2024."""
    rows = "".join(
        f"{BEGIN + timedelta(days=day, hours=hour):%Y-%m-%dT%H:%M:%SZ},{price}{day}{hour:02}\n"
        for day in range(days)
        for hour in hours
    )
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"time,price_usd\n{rows}")
    return path


@pytest.mark.slow
async def test_archives_that_meet_in_a_thinned_month_can_be_taken_back(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    """Records of two files never become one, so forgetting a file leaves exactly the other."""
    daily_file(tmp_path / "a" / "btc-usd.csv", "1")
    await run_sources(database, [Archives(str(tmp_path))], clock=CLOCK)
    expected = await read_candles(database, "csv", "btc", "1d")
    daily_file(tmp_path / "b" / "btc-usd.csv", "2", hours=range(3, 24, 6))
    daily_file(tmp_path / "c" / "btc-usd.csv", "3", days=2)
    await run_sources(database, [Archives(str(tmp_path))], clock=CLOCK)
    both = await read_candles(database, "csv", "btc", "1d")
    before = await records(connection)

    assert await keep_up(database, ARCHIVES_NOW, "1d") == 1

    assert await records(connection) < before / 2
    assert await read_candles(database, "csv", "btc", "1d") == both
    for name in ("b/btc-usd.csv", "c/btc-usd.csv"):
        await run_sources(database, [ForgottenArchive(name)], "forget", clock=CLOCK)
    assert await read_candles(database, "csv", "btc", "1d") == expected
    assert await connection.fetchval("SELECT count(*) FROM shared_records") == 0


@pytest.mark.slow
async def test_archive_that_grows_in_a_thinned_month_is_continued(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    path = daily_file(tmp_path / "a" / "btc-usd.csv", "1", days=10)
    await run_sources(database, [Archives(str(tmp_path))], clock=CLOCK)
    await keep_up(database, ARCHIVES_NOW, "1d")

    daily_file(path, "1", days=12)
    await run_sources(database, [Archives(str(tmp_path))], clock=CLOCK)

    candles = await read_candles(database, "csv", "btc", "1d")
    assert [candle[5] for candle in candles] == [4] * 12


KILLED = """
import asyncio, sys
from datetime import datetime, timedelta
from kasparro.store import history, history_upkeep
from kasparro.store.locks import AdvisoryLease
from kasparro.store.pool import Database
from tests.support.histories import retention

async def main():
    async with Database(sys.argv[1]) as database, AdvisoryLease(database, "history") as lease:
        assert await lease.acquire()
        now = datetime.fromisoformat(sys.argv[2])
        print("begins", flush=True)
        await history_upkeep.compute_candles(lease, now)
        await history_upkeep.thin(lease, retention("1d"), now)
        print("done", flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_killed_at_any_moment_it_continues(
    database: Database, database_url: str, connection: Connection
) -> None:
    """The process is killed later and later, until it comes to its end."""
    prices = {
        source_id: {
            moment + month * timedelta(days=31): price
            for month in (-2, -1, 0)
            for moment, price in hourly(200).items()
        }
        for source_id in ("bitcoin", "ethereum", "tether")
    }
    for source_id, of_coin in prices.items():
        await load(database, of_coin, source_id)
    await connection.execute("UPDATE run_sources SET status = 'succeeded'")
    expected = {
        source_id: plain_candles("1d", [(moment, Decimal(price)) for moment, price in of_coin.items()])
        for source_id, of_coin in prices.items()
    }
    for attempt in range(200):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", KILLED, database_url, NOW.isoformat()),
            stdout=asyncio.subprocess.PIPE,
            env=os.environ,
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"begins\n"
        finished = asyncio.create_task(process.stdout.readline())
        done, _ = await asyncio.wait({finished}, timeout=attempt * 0.01)
        if not done:
            process.send_signal(signal.SIGKILL)
        ended = await finished == b"done\n"
        await process.wait()
        for source_id, candles in expected.items():
            assert await read_candles(database, "coingecko", source_id, "1d") == candles
        if ended:
            break
        # The server ends what the process began, and with it the session that holds the lock.
        await _session_is_over(connection)
    assert ended
    assert await records(connection) == sum(len(candles) for candles in expected.values())
    tables = await connection.fetch(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '_(new|old)$'"
    )
    assert tables == []


async def _session_is_over(connection: Connection) -> None:
    while await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name LIKE 'kasparro history%')"
    ):
        await connection.execute("SELECT pg_stat_clear_snapshot()")
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "value",
    [
        "raw",
        "raw:90d",
        "raw:90d,1d:5y",
        "1h:90d,raw:forever",
        "raw:90d,1d:2y,1h:forever",
        "raw:2y,1h:90d,1d:forever",
        "raw:90d,1h:90d,1d:forever",
        "raw:forever,1d:forever",
        "raw:0d,1d:forever",
        "raw:90,1d:forever",
        "raw:90d,2h:forever",
        "raw:90d,1d:forever,",
    ],
)
def test_unusable_retention_is_an_error(value: str) -> None:
    with pytest.raises(SettingsError, match=r"KASPARRO_HISTORY_RETENTION is .*never deleted"):
        load_settings({"KASPARRO_HISTORY_RETENTION": value})


def test_retention_of_settings() -> None:
    def read(value: str) -> HistoryRetention:
        return load_settings({"KASPARRO_HISTORY_RETENTION": value}).history_retention

    day = timedelta(days=1)
    assert read("raw:90d, 1h:2y, 1d:forever").steps == (Thinning(90 * day, "1h"), Thinning(730 * day, "1d"))
    assert read("RAW:12w,1d:forever").steps == (Thinning(84 * day, "1d"),)
    assert read("raw:forever") == read("") == HistoryRetention()
    assert retention("1d").interval(day / 2) is None


async def test_lock_of_a_lost_session_is_taken_over(database: Database, database_url: str) -> None:
    holder = await asyncpg.connect(database_url)
    await holder.execute("SELECT pg_advisory_lock(hashtextextended('kasparro history', 0))")
    async with AdvisoryLease(database, "history") as lease:
        assert not await lease.acquire()
        await holder.close()
        assert await lease.acquire()


async def test_records_of_another_name_are_never_joined(database: Database, connection: Connection) -> None:
    """An id that a source gives to another coin within a day."""
    moments = [BEGIN + n * HOUR for n in range(6)]
    for number, moment in enumerate(moments):
        name = "Bitcoin" if number < 3 else "Stranger"
        await load_records(
            database, "coingecko", make_record("bitcoin", moment, name=name, price_usd=str(number + 1))
        )

    assert await keep_up(database, NOW, "1d") == 1

    rows = await connection.fetch("SELECT name, thinned_open FROM unified_history ORDER BY observed_at")
    assert [tuple(row) for row in rows] == [("Bitcoin", 1), ("Stranger", 4)]
    async with database.reading() as reader:
        part = history.Part("coingecko", "bitcoin", BEGIN, moments[3])
        statement = templates("read/history.sql")["candles"].compose(interval="1d", of_days=part.of_days)
        (row,) = await reader.fetch(statement.text, *statement.values(history.values([part])))
    assert row["line"] == (
        '{"time":"2024-03-01T00:00:00.000000Z","open":1,"high":3,"low":1,"close":3,"count":3}'
    )
