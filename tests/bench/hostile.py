"""The 99th percentile of one client's `GET /data` while 200 hostile clients of five kinds are at work."""

import asyncio
import statistics
import sys
import time
from pathlib import Path

import aiohttp

from tests.bench import measure, reads
from tests.support.hostile_clients import KINDS

EACH, SECONDS = 40, 20.0
# The targets: of another client's answers, and of the service's memory.
P99_S, MEGABYTES = 0.1, 300


async def main() -> None:
    """Ask one request after the other without hostile clients, and then among them."""
    async with measure.server() as url:
        database = await measure.fresh(url, "bench_hostile")
        await measure.fill(database)
        async with measure.memory() as peak, reads.serving(database) as port:
            found = {"alone": await _asked(port, SECONDS / 4)}
            attacker = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.support.hostile_clients",
                str(port),
                str(EACH),
                cwd=Path(__file__).parents[2],
            )
            try:
                found["among them"] = await _asked(port, SECONDS)
            finally:
                attacker.terminate()
                await attacker.wait()
    print(f"GET {reads.PATH} with {EACH * len(KINDS)} hostile clients of {len(KINDS)} kinds")
    for name, (data, live) in found.items():
        for path, taken in ((reads.PATH, data), ("/health/live", live)):
            p50, p99 = (statistics.quantiles(taken, n=100)[n] for n in (49, 98))
            print(
                f"  {name:11} {path:15} {len(taken):6,} answers, median {1_000 * p50:6.1f} ms, "
                f"99th percentile {1_000 * p99:6.1f} ms, longest {1_000 * max(taken):6.1f} ms"
            )
    print(f"  target: 99th percentile of {reads.PATH} below {1_000 * P99_S:.0f} ms")
    print(f"  memory of the service: {peak.megabytes:,.0f} MB at most; target: below {MEGABYTES} MB")


async def _asked(port: int, seconds: float) -> tuple[list[float], list[float]]:
    """The seconds that each answer took, of /data on one connection and of health on one each."""
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + seconds

    async def ask(session: aiohttp.ClientSession, path: str, pause_s: float) -> list[float]:
        taken = []
        while time.monotonic() < until:
            began = time.perf_counter()
            async with session.get(path) as response:
                await response.read()
                response.raise_for_status()
            taken.append(time.perf_counter() - began)
            await asyncio.sleep(pause_s)
        return taken

    async with (
        aiohttp.ClientSession(url) as kept,
        aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(force_close=True)) as fresh,
    ):
        data, live = await asyncio.gather(ask(kept, reads.PATH, 0.005), ask(fresh, "/health/live", 0.05))
    return data, live
