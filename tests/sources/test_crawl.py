"""An interrupted crawl resumes where it stopped."""

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

pytestmark = pytest.mark.slow


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
    async with Run(database, [coingecko_source(simulator)], "etl", **options) as run:
        working = asyncio.create_task(run.work(stop))
        await simulator.calls.reached(calls)
        stop.set()
        assert await working == "interrupted"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_killed_crawl_resumes_at_the_first_uncommitted_page(
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
    killed = await etl()
    await simulator.calls.reached(3)
    async for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=20, wait_max=0.05):
        with attempt:
            assert await connection.fetchval("SELECT count(*) FROM pages") == 2
    killed.send_signal(number)
    await killed.communicate()
    simulator.clear_faults()
    simulator.calls.clear()

    out, _ = await (await etl()).communicate()

    # The last page is short; the empty page after it shows that the list ends there.
    assert requested_pages(simulator.calls) == [3, 4, 5, 6]
    source = json.loads(out)["sources"][0]
    assert (source["status"], source["calls"]) == ("succeeded", 5)
    assert source["note"].startswith("pages 3 to 5 of 5, resuming the crawl of 20")
    rows = await connection.fetchval("SELECT count(*) FROM unified_data WHERE source = 'coingecko'")
    assert rows == len(simulator.market.listing("coingecko"))


@pytest.mark.parametrize(("later", "first"), [(14 * MINUTE, 3), (16 * MINUTE, 1), (-MINUTE, 1)])
async def test_recent_crawl_resumes_and_an_old_one_starts_again(
    database: Database, simulator: Simulator, clock: ManualClock, later: timedelta, first: int
) -> None:
    simulator.add_fault(Hang(api="coingecko", page=3))
    await stopped(database, simulator, 3, clock=clock)
    simulator.clear_faults()
    simulator.calls.clear()
    clock.now += later

    done = await run_and_report(database, [coingecko_source(simulator)], clock=clock)

    assert requested_pages(simulator.calls) == list(range(first, 7))
    assert done.status == "succeeded"


async def test_resumed_crawl_is_followed_by_a_complete_one(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    simulator.add_fault(Hang(api="coingecko", page=3))
    await stopped(database, simulator, 3, clock=clock)
    simulator.clear_faults()
    await run_and_report(database, [coingecko_source(simulator)], clock=clock)
    simulator.calls.clear()

    done = await run_and_report(database, [coingecko_source(simulator)], clock=clock)

    assert requested_pages(simulator.calls) == [1, 2, 3, 4, 5]
    assert done.sources[0].note == "pages 1 to 5 of 5"


async def test_crawl_broken_by_the_upstream_resumes_at_the_first_lost_page(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    for number in (3, 4):
        simulator.add_fault(Status(api="coingecko", code=502, page=number))
    broken = await run_and_report(database, [coingecko_source(simulator)], clock=clock)
    simulator.clear_faults()
    simulator.calls.clear()

    done = await run_and_report(database, [coingecko_source(simulator)], clock=clock)

    assert (broken.status, done.status) == ("partial", "succeeded")
    assert requested_pages(simulator.calls) == [3, 4, 5, 6]


async def test_shifted_pages_double_no_coin_and_lose_none_for_two_runs(
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
        done = await run_and_report(database, [coingecko_source(simulator)], clock=clock)

    assert done.sources[0].records.fetched == len(simulator.market.listing("coingecko"))
    rows = await connection.fetchval("SELECT count(*) FROM unified_data WHERE source = 'coingecko'")
    assert rows == len(simulator.market.listing("coingecko"))


async def test_another_process_resumes_the_crawl(
    database_url: str, simulator: Simulator, clock: ManualClock
) -> None:
    simulator.add_fault(Hang(api="coingecko", page=4))
    async with Database(database_url) as first:
        await stopped(first, simulator, 4, clock=clock)
    simulator.clear_faults()
    simulator.calls.clear()

    async with Database(database_url) as other:
        await run_and_report(other, [coingecko_source(simulator)], clock=clock)

    assert requested_pages(simulator.calls) == [4, 5, 6]
