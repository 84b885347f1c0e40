"""The 99th percentile of `GET /data` while the service loads a big archive, beside what it is while psql does
so in the service's place."""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp

from tests.bench import load, measure, reads

TIMES, ROUNDS = 100, 3
TOKEN = "token-of-the-benchmarks"


async def main() -> None:
    """Ask one request after the other during either load, by turns."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "dump.csv"
        rows = load.write_dump(path, times=TIMES)
        script = Path(folder) / "load.sql"
        script.write_text(load.psql_script(path))
        slowest: dict[str, list[float]] = {"nothing": [], "psql": [], "kasparro": []}
        async with measure.server() as url:
            for _ in range(ROUNDS):
                for name, taken in slowest.items():
                    database = await measure.fresh(url, "bench_latency")
                    await measure.fill(database)
                    environment = {
                        "DATABASE_URL": database,
                        "KASPARRO_INTERVAL": "off",
                        "KASPARRO_LOG_LEVEL": "error",
                        "KASPARRO_SOURCES": "csv",
                        "KASPARRO_ARCHIVES": str(path),
                        "KASPARRO_ADMIN_TOKEN": TOKEN,
                    }
                    async with reads.running("-m", "kasparro", "serve", "--port", **environment) as port:
                        taken.append(await _asked(port, name, script, database))
    print(f"GET {reads.PATH} during a load of {rows:,} rows, {ROUNDS} rounds by turns, 99th percentile")
    for name, values in slowest.items():
        print(f"  {name:10} {measure.spread([1_000_000 * value for value in values], 'µs')}")
    ratio = statistics.median(slowest["kasparro"]) / statistics.median(slowest["psql"])
    print(f"  kasparro / psql    {ratio:.2f}")


async def _asked(port: int, name: str, script: Path, database: str) -> float:
    """The 99th percentile, in seconds, of one request after the other while the load lasts."""
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
            async with session.get(reads.PATH) as response:
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
