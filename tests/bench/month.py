"""A month of hourly runs on a simulated clock: the calls it spends, and how old coins get."""

import sys
import time
from datetime import timedelta

from kasparro import logs
from kasparro.settings import Settings
from kasparro.simulator import Account, Simulator
from kasparro.store.migrations import migrate
from kasparro.store.pool import Database
from tests.bench import measure
from tests.support.simulated_month import BEGIN, simulated_runs

HOURS = 31 * 24
# CoinGecko's size in 2026: 72 pages.
COINS = 18_900
MONTHLY_CALLS = 10_000


async def main() -> None:
    """Simulate a month of the demo plan. Exits with an error if a promise or the budget is broken."""
    logs.configure(Settings(log_level="error"))
    began = time.perf_counter()
    account = Account(key="k", per_month=MONTHLY_CALLS)
    async with (
        measure.server() as url,
        Simulator(coins=COINS, base=BEGIN, tick=3_600, manual=True, coingecko=account) as simulator,
        Database(await measure.new_database(url, "bench_month")) as database,
    ):
        await migrate(database)
        runs = await simulated_runs(database, simulator, MONTHLY_CALLS, timedelta(hours=1), HOURS)
    late = [run for run in runs if run.promised_before is not None and run.age_before > run.promised_before]
    promises = [run.promised_after for run in runs if run.promised_after is not None]
    print(f"{len(runs)} hourly runs over {runs[-1].pages} pages with {MONTHLY_CALLS:,} calls a month")
    print(f"  statuses                     {sorted({run.status for run in runs})}")
    print(f"  calls                        {runs[-1].calls:,}")
    print(f"  promised age on /stats       {min(promises)} to {max(promises)}")
    print(f"  oldest coin at any hour      {max(run.age_before for run in runs)}")
    print(f"  hours with a coin older than promised  {len(late)}")
    print(f"  took                         {time.perf_counter() - began:.0f} s")
    if late or runs[-1].calls > MONTHLY_CALLS:
        sys.exit("the month broke its promised age or its call budget")
