"""Answers a second of `/data` in each of its ways, beside a bare ASGI app that sends the same bytes from one
uvicorn, and beside the usual stack on the same table."""

import asyncio
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial

import aiohttp
import asyncpg
import msgspec
import stamina

from kasparro.store.sql import statements
from tests.bench import measure, rows, wrk
from tests.bench.wrk import Load

ROUNDS, SECONDS, CONNECTIONS = 3, 2, (1, 16, 128)
ROWS, LIMIT = 15_000, 50
DEEP_PAGES = 5_000
PATH = f"/data?limit={LIMIT}"
EXPORT = "/data.csv"
_MOVE_VERSION = statements("load/progress.sql")["increment_version"]
SERVERS = ("kasparro", "bare", "usual")
# What a server adds by itself, or tells of the one request it was.
OWN_HEADERS = {"date", "x-request-id", "server-timing"}
# By then a service has long heard of a commit.
HEARD_S = 0.02


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A way to ask: the paths, one after the other, and the usual stack's for the same rows.

    `long`: an answer takes so long that those underway count. `anew`: the version of the data moves before
    each, so that no answer is kept from before. `once`: it moves before each round, in which no path comes
    twice.
    """

    title: str
    target: str = ""
    paths: Sequence[str]
    usual: Sequence[str] = ()
    headers: Sequence[str] = ()
    long: bool = False
    anew: bool = False
    one_off: bool = False


class Bench:
    """The three servers over one table."""

    def __init__(self, database: "asyncpg.Connection[asyncpg.Record]", ours: int, usual: int) -> None:
        self._database = database
        self._ports = {"kasparro": ours, "usual": usual}

    async def move_version(self) -> None:
        """Make every answer that is kept an old one, as a commit of the loader does, and let it be heard."""
        await self._database.execute(_MOVE_VERSION)
        await asyncio.sleep(HEARD_S)

    async def get(self, server: str, path: str, headers: Sequence[str] = ()) -> "UpstreamResponse":
        """One answer."""
        url = f"http://127.0.0.1:{self._ports[server]}"
        # As wrk asks, which takes no coding.
        asked = ["Accept-Encoding: identity", *headers]
        async with (
            aiohttp.ClientSession(url) as session,
            session.get(path, headers=dict(header.split(": ", 1) for header in asked)) as response,
        ):
            told = [(name, value) for name, value in response.headers.items()]
            return UpstreamResponse(response.status, told, await response.read())

    async def run(
        self, case: Case, connections: Sequence[int], rounds: int, seconds: float
    ) -> dict[int, dict[str, list[Load]]]:
        """What each server bore with so many connections, each alone for some seconds, by turns."""
        answer = await self.get("kasparro", case.paths[0], case.headers)
        if answer.status >= 400:
            raise RuntimeError(f"{case.paths[0]}: {answer.status}")
        found: dict[int, dict[str, list[Load]]] = {}
        with tempfile.NamedTemporaryFile() as file:
            kept = [pair for pair in answer.headers if pair[0].lower() not in OWN_HEADERS]
            file.write(json.dumps([answer.status, kept]).encode() + b"\n" + answer.body)
            file.flush()
            async with running("-m", "tests.bench.bare", file.name) as bare:
                ports = self._ports | {"bare": bare}
                sizes = {"kasparro": len(answer.body), "bare": len(answer.body)}
                if not case.usual:
                    del ports["usual"]
                elif case.long:
                    sizes["usual"] = len((await self.get("usual", case.usual[0])).body)
                for count in connections:
                    loads: dict[str, list[Load]] = {server: [] for server in SERVERS if server in ports}
                    for _ in range(rounds):
                        for server, taken in loads.items():
                            paths = case.usual if server == "usual" else case.paths
                            ask: Callable[..., Awaitable[Load]] = wrk.load
                            if case.long:
                                ask = partial(wrk.load, size=sizes[server])
                            elif case.anew:
                                ask = partial(_burst, self.move_version)
                            elif case.one_off:
                                await self.move_version()
                            taken.append(
                                await ask(
                                    ports[server],
                                    paths,
                                    connections=count,
                                    seconds=seconds,
                                    headers=case.headers,
                                )
                            )
                    found[count] = loads
                    _told(case, count, loads)
        return found


class UpstreamResponse(msgspec.Struct, frozen=True):
    """Status, headers and body."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of a header; None where there is none."""
        return next((value for told, value in self.headers if told.lower() == name.lower()), None)


