"""Runs against a simulator with a simulated clock, to observe the call budget over a month."""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial

import msgspec

from kasparro.pipeline.run import Run
from kasparro.settings import Secret, Settings
from kasparro.simulator import Simulator
from kasparro.sources import registry
from kasparro.sources.coingecko import PAGE_SIZE, CoinGecko, CoinGeckoSettings
from kasparro.store.pool import Database
from kasparro.web import reports

BEGIN = datetime(2026, 10, 1, tzinfo=UTC)


class SimulatedRun(msgspec.Struct, frozen=True):
    """What one run left behind.

    `calls` of the month so far; the age of the oldest coin right before and after the run; the age that
    /stats promised before and after it.
    """

    calls: int
    status: str
    age_before: timedelta
    age_after: timedelta
    promised_before: timedelta | None
    promised_after: timedelta | None
    pages: int | None


async def simulated_runs(
    database: Database, simulator: Simulator, monthly_calls: int, interval: timedelta, runs: int
) -> list[SimulatedRun]:
    """Run once per interval, as the scheduler would. A tick of the simulator has to be the interval."""
    settings = Settings(
        interval=interval,
        source_settings={
            "coingecko": CoinGeckoSettings(plan="demo", key=Secret("k"), monthly_calls=monthly_calls)
        },
    )
    source = CoinGecko(simulator.coingecko_url, "demo", Secret("k"))
    clock = simulator.clock.now
    fetched_at: dict[str, datetime] = {}
    finished: list[SimulatedRun] = []
    promised: timedelta | None = None
    for _ in range(runs):
        now = clock()
        coins = [quote.id for quote in simulator.market.listing("coingecko")]
        age_before = max(
            (now - fetched_at[coin] for coin in coins if coin in fetched_at), default=timedelta()
        )
        async with Run(
            database,
            [source],
            "schedule",
            budget=partial(registry.monthly_calls, settings),
            interval=settings.interval,
            clock=clock,
        ) as run:
            status = await run.work(asyncio.Event())
        for call in simulator.calls:
            if call.status in {200, 304} and "page" in call.query:
                start = (int(call.query["page"]) - 1) * PAGE_SIZE
                fetched_at |= dict.fromkeys(coins[start : start + PAGE_SIZE], now)
        simulator.calls.clear()
        async with database.reading() as connection:
            budget = (await reports.stats(connection, settings, clock=clock)).budget["coingecko"]
        age_after = max(now - fetched_at.get(coin, datetime.min.replace(tzinfo=UTC)) for coin in coins)
        promised_before = promised
        promised = None if budget.promised_age_s is None else timedelta(seconds=budget.promised_age_s)
        finished.append(
            SimulatedRun(budget.calls, status, age_before, age_after, promised_before, promised, budget.pages)
        )
        simulator.advance(1)
    return finished
