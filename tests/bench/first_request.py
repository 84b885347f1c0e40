"""Time of the first request after a new data version, compared with a bare app with the same statement."""

import asyncio
import statistics
import time
from contextlib import AsyncExitStack

import aiohttp
import asyncpg

from kasparro.store.selection import Selection
from tests.bench import measure, rows, servers
from tests.bench.bare_app import BareResponse
from tests.bench.reads import INCREMENT_VERSION, NOTICE_S, ROWS, own_headers_removed

REQUESTS = 500
TARGET = 1.5


async def main() -> None:
    """Send single requests to both servers alternately, each after a new data version."""
    taken: dict[str, list[float]] = {"kasparro": [], "bare": []}
    async with AsyncExitStack() as stack:
        url = await measure.new_database(await stack.enter_async_context(measure.server()), "bench_first")
        await rows.current(url, ROWS)
        stack.enter_context(servers.load_on_core(1))
        database = await asyncpg.connect(url)
        stack.push_async_callback(database.close)
        kasparro = await _client(stack, await stack.enter_async_context(servers.kasparro(url)))
        response = await _response(kasparro, database)
        port = await stack.enter_async_context(servers.bare_app(response, DATABASE_URL=url))
        clients = {"kasparro": kasparro, "bare": await _client(stack, port)}
        await _check_same_rows(clients)
        etags = set()
        for _ in range(REQUESTS):
            for server, session in clients.items():
                await database.execute(INCREMENT_VERSION)
                await asyncio.sleep(NOTICE_S)
                began = time.perf_counter()
                async with session.get(servers.PATH, raise_for_status=True) as answer:
                    await answer.read()
                taken[server].append(time.perf_counter() - began)
                if server == "kasparro":
                    etags.add(answer.headers["ETag"])
        if len(etags) != REQUESTS:
            raise RuntimeError(f"{REQUESTS - len(etags)} responses came from the cache")
    median = {server: 1e3 * statistics.median(times) for server, times in taken.items()}
    print(f"\nfirst request after a new data version, {ROWS:,} rows, median of {REQUESTS:,}\n")
    print("| request | Kasparro, ms | bare app with the same statement, ms | Kasparro ÷ bare app | target |")
    print("|---|---|---|---|---|")
    print(
        f"| `{servers.PATH}` | {median['kasparro']:.2f} | {median['bare']:.2f} "
        f"| {median['kasparro'] / median['bare']:.2f} | at most {TARGET} |"
    )


async def _client(stack: AsyncExitStack, port: int) -> aiohttp.ClientSession:
    # Compression takes time, and its result is cached with the response.
    return await stack.enter_async_context(
        aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers={"Accept-Encoding": "identity"})
    )


async def _response(
    kasparro: aiohttp.ClientSession, database: "asyncpg.Connection[asyncpg.Record]"
) -> BareResponse:
    """Kasparro's response, divided where the statement's rows go."""
    statement, values = await measure.page_statement(database, Selection(), servers.LIMIT)
    (row,) = await database.fetch(statement, *values)
    async with kasparro.get(servers.PATH, raise_for_status=True) as answer:
        begin, lines, end = (await answer.read()).partition(row["lines"].encode())
    if not lines:
        raise RuntimeError("the recorded statement does not return the rows of Kasparro's response")
    headers = own_headers_removed(answer.headers.items())
    return BareResponse(answer.status, headers, begin, end, statement, [values])


async def _check_same_rows(clients: dict[str, aiohttp.ClientSession]) -> None:
    bodies = []
    for session in clients.values():
        async with session.get(servers.PATH, raise_for_status=True) as answer:
            bodies.append((await answer.read()).partition(b'"pagination"')[0])
    if bodies[0] != bodies[1]:
        raise RuntimeError("the bare app does not send Kasparro's rows")
