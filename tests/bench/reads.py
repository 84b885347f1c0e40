"""Throughput and latency of `/data`, compared with a bare app that sends the same bytes and a FastAPI app."""

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack

import aiohttp
import asyncpg
import msgspec

from kasparro.store.sql import statements
from tests.bench import measure, rows, servers, wrk
from tests.bench.bare_app import BareResponse
from tests.bench.servers import LIMIT, PATH
from tests.bench.wrk import Load

ROUNDS, SECONDS, CONNECTIONS = 3, 2, (1, 16, 128)
ROWS = 15_000
DEEP_PAGES = 5_000
EXPORT = "/data.csv"
INCREMENT_VERSION = statements("load/progress.sql")["increment_version"]
SERVERS = ("kasparro", "bare", "fastapi")
# Headers that belong to one response, or that uvicorn adds itself.
_OWN_HEADERS = {"date", "x-request-id", "server-timing"}
# More than a service needs to notice a new data version.
NOTICE_S = 0.02


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of request: its paths, requested one after the other, and the FastAPI app's for the same rows.

    `large`: a response takes a large part of the measurement, so unfinished ones count in part. `uncached`:
    a new data version comes before each round, and no path repeats within a round.
    """

    title: str
    target: str = ""
    paths: Sequence[str]
    fastapi_paths: Sequence[str] = ()
    headers: Sequence[str] = ()
    large: bool = False
    uncached: bool = False


class Bench:
    """Kasparro and the FastAPI app over one table; each case adds a bare app with its response."""

    def __init__(self, database: "asyncpg.Connection[asyncpg.Record]", kasparro: int, fastapi: int) -> None:
        self._database = database
        self._ports = {"kasparro": kasparro, "fastapi": fastapi}

    async def get(self, server: str, path: str, headers: Sequence[str] = ()) -> BareResponse:
        """One response, not compressed, as wrk gets it."""
        url = f"http://127.0.0.1:{self._ports[server]}"
        sent = ["Accept-Encoding: identity", *headers]
        async with (
            aiohttp.ClientSession(url) as session,
            session.get(path, headers=dict(header.split(": ", 1) for header in sent)) as response,
        ):
            return BareResponse(response.status, list(response.headers.items()), await response.read())

    async def run(
        self, case: Case, connections: Sequence[int], rounds: int, seconds: float
    ) -> dict[int, dict[str, list[Load]]]:
        """Load each server for `seconds` in every round; returns the loads by connections and server."""
        response = await self.get("kasparro", case.paths[0], case.headers)
        if response.status >= 400:
            raise RuntimeError(f"{case.paths[0]}: {response.status}")
        found: dict[int, dict[str, list[Load]]] = {}
        bare_response = BareResponse(response.status, own_headers_removed(response.headers), response.body)
        async with servers.bare_app(bare_response) as bare:
            ports = self._ports | {"bare": bare}
            sizes = {"kasparro": len(response.body), "bare": len(response.body)}
            if not case.fastapi_paths:
                del ports["fastapi"]
            elif case.large:
                sizes["fastapi"] = len((await self.get("fastapi", case.fastapi_paths[0])).body)
            for count in connections:
                loads: dict[str, list[Load]] = {server: [] for server in SERVERS if server in ports}
                for _ in range(rounds):
                    for server, of_server in loads.items():
                        if case.uncached:
                            await self._database.execute(INCREMENT_VERSION)
                            await asyncio.sleep(NOTICE_S)
                        of_server.append(
                            await wrk.load(
                                ports[server],
                                case.fastapi_paths if server == "fastapi" else case.paths,
                                connections=count,
                                seconds=seconds,
                                headers=case.headers,
                                size=sizes[server] if case.large else None,
                            )
                        )
                found[count] = loads
                _print(case, count, loads)
        return found


def own_headers_removed(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers that another server has to send for the same response."""
    return [(str(name), value) for name, value in headers if name.lower() not in _OWN_HEADERS]


async def main(
    names: Sequence[str],
    connections: Sequence[int] = CONNECTIONS,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
) -> None:
    """Load one server at a time on the first core, with wrk on the second."""
    wrk.require()
    async with AsyncExitStack() as stack:
        url = await measure.new_database(await stack.enter_async_context(measure.server()), "bench_reads")
        await rows.current(url, ROWS)
        stack.enter_context(servers.load_on_core(1))
        kasparro = await stack.enter_async_context(servers.kasparro(url))
        fastapi = await stack.enter_async_context(
            servers.started("-m", "tests.bench.fastapi_app", DATABASE_URL=url)
        )
        database = await asyncpg.connect(url)
        stack.push_async_callback(database.close)
        bench = Bench(database, kasparro, fastapi)
        await _check_same_rows(bench)
        lines = []
        for name in names:
            case = await CASES[name](bench)
            found = await bench.run(case, connections, rounds, seconds)
            lines.append(_row(case, found))
            if name == "export":
                first = await _first_byte({"kasparro": kasparro, "fastapi": fastapi})
                rate = ROWS * _median(found[connections[0]]["kasparro"], "rate")
                print(f"  {rate:,.0f} rows/s with {connections[0]} connection(s); first byte after")
                print(f"  {first['kasparro']:.1f} ms, the FastAPI app's after {first['fastapi']:.1f} ms")
    print(f"\n{ROWS:,} rows, one core; medians of {rounds} rounds of {seconds} s per server;")
    print(f"cells show {' · '.join(map(str, connections))} connections\n")
    print(
        "| request | responses/s | responses/s ÷ bare app's | p99 latency ÷ bare app's "
        "| responses/s ÷ FastAPI app's | target |"
    )
    print("|---|---|---|---|---|---|")
    print("\n".join(lines))


