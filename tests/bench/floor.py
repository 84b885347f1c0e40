"""Reads that no cache holds, compared with a floor: a bare app that sends one statement for the same rows.

The floor parses nothing, checks nothing and has no limits: each request names values that the app has in a
list. PostgreSQL renders the rows as JSON in both servers; to fetch values and render them in Python takes
four times as much processor time in the app. Exports are compared with `psql`.

Rates depend on what else the machine does. Processor time, which both servers take from the kernel's
accounts of their own processes and of their server processes in PostgreSQL, hardly does.
"""

import json
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import msgspec

from kasparro.embedded.server import find_programs
from kasparro.store.selection import Filters, Selection
from tests.bench import measure, rows, servers, wrk
from tests.bench.bare_app import BareResponse
from tests.bench.reads import INCREMENT_VERSION, ROWS, own_headers_removed
from tests.bench.servers import LIMIT, PATH
from tests.bench.wrk import Load

DEEP_PAGES = 5_000
TARGET, EXPORT_TARGET = 0.85, 0.5
# As many as the readers of the service have.
POOL = 8
EXPORT_ROUNDS = 7

_TIMES = ", ".join(
    f"""to_char({name} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS {name}"""
    for name in ("observed_at", "first_seen_at", "updated_at")
)
_FIELDS = f"""
    source, source_id, asset, symbol, name, rank, price_usd, market_cap_usd, volume_24h_usd,
    circulating_supply, total_supply, max_supply, percent_change_1h, percent_change_24h, percent_change_7d,
    {_TIMES}
"""
_PAGE = f"""
SELECT string_agg(row_to_json(shown)::text, ',') AS lines
FROM (
    SELECT {_FIELDS} FROM (
        SELECT * FROM unified_data
        WHERE {{}}
        ORDER BY rank, listing_state, source, source_id
        LIMIT {LIMIT}
    ) AS record
) AS shown
"""
_SYMBOL = _PAGE.format("lower(symbol) = $1")
_CURSOR = _PAGE.format("(rank, listing_state, source, source_id) > ($1, $2, $3, $4)")
_ROW = f"""
SELECT row_to_json(shown)::text AS lines
FROM (SELECT {_FIELDS} FROM unified_data WHERE source = $1 AND source_id = $2) AS shown
"""
_KEYS = "SELECT source, source_id, rank, listing_state FROM unified_data ORDER BY rank, source, source_id"
_EXPORTED = """
    source, source_id, asset, symbol, name, rank, price_usd, market_cap_usd, volume_24h_usd,
    circulating_supply, total_supply, max_supply, percent_change_1h, percent_change_24h, percent_change_7d,
    observed_at, first_seen_at, updated_at
    FROM unified_data ORDER BY rank, listing_state, source, source_id
""".replace("\n", " ")
_SERVER_PROCESSES = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"


class Case(msgspec.Struct, frozen=True):
    """One kind of request: the paths, and for each the values of the floor's statement."""

    title: str
    paths: Sequence[str]
    statement: str
    values: Sequence[Sequence[Any]]


class Cost(msgspec.Struct, frozen=True):
    """What a server achieved, and the processor time of a response in the app and in PostgreSQL, in µs."""

    load: Load
    app: float
    postgres: float


async def main(connections: Sequence[int], rounds: int, seconds: float) -> None:
    """Load both servers by turns on the first core, with wrk on the second."""
    wrk.require()
    async with AsyncExitStack() as stack:
        url = await measure.new_database(await stack.enter_async_context(measure.server()), "bench_floor")
        await rows.current(url, ROWS)
        stack.enter_context(servers.load_on_core(1))
        kasparro = await stack.enter_async_context(servers.kasparro(url, KASPARRO_CACHE_MB="0"))
        database = await asyncpg.connect(url)
        stack.push_async_callback(database.close)
        lines = []
        for make in (_symbol, _cursor, _after_commit, _row):
            case = await make(database, kasparro)
            found = await _compare(case, database, url, kasparro, connections, rounds, seconds)
            lines.append(_line(case, found))
        print(f"\n{ROWS:,} rows, one core; medians of {rounds} rounds of {seconds} s per server;")
        print(f"cells show {' · '.join(map(str, connections))} connections\n")
        print(
            "| request | responses/s | responses/s ÷ floor's | processor time, µs | floor's ÷ that | target |"
        )
        print("|---|---|---|---|---|---|")
        print("\n".join(lines))
        await _exports(url, kasparro)


