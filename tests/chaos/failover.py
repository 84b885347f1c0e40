"""`python -m tests.chaos.failover`: kills leaders and primaries under load, and checks what clients see."""

import asyncio
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import aiohttp
import asyncpg
import click
from rich.console import Console

from kasparro.pipeline.scheduler import CHECK_S
from kasparro.simulator import Simulator
from kasparro.store.sql import statements
from tests.chaos.world import Process
from tests.support.postgres import USER, Server, Servers, free_port, servers

out = Console()

_RUNS = statements("operations/runs.sql")
# What a client may wait for reads after a failure, and the service for a leader.
READS_BACK_S = 5.0
LEADS_S = 2 * CHECK_S
# Pages say which data version they show, in their entity tags.
PATHS = ("/data?limit=20&sort=source", "/data?source=coingecko&limit=10", "/assets?limit=10")
READERS = 4
PAUSE_S = 0.05
_LEADS = re.compile(r"^kasparro_leader(\{[^}]*\})? 1", re.MULTILINE)
_VERSION = re.compile(r'-v([0-9a-f]+)\.[0-9a-f]{12}"')
# How far a standby without a primary has come.
_REPLAYED = """
SELECT pg_last_wal_replay_lsn()::text WHERE NOT EXISTS (SELECT FROM pg_stat_wal_receiver)
"""
# The newest record of a coin is the one in unified_data.
_WRONG_ROWS = """
SELECT count(*) FROM unified_data AS coin
WHERE coin.observed_at IS DISTINCT FROM (
    SELECT max(observed_at) FROM unified_history AS record
    WHERE record.source = coin.source AND record.source_id = coin.source_id
)
"""


class Timeline:
    """The data versions that exist. A failover loses those that the new primary has not received."""

    def __init__(self) -> None:
        self.number = 0
        self.kept = 0
        self.bodies: dict[tuple[int, int, str], int] = {}
        self.wrong: list[str] = []

    def fail_over(self, kept: int) -> None:
        """Later requests are answered by a server that has only the versions up to this one."""
        self.number += 1
        self.kept = kept

    def check_body(self, version: int, path: str, body: bytes) -> None:
        """All responses of a version must be the same, whichever process and server gave them."""
        known = self.bodies.setdefault((self.number, version, path), hash(body))
        if known != hash(body):
            self.wrong.append(f"two responses of version {version}: {path}")


class Reader:
    """A client that asks the services in turn, with the tags that it has seen."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._number = 0
        self._version = 0
        self._newest = ""
        self._tags: dict[str, str] = {}

    async def read(self, session: aiohttp.ClientSession, base: str, path: str) -> str:
        """Send a request. Returns its status, or `none`."""
        began_in = self._timeline.number
        if began_in != self._number:
            self._number, self._version = began_in, min(self._version, self._timeline.kept)
        tags = [tag for tag in (self._tags.get(path), self._newest) if tag]
        try:
            async with session.get(base + path, headers={"If-None-Match": ", ".join(tags)}) as response:
                body = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return "none"
        if response.status == 200:
            self._seen(began_in, path, response.headers["ETag"], body)
        elif response.status not in {304, 503}:
            self._timeline.wrong.append(f"{path}: {response.status} {body[:200]!r}")
        return str(response.status)

    def _seen(self, began_in: int, path: str, tag: str, body: bytes) -> None:
        found = _VERSION.search(tag)
        if found is None:
            self._timeline.wrong.append(f"{path}: no version in {tag}")
            return
        version = int(found[1], 16)
        if began_in == self._timeline.number:
            if version < self._version:
                self._timeline.wrong.append(f"{path}: version {version} after {self._version}")
            self._timeline.check_body(version, path, body)
        if version >= self._version:
            self._version, self._newest = version, tag
        self._tags[path] = tag


class Reads:
    """What the readers got from each service, and when."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self._ok: dict[str, list[float]] = {}

    def add(self, base: str, began: float, status: str) -> None:
        self.statuses[status] += 1
        if status in {"200", "304"}:
            self._ok.setdefault(base, []).append(began)

    def back_after(self, moment: float, bases: Sequence[str]) -> float:
        """The time until each of these services had answered a request that was sent after a moment."""
        return (
            max(
                next((began for began in self._ok.get(base, ()) if began > moment), float("inf"))
                for base in bases
            )
            - moment
        )


