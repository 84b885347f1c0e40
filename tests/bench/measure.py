"""What the benchmarks share: a PostgreSQL server, filled databases, subprocesses, and figures about them."""

import asyncio
import os
import re
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import asyncpg

from kasparro.embedded.server import EmbeddedPostgres
from kasparro.simulator import Simulator, write_archives
from kasparro.store import queries
from kasparro.store.pool import Connection
from kasparro.store.row_counts import Totals
from kasparro.store.selection import Selection
from tests.conftest import url_of_database
from tests.support.metrics import scrape


@asynccontextmanager
async def server() -> AsyncIterator[str]:
    """Start an empty embedded PostgreSQL; yields its URL."""
    with tempfile.TemporaryDirectory() as home:
        async with EmbeddedPostgres(Path(home)) as running:
            yield running.dsn


async def new_database(server_url: str, name: str) -> str:
    """Create an empty database, replacing one of the same name; returns its URL."""
    connection = await asyncpg.connect(server_url)
    await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.execute("CHECKPOINT")
    await connection.close()
    return url_of_database(server_url, name)


async def run(*command: str, **environment: str) -> bytes:
    """Run a command; returns its output. Raises RuntimeError with its error output if it fails."""
    # Without the bytecode that an installed Kasparro has, each process compiles its modules at its start.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**inherited, **environment},
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {errors.decode()[-2000:]}")
    return output


async def load_samples(database_url: str, *, past: bool = False) -> None:
    """Load what the simulator serves of both APIs, and the sample archive; `past` adds a year of prices."""
    with tempfile.TemporaryDirectory() as folder:
        # Another account may parse archives.
        Path(folder).chmod(0o755)
        async with Simulator(seed=1, manual=True) as simulator:
            archives = Path(folder) / "archives"
            if past:
                write_archives(simulator.market, archives)
            await _load_from(simulator, database_url, {"KASPARRO_ARCHIVES": str(archives)} if past else {})


async def _load_from(simulator: Simulator, database_url: str, settings: dict[str, str]) -> None:
    await run(
        sys.executable,
        *("-m", "kasparro", "etl", "--json"),
        DATABASE_URL=database_url,
        KASPARRO_COINPAPRIKA_URL=simulator.coinpaprika_url,
        KASPARRO_COINGECKO_URL=simulator.coingecko_url,
        KASPARRO_LOG_LEVEL="error",
        **settings,
    )


class _Recorder:
    """A connection that records the statements it sends."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._connection = connection
        self.sent: list[tuple[str, Sequence[Any]]] = []

    async def fetch(self, text: str, *values: Any) -> Any:
        self.sent.append((text, values))
        return await self._connection.fetch(text, *values)


async def page_statement(
    connection: "asyncpg.Connection[asyncpg.Record]",
    selection: Selection,
    limit: int,
    *,
    after: int = 0,
) -> tuple[str, Sequence[Any]]:
    """The statement that `/data` sends for the first page of a selection, or for the page after the cursor
    of this many rows, and its values."""
    totals = Totals()
    position = None
    if after:
        reader = cast("Connection", connection)
        position = (await queries.page(reader, totals, selection, limit=1, offset=after - 1)).last
    # The first call also counts the rows of whole sources.
    for _ in range(2):
        recorder = _Recorder(connection)
        await queries.page(cast("Connection", recorder), totals, selection, limit=limit, after=position)
    (statement,) = recorder.sent
    return statement


def processor_s(pid: int) -> float:
    """The processor time that a process has used, from Linux's schedstat."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def spread(values: list[float], unit: str) -> str:
    """The median, with the smallest and the largest value in parentheses."""
    return f"{statistics.median(values):,.0f} {unit} ({min(values):,.0f}..{max(values):,.0f})"


async def workers(port: int) -> list[int]:
    """The processes of the service at this port."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
        samples = await scrape(client)
    found = {dict(labels)["worker"] for name, labels in samples if name == "kasparro_streams"}
    return sorted(map(int, found))


def cpu_s(*pids: int) -> float:
    """The processor time of these processes, their children and further descendants, in seconds."""
    return sum(map(_cpu_s, pids))


def _cpu_s(pid: int) -> float:
    # The 14th to 17th field; the second one, in parentheses, may contain spaces. The last two are the time of
    # children that have ended, so the living ones are read first: one may end meanwhile.
    try:
        children = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
        of_children = sum(_cpu_s(int(child)) for found in children for child in found)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return of_children + sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """The resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


class PeakMemory:
    """The largest sum of resident memory seen."""

    megabytes = 0.0


@asynccontextmanager
async def peak_memory() -> AsyncIterator[PeakMemory]:
    """Watch the memory of the Kasparro processes that this process starts; PostgreSQL is not counted."""
    peak = PeakMemory()

    async def watch() -> None:
        while True:
            resident = await asyncio.to_thread(_resident_kilobytes, os.getpid())
            peak.megabytes = max(peak.megabytes, resident / 1024)
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    try:
        yield peak
    finally:
        watching.cancel()


def _resident_kilobytes(root: int) -> int:
    # Of all descendants of a process that run Kasparro, from /proc.
    found: dict[int, tuple[int, int, bytes]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = dict(
                    line.split(":", 1) for line in (entry / "status").read_text().splitlines() if ":" in line
                )
                command = (entry / "cmdline").read_bytes()
            except (OSError, ValueError):
                continue
            kilobytes = int(fields.get("VmRSS", "0").split()[0])
            found[int(entry.name)] = (int(fields["PPid"]), kilobytes, command)
    family = {root}
    while children := {pid for pid, (parent, _, _) in found.items() if parent in family} - family:
        family |= children
    return sum(
        found[pid][1]
        for pid in family - {root}
        if b"kasparro" in found[pid][2]
        and b"supervisor" not in found[pid][2]
        and b"postgres" not in found[pid][2]
    )
