"""A crawl that was interrupted goes on where it stopped."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
import stamina

from kasparro.pipeline.run import Run
from kasparro.simulator import Simulator
from kasparro.simulator.faults import Hang, PageShift, Status
from kasparro.store.pool import Database
from tests.support.runs import BEGIN, MINUTE, ManualClock, coingecko_source, requested_pages, run_and_report


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """Five pages of CoinGecko, one call of CoinPaprika."""
    async with Simulator(seed=7, coins=1_150, base=BEGIN, manual=True) as running:
        yield running


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(BEGIN)


async def stopped(database: Database, simulator: Simulator, calls: int, **options: Any) -> None:
    """A run over CoinGecko that is stopped while its call of this number hangs."""
    stop = asyncio.Event()
    async with Run(database, [coingecko_source(simulator)], "etl", **options) as one:
        working = asyncio.create_task(one.work(stop))
        await simulator.calls.reached(calls)
        stop.set()
        assert await working == "interrupted"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_walk_that_is_killed_goes_on_with_the_page_it_had_not_committed(
    database_url: str,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    number: signal.Signals,
) -> None:
    async def etl() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kasparro", "etl", "--source", "coingecko", "--json"),
            env={
                **os.environ,
                "DATABASE_URL": database_url,
                "KASPARRO_COINGECKO_URL": simulator.coingecko_url,
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )

    simulator.add_fault(Hang(api="coingecko", page=3))
    dying = await etl()
    await simulator.calls.reached(3)
    async for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=20, wait_max=0.05):
        with attempt:
            assert await connection.fetchval("SELECT count(*) FROM pages") == 2
    dying.send_signal(number)
    await dying.communicate()
    simulator.clear_faults()
    simulator.calls.clear()

    out, _ = await (await etl()).communicate()

    assert requested_pages(simulator.calls) == [3, 4, 5]
    told = json.loads(out)["sources"][0]
    assert (told["status"], told["calls"]) == ("succeeded", 3)
    assert told["note"].startswith("pages 3 to 5 of 5, going on with the walk that began at 20")
    rows = await connection.fetchval("SELECT count(*) FROM unified_data WHERE source = 'coingecko'")
    assert rows == len(simulator.market.listing("coingecko"))


@pytest.mark.parametrize(("later", "first"), [(14 * MINUTE, 3), (16 * MINUTE, 1), (-MINUTE, 1)])
async def test_a_walk_that_stopped_goes_on_while_it_is_fresh_and_else_starts_over(
    database: Database, simulator: Simulator, clock: ManualClock, later: timedelta, first: int
) -> None:
    simulator.add_fault(Hang(api="coingecko", page=3))
    await stopped(database, simulator, 3, clock=clock)
    simulator.clear_faults()
    simulator.calls.clear()
    clock.now += later

    told = await run_and_report(database, [coingecko_source(simulator)], clock=clock)

    assert requested_pages(simulator.calls) == list(range(first, 6))
    assert told.status == "succeeded"


async def test_a_walk_that_went_on_is_followed_by_a_whole_one(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    simulator.add_fault(Hang(api="coingecko", page=3))
    await stopped(database, simulator, 3, clock=clock)
    simulator.clear_faults()
    await run_and_report(database, [coingecko_source(simulator)], clock=clock)
    simulator.calls.clear()

    told = await run_and_report(database, [coingecko_source(simulator)], clock=clock)

    assert requested_pages(simulator.calls) == [1, 2, 3, 4, 5]
    assert told.sources[0].note == "pages 1 to 5 of 5"


async def test_a_walk_that_its_upstream_broke_off_goes_on_with_the_first_page_that_was_lost(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    for number in (3, 4):
        simulator.add_fault(Status(api="coingecko", code=502, page=number))
    broken = await run_and_report(database, [coingecko_source(simulator)], clock=clock)
    simulator.clear_faults()
    simulator.calls.clear()

    told = await run_and_report(database, [coingecko_source(simulator)], clock=clock)

    assert (broken.status, told.status) == ("partial", "succeeded")
    assert requested_pages(simulator.calls) == [3, 4, 5]


async def test_pages_that_shift_over_a_stop_double_no_coin_and_lose_none_for_longer_than_a_run(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: ManualClock,
) -> None:
    simulator.add_fault(PageShift(api="coingecko", by=-20))
    simulator.add_fault(Hang(api="coingecko", page=3))
    await stopped(database, simulator, 3, clock=clock)
    simulator.clear_faults()
    for _ in range(2):
        told = await run_and_report(database, [coingecko_source(simulator)], clock=clock)

    assert told.sources[0].records.fetched == len(simulator.market.listing("coingecko"))
    rows = await connection.fetchval("SELECT count(*) FROM unified_data WHERE source = 'coingecko'")
    assert rows == len(simulator.market.listing("coingecko"))


async def test_two_processes_agree_on_where_the_walk_stands(
    database_url: str, simulator: Simulator, clock: ManualClock
) -> None:
    simulator.add_fault(Hang(api="coingecko", page=4))
    async with Database(database_url) as one:
        await stopped(one, simulator, 4, clock=clock)
    simulator.clear_faults()
    simulator.calls.clear()

    async with Database(database_url) as other:
        await run_and_report(other, [coingecko_source(simulator)], clock=clock)

    assert requested_pages(simulator.calls) == [4, 5]
