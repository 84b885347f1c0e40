"""The call budget: what a run may spend, and what /stats says about it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from kasparro.pipeline.run import Run
from kasparro.settings import Settings
from kasparro.simulator import Simulator
from kasparro.simulator.faults import Hang
from kasparro.sources.coingecko import CoinGeckoSettings
from kasparro.store.pool import Database
from kasparro.web import reports
from tests.support.runs import (
    BEGIN,
    HOUR,
    MINUTE,
    ManualClock,
    coingecko_source,
    requested_pages,
    run_and_report,
)

pytestmark = pytest.mark.slow


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """Five pages of CoinGecko, one call of CoinPaprika."""
    async with Simulator(seed=7, coins=1_150, base=BEGIN, manual=True) as running:
        yield running


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(BEGIN)


async def stats(database: Database, clock: ManualClock, limit: int | None, interval: timedelta | None) -> Any:
    """CoinGecko's budget in /stats."""
    settings = Settings(
        source_settings={"coingecko": CoinGeckoSettings(monthly_calls=limit)}, interval=interval
    )
    async with database.reading() as connection:
        return (await reports.stats(connection, settings, clock=clock)).budget["coingecko"]


async def test_page_schedule_makes_the_month_last(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    plan: dict[str, Any] = {"budget": lambda _: 2_400, "interval": HOUR, "clock": clock}
    runs = [await run_and_report(database, [coingecko_source(simulator)], **plan)]
    budget = await stats(database, clock, 2_400, HOUR)
    for _ in range(2):
        clock.now += HOUR
        runs.append(await run_and_report(database, [coingecko_source(simulator)], **plan))

    assert {run.status for run in runs} == {"succeeded"}
    # The first crawl requests the empty page 6, which shows where the list ends. The first run also fetches
    # the contract list, which has no page.
    assert requested_pages(simulator.calls) == [1, 2, 3, 4, 5, 6, 1, 1, 2, 3, 4, 5]
    assert runs[1].sources[0].note == "page 1 of 5, as the month's call budget allows"
    assert (budget.month, budget.calls, budget.limit, budget.remaining) == ("2026-06", 7, 2_400, 2_393)
    assert (budget.pages, budget.pages_every_run, budget.pages_in_rotation, budget.rotation_runs) == (
        5,
        1,
        4,
        2,
    )
    assert budget.covered_by == BEGIN + 2 * HOUR
    assert (budget.age_s, budget.promised_age_s) == (0, 5 * 3_600)


async def test_without_limit_every_run_fetches_all_pages(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    await run_and_report(database, [coingecko_source(simulator)], clock=clock, interval=HOUR)
    budget = await stats(database, clock, None, HOUR)
    off = await stats(database, clock, None, None)

    assert (budget.pages, budget.pages_every_run, budget.pages_in_rotation) == (5, 5, 0)
    assert (budget.covered_by, budget.promised_age_s) == (BEGIN + HOUR, 3 * 3_600)
    assert (off.pages, off.covered_by, off.promised_age_s) == (5, None, None)


async def test_no_promise_before_the_first_crawl(database: Database, clock: ManualClock) -> None:
    budget = await stats(database, clock, 10_000, HOUR)

    assert (budget.remaining, budget.pages, budget.covered_by, budget.promised_age_s) == (
        10_000,
        None,
        None,
        None,
    )


async def test_spent_budget_fails_without_a_call(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: ManualClock,
) -> None:
    await connection.execute("INSERT INTO api_calls VALUES ('coingecko', '2026-06-01', 100)")

    done = await run_and_report(
        database, [coingecko_source(simulator)], budget=lambda _: 100, interval=HOUR, clock=clock
    )

    assert done.status == "failed"
    assert done.sources[0].error == (
        "the budget of 100 calls for June 2026 is spent; a new one starts on the first"
    )
    assert len(simulator.calls) == 0


async def test_fewer_calls_than_runs_skips_runs(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    """The note says when the next run is due."""
    plan: dict[str, Any] = {"budget": lambda _: 72, "interval": HOUR, "clock": clock}
    first = await run_and_report(database, [coingecko_source(simulator)], **plan)
    clock.now += HOUR
    second = await run_and_report(database, [coingecko_source(simulator)], **plan)

    assert (first.sources[0].status, first.sources[0].calls) == ("succeeded", 3)
    assert (second.status, second.sources[0].status) == ("partial", "skipped")
    assert second.sources[0].error == (
        "69 of the 72 calls of June 2026 are left and spread over its remaining days; "
        "the next call is due at 2026-06-01 10:53:38 UTC"
    )


async def test_calls_are_counted_in_the_month_they_were_made(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: ManualClock,
) -> None:
    """Here the month ends during a crawl."""
    clock.now = datetime(2026, 6, 30, 23, 59, tzinfo=UTC)
    simulator.add_fault(Hang(api="coingecko", page=3, times=1))
    source = coingecko_source(simulator)
    async with Run(database, [source], "etl", budget=lambda _: 10_000, interval=HOUR, clock=clock) as run:
        working = asyncio.create_task(run.work(asyncio.Event()))
        await simulator.calls.reached(3)
        clock.now += 2 * MINUTE
        simulator.clear_faults()
        for hanging in list(simulator._listener._state.connections):
            hanging.transport.abort()
        assert await working == "succeeded"

    booked = await connection.fetch("SELECT month::text, calls FROM api_calls ORDER BY month")
    assert [tuple(row) for row in booked] == [("2026-06-01", 3), ("2026-07-01", 5)]


async def test_runs_without_interval_get_their_share_of_the_month(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    """For example, runs that cron starts."""
    plan: dict[str, Any] = {"budget": lambda _: 1_500, "interval": None, "clock": clock}
    calls = []
    for _ in range(60):
        calls.append((await run_and_report(database, [coingecko_source(simulator)], **plan)).sources[0].calls)
        clock.now += HOUR

    assert calls[:5] == [7, 5, 5, 5, 5]
    # One of the calls at midnight is for the contract list.
    calls[48] -= 1
    assert set(calls[30:]) == {1, 2}
