"""A program that follows cursors through a whole list and parses each page: pages read ahead, or on request.

Without a cache, the service reads nothing ahead. The two services take turns.
"""

import http.client
import json
import statistics
import time
from contextlib import AsyncExitStack

import asyncpg

from tests.bench import measure, rows, servers
from tests.bench.reads import INCREMENT_VERSION, ROWS
from tests.bench.servers import PATH

ROUNDS = 7
# More than a service needs to notice a new data version.
NOTICE_S = 0.1


async def main() -> None:
    """Walk through both services, each on the first core, from the second one."""
    async with AsyncExitStack() as stack:
        url = await measure.new_database(
            await stack.enter_async_context(measure.server()), "bench_read_ahead"
        )
        await rows.current(url, ROWS)
        stack.enter_context(servers.load_on_core(1))
        ports = {
            "read ahead": await stack.enter_async_context(servers.kasparro(url)),
            "read on request": await stack.enter_async_context(servers.kasparro(url, KASPARRO_CACHE_MB="0")),
        }
        database = await asyncpg.connect(url)
        stack.push_async_callback(database.close)
        waited: dict[str, list[float]] = {title: [] for title in ports}
        walked: dict[str, list[float]] = {title: [] for title in ports}
        for _ in range(ROUNDS):
            for title, port in ports.items():
                # No page of an earlier walk is in the cache.
                await database.execute(INCREMENT_VERSION)
                time.sleep(NOTICE_S)  # noqa: ASYNC251 - nothing else runs here
                for_a_page, for_all = _walk(port)
                waited[title].append(for_a_page)
                walked[title].append(for_all)
        print(f"\n{ROWS:,} rows in pages of {servers.LIMIT}; medians of {ROUNDS} walks\n")
        print("| pages | wait for a page, ms | pages/s |")
        print("|---|---|---|")
        for title in ports:
            pages = ROWS / servers.LIMIT / statistics.median(walked[title])
            print(f"| {title} | {1e3 * statistics.median(waited[title]):.2f} | {pages:,.0f} |")


def _walk(port: int) -> tuple[float, float]:
    """The median time that the client waits for a page, and the time of the whole walk, in seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    path: str | None = PATH
    waited, began = [], time.perf_counter()
    while path is not None:
        asked = time.perf_counter()
        connection.request("GET", path)
        body = connection.getresponse().read()
        waited.append(time.perf_counter() - asked)
        path = json.loads(body)["pagination"]["next"]
    connection.close()
    return statistics.median(waited), time.perf_counter() - began
