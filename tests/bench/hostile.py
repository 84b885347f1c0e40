"""Latency of one client's `GET /data` while 200 hostile clients of five kinds are at work."""

import asyncio
import statistics
import sys
import time
from pathlib import Path

import aiohttp

from tests.bench import measure, servers
from tests.bench.servers import PATH
from tests.support.hostile_clients import KINDS

CLIENTS_PER_KIND, SECONDS = 40, 20.0
# The targets: the 99th percentile of the well-behaved client's latency, and the service's memory.
P99_S, MEGABYTES = 0.1, 300


async def main() -> None:
    """Send one request after the other, first without and then with hostile clients."""
    async with measure.server() as url:
        database = await measure.new_database(url, "bench_hostile")
        await measure.load_samples(database)
        async with measure.peak_memory() as peak, servers.kasparro(database) as port:
            found = {"alone": await _latencies(port, SECONDS / 4)}
            attacker = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.support.hostile_clients",
                str(port),
                str(CLIENTS_PER_KIND),
                cwd=Path(__file__).parents[2],
            )
            try:
                found["under attack"] = await _latencies(port, SECONDS)
            finally:
                attacker.terminate()
                await attacker.wait()
    print(f"GET {PATH} with {CLIENTS_PER_KIND * len(KINDS)} hostile clients of {len(KINDS)} kinds")
    for name, (data, live) in found.items():
        for path, taken in ((PATH, data), ("/health/live", live)):
            p50, p99 = (statistics.quantiles(taken, n=100)[n] for n in (49, 98))
            print(
                f"  {name:12} {path:15} {len(taken):6,} responses, median {1_000 * p50:6.1f} ms, "
                f"99th percentile {1_000 * p99:6.1f} ms, longest {1_000 * max(taken):6.1f} ms"
            )
    print(f"  target: 99th percentile of {PATH} below {1_000 * P99_S:.0f} ms")
    print(f"  memory of the service: at most {peak.megabytes:,.0f} MB; target: below {MEGABYTES} MB")


async def _latencies(port: int, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds per response: of /data on one connection, of /health/live on a new connection each."""
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + seconds

    async def measured(session: aiohttp.ClientSession, path: str, pause_s: float) -> list[float]:
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
        aiohttp.ClientSession(url) as reused,
        aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(force_close=True)) as reconnecting,
    ):
        data, live = await asyncio.gather(
            measured(reused, PATH, 0.005), measured(reconnecting, "/health/live", 0.05)
        )
    return data, live
