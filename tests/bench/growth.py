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
    """Let the history grow from 500,000 to 16 million records of 20,000 coins, an hour of all at a time."""
    clock = datetime(2026, 3, 1, tzinfo=UTC)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(measure.server())
        url = await measure.new_database(server, "bench_growth")
        await rows.current(url, COINS + len(MEASURED))
        await rows.hours(url, 0, HOURS_OF_YEAR, MEASURED)
        database = await stack.enter_async_context(Database(url))
        connection = await asyncpg.connect(url)
        stack.push_async_callback(connection.close)
        medians: dict[str, list[float]] = {}
        hours = 0
        print("\n| records | bytes of a record: table | index | loaded, records/s | candles, s |", end="")
        print("".join(f" {name}, ms |" for name in (*READS, "/data")))
        print("|---" * (5 + len(READS) + 1) + "|")
        for size in SIZES:
            until = size // COINS
            await rows.hours(url, hours, until - 1, range(MEASURED.stop, MEASURED.stop + COINS))
            hours = until
            rate = await _load(database, hours - 1)
            began = time.perf_counter()
            clock += timedelta(days=1)
            async with AdvisoryLease(database, "history") as lease:
                if not await lease.acquire():
                    raise RuntimeError("another process has the lock")
                await history_upkeep.compute_candles(lease, clock)
            computed = time.perf_counter() - began
            await connection.execute("VACUUM (ANALYZE)")
            count, table, index = await _bytes(connection)
            for name, milliseconds in (await _read(url)).items():
                medians.setdefault(name, []).append(milliseconds)
            figures = [
                f"{count:,}",
                f"{table / count:.0f}",
                f"{index / count:.0f}",
                f"{rate:,.0f}",
                f"{computed:.1f}",
                *(f"{taken[-1]:.2f}" for taken in medians.values()),
            ]
            print(f"| {' | '.join(figures)} |", flush=True)
        print("\nlargest ÷ smallest; target: at most 1.5")
        for name, taken in medians.items():
            print(f"  {name:25} {taken[-1] / taken[0]:.2f}")
        await _thin(database, connection, clock)


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


async def _read(url: str) -> dict[str, float]:
    # The median of each read in milliseconds, uncached, of different coins in turn.
    found: dict[str, list[float]] = {}
    async with (
        servers.kasparro(url, KASPARRO_CACHE_MB="0") as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers={"Accept-Encoding": "identity"}) as session,
    ):
        for number in range(REQUESTS):
            coin = MEASURED[number % len(MEASURED)]
            source = ("coingecko", "coinpaprika", "csv")[coin % 3]
            for name, query in READS.items():
                path = f"/data/{source}/coin-{coin}/history?{query}"
                found.setdefault(name, []).append(await _milliseconds(session, path))
            found.setdefault("/data", []).append(await _milliseconds(session, servers.PATH))
    return {name: statistics.median(taken) for name, taken in found.items()}


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
    began = time.perf_counter()
    async with AdvisoryLease(database, "history") as lease:
        if not await lease.acquire():
            raise RuntimeError("another process has the lock")
        steps = HistoryRetention((Thinning(timedelta(days=1), "1d"),))
        await history_upkeep.compute_candles(lease, clock)
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
