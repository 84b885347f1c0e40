"""How the history grows: its size, and the times to load and to read it, at each doubling."""

import random
import statistics
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import aiohttp
import asyncpg

from kasparro.model.batch import BatchBuilder
from kasparro.model.history_retention import HistoryRetention, Thinning
from kasparro.model.record import Record
from kasparro.store import history_upkeep
from kasparro.store.loader import Loader
from kasparro.store.locks import AdvisoryLease
from kasparro.store.pool import Database
from kasparro.store.runs import RunRecord
from tests.bench import measure, rows, servers

COINS = 20_000
# These have a record for each hour of a year, at all sizes.
MEASURED = range(1, 21)
HOURS_OF_YEAR = 8_760
SIZES = [500_000 * 2**step for step in range(6)]
REQUESTS = 200
BATCH_ROWS = 5_000
READS = {
    "a year of daily candles": "interval=1d&from=2025-01-01&to=2025-12-31&limit=1000",
    "50 points": "from=2025-01-10T00:00:00Z",
}


async def main() -> None:
    """Let the history grow from 500,000 to 16 million records of 20,000 coins, an hour of all at a time.

    Each read is compared with the same read of a history that stays at the smallest size, in turn.
    """
    clock = datetime(2026, 3, 1, tzinfo=UTC)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(measure.server())
        small, url = [await measure.new_database(server, f"bench_{name}") for name in ("small", "growth")]
        for each in (small, url):
            await rows.current(each, COINS + len(MEASURED))
            await rows.hours(each, 0, HOURS_OF_YEAR, MEASURED)
        await rows.hours(small, 0, SIZES[0] // COINS, range(MEASURED.stop, MEASURED.stop + COINS))
        async with Database(small) as database:
            await _compute(database, clock)
        database = await stack.enter_async_context(Database(url))
        connection = await asyncpg.connect(url)
        stack.push_async_callback(connection.close)
        hours = 0
        print("\n| records | bytes of a record: table | index | loaded, records/s | candles, s |", end="")
        print("".join(f" {name}, ms (÷ smallest) |" for name in (*READS, "/data")))
        print("|---" * (5 + len(READS) + 1) + "|")
        for size in SIZES:
            until = size // COINS
            await rows.hours(url, hours, until - 1, range(MEASURED.stop, MEASURED.stop + COINS))
            hours = until
            rate = await _load(database, hours - 1)
            clock += timedelta(days=1)
            computed = await _compute(database, clock)
            await connection.execute("VACUUM (ANALYZE)")
            count, table, index = await _bytes(connection)
            reads = await _read(small, url)
            figures = [
                f"{count:,}",
                f"{table / count:.0f}",
                f"{index / count:.0f}",
                f"{rate:,.0f}",
                f"{computed:.1f}",
                *(f"{grown:.2f} ({grown / smallest:.2f})" for smallest, grown in reads.values()),
            ]
            print(f"| {' | '.join(figures)} |", flush=True)
        print("\ntarget: every read at most 1.5 times as long as that of the smallest history")
        await _thin(database, connection, clock)


async def _compute(database: Database, now: datetime) -> float:
    # The seconds that the candles take.
    began = time.perf_counter()
    async with AdvisoryLease(database, "history") as lease:
        if not await lease.acquire():
            raise RuntimeError("another process has the lock")
        await history_upkeep.compute_candles(lease, now)
    return time.perf_counter() - began


async def _load(database: Database, hour: int) -> float:
    # Records per second of the loader, for one hour of all coins.
    moment = datetime(2025, 1, 1, tzinfo=UTC) + hour * timedelta(hours=1)
    chance = random.Random(hour)
    batches, builder = [], BatchBuilder()
    for n in range(MEASURED.stop, MEASURED.stop + COINS):
        if n % 3 == 0:
            supply = str(n * 1_000)
            builder.add(
                Record(
                    source_id=f"coin-{n}",
                    symbol=f"c{n % rows.SYMBOLS}",
                    name=f"Coin number {n}",
                    rank=n,
                    observed_at=moment + timedelta(seconds=n % 3_000),
                    price_usd=f"{chance.random() * 100:.16f}",
                    market_cap_usd=str(chance.randrange(10**9)),
                    volume_24h_usd=f"{chance.randrange(10**9) / 100:.2f}",
                    circulating_supply=supply,
                    total_supply=supply,
                    percent_change_1h=f"{chance.uniform(-5, 5):.2f}",
                    percent_change_24h=f"{chance.uniform(-9, 9):.2f}",
                    percent_change_7d=f"{chance.uniform(-20, 20):.2f}",
                )
            )
        if n % BATCH_ROWS == 0:
            batches.append(builder.take(None))
    batches.append(builder.take(None))
    run = await RunRecord.start(database, "etl", ("coingecko",), moment)
    loader = Loader(database, run.id, "coingecko")
    began = time.perf_counter()
    for batch in batches:
        await loader.load(batch, datetime.now(UTC))
    taken = time.perf_counter() - began
    await run.finish("succeeded", None, datetime.now(UTC))
    async with database.writing() as connection:
        await connection.execute("UPDATE run_sources SET status = 'succeeded'")
    return sum(batch.rows for batch in batches) / taken


async def _bytes(connection: "asyncpg.Connection[asyncpg.Record]") -> tuple[int, int, int]:
    # Records, and the bytes of the tables and of the indexes of the history.
    count = await connection.fetchval("SELECT count(*) FROM unified_history")
    row = await connection.fetchrow(
        "SELECT sum(pg_table_size(relid))::bigint, sum(pg_indexes_size(relid))::bigint"
        " FROM pg_partition_tree('unified_history') WHERE isleaf"
    )
    if row is None:
        raise AssertionError("an aggregate returns a row")
    return count, row[0], row[1]


async def _read(*urls: str) -> dict[str, list[float]]:
    # The median of each read in milliseconds, uncached, of different coins in turn: one for each database.
    found: dict[tuple[str, str], list[float]] = {}
    async with AsyncExitStack() as stack:
        sessions = {}
        for url in urls:
            port = await stack.enter_async_context(servers.kasparro(url, KASPARRO_CACHE_MB="0"))
            sessions[url] = await stack.enter_async_context(
                aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers={"Accept-Encoding": "identity"})
            )
        for number in range(REQUESTS):
            coin = MEASURED[number % len(MEASURED)]
            source = ("coingecko", "coinpaprika", "csv")[coin % 3]
            history = f"/data/{source}/coin-{coin}/history?"
            paths = {name: history + query for name, query in READS.items()} | {"/data": servers.PATH}
            for name, path in paths.items():
                for url, session in sessions.items():
                    found.setdefault((name, url), []).append(await _milliseconds(session, path))
    return {name: [statistics.median(found[name, url]) for url in urls] for name in (*READS, "/data")}