async def main(
    names: Sequence[str],
    connections: Sequence[int] = CONNECTIONS,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
) -> None:
    """Load the servers by turns, each alone on the first core, with wrk on the second."""
    wrk.need()
    async with AsyncExitStack() as stack:
        url = await measure.fresh(await stack.enter_async_context(measure.server()), "bench_reads")
        await rows.current(url, ROWS)
        stack.enter_context(_on_core(1))
        ours = await stack.enter_async_context(serving(url))
        usual = await stack.enter_async_context(running("-m", "tests.bench.reference", DATABASE_URL=url))
        database = await asyncpg.connect(url)
        stack.push_async_callback(database.close)
        bench = Bench(database, ours, usual)
        await _agree(bench)
        lines = []
        for name in names:
            case = await CASES[name](bench)
            found = await bench.run(case, connections, rounds, seconds)
            lines.append(_row(case, found))
            if name == "export":
                first = await _first_byte({"kasparro": ours, "usual": usual})
                rate = ROWS * _median(found[connections[0]]["kasparro"], "rate")
                print(f"  {rate:,.0f} rows/s over one of them; first byte after {first['kasparro']:.1f} ms,")
                print(f"  the usual stack's after {first['usual']:.1f} ms")
    print(f"\n{ROWS:,} rows, one core; medians of {rounds} rounds of {seconds} s by turns;")
    print(f"at {' · '.join(map(str, connections))} connections\n")
    print("| `GET /data` | answers/s | of the bare app's | p99, of its | times the usual stack's | target |")
    print("|---|---|---|---|---|---|")
    print("\n".join(lines))


def serving(url: str, **environment: str) -> AbstractAsyncContextManager[int]:
    """The service as people run it, but for its background runs; gives its port."""
    told = {"DATABASE_URL": url, "KASPARRO_INTERVAL": "off", "KASPARRO_LOG_LEVEL": "error"}
    return running("-m", "kasparro", "serve", "--port", **told, **environment)


async def _agree(bench: Bench) -> None:
    # A comparison is worth something only between answers that say the same.
    ours, usual = [json.loads((await bench.get(name, PATH)).body) for name in ("kasparro", "usual")]
    keys = [[(row["source"], row["source_id"]) for row in page["data"]] for page in (ours, usual)]
    if keys[0] != keys[1] or ours["pagination"]["total"] != usual["pagination"]["total"]:
        raise RuntimeError("the usual stack's first page is another one")


# The cases


async def _warm(bench: Bench) -> Case:
    target = "0.7 of the bare app's, p99 up to 2, 20 times the usual stack's"
    return Case(title=f"{LIMIT} rows, kept", target=target, paths=[PATH], usual=[PATH])


async def _cold(bench: Bench) -> Case:
    target = "8 times the usual stack's"
    return Case(
        title=f"{LIMIT} rows, the first after a version", target=target, paths=[PATH], usual=[PATH], anew=True
    )


async def _filtered(bench: Bench) -> Case:
    paths = [f"{PATH}&symbol=c{n}" for n in range(rows.SYMBOLS)]
    return Case(title="a symbol not asked for before", paths=paths, usual=paths, one_off=True)


