"""A year of hourly runs on a simulated clock: what grows, and whether query plans stay the same."""

import asyncio
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import msgspec

from kasparro.embedded.server import EmbeddedPostgres
from kasparro.simulator import Simulator
from tests.bench import measure, servers
from tests.bench.soak_service import CLOCK_FILE, IDLE_LIMIT_S, SharedClock
from tests.support.live_service import TOKEN

BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
HOURS = 365 * 24
COINS = 240
# Between two looks at everything that may grow.
LOOK_EVERY = 15 * 24
# Between two pauses in which the service closes its idle sessions. Each new one creates its temporary tables.
PAUSE_EVERY = 72
PATHS = (
    "/data",
    "/data?symbol=btc,eth",
    "/data?sort=-percent_change_24h&limit=100",
    "/assets",
    "/assets?diverging=true",
    "/stats",
    "/health",
    "/runs",
    "/tables",
    "/metrics",
    "/data/coingecko/bitcoin/history",
    "/data/coingecko/bitcoin/history?interval=1d&limit=1000",
    "/assets/btc-bitcoin",
    "/assets/btc-bitcoin/history?interval=1d",
    "/data.csv",
    "/",
)
# What grows with the number of runs, days and months, because nothing of it is ever deleted. pg_statistic has
# 22 KB for each month of the history.
DATA = re.compile(
    r"unified_history|daily_candles|history_months|runs|run_sources|reject_counts|invalid_values"
    r"|pg_statistic$"
)
# Hours in a row whose statements are explained.
EXPLAINED = 3
# Smaller growth is noise: pages that autovacuum has not cleaned yet.
NOISE_BYTES, NOISE_RATIO = 256 * 1024, 1.25
# A month that was thinned has indexes of the table that took its place.
_MONTH = re.compile(r"\d{4}_\d{2}(?:_new)?(?![0-9])")
_EXPLAINED = re.compile(r"duration: ([\d.]+) ms  plan:\n((?:\t.*\n)+)")


class Look(msgspec.Struct, frozen=True):
    """Everything that may grow, at one moment: of the service, of its sessions in PostgreSQL, and the bytes
    of each table and index, by name. All months of the history have one name."""

    hour: int
    resident_mb: float
    files: int
    threads: int
    sessions: int
    sessions_mb: float
    bytes_of: Mapping[str, int]


class Plans(msgspec.Struct):
    """The shapes of the plans of one statement, and how long each execution took."""

    shapes: set[str] = msgspec.field(default_factory=set)
    milliseconds: list[float] = msgspec.field(default_factory=list)


class Soak(msgspec.Struct):
    """What a soak has seen. `earlier` are the plans of hours after a quarter of the time, `later` those of
    the last hours, by statement."""

    statuses: Counter[str] = msgspec.field(default_factory=Counter)
    looks: list[Look] = msgspec.field(default_factory=list)
    earlier: dict[str, Plans] = msgspec.field(default_factory=dict)
    later: dict[str, Plans] = msgspec.field(default_factory=dict)


async def main() -> None:
    """Let a service live through a year. Exits with an error if something other than the data has grown."""
    grown = report(await soak(HOURS))
    if grown:
        sys.exit("this has grown, and it is not the data: " + ", ".join(grown))