async def _milliseconds(session: aiohttp.ClientSession, path: str) -> float:
    began = time.perf_counter()
    async with session.get(path, raise_for_status=True) as response:
        await response.read()
    return 1e3 * (time.perf_counter() - began)


async def _thin(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", clock: datetime
) -> None:
    before = await _bytes(connection)
    # As if the upstreams were a year further.
    await connection.execute("UPDATE unified_data SET listing_state = 2")
    await _compute(database, clock)
    began = time.perf_counter()
    async with AdvisoryLease(database, "history") as lease:
        if not await lease.acquire():
            raise RuntimeError("another process has the lock")
        steps = HistoryRetention((Thinning(timedelta(days=1), "1d"),))
        months = await history_upkeep.thin(lease, steps, clock)
    taken = time.perf_counter() - began
    after = await _bytes(connection)
    print(
        f"\nthinned {months} months to one record a day in {taken:.0f} s:"
        f" {before[0]:,} records, {sum(before[1:]) / 1e9:.2f} GB;"
        f" {after[0]:,} left, {sum(after[1:]) / 1e9:.2f} GB"
    )
    size, count = await connection.fetchrow(
        "SELECT pg_total_relation_size('daily_candles'), count(*) FROM daily_candles"
    ) or (0, 1)
    print(f"daily candles: {count:,}, {size / count:.0f} bytes each with the index")