async def _cursor(bench: Bench) -> Case:
    # A cursor stands behind a row, whatever number of rows the page has that it is used for.
    paths: list[str] = []
    path = f"/data?limit=1&page={ROWS // 2}"
    while len(paths) < DEEP_PAGES:
        page = json.loads((await bench.get("kasparro", path)).body)
        cursor = page["pagination"]["next_cursor"]
        paths.append(f"{PATH}&cursor={cursor}")
        path = f"/data?limit=1&cursor={cursor}"
    first = ROWS // 2 // LIMIT
    usual = [f"{PATH}&page={number}" for number in range(first, first + DEEP_PAGES // LIMIT)]
    return Case(title=f"{LIMIT} rows deep inside, by cursor", paths=paths, usual=usual, one_off=True)


async def _unchanged(bench: Bench) -> Case:
    etag = (await bench.get("kasparro", PATH)).header("ETag")
    return Case(title="`304`", paths=[PATH], headers=[f"If-None-Match: {etag}"])


async def _export(bench: Bench) -> Case:
    return Case(title=f"all {ROWS:,} rows as CSV", paths=[EXPORT], usual=[EXPORT], long=True)


CASES: dict[str, Callable[[Bench], Awaitable[Case]]] = {
    "warm": _warm,
    "cold": _cold,
    "filtered": _filtered,
    "cursor": _cursor,
    "unchanged": _unchanged,
    "export": _export,
}


async def _burst(
    move_version: Callable[[], Awaitable[None]],
    port: int,
    paths: Sequence[str],
    *,
    connections: int,
    seconds: float,
    headers: Sequence[str] = (),
) -> Load:
    """What wrk cannot do: all connections ask at once, as soon as a new version was heard of, again and
    again. Only the time until all are answered counts.
    """
    lines = [f"GET {paths[0]} HTTP/1.1", "Host: x", *headers]
    request = "\r\n".join([*lines, "", ""]).encode()
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(connections)]
    took: list[float] = []
    busy, refused = 0.0, 0
    try:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            await move_version()
            began = time.perf_counter()
            for _, writer in opened:
                writer.write(request)
            for answered in asyncio.as_completed([_status(reader) for reader, _ in opened]):
                refused += await answered >= 400
                took.append(time.perf_counter() - began)
            busy += time.perf_counter() - began
    finally:
        for _, writer in opened:
            writer.close()
    percentiles = statistics.quantiles(took, n=100)
    return Load(
        (len(took) - refused) / busy, refused / len(took), percentiles[49] * 1e3, percentiles[98] * 1e3
    )


async def _status(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
    await reader.readexactly(int(length))
    return int(head.split(b" ", 2)[1])


async def _first_byte(ports: dict[str, int]) -> dict[str, float]:
    """Milliseconds until the first byte of an export's body, in the median."""
    taken: dict[str, list[float]] = {server: [] for server in ports}
    for _ in range(10):
        for server, port in ports.items():
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            began = time.perf_counter()
            writer.write(f"GET {EXPORT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(1)
            taken[server].append(1e3 * (time.perf_counter() - began))
            while await reader.read(1 << 20):
                pass
            writer.close()
    return {server: statistics.median(values) for server, values in taken.items()}


# What is told


def _told(case: Case, count: int, loads: dict[str, list[Load]]) -> None:
    print(f"{case.title}, {count} connection{'s' if count > 1 else ''}")
    for server, taken in loads.items():
        refused = statistics.median(one.refused for one in taken)
        print(
            f"  {server:9} {measure.spread([one.rate for one in taken], 'answers/s')}"
            + (
                ""
                if case.long
                else f", p50 {_median(taken, 'p50'):.2f} ms, p99 {_median(taken, 'p99'):.2f} ms"
            )
            + (f"; {refused:.0%} refused" if refused else "")
        )
    print(
        f"  kasparro / bare {_ratio(loads, 'bare', 'rate'):.2f}"
        + ("" if case.long else f" (p99 {_ratio(loads, 'bare', 'p99'):.2f})")
        + (f", / usual {_ratio(loads, 'usual', 'rate'):.1f}" if "usual" in loads else ""),
        flush=True,
    )


def _median(loads: list[Load], name: str) -> float:
    return float(statistics.median(getattr(one, name) for one in loads))


def _ratio(loads: dict[str, list[Load]], server: str, name: str) -> float:
    return _median(loads["kasparro"], name) / _median(loads[server], name)


def _row(case: Case, found: dict[int, dict[str, list[Load]]]) -> str:
    # One row for the README: a figure for each number of connections.
    each = found.values()
    cells = [
        case.title,
        " · ".join(f"{_median(one['kasparro'], 'rate'):,.{int(case.long)}f}" for one in each),
        " · ".join(f"{_ratio(one, 'bare', 'rate'):.2f}" for one in each),
        "" if case.long else " · ".join(f"{_ratio(one, 'bare', 'p99'):.1f}" for one in each),
        " · ".join(f"{_ratio(one, 'usual', 'rate'):.1f}" for one in each if "usual" in one),
        case.target,
    ]
    return f"| {' | '.join(cells)} |"


# Servers


@contextmanager
def _on_core(number: int) -> Iterator[None]:
    # For this process and those it starts.
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@asynccontextmanager
async def running(*arguments: str, **environment: str) -> AsyncIterator[int]:
    """A server on the first core, once it answers; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    running = await asyncio.create_subprocess_exec(
        *("taskset", "-c", "0", sys.executable, *arguments, str(port)), env={**os.environ, **environment}
    )
    try:
        async with aiohttp.ClientSession() as session:
            await _ready(session, f"http://127.0.0.1:{port}{PATH}")
        yield port
    finally:
        running.send_signal(signal.SIGTERM)
        await running.wait()


async def _ready(session: aiohttp.ClientSession, url: str) -> None:
    async for attempt in stamina.retry_context(
        on=aiohttp.ClientError, attempts=100, wait_initial=0.05, wait_max=0.2
    ):
        with attempt:
            async with session.get(url, raise_for_status=True):
                return
