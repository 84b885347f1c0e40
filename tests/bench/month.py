"""A month of hourly runs on a moved clock: what of the calls is spent, and how old a coin gets beside the
promise that /stats makes."""

import asyncio
import sys
import time
from datetime import UTC, datetime, timedelta

import msgspec

from kasparro import logs
from kasparro.pipeline import report
from kasparro.pipeline.run import Run
from kasparro.settings import Secret, Settings
from kasparro.simulator import Account, Simulator
from kasparro.sources.coingecko import PAGE_SIZE, CoinGecko
from kasparro.store.migrations import migrate
from kasparro.store.pool import Database
from tests.bench import measure

BEGIN = datetime(2026, 10, 1, tzinfo=UTC)
HOURS = 31 * 24
# With these, CoinGecko's list has 72 pages.
COINS = 18_900


class Lived(msgspec.Struct, frozen=True):
    """What stood after one run: the calls of the month, the age of the coin that its upstream had
    served us longest ago, right before and after the run, and what /stats promised before and after.
    """

    calls: int
    status: str
    before: timedelta
    after: timedelta
    promised_before: timedelta | None
    promised: timedelta | None
    pages: int | None


async def lived(
    database: Database, simulator: Simulator, limit: int, interval: timedelta, runs: int
) -> list[Lived]:
    """Run at every interval, as the loop would, over a simulator whose time stands and whose tick it is."""
    settings = Settings(
        interval=interval,
        coingecko_plan="demo",
        coingecko_key=Secret("k"),
        coingecko_monthly_calls=limit,
    )
    source = CoinGecko(simulator.coingecko_url, "demo", Secret("k"))
    clock = simulator.clock.now
    seen: dict[str, datetime] = {}
    told: list[Lived] = []
    promised: timedelta | None = None
    for _ in range(runs):
        now = clock()
        listed = [quote.id for quote in simulator.market.listing("coingecko")]
        before = max((now - seen[coin] for coin in listed if coin in seen), default=timedelta())
        async with Run(
            database,
            [source],
            "schedule",
            budget=settings.monthly_calls,
            interval=settings.interval,
            clock=clock,
        ) as run:
            status = await run.work(asyncio.Event())
        for call in simulator.calls:
            if call.status in {200, 304}:
                start = (int(call.query["page"]) - 1) * PAGE_SIZE
                seen |= dict.fromkeys(listed[start : start + PAGE_SIZE], now)
        simulator.calls.clear()
        async with database.reading() as connection:
            budget = (await report.stats(connection, settings, clock=clock)).budget["coingecko"]
        after = max(now - seen.get(coin, datetime.min.replace(tzinfo=UTC)) for coin in listed)
        before_promised = promised
        promised = None if budget.promised_age_s is None else timedelta(seconds=budget.promised_age_s)
        told.append(Lived(budget.calls, status, before, after, before_promised, promised, budget.pages))
        simulator.advance(1)
    return told


async def main() -> None:
    """Live a month of the demo plan at the size of 2026, and say how it went."""
    logs.configure(Settings(log_level="error"))
    began = time.perf_counter()
    limit = 10_000
    account = Account(key="k", per_month=limit)
    async with (
        measure.server() as url,
        Simulator(coins=COINS, base=BEGIN, tick=3_600, manual=True, coingecko=account) as simulator,
        Database(await measure.fresh(url, "bench_month")) as database,
    ):
        await migrate(database)
        hours = await lived(database, simulator, limit, timedelta(hours=1), HOURS)
    late = [hour for hour in hours if hour.promised_before is not None and hour.before > hour.promised_before]
    promises = [hour.promised for hour in hours if hour.promised is not None]
    print(f"{len(hours)} hourly runs over {hours[-1].pages} pages with {limit:,} calls a month")
    print(f"  statuses                     {sorted({hour.status for hour in hours})}")
    print(f"  calls                        {hours[-1].calls:,}")
    print(f"  promise on /stats            {min(promises)} to {max(promises)}")
    print(f"  oldest coin, at any hour     {max(hour.before for hour in hours)}")
    print(f"  hours with a coin older than its promise  {len(late)}")
    print(f"  took                         {time.perf_counter() - began:.0f} s")
    if late or hours[-1].calls > limit:
        sys.exit("the month did not hold what it promised")
