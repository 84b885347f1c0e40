"""What the benchmarks share: a server of their own, commands, and medians with their spread."""

import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from kasparro.embedded.server import EmbeddedPostgres
from kasparro.simulator import Simulator
from tests.conftest import on_server


@asynccontextmanager
async def server() -> AsyncIterator[str]:
    """An embedded PostgreSQL with nothing else on it; gives its URL."""
    with tempfile.TemporaryDirectory() as home:
        async with EmbeddedPostgres(Path(home)) as running:
            yield running.dsn


async def fresh(server_url: str, name: str) -> str:
    """An empty database of this name, made anew; gives its URL."""
    connection = await asyncpg.connect(server_url)
    await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.execute("CHECKPOINT")
    await connection.close()
    return on_server(server_url, name)


async def process(*command: str, **environment: str) -> bytes:
    """Run a command to its end; gives its output. Raises RuntimeError with its errors where it fails."""
    running = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    output, errors = await running.communicate()
    if running.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {errors.decode()[-2000:]}")
    return output


async def fill(database_url: str) -> None:
    """Rows of both APIs, as the simulator serves them, and of the sample archive."""
    async with Simulator(seed=1, manual=True) as simulator:
        await process(
            sys.executable,
            *("-m", "kasparro", "etl", "--json"),
            DATABASE_URL=database_url,
            KASPARRO_COINPAPRIKA_URL=simulator.coinpaprika_url,
            KASPARRO_COINGECKO_URL=simulator.coingecko_url,
            KASPARRO_LOG_LEVEL="error",
        )


def spread(values: list[float], unit: str) -> str:
    """The median, and the smallest and largest around it."""
    return f"{statistics.median(values):,.0f} {unit} ({min(values):,.0f}..{max(values):,.0f})"


class Peak:
    """The largest resident memory seen, of all processes below this one together."""

    megabytes = 0.0


@asynccontextmanager
async def memory() -> AsyncIterator[Peak]:
    """Watches the memory of the processes that this one starts meanwhile, but for PostgreSQL's."""
    peak = Peak()

    async def watch() -> None:
        while True:
            resident = await asyncio.to_thread(_resident, os.getpid())
            peak.megabytes = max(peak.megabytes, resident / 1024)
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    try:
        yield peak
    finally:
        watching.cancel()


def _resident(root: int) -> int:
    """Kilobytes of all descendants of a process that run Kasparro, from /proc."""
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
    below = {root}
    while more := {pid for pid, (parent, _, _) in found.items() if parent in below} - below:
        below |= more
    return sum(
        found[pid][1]
        for pid in below - {root}
        if b"kasparro" in found[pid][2]
        and b"supervisor" not in found[pid][2]
        and b"postgres" not in found[pid][2]
    )