async def _symbol(database: "asyncpg.Connection[asyncpg.Record]", port: int) -> Case:
    symbols = [f"c{n}" for n in range(rows.SYMBOLS)]
    paths = [f"{PATH}&symbol={symbol}" for symbol in symbols]
    return Case("rows of one symbol", paths, _SYMBOL, [(symbol,) for symbol in symbols])


async def _cursor(database: "asyncpg.Connection[asyncpg.Record]", port: int) -> Case:
    # A cursor fits any limit, so cursors of pages of one row are collected.
    keys = await database.fetch(_KEYS)
    paths: list[str] = []
    middle = ROWS // 2
    path = f"/data?limit=1&page={middle}"
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        while len(paths) < DEEP_PAGES:
            async with session.get(path, raise_for_status=True) as response:
                cursor = json.loads(await response.read())["pagination"]["next_cursor"]
            paths.append(f"{PATH}&cursor={cursor}")
            path = f"/data?limit=1&cursor={cursor}"
    values = [
        (key["rank"], key["listing_state"], key["source"], key["source_id"])
        for key in keys[middle - 1 : middle - 1 + len(paths)]
    ]
    return Case(f"{LIMIT} rows by cursor from the middle of the table", paths, _CURSOR, values)


async def _after_commit(database: "asyncpg.Connection[asyncpg.Record]", port: int) -> Case:
    case = await _cursor(database, port)
    await database.execute(INCREMENT_VERSION)
    return msgspec.structs.replace(case, title=f"{case.title}, after a commit")


async def _row(database: "asyncpg.Connection[asyncpg.Record]", port: int) -> Case:
    keys = [(key["source"], key["source_id"]) for key in await database.fetch(_KEYS)]
    return Case("one row", [f"/data/{source}/{id_}" for source, id_ in keys], _ROW, keys)


async def statements(
    connection: "asyncpg.Connection[asyncpg.Record]",
) -> dict[str, list[tuple[str, Sequence[Any]]]]:
    """For each kind of request the statement of Kasparro and that of the floor, with values."""
    of_symbol = Selection(filters=Filters(symbols=("c77",)))
    symbol = await measure.page_statement(connection, of_symbol, LIMIT)
    cursor = await measure.page_statement(connection, Selection(), LIMIT, after=ROWS // 2)
    rank, state, *key = cursor[1]
    return {
        "one symbol": [symbol, (_SYMBOL, symbol[1])],
        f"{LIMIT} rows by cursor": [cursor, (_CURSOR, [rank, state, *key])],
    }


async def _compare(
    case: Case,
    database: "asyncpg.Connection[asyncpg.Record]",
    url: str,
    kasparro: int,
    connections: Sequence[int],
    rounds: int,
    seconds: float,
) -> dict[int, dict[str, list[Cost]]]:
    """The costs of both servers by the number of connections."""
    async with servers.bare_app(await _floor(case, database, kasparro), DATABASE_URL=url) as floor:
        await _check_same_rows(case, kasparro, floor)
        served = {"kasparro": kasparro, "floor": floor}
        paths = {"kasparro": case.paths, "floor": [f"/data/{number}" for number in range(len(case.paths))]}
        found: dict[int, dict[str, list[Cost]]] = {}
        for count in connections:
            costs: dict[str, list[Cost]] = {server: [] for server in served}
            for _ in range(rounds):
                for server, port in served.items():
                    app, postgres = _app_s(port), await _postgres_s(database)
                    load = await wrk.load(port, paths[server], connections=count, seconds=seconds)
                    responses = load.rate * seconds / 1e6
                    costs[server].append(
                        Cost(
                            load,
                            (_app_s(port) - app) / responses,
                            (await _postgres_s(database) - postgres) / responses,
                        )
                    )
            found[count] = costs
            _print(case, count, costs)
    return found


async def _floor(case: Case, database: "asyncpg.Connection[asyncpg.Record]", port: int) -> BareResponse:
    # Kasparro's first response, divided where the rows go.
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
        session.get(case.paths[0], raise_for_status=True, headers={"Accept-Encoding": "identity"}) as answer,
    ):
        (row,) = await database.fetch(case.statement, *case.values[0])
        begin, lines, end = (await answer.read()).partition(row["lines"].encode())
        if not lines:
            raise RuntimeError(f"{case.title}: the floor's statement does not return Kasparro's rows")
        headers = own_headers_removed(answer.headers.items())
        return BareResponse(answer.status, headers, begin, end, case.statement, case.values, POOL)


