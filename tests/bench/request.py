"""Where the processor time of a request goes that no cache answers: by part of the service, and in PostgreSQL.

The application runs in this process, without uvicorn and sockets. The profiler's overhead makes parts with
many small calls look larger than they are; the sum without it is shown too.
"""

import asyncio
import cProfile
import pstats
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
from starlette.types import ASGIApp, Message, Scope

from kasparro.settings import Settings
from kasparro.store.pool import Database
from kasparro.web.app import create_app
from tests.bench import floor, measure, rows
from tests.bench.reads import ROWS
from tests.bench.servers import PATH

REQUESTS, WARM_UP = 1_000, 200
# The parts of the service, each with what the paths of its modules contain. The first that fits counts.
PARTS = {
    "response cache, entity tag": ("web/cache/", "web/shared_calls"),
    "parameters": ("web/openapi/parameters", "web/openapi/endpoint", "urllib/"),
    "cursor and links": ("web/openapi/pagination", "hmac", "base64"),
    "choice and values of the statement": ("store/", "web/routes/"),
    "connection pool": ("store/pool", "store/sessions", "fair_semaphore", "asyncpg/pool", "web/service"),
    "asyncpg: send, receive, decode": ("asyncpg/",),
    "middleware, routing, responses": ("web/", "starlette/", "structlog/"),
}
_ORDER = ("connection pool", *(part for part in PARTS if part != "connection pool"))
OTHER = "tasks, contexts and others"
_SUM, _WITHOUT_PROFILER = "**sum**", "the same without the profiler"
_SOURCES = ("coingecko", "coinpaprika", "csv")

Get = Callable[[str], Any]


async def main() -> None:
    """Print both tables."""
    async with measure.server() as server:
        url = await measure.new_database(server, "bench_request")
        await rows.current(url, ROWS)
        async with _application(url) as get:
            paths = {
                "one symbol": [f"{PATH}&symbol=c{number}" for number in range(rows.SYMBOLS)],
                "50 rows by cursor": await _cursor_paths(get),
                "one row": [f"/data/{_SOURCES[n % 3]}/coin-{n}" for n in range(1, ROWS + 1)],
            }
            spent = {title: await _profiled(get, of_title) for title, of_title in paths.items()}
        print(f"\nprocessor time of a request, µs; {REQUESTS:,} requests of each kind\n")
        print(f"| part | {' | '.join(spent)} |")
        print(f"|---{'|---' * len(spent)}|")
        for part in (*_ORDER, OTHER, _SUM, _WITHOUT_PROFILER):
            print(f"| {part} | {' | '.join(f'{of[part]:.0f}' for of in spent.values())} |")
        await _statements(url)


@asynccontextmanager
async def _application(url: str) -> AsyncIterator[Get]:
    """A function that requests a path of the application, without a cache, and returns the body."""
    settings = Settings(cache_mb=0, log_level="error")
    app = create_app(settings, database=Database(url), scheduler=None)
    never, started, stop = asyncio.Event(), asyncio.Event(), asyncio.Event()
    received = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def next_event() -> Message:
        message = next(received)
        if message["type"] == "lifespan.shutdown":
            await stop.wait()
        return message

    async def note(message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            started.set()

    lifespan = asyncio.create_task(_ended(app, next_event, note))
    await started.wait()

    async def receive() -> Message:
        await never.wait()
        raise RuntimeError("nothing is received")

    async def get(path: str) -> bytes:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        await app(_scope(path), receive, send)
        if sent[0]["status"] != 200:
            raise RuntimeError(f"{path}: {sent[0]['status']}")
        body: bytes = sent[1]["body"]
        return body

    try:
        yield get
    finally:
        stop.set()
        await lifespan


async def _ended(app: ASGIApp, receive: Any, send: Any) -> None:
    await app({"type": "lifespan", "state": {}}, receive, send)


def _scope(path: str) -> Scope:
    raw, _, query = path.encode().partition(b"?")
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": raw.decode(),
        "raw_path": raw,
        "query_string": query,
        "root_path": "",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
    }


async def _cursor_paths(get: Get) -> list[str]:
    # A cursor fits any limit, so cursors of pages of one row are collected.
    paths: list[str] = []
    path = f"/data?limit=1&page={ROWS // 2}"
    while len(paths) < 2 * (REQUESTS + WARM_UP):
        cursor = msgspec.json.decode(await get(path))["pagination"]["next_cursor"]
        paths.append(f"{PATH}&cursor={cursor}")
        path = f"/data?limit=1&cursor={cursor}"
    return paths


async def _profiled(get: Get, paths: Sequence[str]) -> dict[str, float]:
    # Microseconds by part. Waiting takes no processor time.
    for path in paths[:WARM_UP]:
        await get(path)
    measured = paths[WARM_UP : WARM_UP + REQUESTS]
    began = time.process_time()
    for path in measured:
        await get(path)
    plain = time.process_time() - began
    profiler = cProfile.Profile(time.process_time)
    with profiler:
        for path in measured:
            await get(path)
    by_function: dict[tuple[str, int, str], Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    seconds: dict[str, float] = defaultdict(float)
    for (file, _, _), (_, _, own, _, callers) in by_function.items():
        if file != "~":
            seconds[_part(file)] += own
            continue
        # What is not written in Python counts for its callers.
        for (caller, _, _), (_, _, of_caller, _) in callers.items():
            seconds[_part(caller)] += of_caller
    found = {part: 1e6 * seconds[part] / REQUESTS for part in (*PARTS, OTHER)}
    return found | {_SUM: sum(found.values()), _WITHOUT_PROFILER: 1e6 * plain / REQUESTS}


def _part(file: str) -> str:
    for part in _ORDER:
        if any(module in file for module in PARTS[part]):
            return part
    return OTHER


# The statements


async def _statements(url: str) -> None:
    """Print the processor time of PostgreSQL for the statements of Kasparro, and for those of the floor."""
    connection = await asyncpg.connect(url)
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    print("\nprocessor time of PostgreSQL for a statement, µs\n")
    print("| statement | Kasparro | floor |")
    print("|---|---|---|")
    for title, statements in (await floor.statements(connection)).items():
        costs = [await _postgres_us(connection, text, values) for text, values in statements]
        print(f"| {title} | {costs[0]:.0f} | {costs[1]:.0f} |")
    await connection.close()


async def _postgres_us(
    connection: "asyncpg.Connection[asyncpg.Record]", text: str, values: Sequence[Any]
) -> float:
    # The lowest of several measurements: other work on the machine only adds to the time.
    process = connection.get_server_pid()
    taken = []
    for _ in range(20):
        began = measure.processor_s(process)
        for _ in range(50):
            await connection.fetch(text, *values)
        taken.append((measure.processor_s(process) - began) / 50)
    return 1e6 * min(taken[1:])
