"""Whether an answer's time depends on how much there is: rows in the table, records in the history."""

import asyncio
import json
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import UTC, datetime
from typing import Any, cast

import aiohttp
import asyncpg

from kasparro.store import queries
from kasparro.store.pool import Connection
from kasparro.store.row_counts import Totals
from kasparro.store.selection import Selection
from tests.bench import measure, reads, rows

SMALL, LARGE = 15_000, 1_500_000
# Of each, so that a page of one shows as much of either table.
ROWS_OF_A_SYMBOL = 150
COINS, MOMENTS = 10_000, 1_000
ASKED = 300


async def rows_in_the_table() -> None:
    """Page 1, a page deep inside and a symbol, each asked anew, of a small and of a large table by turns."""
    taken: dict[str, dict[int, list[float]]] = {}
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(measure.server())
        asking: dict[int, tuple[aiohttp.ClientSession, Iterator[str]]] = {}
        for count in (SMALL, LARGE):
            url = await measure.fresh(server, f"bench_{count}")
            await rows.current(url, count, count // ROWS_OF_A_SYMBOL)
            port = await stack.enter_async_context(_uncached(url))
            session = await stack.enter_async_context(_client(port))
            asking[count] = session, await _cursors(session, count)
        chance = random.Random(1)
        for _ in range(ASKED):
            for count, (session, cursors) in asking.items():
                symbol = f"c{chance.randrange(count // ROWS_OF_A_SYMBOL)}"
                for name, path in (
                    ("page 1", reads.PATH),
                    ("deep cursor", f"{reads.PATH}&cursor={next(cursors)}"),
                    ("symbol", f"{reads.PATH}&symbol={symbol}"),
                ):
                    times = taken.setdefault(name, {}).setdefault(count, [])
                    times.append(await _asked(session, path))
    print(f"\nmilliseconds of an answer made anew, medians of {ASKED}; target: within 1.5 times\n")
    print(f"| `GET /data` | {SMALL:,} rows | {LARGE:,} rows | times |")
    print("|---|---|---|---|")
    for name, of in taken.items():
        small, large = (statistics.median(of[count]) for count in (SMALL, LARGE))
        print(f"| {name} | {1e3 * small:.2f} | {1e3 * large:.2f} | {large / small:.2f} |")


async def as_of() -> None:
    """A page as of a moment in the midst of ten million records of history, beside the plain page."""
    taken: dict[str, list[float]] = {"plain": [], "as_of": []}
    async with measure.server() as server:
        url = await measure.fresh(server, "bench_as_of")
        await rows.current(url, COINS)
        await rows.history(url, COINS, MOMENTS)
        connection = await asyncpg.connect(url)
        try:
            before = await _scans(connection)
            async with _uncached(url) as port, _client(port) as session:
                chance = random.Random(1)
                for _ in range(ASKED):
                    month, day, hour = chance.randint(1, 5), chance.randint(1, 28), chance.randrange(24)
                    path = f"{reads.PATH}&as_of=2025-{month:02}-{day:02}T{hour:02}:00:00Z"
                    taken["plain"].append(await _asked(session, reads.PATH))
                    taken["as_of"].append(await _asked(session, path))
            after = await _scans(connection)
            plan = await _plan(connection, datetime(2025, 3, 1, tzinfo=UTC))
        finally:
            await connection.close()
    median = {name: statistics.median(times) for name, times in taken.items()}
    print(f"\n{COINS * MOMENTS:,} records of history, medians of {ASKED}; target: under 20 times\n")
    print("| `GET /data` | ms | times |")
    print("|---|---|---|")
    print(f"| {reads.LIMIT} rows | {1e3 * median['plain']:.2f} | |")
    print(f"| …as of a moment | {1e3 * median['as_of']:.2f} | {median['as_of'] / median['plain']:.1f} |")
    scans, searches = (now - then for now, then in zip(after, before, strict=True))
    print(f"\nscans of the history's tables meanwhile: {scans}; of their indexes: {searches}")
    print("the plan of one, made for its moment:\n")
    print("\n".join(plan))


class _Explained:
    # A connection that has statements explained besides.
    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._connection = connection
        self.plan: list[str] = []

    async def fetch(self, text: str, *values: Any) -> Any:
        explained = f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) {text}"
        self.plan = [line for (line,) in await self._connection.fetch(explained, *values)]
        return await self._connection.fetch(text, *values)


async def _plan(connection: "asyncpg.Connection[asyncpg.Record]", moment: datetime) -> list[str]:
    explained = _Explained(connection)
    asked = Selection(sort="source", as_of=moment)
    await queries.page(cast("Connection", explained), Totals(), asked, limit=reads.LIMIT)
    return explained.plan


def _uncached(url: str) -> AbstractAsyncContextManager[int]:
    # Every answer is made anew.
    return reads.serving(url, KASPARRO_CACHE_MB="0")


def _client(port: int) -> aiohttp.ClientSession:
    # Packing takes its own time, once for an answer that is kept.
    return aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers={"Accept-Encoding": "identity"})


async def _cursors(session: aiohttp.ClientSession, count: int) -> Iterator[str]:
    # Cursors that stand deep inside, each for one request.
    found: list[str] = []
    path = f"/data?limit=1&page={count // 2}"
    while len(found) < ASKED:
        async with session.get(path, raise_for_status=True) as response:
            cursor = json.loads(await response.read())["pagination"]["next_cursor"]
        found.append(cursor)
        path = f"/data?limit=1&cursor={cursor}"
    return iter(found)


async def _asked(session: aiohttp.ClientSession, path: str) -> float:
    began = time.perf_counter()
    async with session.get(path, raise_for_status=True) as response:
        body = await response.read()
    took = time.perf_counter() - began
    if not json.loads(body)["data"]:
        raise RuntimeError(f"no rows: {path}")
    return took


async def _scans(connection: "asyncpg.Connection[asyncpg.Record]") -> tuple[int, int]:
    # What PostgreSQL counts arrives a moment after its sessions ended.
    await asyncio.sleep(1)
    await connection.execute("SELECT pg_stat_clear_snapshot()")
    scans, searches = await connection.fetchrow(
        "SELECT sum(seq_scan)::bigint, sum(idx_scan)::bigint FROM pg_stat_user_tables "
        "WHERE relname LIKE 'unified_history%'"
    ) or (0, 0)
    return scans, searches
