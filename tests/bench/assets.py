"""The cost of assets: loads with and without links, by turns, and `/assets` compared with `/data`."""

import asyncio
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from kasparro.pipeline.identity import AssetOptions
from kasparro.pipeline.run import Run
from kasparro.simulator import Simulator
from kasparro.sources.archives.source import Archives
from kasparro.sources.base import Source, utc_now
from kasparro.store.migrations import migrate
from kasparro.store.pool import Database
from tests.bench import load, measure, servers, wrk
from tests.support.runs import apis

COINS, MOMENTS, ROUNDS, SECONDS, CONNECTIONS = 5_000, 200, 3, 2, 16
# Loads of the APIs: coins of the simulated market.
API_COINS = 15_000


async def main() -> None:
    """Load an archive, then later days of the same coins, and both APIs twice: with assets and without."""
    loads: dict[str, dict[bool, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        first, later = Path(folder) / "first.csv", Path(folder) / "later.csv"
        load.write_dump(first, COINS, MOMENTS)
        load.write_dump(later, COINS, 2 * MOMENTS, since=MOMENTS)
        async with measure.server() as url:
            for number in range(ROUNDS):
                for linked in (True, False) if number % 2 else (False, True):
                    for title, seconds in (await _loads(url, first, later, linked=linked)).items():
                        loads.setdefault(title, {True: [], False: []})[linked].append(seconds)
            print(f"loads with and without assets, {ROUNDS} rounds")
            for title, found in loads.items():
                with_assets, without = statistics.median(found[True]), statistics.median(found[False])
                print(
                    f"  {title:28} {with_assets:6.2f} s with, {without:6.2f} s without, "
                    f"ratio {with_assets / without:.2f}"
                )
            await _reads(url)


async def _loads(server_url: str, first: Path, later: Path, *, linked: bool) -> dict[str, float]:
    # The seconds of each load into an empty database.
    found = {}
    async with Database(await measure.new_database(server_url, "bench_assets")) as database:
        await migrate(database)
        for title, path in (("1,000,000 rows of new coins", first), ("1,000,000 rows of known coins", later)):
            found[title] = await _seconds(database, [Archives(str(path))], linked=linked)
    async with (
        Simulator(seed=1, coins=API_COINS, manual=True) as simulator,
        Database(await measure.new_database(server_url, "bench_assets")) as database,
    ):
        await migrate(database)
        sources = apis(simulator)
        found["both APIs, new coins"] = await _seconds(database, sources, linked=linked)
        simulator.advance(60)
        for title in ("both APIs, an hour later", "both APIs, the same again"):
            found[title] = await _seconds(database, sources, linked=linked, later=timedelta(hours=1))
    return found


async def _seconds(
    database: Database, sources: list[Source], *, linked: bool, later: timedelta = timedelta(0)
) -> float:
    # The clock of the run is as far ahead as the simulator's, which would otherwise send times in the future.
    options = AssetOptions() if linked else None
    began = time.perf_counter()
    async with Run(database, sources, "etl", assets=options, clock=lambda: utc_now() + later) as run:
        await run.work(asyncio.Event())
    return time.perf_counter() - began


async def _reads(server_url: str) -> None:
    wrk.require()
    url = await measure.new_database(server_url, "bench_assets")
    async with Simulator(seed=1, coins=API_COINS, manual=True) as simulator, Database(url) as database:
        await migrate(database)
        await _seconds(database, apis(simulator), linked=True)
    rates: dict[str, list[float]] = {"/data?limit=50": [], "/assets?limit=50": []}
    async with servers.kasparro(url) as port:
        for _ in range(ROUNDS):
            for path, found in rates.items():
                under_load = await wrk.load(port, [path], connections=CONNECTIONS, seconds=SECONDS)
                found.append(under_load.rate)
    data, of_assets = (statistics.median(found) for found in rates.values())
    print(
        f"  warm, {CONNECTIONS} connections: /assets {of_assets:,.0f}, /data {data:,.0f} responses/s, "
        f"ratio {of_assets / data:.2f}"
    )
