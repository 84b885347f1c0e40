"""Prometheus and its promtool, if they are installed."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.postgres import free_port

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="Prometheus (Debian: prometheus) is not installed",
)


async def promtool(*arguments: str, stdin: str = "") -> tuple[int | None, str]:
    """Run promtool; returns its exit code and output."""
    process = await asyncio.create_subprocess_exec(
        *("promtool", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate(stdin.encode())
    return process.returncode, output.decode()


class Prometheus:
    """A running Prometheus."""

    def __init__(self, client: aiohttp.ClientSession) -> None:
        self._client = client

    async def query(self, expression: str) -> list[Any]:
        """The result of an instant query."""
        async with self._client.get("/api/v1/query", params={"query": expression}) as response:
            answer = await response.json()
            assert answer["status"] == "success", (expression, answer)
            result: list[Any] = answer["data"]["result"]
            return result

    async def scraped(self, times: int) -> None:
        """Wait until the service was scraped so many times."""
        async with asyncio.timeout(60):
            while True:
                found = await self.query('count_over_time(kasparro_build_info{job="kasparro"}[5m])')
                if found and int(found[0]["value"][1]) >= times:
                    return
                await asyncio.sleep(0.2)


@asynccontextmanager
async def prometheus(folder: Path, target: str, rules: Path) -> AsyncIterator[Prometheus]:
    """A Prometheus that scrapes the host and port `target` every second while the block runs."""
    port = free_port()
    configuration = folder / "prometheus.yml"
    configuration.write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        f"scrape_configs: [{{job_name: kasparro, static_configs: [{{targets: ['{target}']}}]}}]\n"
        f"rule_files: ['{rules}']\n"
    )
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            "prometheus",
            f"--config.file={configuration}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            async with asyncio.timeout(60):
                while not await _is_ready(client):
                    assert process.returncode is None, log.read_text()
                    await asyncio.sleep(0.05)
            yield Prometheus(client)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _is_ready(client: aiohttp.ClientSession) -> bool:
    try:
        async with client.get("/-/ready") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False
