"""The end of CoinGecko's list: where a crawl stops, and what it says of pages that are not full."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from kasparro.simulator import Simulator
from kasparro.simulator.faults import LostCoins, ShortList, Status
from kasparro.store.pool import Database
from kasparro.web.schemas import SourceReport
from tests.support.runs import BEGIN, HOUR, ManualClock, coingecko_source, requested_pages, run_and_report

pytestmark = pytest.mark.slow

COINS = 1_105
PAGES = [1, 2, 3, 4, 5]


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """Five pages of CoinGecko, the last one with 105 coins."""
    async with Simulator(seed=7, coins=1_150, base=BEGIN, manual=True) as running:
        yield running


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(BEGIN)


async def crawl(database: Database, simulator: Simulator, clock: ManualClock) -> SourceReport:
    """An hourly run over CoinGecko; `simulator.calls` has its calls only."""
    simulator.calls.clear()
    clock.now += HOUR
    return (await run_and_report(database, [coingecko_source(simulator)], clock=clock)).sources[0]


async def stored(connection: "asyncpg.Connection[asyncpg.Record]") -> int:
    count: int = await connection.fetchval("SELECT count(*) FROM unified_data")
    return count


async def test_an_empty_page_confirms_the_end_once(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    first = await crawl(database, simulator, clock)
    assert requested_pages(simulator.calls) == [*PAGES, 6]
    again = await crawl(database, simulator, clock)

    assert requested_pages(simulator.calls) == PAGES
    assert (first.note, again.note) == ("pages 1 to 5 of 5", "pages 1 to 5 of 5")
    assert (first.status, first.records.fetched) == ("succeeded", COINS)


@pytest.mark.parametrize("earlier_runs", [0, 1])
async def test_a_short_page_in_the_middle_does_not_end_the_crawl(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: ManualClock,
    earlier_runs: int,
) -> None:
    for _ in range(earlier_runs):
        await crawl(database, simulator, clock)
    simulator.add_fault(LostCoins(api="coingecko", page=2, first=250))
    simulator.add_fault(LostCoins(api="coingecko", page=4, coins=3))
    done = await crawl(database, simulator, clock)

    assert done.records.fetched == COINS - 4
    assert (done.status, done.note) == ("succeeded", "pages 1 to 5 of 5; 4 missing on pages 2, 4")
    assert await stored(connection) == (COINS if earlier_runs else COINS - 4)


async def test_a_short_first_page_does_not_end_the_crawl(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    simulator.add_fault(LostCoins(api="coingecko", page=1, coins=15))
    done = await crawl(database, simulator, clock)

    assert done.records.fetched == COINS - 15
    assert done.note == "pages 1 to 5 of 5; 15 missing on page 1"


async def test_an_empty_page_within_the_list_is_a_lost_page(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    await crawl(database, simulator, clock)
    simulator.add_fault(LostCoins(api="coingecko", page=3, coins=250))
    done = await crawl(database, simulator, clock)

    assert requested_pages(simulator.calls) == PAGES
    assert done.status == "partial"
    assert done.error == "page 3: CoinGecko sent no coins, although the list goes on after it"


@pytest.mark.parametrize(
    ("coins", "requested"),
    [
        # After page 4, which is full, and page 2, which is short, the next pages are empty.
        (1_000, [1, 2, 3, 4, 5]),
        (400, [1, 2, 3, 4]),
        (900, [1, 2, 3, 4, 5]),
    ],
)
async def test_a_list_that_shrinks_ends_earlier(
    database: Database, simulator: Simulator, clock: ManualClock, coins: int, requested: list[int]
) -> None:
    await crawl(database, simulator, clock)
    simulator.add_fault(ShortList(api="coingecko", coins=coins))
    done = await crawl(database, simulator, clock)
    last = -(-coins // 250)

    assert requested_pages(simulator.calls) == requested
    assert (done.status, done.note) == ("succeeded", f"pages 1 to {last} of {last}")
    again = await crawl(database, simulator, clock)
    assert again.records.fetched == coins


async def test_a_list_that_grows_is_followed(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    simulator.add_fault(ShortList(api="coingecko", coins=600))
    await crawl(database, simulator, clock)
    simulator.clear_faults()
    done = await crawl(database, simulator, clock)

    assert (done.records.fetched, done.note) == (COINS, "pages 1 to 5 of 5")


async def test_a_lost_last_page_keeps_the_end_of_the_list(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    await crawl(database, simulator, clock)
    simulator.add_fault(Status(api="coingecko", code=502, page=5))
    lost = await crawl(database, simulator, clock)
    simulator.clear_faults()
    done = await crawl(database, simulator, clock)

    assert lost.status == "partial"
    assert (done.status, done.records.fetched) == ("succeeded", COINS)
