"""KASPARRO_COINGECKO_TOP: only the first coins by market cap are fetched, planned and compared."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kasparro.model.payload import Retention
from kasparro.pipeline.quality.anomalies import HISTORY
from kasparro.pipeline.replay import prepare_replay
from kasparro.pipeline.run import Run
from kasparro.settings import Settings
from kasparro.simulator import Simulator
from kasparro.simulator.faults import Hang, ShortList, Status
from kasparro.sources.coingecko import CoinGecko, CoinGeckoSettings
from kasparro.sources.http import RetryLimits
from kasparro.store.pool import Connection, Database
from kasparro.web import reports
from tests.support.commands import run_command
from tests.support.runs import BEGIN, HOUR, QUICK, ManualClock, requested_pages, run_and_report

pytestmark = pytest.mark.slow

ONCE = RetryLimits(attempts=1, total_s=5)


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """Five pages of coins."""
    async with Simulator(seed=7, coins=1_150, base=BEGIN, manual=True) as running:
        yield running


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(BEGIN)


def gecko(simulator: Simulator, top: int | None, limits: RetryLimits = QUICK) -> CoinGecko:
    return CoinGecko(simulator.coingecko_url, "public", None, limits, top=top)


def first(simulator: Simulator, count: int) -> set[str]:
    """The ids of the first coins by market cap."""
    return {quote.id for quote in simulator.market.listing("coingecko")[:count]}


async def stored(connection: Connection) -> set[str]:
    rows = await connection.fetch("SELECT source_id FROM unified_data WHERE source = 'coingecko'")
    return {row["source_id"] for row in rows}


async def stats(database: Database, clock: ManualClock, top: int | None, limit: int | None) -> Any:
    settings = Settings(
        source_settings={"coingecko": CoinGeckoSettings(monthly_calls=limit, top=top)}, interval=HOUR
    )
    async with database.reading() as connection:
        return (await reports.stats(connection, settings, clock=clock)).budget["coingecko"]


async def anomalies(database: Database) -> list[str]:
    async with database.reading() as connection:
        return [
            reason
            for reason in (await reports.health(connection, ["coingecko"], None))["coingecko"].reasons
            if not reason.startswith("overdue")
        ]


@pytest.mark.parametrize(
    ("top", "pages"),
    [
        (1, [1]),
        (249, [1]),
        (250, [1]),
        (251, [1, 2]),
        (600, [1, 2, 3]),
        (1_000, [1, 2, 3, 4]),
        (100_000, [1, 2, 3, 4, 5, 6]),
        (None, [1, 2, 3, 4, 5, 6]),
    ],
)
async def test_only_the_first_coins_are_fetched(
    database: Database, connection: Connection, simulator: Simulator, top: int | None, pages: list[int]
) -> None:
    """Page 6 is empty: it shows in the first run that the list ends with page 5."""
    for requested in (pages, [page for page in pages if page < 6]):
        simulator.calls.clear()
        done = await run_and_report(database, [gecko(simulator, top)])
        expected = first(simulator, top if top is not None else 100_000)

        assert requested_pages(simulator.calls) == requested
        assert (done.status, done.sources[0].records.fetched) == ("succeeded", len(expected))
        assert await stored(connection) == expected


async def test_note_gives_the_limit(database: Database, simulator: Simulator) -> None:
    done = await run_and_report(database, [gecko(simulator, 600)])

    assert done.sources[0].note == "pages 1 to 3 of 3; the first 600 coins by market cap are fetched"


@pytest.mark.parametrize(
    "change", [(600, 700), (700, 600), (600, 1_000), (None, 300), (300, None), (250, 251)]
)
async def test_changed_limit_holds_from_the_next_run(
    database: Database,
    connection: Connection,
    simulator: Simulator,
    clock: ManualClock,
    change: tuple[int | None, int | None],
) -> None:
    before, after = (len(first(simulator, 100_000 if top is None else top)) for top in change)
    await run_and_report(database, [gecko(simulator, change[0])], clock=clock)
    clock.now += HOUR

    # An unchanged page is not sent again, except for the part that was left out before.
    for _ in range(2):
        done = await run_and_report(database, [gecko(simulator, change[1])], clock=clock)

        assert (done.status, done.sources[0].records.fetched) == ("succeeded", after)
        # Rows of coins beyond a lower limit stay.
        assert await stored(connection) == first(simulator, max(before, after))
        assert done.sources[0].anomalies == []


@pytest.mark.parametrize(
    ("before", "after", "pages"),
    [
        (None, 600, [3]),
        (None, 500, [1, 2]),
        (600, None, [3, 4, 5, 6]),
        (600, 1_000, [3, 4]),
        (600, 600, [3]),
        (750, 10, [1]),
    ],
)
async def test_interrupted_crawl_resumes_with_the_new_limit(
    database: Database,
    connection: Connection,
    simulator: Simulator,
    clock: ManualClock,
    before: int | None,
    after: int | None,
    pages: list[int],
) -> None:
    simulator.add_fault(Hang(api="coingecko", page=3))
    stop = asyncio.Event()
    async with Run(database, [gecko(simulator, before)], "etl", clock=clock) as interrupted:
        working = asyncio.create_task(interrupted.work(stop))
        await simulator.calls.reached(3)
        stop.set()
        assert await working == "interrupted"
    simulator.clear_faults()
    simulator.calls.clear()

    done = await run_and_report(database, [gecko(simulator, after)], clock=clock)

    assert requested_pages(simulator.calls) == pages
    assert done.status == "succeeded"
    assert await stored(connection) == first(simulator, max(500, 100_000 if after is None else after))


async def test_lost_page_costs_itself_with_a_limit(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    simulator.add_fault(Status(api="coingecko", code=502, page=2))
    done = await run_and_report(database, [gecko(simulator, 700, ONCE)])

    assert done.status == "partial"
    assert len(await stored(connection)) == 450
    assert requested_pages(simulator.calls) == [1, 2, 3]


async def test_list_shorter_than_the_limit_is_fetched_completely(
    database: Database, connection: Connection, simulator: Simulator, clock: ManualClock
) -> None:
    short = 560
    simulator.add_fault(ShortList(api="coingecko", coins=short))
    for _ in range(2):
        done = await run_and_report(database, [gecko(simulator, 1_000)], clock=clock)
        assert (done.status, done.sources[0].records.fetched) == ("succeeded", short)

    simulator.clear_faults()
    done = await run_and_report(database, [gecko(simulator, 1_000)], clock=clock)
    assert done.sources[0].records.fetched == 1_000


async def test_budget_and_promise_are_of_the_limited_list(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    plan: dict[str, Any] = {"budget": lambda _: 2_400, "interval": HOUR, "clock": clock}
    await run_and_report(database, [gecko(simulator, None)], **plan)
    whole = await stats(database, clock, None, 2_400)
    limited = await stats(database, clock, 600, 2_400)
    simulator.calls.clear()
    for _ in range(3):
        clock.now += HOUR
        await run_and_report(database, [gecko(simulator, 600)], **plan)
    later = await stats(database, clock, 600, 2_400)

    # The same calls bring the fewer pages in every run.
    assert (whole.pages, whole.rotation_runs, whole.promised_age_s) == (5, 2, 5 * 3_600)
    assert (limited.pages, limited.rotation_runs, limited.promised_age_s) == (3, 1, 3 * 3_600)
    assert requested_pages(simulator.calls) == [1, 2, 3] * 3
    # The first run also fetched the contract list.
    assert (later.pages, later.calls, later.promised_age_s) == (3, 6 + 1 + 9, 3 * 3_600)
    # The age of pages beyond the limit does not count.
    assert later.age_s == 0


async def test_demo_plan_needs_no_rotation_for_a_thousand_coins(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    plan: dict[str, Any] = {"budget": lambda _: 10_000, "interval": HOUR, "clock": clock}
    # The first run of a day also fetches the contract list.
    for calls in (5, 4, 4):
        done = await run_and_report(database, [gecko(simulator, 1_000)], **plan)
        assert (done.status, done.sources[0].calls) == ("succeeded", calls)
        clock.now += HOUR


async def test_raised_limit_is_reached_within_the_budget(
    database: Database, connection: Connection, simulator: Simulator, clock: ManualClock
) -> None:
    plan: dict[str, Any] = {"budget": lambda _: 2_400, "interval": HOUR, "clock": clock}
    await run_and_report(database, [gecko(simulator, 250)], **plan)
    for _ in range(3):
        clock.now += HOUR
        await run_and_report(database, [gecko(simulator, 1_000)], **plan)

    assert await stored(connection) == first(simulator, 1_000)
    found = await stats(database, clock, 1_000, 2_400)
    assert found.pages == 4
    assert found.promised_age_s is not None


@pytest.mark.parametrize("tops", [(None, 300), (300, None), (1_000, 300), (300, 1_000)])
async def test_changed_limit_is_no_anomaly_and_no_drift(
    database: Database, simulator: Simulator, clock: ManualClock, tops: tuple[int | None, int | None]
) -> None:
    before, after = tops
    for _ in range(HISTORY + 1):
        await run_and_report(database, [gecko(simulator, before)], clock=clock)
        simulator.advance(60)
        clock.now += HOUR
    for _ in range(3):
        done = await run_and_report(database, [gecko(simulator, after)], clock=clock)
        simulator.advance(60)
        clock.now += HOUR

        assert (done.sources[0].anomalies, done.sources[0].drift) == ([], [])
        assert await anomalies(database) == []


async def test_shrinking_list_with_the_same_limit_is_an_anomaly(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    for _ in range(HISTORY + 1):
        await run_and_report(database, [gecko(simulator, 600)], clock=clock)
        clock.now += HOUR
    simulator.add_fault(ShortList(api="coingecko", coins=120))
    done = await run_and_report(database, [gecko(simulator, 600)], clock=clock)

    assert [found.kind for found in done.sources[0].anomalies] == ["few-records", "missing-coins"]


async def test_coin_below_the_limit_keeps_its_row_without_anomaly(
    database: Database, connection: Connection, simulator: Simulator, clock: ManualClock
) -> None:
    seen = first(simulator, 300)
    for _ in range(HISTORY + 3):
        done = await run_and_report(database, [gecko(simulator, 300)], clock=clock)
        seen |= first(simulator, 300)
        assert (done.status, done.sources[0].anomalies) == ("succeeded", [])
        simulator.advance(600)
        clock.now += timedelta(hours=10)

    # Coins must cross the limit, or this test shows nothing.
    assert len(seen) > 300
    assert await stored(connection) == seen
    assert await anomalies(database) == []


@pytest.mark.parametrize("top", [600, 250, None])
async def test_replay_reads_only_what_the_run_stored(
    database: Database, connection: Connection, simulator: Simulator, top: int | None
) -> None:
    original = await run_and_report(database, [gecko(simulator, top)], retention=Retention())
    before = await stored(connection)
    again = await prepare_replay(database, original.id)
    repeated = await run_and_report(database, again.sources, "replay", fetched_at=again.fetched_at)

    assert repeated.status == "succeeded"
    assert repeated.sources[0].records.fetched == original.sources[0].records.fetched
    assert repeated.sources[0].records.unchanged == original.sources[0].records.fetched
    assert await stored(connection) == before

    await connection.execute("TRUNCATE unified_data, unified_history")
    await run_and_report(database, again.sources, "replay", fetched_at=datetime.now(UTC))
    assert await stored(connection) == before


async def test_setting_limits_what_etl_fetches(
    database_url: str, connection: Connection, simulator: Simulator
) -> None:
    environment = {"DATABASE_URL": database_url, "KASPARRO_COINGECKO_URL": simulator.coingecko_url}
    code, _, _ = await run_command(
        "etl", "--source", "coingecko", KASPARRO_COINGECKO_TOP="300", **environment
    )
    assert code == 0
    assert len(await stored(connection)) == 300

    code, _, message = await run_command("etl", KASPARRO_COINGECKO_TOP="0", **environment)
    assert code == 2
    assert message == (
        "kasparro: KASPARRO_COINGECKO_TOP is '0', which is not allowed; allowed: a whole number from 1 to "
        "1000000, or all\n"
    )