async def soak(hours: int) -> Soak:
    """Run once an hour and read now and then, for so many hours of the simulated clock."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        postgres = await stack.enter_async_context(EmbeddedPostgres(folder / "home"))
        url = await measure.new_database(postgres.dsn, "soak")
        connection = await asyncpg.connect(url)
        stack.push_async_callback(connection.close)
        await _configure(connection)
        clock = SharedClock.create(folder / "clock")
        simulator = Simulator(coins=COINS, base=BEGIN, tick=3_600, manual=True)
        await stack.enter_async_context(simulator)
        clock.set(simulator.clock.now())
        service = _service(url, folder / "clock", simulator)
        pid, session = await stack.enter_async_context(service)
        began = time.perf_counter()
        seen = Soak()
        explained = {
            first + n: plans
            for first, plans in ((hours // 4, seen.earlier), (hours - EXPLAINED, seen.later))
            for n in range(EXPLAINED)
        }
        for hour in range(hours):
            clock.set(simulator.clock.now())
            if hour in explained:
                async with _explained(connection, postgres.log, explained[hour]):
                    seen.statuses[await _run(session)] += 1
                    await _read(session, hour, PATHS)
            else:
                seen.statuses[await _run(session)] += 1
                await _read(session, hour, [PATHS[(3 * hour + n) % len(PATHS)] for n in range(3)])
            simulator.calls.clear()
            if hour % LOOK_EVERY == 0 or hour == hours - 1:
                seen.looks.append(await _look(connection, pid, hour))
                _show(seen.looks[-1], time.perf_counter() - began)
            simulator.advance(1)
            if hour % PAUSE_EVERY == 0:
                await asyncio.sleep(2 * IDLE_LIMIT_S)
        return seen


def report(seen: Soak) -> list[str]:
    """Print what a soak has seen; returns what has grown since a quarter of its time, apart from the data."""
    before, after = seen.looks[len(seen.looks) // 4], seen.looks[-1]
    print(f"\n{seen.statuses.total()} runs: {dict(seen.statuses)}")
    print(
        f"\n| table or index | bytes at day {before.hour // 24} | at day {after.hour // 24} |\n|---|---|---|"
    )
    grown = []
    for name, size in sorted(after.bytes_of.items(), key=lambda each: -each[1]):
        size_before = before.bytes_of.get(name, 0)
        if size - size_before > NOISE_BYTES and size > NOISE_RATIO * size_before:
            print(f"| {name} | {size_before:,} | {size:,} |")
            if not DATA.match(name):
                grown.append(name)
    if after.resident_mb > NOISE_RATIO * before.resident_mb:
        grown.append("the memory of the service")
    if after.files > before.files + after.sessions:
        grown.append("the files that the service holds open")
    both = sorted(seen.earlier.keys() & seen.later.keys())
    print(f"\n{len(both)} statements were explained twice; those with another plan:")
    for statement in both:
        earlier, later = seen.earlier[statement], seen.later[statement]
        if new := later.shapes - earlier.shapes:
            print(f"\n{statement[:200]}\n  {min(earlier.milliseconds)} ms, then {min(later.milliseconds)} ms")
            print("".join(f"  - {shape}\n" for shape in sorted(earlier.shapes)), end="")
            print("".join(f"  + {shape}\n" for shape in sorted(new)), end="")
    return grown


async def _configure(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    # An hour takes less than a second here. So autovacuum looks as often as it can, which is still less often
    # than in a real hour, where it looks sixty times.
    for setting in (
        "autovacuum_naptime = '1s'",
        "session_preload_libraries = 'auto_explain'",
        "auto_explain.log_format = 'json'",
        "auto_explain.log_min_duration = -1",
        # The supervisor of the server splits lines of more than 64 KiB.
        "auto_explain.log_parameter_max_length = 0",
    ):
        # Unknown until a session has loaded the library.
        with suppress(asyncpg.UndefinedObjectError):
            await connection.execute(f"ALTER SYSTEM SET {setting}")
    await connection.execute("SELECT pg_reload_conf()")


@asynccontextmanager
async def _service(
    url: str, clock_file: Path, simulator: Simulator
) -> AsyncIterator[tuple[int, aiohttp.ClientSession]]:
    # The process id of the service, and a client.
    environment = {
        CLOCK_FILE: str(clock_file),
        "DATABASE_URL": url,
        "KASPARRO_ADMIN_TOKEN": TOKEN,
        "KASPARRO_COINPAPRIKA_URL": simulator.coinpaprika_url,
        "KASPARRO_COINGECKO_URL": simulator.coingecko_url,
        "KASPARRO_COINPAPRIKA_MONTHLY_CALLS": "1000000",
        "KASPARRO_COINGECKO_MONTHLY_CALLS": "1000000",
        "KASPARRO_SOURCES": "coinpaprika,coingecko",
        "KASPARRO_HISTORY_RETENTION": "raw:30d,1d:forever",
        # Small enough to be full soon.
        "KASPARRO_CACHE_MB": "8",
        "KASPARRO_LOG_LEVEL": "error",
    }
    port = servers.free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.soak_service", str(port)), env={**os.environ, **environment}
    )
    try:
        base = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession(base, raise_for_status=True) as session:
            await servers.wait_until_ready(session, "/health/ready")
            yield process.pid, session
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def _run(session: aiohttp.ClientSession) -> str:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    while True:
        async with session.post("/runs", headers=headers, raise_for_status=False) as response:
            if response.status == 202:
                run = (await response.json())["id"]
                break
            # The service begins a run of its own when it starts.
            if response.status != 409:
                raise RuntimeError(await response.text())
        await asyncio.sleep(0.02)
    while True:
        async with session.get(f"/runs/{run}") as response:
            status: str = (await response.json())["status"]
        if status != "running":
            return status
        await asyncio.sleep(0.02)


async def _read(session: aiohttp.ClientSession, hour: int, paths: tuple[str, ...] | list[str]) -> None:
    # Also requests that no cache has, and pages by cursor.
    for path in (*paths, f"/data?q={hour:x}", f"/data?limit=200&rank_min={1 + hour % 200}"):
        async with session.get(path) as response:
            await response.read()
    parameters = {"limit": "20"}
    for _ in range(3):
        async with session.get("/data", params=parameters) as response:
            page = await response.json()
        parameters["cursor"] = page["pagination"]["next_cursor"]


@asynccontextmanager
async def _explained(
    connection: "asyncpg.Connection[asyncpg.Record]", log: Path, found: dict[str, Plans]
) -> AsyncIterator[None]:
    # Adds the plans of all statements that end within the block.
    await _set_explain(connection, 0)
    before = log.stat()
    yield
    await _set_explain(connection, -1)
    # A large log is renamed, and a new one started.
    renamed = log.stat().st_ino != before.st_ino
    logs = [log.with_name(f"{log.name}.1"), log] if renamed else [log]
    text = b"".join(file.read_bytes() for file in logs)[before.st_size :].decode(errors="replace")
    for milliseconds, explained in _EXPLAINED.findall(text):
        try:
            entry = json.loads(explained)
        except json.JSONDecodeError:
            # The server mixes long messages of two sessions. Another hour has the statement, too.
            continue
        plans = found.setdefault(_MONTH.sub("MONTH", " ".join(entry["Query Text"].split())), Plans())
        plans.shapes.add(_shape(entry["Plan"]))
        plans.milliseconds.append(float(milliseconds))


async def _set_explain(connection: "asyncpg.Connection[asyncpg.Record]", least_ms: int) -> None:
    await connection.execute(f"ALTER SYSTEM SET auto_explain.log_min_duration = {least_ms}")
    await connection.execute("SELECT pg_reload_conf()")
    # The sessions notice it at some later moment, and nothing says when.
    await asyncio.sleep(1)


def _shape(plan: Mapping[str, Any]) -> str:
    # The kinds of its nodes and what they read. Months of the history that are read alike count as one.
    kind, inner = plan["Node Type"], [_shape(child) for child in plan.get("Plans", [])]
    if kind in {"Append", "Merge Append"}:
        inner = sorted(set(inner))
    target = _MONTH.sub("MONTH", plan.get("Index Name") or plan.get("Relation Name") or "")
    name = f"{kind} of {target}" if target else kind
    return f"{name} ({', '.join(inner)})" if inner else name


async def _look(connection: "asyncpg.Connection[asyncpg.Record]", pid: int, hour: int) -> Look:
    process = Path("/proc", str(pid))
    relations = await connection.fetch(
        "SELECT regexp_replace(coalesce(owner.relname || ' (long values)', pg_class.relname),"
        " '\\d{4}_\\d{2}(_new)?', 'MONTH') AS name, sum(pg_relation_size(pg_class.oid))::bigint AS bytes"
        " FROM pg_class LEFT JOIN pg_class AS owner ON pg_class.oid = owner.reltoastrelid"
        " WHERE pg_class.relkind IN ('r', 'i', 't') AND pg_class.relpersistence = 'p'"
        " AND pg_class.relname !~ '^pg_toast.*index' GROUP BY 1"
    )
    sessions = await connection.fetch(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    return Look(
        hour=hour,
        resident_mb=_status(process, "VmRSS") / 1024,
        files=len(list((process / "fd").iterdir())),
        threads=_status(process, "Threads"),
        sessions=len(sessions),
        sessions_mb=sum(_status(Path("/proc", str(row["pid"])), "RssAnon") for row in sessions) / 1024,
        bytes_of={row["name"]: row["bytes"] for row in relations},
    )


def _status(process: Path, field: str) -> int:
    # A number from /proc/PID/status; 0 if the process has ended, or is ending and has no memory any more.
    try:
        text = (process / "status").read_text()
    except OSError:
        return 0
    numbers = text.partition(f"\n{field}:")[2].split()
    return int(numbers[0]) if numbers else 0


def _show(look: Look, seconds: float) -> None:
    print(
        f"day {look.hour / 24:5.0f} after {seconds:6.0f} s: {look.resident_mb:.1f} MB, {look.files} files,"
        f" {look.threads} threads; {look.sessions} sessions with {look.sessions_mb:.1f} MB;"
        f" database {sum(look.bytes_of.values()) / 1e6:.1f} MB",
        flush=True,
    )
