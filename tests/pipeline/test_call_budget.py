"""The month's calls: what a run may spend, and what /stats says of it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from kasparro.pipeline import report
from kasparro.pipeline.run import Run
from kasparro.settings import Settings
from kasparro.simulator import Simulator
from kasparro.simulator.faults import Hang
from kasparro.store.pool import Database
from tests.support.runs import (
    BEGIN,
    HOUR,
    MINUTE,
    ManualClock,
    coingecko_source,
    requested_pages,
    run_and_report,
)


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """Five pages of CoinGecko, one call of CoinPaprika."""
    async with Simulator(seed=7, coins=1_150, base=BEGIN, manual=True) as running:
        yield running


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(BEGIN)


async def stats(database: Database, clock: ManualClock, limit: int | None, interval: timedelta | None) -> Any:
    """What /stats tells of CoinGecko's budget."""
    told = Settings(coingecko_monthly_calls=limit, interval=interval)
    async with database.reading() as connection:
        return (await report.stats(connection, told, clock=clock)).budget["coingecko"]


async def test_pages_are_planned_so_that_the_month_lasts(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    plan: dict[str, Any] = {"budget": lambda _: 2_400, "interval": HOUR, "clock": clock}
    runs = [await run_and_report(database, [coingecko_source(simulator)], **plan)]
    told = await stats(database, clock, 2_400, HOUR)
    for _ in range(2):
        clock.now += HOUR
        runs.append(await run_and_report(database, [coingecko_source(simulator)], **plan))

    assert {one.status for one in runs} == {"succeeded"}
    assert requested_pages(simulator.calls) == [1, 2, 3, 4, 5, 1, 1, 2, 3, 4, 5]
    assert runs[1].sources[0].note == "page 1 of 5, as planned for the month's calls to last"
    assert (told.month, told.calls, told.limit, told.remaining) == ("2026-06", 5, 2_400, 2_395)
    assert (told.pages, told.pages_every_run, told.pages_in_rotation, told.rotation_runs) == (5, 1, 4, 2)
    assert told.covered_by == BEGIN + 2 * HOUR
    assert (told.age_s, told.promised_age_s) == (0, 5 * 3_600)


async def test_without_a_limit_the_whole_list_is_promised_with_every_run(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    await run_and_report(database, [coingecko_source(simulator)], clock=clock, interval=HOUR)
    told = await stats(database, clock, None, HOUR)
    off = await stats(database, clock, None, None)

    assert (told.pages, told.pages_every_run, told.pages_in_rotation) == (5, 5, 0)
    assert (told.covered_by, told.promised_age_s) == (BEGIN + HOUR, 3 * 3_600)
    assert (off.pages, off.covered_by, off.promised_age_s) == (5, None, None)


async def test_before_the_first_walk_nothing_is_promised(database: Database, clock: ManualClock) -> None:
    told = await stats(database, clock, 10_000, HOUR)

    assert (told.remaining, told.pages, told.covered_by, told.promised_age_s) == (10_000, None, None, None)


async def test_a_month_whose_calls_are_spent_says_so_and_calls_nobody(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: ManualClock,
) -> None:
    await connection.execute("INSERT INTO api_calls VALUES ('coingecko', '2026-06-01', 100)")

    told = await run_and_report(
        database, [coingecko_source(simulator)], budget=lambda _: 100, interval=HOUR, clock=clock
    )

    assert told.status == "failed"
    assert told.sources[0].error == (
        "the budget of 100 calls for June 2026 is spent; it begins anew on the first"
    )
    assert len(simulator.calls) == 0


async def test_where_calls_are_fewer_than_runs_a_run_is_skipped_and_says_when_the_next_is_due(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    plan: dict[str, Any] = {"budget": lambda _: 72, "interval": HOUR, "clock": clock}
    first = await run_and_report(database, [coingecko_source(simulator)], **plan)
    clock.now += HOUR
    second = await run_and_report(database, [coingecko_source(simulator)], **plan)

    assert (first.sources[0].status, first.sources[0].calls) == ("succeeded", 3)
    assert (second.status, second.sources[0].status) == ("partial", "skipped")
    assert second.sources[0].error == (
        "of the 72 calls of June 2026 69 are left, spread over the rest of it; "
        "the next is due at 2026-06-01 10:53:38 UTC"
    )


async def test_a_month_that_ends_in_mid_walk_has_each_call_booked_where_it_was_made(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: ManualClock,
) -> None:
    clock.now = datetime(2026, 6, 30, 23, 59, tzinfo=UTC)
    simulator.add_fault(Hang(api="coingecko", page=3, times=1))
    source = coingecko_source(simulator)
    async with Run(database, [source], "etl", budget=lambda _: 10_000, interval=HOUR, clock=clock) as one:
        working = asyncio.create_task(one.work(asyncio.Event()))
        await simulator.calls.reached(3)
        clock.now += 2 * MINUTE
        simulator.clear_faults()
        for hanging in list(simulator._listener._state.connections):
            hanging.transport.abort()
        assert await working == "succeeded"

    booked = await connection.fetch("SELECT month::text, calls FROM api_calls ORDER BY month")
    assert [tuple(row) for row in booked] == [("2026-06-01", 3), ("2026-07-01", 3)]


async def test_cron_with_the_interval_off_has_its_share_of_the_month(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    plan: dict[str, Any] = {"budget": lambda _: 1_500, "interval": None, "clock": clock}
    calls = []
    for _ in range(60):
        calls.append((await run_and_report(database, [coingecko_source(simulator)], **plan)).sources[0].calls)
        clock.now += HOUR

    assert calls[:5] == [5] * 5
    assert set(calls[30:]) == {1, 2}