async def _check_same_rows(bench: Bench) -> None:
    kasparro, fastapi = [json.loads((await bench.get(name, PATH)).body) for name in ("kasparro", "fastapi")]
    keys = [[(row["source"], row["source_id"]) for row in page["data"]] for page in (kasparro, fastapi)]
    if keys[0] != keys[1] or kasparro["pagination"]["total"] != fastapi["pagination"]["total"]:
        raise RuntimeError("the FastAPI app's first page differs from Kasparro's")


# The cases


async def _warm(bench: Bench) -> Case:
    target = (
        "responses/s: 0.7 of the bare app's, 20 times the FastAPI app's; p99 latency: 2 times the bare app's"
    )
    return Case(title=f"{LIMIT} rows, cached", target=target, paths=[PATH], fastapi_paths=[PATH])


async def _filtered(bench: Bench) -> Case:
    paths = [f"{PATH}&symbol=c{n}" for n in range(rows.SYMBOLS)]
    return Case(title="rows of one symbol, not cached", paths=paths, fastapi_paths=paths, uncached=True)


async def _cursor(bench: Bench) -> Case:
    # A cursor fits any limit, so cursors of pages of one row are collected.
    paths: list[str] = []
    path = f"/data?limit=1&page={ROWS // 2}"
    while len(paths) < DEEP_PAGES:
        page = json.loads((await bench.get("kasparro", path)).body)
        cursor = page["pagination"]["next_cursor"]
        paths.append(f"{PATH}&cursor={cursor}")
        path = f"/data?limit=1&cursor={cursor}"
    first = ROWS // 2 // LIMIT
    by_offset = [f"{PATH}&page={number}" for number in range(first, first + DEEP_PAGES // LIMIT)]
    return Case(
        title=f"{LIMIT} rows by cursor from the middle of the table, not cached",
        paths=paths,
        fastapi_paths=by_offset,
        uncached=True,
    )


async def _unchanged(bench: Bench) -> Case:
    response = await bench.get("kasparro", PATH)
    (etag,) = (value for name, value in response.headers if name.lower() == "etag")
    return Case(title="`304`", paths=[PATH], headers=[f"If-None-Match: {etag}"])


async def _export(bench: Bench) -> Case:
    return Case(title=f"all {ROWS:,} rows as CSV", paths=[EXPORT], fastapi_paths=[EXPORT], large=True)


CASES: dict[str, Callable[[Bench], Awaitable[Case]]] = {
    "warm": _warm,
    "filtered": _filtered,
    "cursor": _cursor,
    "unchanged": _unchanged,
    "export": _export,
}


async def _first_byte(ports: dict[str, int]) -> dict[str, float]:
    """The median time until the first byte of an export's body, in milliseconds."""
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


# The output


def _print(case: Case, count: int, loads: dict[str, list[Load]]) -> None:
    print(f"{case.title}, {count} connection{'s' if count > 1 else ''}")
    for server, of_server in loads.items():
        errors = _median(of_server, "error_share")
        latency = f", p50 {_median(of_server, 'p50'):.2f} ms, p99 {_median(of_server, 'p99'):.2f} ms"
        print(
            f"  {server:9} {measure.spread([load.rate for load in of_server], 'responses/s')}"
            + ("" if case.large else latency)
            + (f"; {errors:.0%} errors" if errors else "")
        )
    print(
        f"  kasparro / bare {_ratio(loads, 'bare', 'rate'):.2f}"
        + ("" if case.large else f" (p99 {_ratio(loads, 'bare', 'p99'):.2f})")
        + (f", / fastapi {_ratio(loads, 'fastapi', 'rate'):.1f}" if "fastapi" in loads else ""),
        flush=True,
    )


def _median(loads: list[Load], name: str) -> float:
    return float(statistics.median(getattr(load, name) for load in loads))


def _ratio(loads: dict[str, list[Load]], server: str, name: str) -> float:
    return _median(loads["kasparro"], name) / _median(loads[server], name)


def _row(case: Case, found: dict[int, dict[str, list[Load]]]) -> str:
    # A row of the table in docs/benchmarks.md: each cell has one figure per number of connections.
    by_connections = found.values()
    cells = [
        case.title,
        " · ".join(f"{_median(loads['kasparro'], 'rate'):,.{int(case.large)}f}" for loads in by_connections),
        " · ".join(f"{_ratio(loads, 'bare', 'rate'):.2f}" for loads in by_connections),
        "" if case.large else " · ".join(f"{_ratio(loads, 'bare', 'p99'):.1f}" for loads in by_connections),
        " · ".join(
            f"{_ratio(loads, 'fastapi', 'rate'):.1f}" for loads in by_connections if "fastapi" in loads
        ),
        case.target,
    ]
    return f"| {' | '.join(cells)} |"
