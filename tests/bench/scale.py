"""How latency grows with the number of rows in the table, and of records in the history."""

import asyncio
import json
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import UTC, datetime

import aiohttp
import asyncpg

from kasparro.store.selection import Selection
from tests.bench import measure, rows, servers
from tests.bench.servers import LIMIT, PATH

SMALL, LARGE = 15_000, 1_500_000
# The same in both tables, so that the page of a symbol has equally many rows.
ROWS_PER_SYMBOL = 150
COINS, MOMENTS = 10_000, 1_000
REQUESTS = 300


async def table_size() -> None:
    """Compare page 1, a deep page and a symbol's page, uncached, of a small and of a large table."""
    taken: dict[str, dict[int, list[float]]] = {}
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(measure.server())
        clients: dict[int, tuple[aiohttp.ClientSession, Iterator[str]]] = {}
        for count in (SMALL, LARGE):
            url = await measure.new_database(server, f"bench_{count}")
            await rows.current(url, count, count // ROWS_PER_SYMBOL)
            port = await stack.enter_async_context(_without_cache(url))
            session = await stack.enter_async_context(_client(port))
            clients[count] = session, await _deep_cursors(session, count)
        chance = random.Random(1)
        for _ in range(REQUESTS):
            for count, (session, cursors) in clients.items():
                symbol = f"c{chance.randrange(count // ROWS_PER_SYMBOL)}"
                for name, path in (
                    ("page 1", PATH),
                    ("deep cursor", f"{PATH}&cursor={next(cursors)}"),
                    ("symbol", f"{PATH}&symbol={symbol}"),
                ):
                    times = taken.setdefault(name, {}).setdefault(count, [])
                    times.append(await _seconds(session, path))
    print(f"\nuncached requests, median of {REQUESTS}; target: ratio of at most 1.5\n")
    print(f"| `GET /data` | {SMALL:,} rows, ms | {LARGE:,} rows, ms | ratio |")
    print("|---|---|---|---|")
    for name, by_count in taken.items():
        small, large = (statistics.median(by_count[count]) for count in (SMALL, LARGE))
        print(f"| {name} | {1e3 * small:.2f} | {1e3 * large:.2f} | {large / small:.2f} |")


async def as_of() -> None:
    """Compare a page `as_of` a moment within ten million records of history with the current page."""
    taken: dict[str, list[float]] = {"current": [], "as_of": []}
    async with measure.server() as server:
        url = await measure.new_database(server, "bench_as_of")
        await rows.current(url, COINS)
        await rows.history(url, COINS, MOMENTS)
        connection = await asyncpg.connect(url)
        try:
            before = await _scans(connection)
            async with _without_cache(url) as port, _client(port) as session:
                chance = random.Random(1)
                for _ in range(REQUESTS):
                    month, day, hour = chance.randint(1, 5), chance.randint(1, 28), chance.randrange(24)
                    path = f"{PATH}&as_of=2025-{month:02}-{day:02}T{hour:02}:00:00Z"
                    taken["current"].append(await _seconds(session, PATH))
                    taken["as_of"].append(await _seconds(session, path))
            after = await _scans(connection)
            plan = await _plan(connection, datetime(2025, 3, 1, tzinfo=UTC))
        finally:
            await connection.close()
    median = {name: statistics.median(times) for name, times in taken.items()}
    print(f"\n{COINS * MOMENTS:,} records of history, median of {REQUESTS}; target: ratio below 20\n")
    print("| `GET /data` | ms | ratio to the current page |")
    print("|---|---|---|")
    print(f"| {LIMIT} rows, current | {1e3 * median['current']:.2f} | |")
    print(
        f"| {LIMIT} rows, as_of | {1e3 * median['as_of']:.2f} | {median['as_of'] / median['current']:.1f} |"
    )
    scans, searches = (now - then for now, then in zip(after, before, strict=True))
    print(f"\nsequential scans of the history's partitions: {scans}; index scans: {searches}")
    print("plan of one as_of page:\n")
    print("\n".join(plan))


async def _plan(connection: "asyncpg.Connection[asyncpg.Record]", moment: datetime) -> list[str]:
    statement, values = await measure.page_statement(
        connection, Selection(sort="source", as_of=moment), LIMIT
    )
    explain = f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) {statement}"
    return [line for (line,) in await connection.fetch(explain, *values)]


def _without_cache(url: str) -> AbstractAsyncContextManager[int]:
    return servers.kasparro(url, KASPARRO_CACHE_MB="0")


def _client(port: int) -> aiohttp.ClientSession:
    # Without compression, whose time does not depend on the table.
    return aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers={"Accept-Encoding": "identity"})


async def _deep_cursors(session: aiohttp.ClientSession, count: int) -> Iterator[str]:
    # Cursors from the middle of the table on, one for each request.
    found: list[str] = []
    path = f"/data?limit=1&page={count // 2}"
    while len(found) < REQUESTS:
        async with session.get(path, raise_for_status=True) as response:
            cursor = json.loads(await response.read())["pagination"]["next_cursor"]
        found.append(cursor)
        path = f"/data?limit=1&cursor={cursor}"
    return iter(found)


async def _seconds(session: aiohttp.ClientSession, path: str) -> float:
    began = time.perf_counter()
    async with session.get(path, raise_for_status=True) as response:
        body = await response.read()
    took = time.perf_counter() - began
    if not json.loads(body)["data"]:
        raise RuntimeError(f"no rows: {path}")
    return took


async def _scans(connection: "asyncpg.Connection[asyncpg.Record]") -> tuple[int, int]:
    # PostgreSQL's sessions report their counts with a delay of up to a second.
    await asyncio.sleep(1)
    await connection.execute("SELECT pg_stat_clear_snapshot()")
    scans, searches = await connection.fetchrow(
        "SELECT sum(seq_scan)::bigint, sum(idx_scan)::bigint FROM pg_stat_user_tables "
        "WHERE relname LIKE 'unified_history%'"
    ) or (0, 0)
    return scans, searches
