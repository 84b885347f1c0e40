"""`python -m tests.chaos.upgrade --old FOLDER`: replaces an older version by this one under load."""

import asyncio
import os
import shutil
import sys
import tempfile
import time
from base64 import urlsafe_b64decode
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import asyncpg
import click
import msgspec
from rich.console import Console

from kasparro.simulator import Simulator
from tests.chaos.world import ROOT, Process
from tests.support.postgres import free_port, servers

out = Console()

# One page whose next cursor names the data version, in every version of Kasparro.
PATH = "/data?limit=20&sort=source"
CLIENTS = 20
# How long a process gets no requests before it ends, as behind a proxy that takes it out first.
DRAIN_S = 0.5
# The time in which another service becomes the leader and completes a run: two check intervals, and more.
LEADER_S = 15.0
_SIGNATURE_BYTES = 16


class Rotation:
    """The services that get requests, and what clients got."""

    def __init__(self) -> None:
        self.bases: list[str] = []
        self.requests = 0
        self.statuses: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._next = 0

    def next(self) -> str:
        """The service for the next request, each in turn."""
        self._next += 1
        return self.bases[self._next % len(self.bases)]

    async def client(self, rate: float) -> None:
        """Send requests at a steady rate, never twice. Each has the tag of the response before it."""
        version, tag = 0, ""
        due = time.monotonic()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
            while True:
                due += 1 / rate
                await asyncio.sleep(max(0, due - time.monotonic()))
                base = self.next()
                self.requests += 1
                try:
                    async with session.get(base + PATH, headers={"If-None-Match": tag}) as response:
                        body = await response.read()
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    self.wrong.append(f"{base}: {type(error).__name__}: {error}")
                    continue
                self.statuses[str(response.status)] += 1
                if response.status == 200:
                    tag = response.headers["ETag"]
                    found = data_version(body)
                    if found < version:
                        self.wrong.append(f"{base}: version {found} after {version}")
                    version = found
                elif response.status != 304:
                    self.wrong.append(f"{base}: {response.status} {body[:200]!r}")


def data_version(body: bytes) -> int:
    """The data version in the next cursor of a page."""
    cursor = msgspec.json.decode(body)["pagination"]["next_cursor"]
    signed = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    position = msgspec.msgpack.decode(signed[:-_SIGNATURE_BYTES])[1]
    version: int = position[0]
    return version


class Upgrade:
    """Services of the old and the new version on one database."""

    def __init__(self, folder: Path, url: str, simulator: Simulator, stack: AsyncExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._environment = {
            **os.environ,
            "DATABASE_URL": url,
            "KASPARRO_SOURCES": "coinpaprika,coingecko",
            "KASPARRO_COINPAPRIKA_URL": simulator.coinpaprika_url,
            "KASPARRO_COINGECKO_URL": simulator.coingecko_url,
            "KASPARRO_COINPAPRIKA_MONTHLY_CALLS": "1000000000",
            "KASPARRO_INTERVAL": "1s",
            "KASPARRO_LOG": "json",
        }

    async def start(self, code: Path) -> Process:
        """A ready service of the code in this folder. Its name is its URL."""
        port = free_port()
        process = Process(
            f"http://127.0.0.1:{port}",
            (sys.executable, "-P", "-m", "kasparro", "serve"),
            {**self._environment, "PORT": str(port), "PYTHONPATH": str(code)},
            self._folder / f"{port}.log",
        )
        self._stack.push_async_callback(process.kill)
        await process.start()
        async with asyncio.timeout(90), aiohttp.ClientSession() as session:
            while not await _is_ready(session, process.name):  # noqa: ASYNC110 - no event to wait for
                await asyncio.sleep(0.05)
        return process


async def _is_ready(session: aiohttp.ClientSession, base: str) -> bool:
    with suppress(aiohttp.ClientError, OSError):
        async with session.get(f"{base}/health/ready") as response:
            if response.status != 200:
                return False
        async with session.get(base + PATH) as response:
            return '"next_cursor":"' in await response.text()
    return False


@asynccontextmanager
async def load(rotation: Rotation, rate: float) -> AsyncIterator[None]:
    """Clients that together send so many requests per second while the block runs."""
    tasks = [asyncio.create_task(rotation.client(rate / CLIENTS)) for _ in range(CLIENTS)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


async def upgrade(old: Path, new: Path, rate: float, between_s: float) -> list[str]:
    """Replace two services one after the other. Describes what clients should not have got."""
    rotation = Rotation()
    folder = Path(tempfile.mkdtemp(prefix="kasparro-upgrade-"))
    async with (
        servers() as made,
        Simulator(seed=7, coins=300, tick=1.0) as simulator,
        AsyncExitStack() as stack,
    ):
        primary = await made.primary()
        world = Upgrade(folder, primary.url(), simulator, stack)
        running = [await world.start(old) for _ in range(2)]
        rotation.bases = [process.name for process in running]
        began = time.monotonic()
        async with primary.admin() as connection, load(rotation, rate):
            await asyncio.sleep(between_s)
            for process in running:
                # As an orchestrator does it: the new one is ready before the old one gets no more requests.
                replacement = await world.start(new)
                rotation.bases.append(replacement.name)
                await asyncio.sleep(between_s)
                rotation.bases.remove(process.name)
                await asyncio.sleep(DRAIN_S)
                await process.stop()
            await asyncio.sleep(between_s)
            newest = await _newest_run(connection)
            runs = await connection.fetch("SELECT status, count(*) FROM runs GROUP BY status ORDER BY status")
        seconds = time.monotonic() - began
    out.print(
        f"{rotation.requests} requests in {seconds:.0f} s, {rotation.requests / seconds:.0f}/s: "
        f"{dict(rotation.statuses)}; runs: {dict(map(tuple, runs))}",
        highlight=False,
    )
    found = [*dict.fromkeys(rotation.wrong)]
    if newest != "succeeded":
        found.append(f"the newest run ended as {newest}")
    if found:
        out.print(f"logs: {folder}")
    else:
        shutil.rmtree(folder)
    return found


async def _newest_run(connection: "asyncpg.Connection[asyncpg.Record]") -> str:
    # How the newest run ended. A service that stops interrupts its run, and the next leader starts another.
    deadline = time.monotonic() + LEADER_S
    while True:
        status: str = await connection.fetchval(
            "SELECT status FROM runs WHERE status <> 'running' ORDER BY id DESC LIMIT 1"
        )
        if status == "succeeded" or time.monotonic() > deadline:
            return status
        await asyncio.sleep(0.1)


def show(found: Sequence[str]) -> int:
    """Print what is wrong; the exit code."""
    for line in found[:20]:
        out.print(line, style="red", markup=False, highlight=False)
    return 1 if found else 0


@click.command()
@click.option(
    "--old",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A checkout of the older version.",
)
@click.option("--rate", default=200.0, show_default=True, help="Requests per second.")
@click.option("--between", default=5.0, show_default=True, help="Seconds between two replacements.")
def main(old: Path, rate: float, between: float) -> None:
    """Start two services of the older version, and replace each by this version."""
    sys.exit(show(asyncio.run(upgrade(old.resolve(), ROOT, rate, between))))


if __name__ == "__main__":
    main()