async def _check_same_rows(case: Case, kasparro: int, floor: int) -> None:
    async with aiohttp.ClientSession() as session:
        for number in range(0, len(case.paths), len(case.paths) // 10):
            bodies = []
            for url in (
                f"http://127.0.0.1:{kasparro}{case.paths[number]}",
                f"http://127.0.0.1:{floor}/data/{number}",
            ):
                async with session.get(url, raise_for_status=True) as answer:
                    bodies.append((await answer.read()).partition(b'"pagination"')[0])
            if bodies[0] != bodies[1]:
                raise RuntimeError(f"{case.title}: the servers send different rows for number {number}")


# An export, and the same rows by psql


async def _exports(url: str, port: int) -> None:
    print(f"\nexports of {ROWS:,} rows, medians of {EXPORT_ROUNDS}\n")
    print("| export | rows/s | rows/s ÷ psql's | target |")
    print("|---|---|---|---|")
    for form in ("csv", "ndjson"):
        taken: dict[str, list[float]] = {"kasparro": [], "psql": []}
        for _ in range(EXPORT_ROUNDS):
            taken["kasparro"].append(await _export_s(f"http://127.0.0.1:{port}/data.{form}"))
            taken["psql"].append(await _psql_s(url))
        kasparro, psql = (_median(seconds) for seconds in taken.values())
        print(f"| `/data.{form}` | {ROWS / kasparro:,.0f} | {psql / kasparro:.2f} | {EXPORT_TARGET} |")


async def _export_s(url: str) -> float:
    began = time.perf_counter()
    async with (
        aiohttp.ClientSession(headers={"Accept-Encoding": "identity"}) as session,
        session.get(url, raise_for_status=True) as response,
    ):
        while await response.content.readany():
            pass
    return time.perf_counter() - began


async def _psql_s(url: str) -> float:
    # Without the time that psql takes to start: the difference to a copy of no rows.
    async def copy(rows: str) -> float:
        began = time.perf_counter()
        command = f"\\copy (SELECT {rows}) TO '/dev/null' CSV"
        await measure.run(str(find_programs().path("psql")), "-qXc", command, url)
        return time.perf_counter() - began

    empty = min([await copy("1") for _ in range(3)])
    return await copy(_EXPORTED) - empty


def _app_s(port: int) -> float:
    # The processor time of the server that was started with this port as its last argument.
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                command = (entry / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                if command[-1] == str(port).encode():
                    return measure.processor_s(int(entry.name))
    raise RuntimeError(f"no server was started with port {port}")


async def _postgres_s(database: "asyncpg.Connection[asyncpg.Record]") -> float:
    pids = await database.fetch(_SERVER_PROCESSES)
    return sum(measure.processor_s(row["pid"]) for row in pids)


# The output


def _print(case: Case, count: int, costs: dict[str, list[Cost]]) -> None:
    print(f"{case.title}, {count} connection{'s' if count > 1 else ''}")
    for server, of_server in costs.items():
        print(
            f"  {server:9} {measure.spread([cost.load.rate for cost in of_server], 'responses/s')}, p99 "
            f"{_median(cost.load.p99 for cost in of_server):.2f} ms; processor time: app "
            f"{_median(cost.app for cost in of_server):.0f} µs, PostgreSQL "
            f"{_median(cost.postgres for cost in of_server):.0f} µs"
        )
    print(f"  kasparro / floor {_rates(costs):.2f}; floor / kasparro, processor time {_times(costs):.2f}")


def _line(case: Case, found: dict[int, dict[str, list[Cost]]]) -> str:
    # A row of the table in docs/benchmarks.md: each cell has one figure per number of connections.
    by_connections = found.values()
    cells = [
        case.title,
        " · ".join(
            f"{_median(cost.load.rate for cost in costs['kasparro']):,.0f}" for costs in by_connections
        ),
        " · ".join(f"{_rates(costs):.2f}" for costs in by_connections),
        " · ".join(f"{_time(costs['kasparro']):.0f}" for costs in by_connections),
        " · ".join(f"{_times(costs):.2f}" for costs in by_connections),
        f"{TARGET}",
    ]
    return f"| {' | '.join(cells)} |"


def _median(values: Iterable[float]) -> float:
    return float(statistics.median(values))


def _rates(costs: dict[str, list[Cost]]) -> float:
    kasparro, floor = (_median(cost.load.rate for cost in costs[server]) for server in ("kasparro", "floor"))
    return kasparro / floor


def _times(costs: dict[str, list[Cost]]) -> float:
    return _time(costs["floor"]) / _time(costs["kasparro"])


def _time(costs: list[Cost]) -> float:
    return _median(cost.app + cost.postgres for cost in costs)
