"""A world: PostgreSQL, the simulator and two services, with proxies between them."""

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

from kasparro.simulator.served import ServedResponse
from kasparro.sources import registry
from tests.chaos.traffic import ClientLog
from tests.support.postgres import Disk, Server, free_port, servers, small_disk
from tests.support.proxy import Proxy

ROOT = Path(__file__).parents[2]
COINS = 600
SERVICES = 2
TOKEN = "token-of-the-chaos-suite"
DISK_MB = 128
# Each tick of the market takes six hours, so months change and history gets partitions during faults.
TICK_S = 6 * 3600
# The library of Debian's package `faketime`; without it no clock faults are injected.
FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


class Process:
    """A process with its log file."""

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
        """Start the process, unless it runs."""
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
        """Wait until the process ends; returns its exit code."""
        return None if self._process is None else await self._process.wait()

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.ended()

    async def stop(self) -> int | None:
        """Send SIGTERM; the process has to end within 15 s. Returns its exit code."""
        self.signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            return await self.ended()


class Service(Process):
    """One `kasparro serve`, which reaches the database and the upstreams through proxies of its own."""

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
        self.client_log = ClientLog()
        self.single_fault = False
        """Whether the round has only one fault."""
        self._chance = random.Random(f"{seed} archives")
        self._written = 0
        self.notes: list[str] = []

    def environment(self, database_port: int, upstream_port: int) -> dict[str, str]:
        """The environment of a service or a command: its settings, and no others."""
        names = {variable.name for variable in registry.variables()}
        upstream = f"http://127.0.0.1:{upstream_port}"
        return {name: value for name, value in os.environ.items() if name not in names} | {
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
        """Add a line to the round's notes, with the time."""
        self.notes.append(f"{datetime.now(UTC):%H:%M:%S.%f} {text}")

    @asynccontextmanager
    async def database_down(self, *services: Service) -> AsyncIterator[None]:
        """While this lasts, these services cannot reach their database."""
        with self.client_log.database_down(*(service.name for service in services)):
            yield

    @asynccontextmanager
    async def service_down(self, *services: Service) -> AsyncIterator[tuple[Service, ...]]:
        """While this lasts, these services need not respond. Waits at the end until they do."""
        with self.client_log.service_down(*(service.name for service in services)):
            yield services
            async with asyncio.timeout(60), self.client() as session:
                for service in services:
                    while not await self._is_live(session, service):  # noqa: ASYNC110 - no event to wait for
                        await asyncio.sleep(0.05)

    async def _is_live(self, session: aiohttp.ClientSession, service: Service) -> bool:
        try:
            async with session.get(f"{service.url}/health/live") as reply:
                return reply.status == 200
        except (aiohttp.ClientError, OSError):
            return False

    def client(self) -> aiohttp.ClientSession:
        """A client of the services."""
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))

    async def health(self) -> list[dict[str, Any]]:
        """The response of /health of each service."""
        async with self.client() as session:
            found = []
            for service in self.services:
                async with session.get(f"{service.url}/health") as reply:
                    found.append(json.loads(await reply.read()))
            return found

    async def wait_until_degraded(self, source: str) -> None:
        """Wait until /health of every service is degraded because of this source."""
        async with asyncio.timeout(20):
            while not all(  # noqa: ASYNC110 - no event to wait for
                health["status"] == "degraded"
                and health["sources"][source]["status"] in {"failed", "partial"}
                for health in await self.health()
            ):
                await asyncio.sleep(0.1)

    async def control(self, method: str, path: str, body: Any = None) -> bytes:
        """Send a control request to the simulator, not through a proxy."""
        url = f"http://127.0.0.1:{self.simulator_port}/control/{path}"
        data = None if body is None else msgspec.json.encode(body)
        timeout = aiohttp.ClientTimeout(total=30)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, url, data=data) as reply,
        ):
            reply.raise_for_status()
            return await reply.read()

    async def responses(self, after: int) -> list[ServedResponse]:
        """The complete responses of the simulator after this call number."""
        return msgspec.json.decode(
            await self.control("GET", f"served?after={after}"), type=list[ServedResponse]
        )

    async def calls(self, after: int) -> list[str]:
        """The APIs of the simulator's calls after this call number."""
        return [call["api"] for call in json.loads(await self.control("GET", f"calls?after={after}"))]

    def write_archive(self) -> None:
        """Write an archive with 25 of 40 coins, at a moment that no other archive has."""
        self._written += 1
        at = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=self._written)
        lines = ["id,symbol,name,price_usd,last_updated"]
        for coin in self._chance.sample(range(40), 25):
            price = f"{self._chance.random():.9f}"
            lines.append(f"coin-{coin},C{coin},Coin {coin},{price},{int(at.timestamp())}")
        # The rename is atomic, so that no run sees a partial file.
        draft = self.folder / "draft.csv"
        draft.write_text("\n".join(lines) + "\n")
        draft.rename(self.archives / f"{self._written:05}.csv")


@asynccontextmanager
async def start_world(folder: Path, seed: str) -> AsyncIterator[World]:
    """Start a world in an empty folder."""
    async with AsyncExitStack() as stack:
        disk = await stack.enter_async_context(small_disk(DISK_MB))
        postgres = await stack.enter_async_context(servers())
        server = await postgres.primary()
        if disk.missing is None:
            await server.move_to(disk)
        simulator, port = await _simulator(folder, seed, stack)
        world = World(folder, seed, server, disk, simulator, port)
        world.write_archive()
        for number in range(1, SERVICES + 1):
            database = await stack.enter_async_context(Proxy(server.port))
            upstream = await stack.enter_async_context(Proxy(port))
            service = Service(number, world, database, upstream)
            world.services.append(service)
            stack.push_async_callback(service.kill)
            await service.start()
        yield world


async def _simulator(folder: Path, seed: str, stack: AsyncExitStack) -> tuple[Process, int]:
    log = folder / "simulator.log"
    command = (
        *(sys.executable, "-m", "kasparro.simulator", "--manual", "--record-served"),
        *("--seed", str(random.Random(seed).randrange(1 << 30)), "--coins", str(COINS)),
        *("--tick", str(TICK_S), "--base", f"{datetime.now(UTC) - timedelta(days=1_500):%Y-%m-%d}"),
    )
    process = Process("simulator", command, dict(os.environ), log)
    await process.start()
    stack.push_async_callback(process.kill)
    async with asyncio.timeout(30):
        while not (line := log.read_text().partition("\n")[0]):  # noqa: ASYNC110 - no event to wait for
            await asyncio.sleep(0.05)
    return process, urlsplit(json.loads(line)["control"]).port or 0
