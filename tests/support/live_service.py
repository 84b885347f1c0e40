"""`kasparro serve` in another process, with data of all sources and an admin token."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import stamina

from kasparro.simulator import Simulator
from tests.support.commands import listening_url, started_command

TOKEN = "a-token-of-the-tests"


class LiveService:
    """A service at `url`. `log` has its log events after it has stopped."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.log: list[dict[str, Any]] = []


@asynccontextmanager
async def live_service(database_url: str, *arguments: str, **settings: str) -> AsyncIterator[LiveService]:
    """A service that has completed one run over the simulator and the sample archive. The arguments are those
    of `serve`, and the settings are added to its environment."""
    environment = {
        "DATABASE_URL": database_url,
        "PORT": "0",
        "KASPARRO_INTERVAL": "24h",
        "KASPARRO_LOG": "json",
        "KASPARRO_ADMIN_TOKEN": TOKEN,
        **settings,
    }
    async with Simulator(seed=1, coins=300, manual=True) as simulator:
        environment["KASPARRO_COINPAPRIKA_URL"] = simulator.coinpaprika_url
        environment["KASPARRO_COINGECKO_URL"] = simulator.coingecko_url
        async with started_command("serve", *arguments, **environment) as process:
            service = LiveService(await listening_url(process))
            assert process.stderr is not None
            # Read while it runs, because a full pipe would block the service.
            rest = asyncio.create_task(process.stderr.read())
            try:
                await first_run(service.url)
                yield service
            finally:
                process.terminate()
                service.log = [json.loads(line) for line in (await rest).splitlines()]


async def first_run(url: str) -> None:
    """Return when the first run of the service at this URL has succeeded."""
    async with aiohttp.ClientSession(url) as session:
        async for attempt in stamina.retry_context(
            on=(AssertionError, aiohttp.ClientError),
            attempts=None,
            timeout=30,
            wait_initial=0.05,
            wait_max=0.2,
        ):
            with attempt:
                async with session.get("/stats") as response:
                    run = (await response.json())["last_run"]
                    assert run is not None
                    assert run["status"] == "succeeded", run


async def command(*arguments: str, **environment: str) -> tuple[int | None, str]:
    """Run a Python module as a program; returns its exit code and output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **environment},
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()
