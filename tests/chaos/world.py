"""The processes of one world: PostgreSQL, the simulator, services, and the lines between them."""

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from kasparro import settings
from kasparro.simulator.answers import Given
from tests.chaos.traffic import Ledger
from tests.support.postgres import Disk, Server, free_port, servers, small_disk
from tests.support.proxy import Proxy

ROOT = Path(__file__).parents[2]
COINS = 600
SERVICES = 2
TOKEN = "token-of-the-chaos-suite"
DISK_MB = 128
# The market's hours are quick ones: months change, so history gets new partitions while things break.
TICK_S = 6 * 3600
# Where Debian's package `faketime` has its library; without it no clock jumps.
FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


class Process:
    """A process of ours with its log."""

    def __init__(self, name: str, command: tuple[str, ...], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it, unless it runs."""
        if self.alive:
            return
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=self._environment,
            )

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def ended(self) -> int | None:
        """Wait for its end; gives its exit code."""
        return None if self._process is None else await self._process.wait()

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.ended()

    async def stop(self) -> int | None:
        """Ask it to end, and see that it does within the time that it promises."""
        self.signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            return await self.ended()


class Service(Process):
    """One `kasparro serve`, behind lines of its own to the database and to the upstreams."""

    def __init__(self, number: int, world: "World", database: Proxy, upstream: Proxy) -> None:
        self.port = free_port()
        self.database = database
        self.upstream = upstream
        self.clock = world.folder / f"clock-{number}"
        self.clock.write_text("+0")
        environment = world.environment(database.port, upstream.port) | {"PORT": str(self.port)}
        if FAKETIME is not None:
            environment |= {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(self.clock),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        command = (sys.executable, "-m", "tests.chaos.service", "serve")
        super().__init__(f"service {number}", command, environment, world.folder / f"service-{number}.log")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class World:
    """Everything that a round may break."""

    def __init__(
        self, folder: Path, seed: str, server: Server, disk: Disk, simulator: Process, port: int
    ) -> None:
        self.folder = folder
        self.server = server
        self.simulator = simulator
        self.simulator_port = port
        self.services: list[Service] = []
        self.archives = folder / "archives"
        self.archives.mkdir()
        self.disk = disk
        self.ledger = Ledger()
        self.alone = False
        """Whether one fault alone strikes in this round."""
        self._chance = random.Random(f"{seed} archives")
        self._written = 0
        self.notes: list[str] = []

    def environment(self, database_port: int, upstream_port: int) -> dict[str, str]:
        """What a service or a command of this world is told."""
        ours = {variable.name for variable in settings.variables().values()}
        upstream = f"http://127.0.0.1:{upstream_port}"
        return {name: value for name, value in os.environ.items() if name not in ours} | {
            "DATABASE_URL": self.server.url(port=database_port),
            "KASPARRO_COINPAPRIKA_URL": f"{upstream}/coinpaprika/v1",
            "KASPARRO_COINGECKO_URL": f"{upstream}/coingecko/api/v3",
            "KASPARRO_COINPAPRIKA_MONTHLY_CALLS": "1000000000",
            "KASPARRO_INTERVAL": "1s",
            "KASPARRO_ARCHIVES": str(self.archives),
            "KASPARRO_ADMIN_TOKEN": TOKEN,
            "KASPARRO_LOG": "json",
        }

    def note(self, text: str) -> None:
        """Keep a line of what was done, and when."""
        self.notes.append(f"{datetime.now(UTC):%H:%M:%S.%f} {text}")

    @asynccontextmanager
    async def unreachable(self, *those: Service) -> AsyncIterator[None]:
        """The time in which these services cannot reach their database, whatever they try."""
        with self.ledger.away(*(service.name for service in those)):
            yield

    @asynccontextmanager
    async def disturbed(self, *those: Service) -> AsyncIterator[tuple[Service, ...]]:
        """The time in which these services may be silent, until they answer again."""
        with self.ledger.disturbed(*(service.name for service in those)):
            yield those
            async with asyncio.timeout(60), self.client() as session:
                for service in those:
                    while not await self._lives(session, service):  # noqa: ASYNC110 - it tells nobody
                        await asyncio.sleep(0.05)

    async def _lives(self, session: aiohttp.ClientSession, service: Service) -> bool:
        try:
            async with session.get(f"{service.url}/health/live") as reply:
                return reply.status == 200
        except (aiohttp.ClientError, OSError):
            return False

    def client(self) -> aiohttp.ClientSession:
        """A client of the services."""
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))

    async def health(self) -> list[dict[str, Any]]:
        """What /health says of each service."""
        async with self.client() as session:
            told = []
            for service in self.services:
                async with session.get(f"{service.url}/health") as reply:
                    told.append(json.loads(await reply.read()))
            return told

    async def degraded(self, source: str) -> None:
        """Wait until every service's /health says so and names the source."""
        async with asyncio.timeout(20):
            while not all(  # noqa: ASYNC110 - as above
                one["status"] == "degraded" and one["sources"][source]["status"] in {"failed", "partial"}
                for one in await self.health()
            ):
                await asyncio.sleep(0.1)

    async def control(self, method: str, path: str, body: Any = None) -> bytes:
        """Steer the simulator, on a line of its own."""
        url = f"http://127.0.0.1:{self.simulator_port}/control/{path}"
        data = None if body is None else msgspec.json.encode(body)
        timeout = aiohttp.ClientTimeout(total=30)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, url, data=data) as reply,
        ):
            reply.raise_for_status()
            return await reply.read()

    async def answers(self, after: int) -> list[Given]:
        """What the simulator told since a call, whole."""
        return msgspec.json.decode(await self.control("GET", f"answers?after={after}"), type=list[Given])

    async def calls(self, after: int) -> list[str]:
        """Whose calls the simulator saw since a call."""
        return [call["api"] for call in json.loads(await self.control("GET", f"calls?after={after}"))]

    def write_archive(self) -> None:
        """A new file: coins that others have too, each file at a moment of its own."""
        self._written += 1
        at = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=self._written)
        lines = ["id,symbol,name,price_usd,last_updated"]
        for coin in self._chance.sample(range(40), 25):
            price = f"{self._chance.random():.9f}"
            lines.append(f"coin-{coin},C{coin},Coin {coin},{price},{int(at.timestamp())}")
        # Named in one step: a file that is still being written is another matter.
        draft = self.folder / "draft.csv"
        draft.write_text("\n".join(lines) + "\n")
        draft.rename(self.archives / f"{self._written:05}.csv")


