"""Latency of `GET /data` while the service loads a large archive, compared with psql loading it."""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp

from tests.bench import load, measure, servers
from tests.bench.servers import PATH

MOMENTS, ROUNDS = 100, 3
TOKEN = "token-of-the-benchmarks"


async def main() -> None:
    """Send one request after the other during each kind of load."""
    with tempfile.TemporaryDirectory() as folder:
        # PostgreSQL may run as another account.
        Path(folder).chmod(0o755)
        path = Path(folder) / "dump.csv"
        rows = load.write_dump(path, moments=MOMENTS)
        script = Path(folder) / "load.sql"
        script.write_text(load.psql_script(path))
        p99: dict[str, list[float]] = {"no load": [], "psql": [], "kasparro": []}
        async with measure.server() as url:
            for _ in range(ROUNDS):
                for name, percentiles in p99.items():
                    database = await measure.new_database(url, "bench_latency")
                    await measure.load_samples(database)
                    serving = servers.kasparro(
                        database,
                        KASPARRO_SOURCES="csv",
                        KASPARRO_ARCHIVES=str(path),
                        KASPARRO_ADMIN_TOKEN=TOKEN,
                    )
                    async with serving as port:
                        percentiles.append(await _p99_during_load(port, name, script, database))
    print(f"GET {PATH} during a load of {rows:,} rows, {ROUNDS} rounds, 99th percentile of latency")
    for name, values in p99.items():
        print(f"  {name:10} {measure.spread([1_000_000 * value for value in values], 'µs')}")
    ratio = statistics.median(p99["kasparro"]) / statistics.median(p99["psql"])
    print(f"  kasparro / psql    {ratio:.2f}")


async def _p99_during_load(port: int, name: str, script: Path, database: str) -> float:
    """The 99th percentile of latency, in seconds, until the load ends (without a load: for 5 s)."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        match name:
            case "psql":
                loading = asyncio.create_task(load.by_psql(script, database))
            case "kasparro":
                loading = asyncio.create_task(_by_service(session))
            case _:
                loading = asyncio.create_task(asyncio.sleep(5))
        taken = []
        while not loading.done():
            began = time.perf_counter()
            async with session.get(PATH) as response:
                await response.read()
            taken.append(time.perf_counter() - began)
            await asyncio.sleep(0.005)
        await loading
    return statistics.quantiles(taken, n=100)[98]


async def _by_service(session: aiohttp.ClientSession) -> None:
    async with session.post("/runs", headers={"Authorization": f"Bearer {TOKEN}"}) as response:
        response.raise_for_status()
        path = response.headers["Location"]
    while True:
        async with session.get(path) as response:
            if (await response.json())["status"] != "running":
                return
        await asyncio.sleep(0.1)
