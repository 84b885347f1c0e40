"""What each kind of request costs in processor time: in the service, in PostgreSQL, and in shared caches."""

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from urllib.parse import quote

import aiohttp
import msgspec

from kasparro.store.pool import Database
from tests.bench import measure, servers, streams, wrk
from tests.bench.servers import LIMIT, PATH
from tests.support.metrics import metric_value, scrape
from tests.support.postgres import Server
from tests.support.postgres import servers as postgres_servers
from tests.support.shared_caches import PROGRAMS, shared_cache

ROUNDS, SECONDS, CONNECTIONS = 3, 2, 8
STREAMS, VERSIONS = 1_000, 8
CANDLES = 365
PAGES = 80
EXPORT = "/data.csv"


class Kind(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One kind of request: its paths, requested one after the other.

    `cached`: the response cache may answer. `rows`, for a response that takes long, is how many rows it has;
    the cost is that of a row then, and `size` the bytes of the response.
    """

    title: str
    paths: Sequence[str]
    headers: Sequence[str] = ()
    cached: bool = False
    rows: int = 0
    size: int | None = None


class Cost(msgspec.Struct, frozen=True):
    """Processor time in microseconds for a request or a row: of the service, and of all servers."""

    service: float
    postgres: float


async def main() -> None:
    """Measure by turns: a service on the primary, two processes of it, services that read from standbys."""
    wrk.require()
    async with postgres_servers() as made:
        primary = await made.primary()
        await measure.load_samples(primary.url(), past=True)
        standbys = [await made.standby(primary) for _ in range(2)]
        reads = [standby.url() for standby in standbys]
        two = reads[0].replace(f":{standbys[0].port}/", f":{standbys[0].port},127.0.0.1:{standbys[1].port}/")
        settings: dict[str, dict[str, str]] = {
            "primary": {},
            "primary, two processes": {"WORKERS": "2"},
            "one standby": {"DATABASE_READ_URL": reads[0]},
            "two standbys": {"DATABASE_READ_URL": two},
        }
        await _compare(primary, [primary, *standbys], settings)
        await _streams(primary)
        await _shared_caches(primary)


async def _compare(primary: Server, machines: list[Server], settings: dict[str, dict[str, str]]) -> None:
    found: dict[Kind, dict[str, list[Cost]]] = {}
    async with AsyncExitStack() as stack:
        ports: dict[str, dict[bool, int]] = {}
        for name, given in settings.items():
            environment = dict(given)
            workers = int(environment.pop("WORKERS", "1"))
            ports[name] = {}
            for cached in (True, False):
                serving = servers.kasparro(
                    primary.url(),
                    workers=workers,
                    KASPARRO_DATABASE_CONNECTIONS="8",
                    **({} if cached else {"KASPARRO_CACHE_MB": "0"}),
                    **environment,
                )
                if workers == 1 or cached:
                    ports[name][cached] = await stack.enter_async_context(serving)
        kinds = await _kinds(ports["primary"][True])
        for _ in range(ROUNDS):
            for kind in kinds:
                for name, of_service in ports.items():
                    if kind.cached in of_service:
                        cost = await _cost(of_service[kind.cached], machines, kind)
                        found.setdefault(kind, {}).setdefault(name, []).append(cost)
    print(f"\nprocessor time in µs, of the service + of PostgreSQL; the least of {ROUNDS} rounds\n")
    print(f"| request | {' | '.join(settings)} | requests/s per core of the service | of PostgreSQL |")
    print("|---|" + "---|" * (len(settings) + 2))
    for kind, by_settings in found.items():
        least = {name: _least(costs) for name, costs in by_settings.items()}
        cells = [
            f"{least[name].service:,.1f} + {least[name].postgres:,.1f}" if name in least else ""
            for name in settings
        ]
        cells += [
            _per_core(least["primary"].service),
            "" if kind.cached else _per_core(least["primary"].postgres),
        ]
        print(f"| {kind.title} | {' | '.join(cells)} |")


def _per_core(cost: float) -> str:
    return f"{1e6 / cost:,.0f}"


def _least(costs: list[Cost]) -> Cost:
    # Other work on the machine only adds to processor time, because processes share caches and cores.
    return Cost(min(cost.service for cost in costs), min(cost.postgres for cost in costs))


async def _cost(port: int, machines: list[Server], kind: Kind) -> Cost:
    service = await measure.workers(port)
    await wrk.load(port, kind.paths, connections=CONNECTIONS, seconds=1, headers=kind.headers, size=kind.size)
    began = measure.cpu_s(*service), _postgres_s(machines)
    load = await wrk.load(
        port, kind.paths, connections=CONNECTIONS, seconds=SECONDS, headers=kind.headers, size=kind.size
    )
    ended = measure.cpu_s(*service), _postgres_s(machines)
    count = load.rate * SECONDS * (kind.rows or 1)
    return Cost(*(1e6 * (now - then) / count for now, then in zip(ended, began, strict=True)))


def _postgres_s(machines: list[Server]) -> float:
    pids = [int((machine.folder / "postmaster.pid").read_text().split()[0]) for machine in machines]
    return measure.cpu_s(*pids)


async def _kinds(port: int) -> list[Kind]:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:

        async def get(path: str) -> tuple[str, bytes]:
            async with client.get(path, headers={"Accept-Encoding": ""}, raise_for_status=True) as response:
                return response.headers.get("ETag", ""), await response.read()

        rows = [
            row
            for page in (1, 3, 5)
            for row in json.loads((await get(f"/data?limit=1000&page={page}"))[1])["data"]
        ]
        assets = json.loads((await get("/assets?limit=1000"))[1])["data"]
        cursors = []
        path = "/data?limit=1&page=2000"
        for _ in range(300):
            cursor = json.loads((await get(path))[1])["pagination"]["next_cursor"]
            cursors.append(cursor)
            path = f"/data?limit=1&cursor={cursor}"
        coin = await _coin_with_a_year(get)
        etag, _ = await get(PATH)
        _, export = await get(EXPORT)
    days = [f"interval=1d&limit={CANDLES}&from=2013-01-{day:02}" for day in range(1, 29)]
    symbols = {quote(row["symbol"]) for row in rows if row["symbol"]}
    return [
        Kind(title=f"{LIMIT} rows of `/data`, cached", paths=[PATH], cached=True),
        Kind(title="`304`", paths=[PATH], headers=[f"If-None-Match: {etag}"], cached=True),
        Kind(
            title="rows of one symbol",
            paths=[f"{PATH}&symbol={symbol}" for symbol in sorted(symbols)],
        ),
        Kind(title=f"{LIMIT} rows by cursor", paths=[f"{PATH}&cursor={cursor}" for cursor in cursors]),
        Kind(title="one row", paths=[f"/data/{row['source']}/{quote(row['source_id'], '')}" for row in rows]),
        Kind(title=f"{LIMIT} assets", paths=[f"/assets?limit={LIMIT}&page={page}" for page in range(1, 30)]),
        Kind(title="one asset", paths=[f"/assets/{quote(asset['asset'], '')}" for asset in assets]),
        Kind(
            title=f"{CANDLES} daily candles of a row",
            paths=[f"/data/csv/{coin['source_id']}/history?{query}" for query in days],
        ),
        Kind(
            title=f"{CANDLES} daily candles of an asset",
            paths=[f"/assets/{coin['asset']}/history?{query}" for query in days],
        ),
        Kind(title="`/stats`", paths=["/stats"]),
        Kind(title="a row of an export", paths=[EXPORT], rows=export.count(b"\n") - 1, size=len(export)),
    ]


async def _coin_with_a_year(get: Callable[[str], Awaitable[tuple[str, bytes]]]) -> dict[str, str]:
    for row in json.loads((await get("/data?source=csv"))[1])["data"]:
        _, body = await get(f"/data/csv/{row['source_id']}/history?interval=1d&limit={CANDLES}")
        if row["asset"] and len(json.loads(body)["data"]) == CANDLES:
            found: dict[str, str] = row
            return found
    raise RuntimeError("no coin has a year of candles")


async def _streams(primary: Server) -> None:
    async with Database(primary.url()) as database, servers.kasparro(primary.url()) as port:
        (pid,) = await measure.workers(port)
        alone = await _committing(database, pid)
        before = measure.resident_bytes(pid)
        async with streams.open_streams(port, STREAMS):
            memory = (measure.resident_bytes(pid) - before) / STREAMS
            beside = await _committing(database, pid)
    event = 1e6 * (beside - alone) / STREAMS / VERSIONS
    print(
        f"\na version of {streams.BATCH} rows: {event:.0f} µs for each stream, "
        f"which takes {memory / 1024:.0f} KiB"
    )


async def _committing(database: Database, pid: int) -> float:
    # The service's processor time while versions are committed, one per second.
    began = measure.cpu_s(pid)
    with suppress(TimeoutError):
        async with asyncio.timeout(VERSIONS):
            await streams.commit_regularly(database)
    return measure.cpu_s(pid) - began


async def _shared_caches(primary: Server) -> None:
    installed = [name for name, program in PROGRAMS.items() if program is not None]
    pages = [f"{PATH}&page={number}" for number in range(1, PAGES + 1)]
    loads = {
        "one page": ([PATH], []),
        "one page, gzip": ([PATH], ["Accept-Encoding: gzip"]),
        f"{PAGES} pages, gzip": (pages, ["Accept-Encoding: gzip"]),
    }
    print(
        "\n| shared cache | µs | requests/s per core | requests/s to the service | hits | new version after |"
    )
    print("|---|---|---|---|---|---|")
    async with Database(primary.url()) as database, servers.kasparro(primary.url()) as port:
        for name in installed:
            async with AsyncExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                front = await stack.enter_async_context(shared_cache(name, folder, port))
                pid = int((folder / ("nginx.pid" if name == "nginx" else "work/_.pid")).read_text())
                for title, (paths, headers) in loads.items():
                    await wrk.load(front, paths, connections=CONNECTIONS, seconds=SECONDS, headers=headers)
                    began, before = measure.cpu_s(pid), await _answered(port)
                    load = await wrk.load(
                        front, paths, connections=CONNECTIONS, seconds=SECONDS, headers=headers
                    )
                    count = load.rate * SECONDS
                    cost = 1e6 * (measure.cpu_s(pid) - began) / count
                    reached = await _answered(port) - before
                    print(
                        f"| {name}, {title} | {cost:.0f} | {_per_core(cost)} | {reached / SECONDS:.0f} "
                        f"| {1 - reached / count:.2%} | |"
                    )
                seen = [await _seconds_until_seen(database, front) for _ in range(VERSIONS)]
                print(f"| {name} | | | | | {statistics.median(seen):.2f} s, at most {max(seen):.2f} s |")
        seen = [await _seconds_until_seen(database, port) for _ in range(VERSIONS)]
        print(f"| none | | | | | {statistics.median(seen):.2f} s, at most {max(seen):.2f} s |", flush=True)


async def _seconds_until_seen(database: Database, port: int) -> float:
    # How long after a commit a client gets the new version that asks every 20 ms.
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:

        async def body() -> bytes:
            async with client.get(f"{PATH}&source=coingecko", raise_for_status=True) as response:
                return await response.read()

        old = await body()
        await streams.commit(database)
        began = time.perf_counter()
        while await body() == old:  # noqa: ASYNC110 - only a request shows it
            await asyncio.sleep(0.02)
        return time.perf_counter() - began


async def _answered(port: int) -> float:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
        return metric_value(await scrape(client), "kasparro_http_requests_total", route="/data") or 0