@asynccontextmanager
async def world(folder: Path, seed: str) -> AsyncIterator[World]:
    """A world of its own in an empty folder: everything runs, and nothing is broken yet."""
    async with AsyncExitStack() as stack:
        disk = await stack.enter_async_context(small_disk(DISK_MB))
        made = await stack.enter_async_context(servers())
        server = await made.primary()
        if disk.missing is None:
            await server.move_to(disk)
        simulator, port = await _simulator(folder, seed, stack)
        built = World(folder, seed, server, disk, simulator, port)
        built.write_archive()
        for number in range(1, SERVICES + 1):
            database = await stack.enter_async_context(Proxy(server.port))
            upstream = await stack.enter_async_context(Proxy(port))
            service = Service(number, built, database, upstream)
            built.services.append(service)
            stack.push_async_callback(service.kill)
            await service.start()
        yield built


async def _simulator(folder: Path, seed: str, stack: AsyncExitStack) -> tuple[Process, int]:
    told = folder / "simulator.log"
    command = (
        *(sys.executable, "-m", "kasparro.simulator", "--manual", "--keep-answers"),
        *("--seed", str(random.Random(seed).randrange(1 << 30)), "--coins", str(COINS)),
        *("--tick", str(TICK_S), "--base", f"{datetime.now(UTC) - timedelta(days=1_500):%Y-%m-%d}"),
    )
    process = Process("simulator", command, dict(os.environ), told)
    await process.start()
    stack.push_async_callback(process.kill)
    async with asyncio.timeout(30):
        while not (line := told.read_text().partition("\n")[0]):  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.05)
    return process, urlsplit(json.loads(line)["control"]).port or 0