@contextmanager
def reading(timeline: Timeline, reads: Reads, bases: Sequence[str]) -> Iterator[None]:
    """Readers work while the block runs."""

    async def work(number: int) -> None:
        chance, reader = random.Random(number), Reader(timeline)
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                base, began = chance.choice(bases), time.monotonic()
                reads.add(base, began, await reader.read(session, base, chance.choice(PATHS)))
                await asyncio.sleep(PAUSE_S)

    tasks = [asyncio.create_task(work(number)) for number in range(READERS)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


class Installation:
    """Two services, a primary and a hot standby."""

    def __init__(self, made: Servers, primary: Server, standby: Server, services: list[Process]) -> None:
        self.primary = primary
        self.standby = standby
        self.services = services
        self._made = made

    async def leads(self, server: Server) -> bool:
        """Whether a process leads, according to the locks of this server."""
        try:
            async with server.admin() as connection:
                found: bool = await connection.fetchval(_RUNS["has_leader"])
                return found
        except (OSError, asyncpg.PostgresError):
            return False

    async def leader(self) -> Process:
        """The process that leads."""
        async with asyncio.timeout(60), aiohttp.ClientSession() as session:
            while True:
                for service in self.services:
                    with suppress(aiohttp.ClientError, OSError):
                        async with session.get(f"{service.name}/metrics") as response:
                            if _LEADS.search(await response.text()):
                                return service
                await asyncio.sleep(0.1)

    async def promote(self, timeline: Timeline) -> None:
        """Make the standby the primary, whose processes have ended."""
        async with self.standby.admin() as connection, asyncio.timeout(60):
            before = None
            # The end of what it received may be a part of a record, which is never replayed.
            while before != (replayed := await connection.fetchval(_REPLAYED)) or replayed is None:
                before = replayed
                await asyncio.sleep(0.1)
            timeline.fail_over(await connection.fetchval("SELECT data_version FROM instance"))
            assert await connection.fetchval("SELECT pg_promote()")
        self.primary, self.standby = self.standby, self.primary

    async def rebuild_standby(self) -> None:
        """Make a new standby in place of the server that failed, and wait until it has caught up."""
        old = self.standby
        self._made.all.remove(old)
        shutil.rmtree(old.folder)
        self.standby = await self._made.standby(self.primary, port=old.port)
        async with asyncio.timeout(60):
            while not await self._caught_up():  # noqa: ASYNC110 - no event to wait for
                await asyncio.sleep(0.05)

    async def _caught_up(self) -> bool:
        async with self.standby.admin() as connection:
            found: bool = await connection.fetchval("SELECT EXISTS (SELECT FROM pg_stat_wal_receiver)")
            return found

    async def restart(self, service: Process) -> None:
        """Start a service again, and wait until it is ready."""
        await service.start()
        async with asyncio.timeout(60), aiohttp.ClientSession() as session:
            while True:
                with suppress(aiohttp.ClientError, OSError):
                    async with session.get(f"{service.name}/health/ready") as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(0.05)


@asynccontextmanager
async def installation(folder: Path) -> AsyncIterator[Installation]:
    """Two services over the simulator, with a run every second."""
    async with (
        servers() as made,
        Simulator(seed=7, coins=300, tick=1.0) as simulator,
        AsyncExitStack() as stack,
    ):
        primary = await made.primary()
        standby = await made.standby(primary)
        url = f"postgresql://{USER}@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/{USER}"
        processes = []
        for number in (1, 2):
            port = free_port()
            environment = os.environ | {
                "DATABASE_URL": url,
                "DATABASE_READ_URL": url,
                "PORT": str(port),
                "KASPARRO_SOURCES": "coinpaprika,coingecko",
                "KASPARRO_COINPAPRIKA_URL": simulator.coinpaprika_url,
                "KASPARRO_COINGECKO_URL": simulator.coingecko_url,
                "KASPARRO_COINPAPRIKA_MONTHLY_CALLS": "1000000000",
                "KASPARRO_INTERVAL": "1s",
                "KASPARRO_LOG": "json",
            }
            command = (sys.executable, "-m", "kasparro", "serve")
            name = f"http://127.0.0.1:{port}"
            service = Process(name, command, environment, folder / f"service-{number}.log")
            stack.push_async_callback(service.kill)
            processes.append(service)
        found = Installation(made, primary, standby, processes)
        for service in processes:
            await found.restart(service)
        yield found


async def _until(condition: object, limit_s: float) -> float:
    """The time until a condition holds; infinite if it does not in time."""
    began = time.monotonic()
    while time.monotonic() - began < limit_s:
        if await condition():  # type: ignore[operator]
            return time.monotonic() - began
        await asyncio.sleep(0.05)
    return float("inf")


async def run_round(made: Installation, timeline: Timeline, reads: Reads, chance: random.Random) -> list[str]:
    """Kill the leader and the primary at random moments, and repair both. Describes what took too long."""
    slow: list[str] = []

    def check(what: str, seconds: float, limit_s: float) -> str:
        if seconds > limit_s:
            slow.append(f"{what} took {seconds:.1f} s")
        return f"{seconds:.2f}"

    leader = await made.leader()
    (other,) = [service for service in made.services if service is not leader]
    await asyncio.sleep(chance.uniform(0, 2))
    await leader.kill()
    killed_leader = time.monotonic()
    # In half of the rounds another process leads again before the primary fails.
    await asyncio.sleep(chance.choice((chance.uniform(0, 1), LEADS_S)))
    taken = await made.leads(made.primary)

    await made.primary.end(signal.SIGKILL)
    killed_primary = time.monotonic()
    await asyncio.sleep(chance.uniform(0, 1))
    await made.promote(timeline)
    leads_s = await _until(lambda: made.leads(made.primary), 4 * LEADS_S)
    reads_after_leader = reads.back_after(killed_leader, [other.name])
    reads_s = reads.back_after(killed_primary, [other.name])

    restarting = asyncio.create_task(made.restart(leader))
    await made.rebuild_standby()
    await restarting
    out.print(
        f"reads back {check('reads after the leader', reads_after_leader, READS_BACK_S)} s after the leader, "
        f"{check('reads after the primary', reads_s, READS_BACK_S)} s after the primary; "
        f"a leader {'was' if taken else 'was not yet'} back before it, "
        f"{check('a leader after the promotion', leads_s, LEADS_S)} s after the promotion",
        highlight=False,
    )
    return slow


async def run_rounds(rounds: int, seed: int) -> list[str]:
    """Describes everything that was wrong in this many rounds."""
    timeline, reads, chance = Timeline(), Reads(), random.Random(seed)
    slow: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="kasparro-failover-"))
    async with installation(folder) as made:
        with reading(timeline, reads, [service.name for service in made.services]):
            for number in range(1, rounds + 1):
                out.print(f"{number:3} ", end="", highlight=False)
                slow += await run_round(made, timeline, reads, chance)
        async with made.primary.admin() as connection:
            wrong_rows = await connection.fetchval(_WRONG_ROWS)
            runs = await connection.fetch("SELECT status, count(*) FROM runs GROUP BY status ORDER BY status")
    out.print(f"reads: {dict(sorted(reads.statuses.items()))}; runs: {dict(map(tuple, runs))}")
    found = [*dict.fromkeys(timeline.wrong), *slow, *([f"{wrong_rows} wrong rows"] if wrong_rows else [])]
    if found:
        out.print(f"logs: {folder}")
    else:
        shutil.rmtree(folder)
    return found


@click.command()
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1, 1_000))
@click.option("--seed", default=1, show_default=True)
def main(rounds: int, seed: int) -> None:
    """Kill the leader and the primary in each round, promote the standby, and check what clients see."""
    found = asyncio.run(run_rounds(rounds, seed))
    for line in found:
        out.print(line, style="red", markup=False, highlight=False)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
