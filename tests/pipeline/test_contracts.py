"""Contract lists in runs: they come after the prices, cost them nothing, and a failure is one line."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest

from kasparro.model.asset import Contract
from kasparro.model.batch import Batch
from kasparro.model.contract_list import ContractList
from kasparro.model.payload import Retention
from kasparro.pipeline.contracts import daily_lists
from kasparro.pipeline.replay import prepare_replay
from kasparro.pipeline.run import Run
from kasparro.simulator import Simulator
from kasparro.simulator.contracts import coingecko_list, coinpaprika_platforms
from kasparro.simulator.faults import (
    AnyFault,
    GzipGarbage,
    Hang,
    Html,
    LostCoins,
    NotAnArray,
    Reset,
    SchemaDrift,
    ShortList,
    Status,
    Truncated,
)
from kasparro.sources.base import SourceContext
from kasparro.sources.page_schedule import MonthlyCalls
from kasparro.store.pool import Database
from tests.conftest import LogEvents
from tests.support.contracts import stored_contracts
from tests.support.runs import BEGIN, HOUR, ManualClock, apis, run_and_report, run_sources, source_outcomes

pytestmark = pytest.mark.slow

DAY = timedelta(days=1)


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(seed=7, coins=240, base=BEGIN, manual=True) as running:
        yield running


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(BEGIN)


def requested(simulator: Simulator) -> list[str]:
    """The paths of the contract lists that were requested."""
    paths = [call.path.split("/v1")[-1].split("/v3")[-1] for call in simulator.calls]
    return [path for path in paths if path not in {"/tickers", "/coins/markets"}]


async def test_run_loads_the_lists_of_both_apis_after_the_prices(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: ManualClock,
    logged: LogEvents,
) -> None:
    done = await run_and_report(database, apis(simulator), clock=clock, retention=Retention())

    assert done.status == "succeeded"
    platforms = [f"/contracts/{platform}" for platform in coinpaprika_platforms()]
    assert sorted(requested(simulator)) == sorted(["/coins/list", "/contracts", *platforms])
    names = [event["event"] for event in logged.seen]
    assert names.index("contracts_loaded") > len(names) - 1 - names[::-1].index("source_finished")
    stored = {
        (found.source_id, found.platform, found.address)
        for found in await stored_contracts(connection, "coingecko")
    }
    listed = coingecko_list(simulator.market, platforms=True)
    assert stored == {
        (str(coin["id"]), platform, address)
        for coin in listed
        if isinstance(found := coin["platforms"], dict)
        for platform, address in found.items()
        if address
    }
    folded = [
        found
        for found in await stored_contracts(connection, "coinpaprika")
        if found.source_id == "avax-avalanche"
    ]
    assert {found.platform for found in folded} == {"avax-avalanche", "bnb-binance-coin"}
    # Every call is in the figures of the run and of the month.
    outcomes = await source_outcomes(connection)
    assert [outcomes[name]["calls"] for name in ("coingecko", "coinpaprika")] == [3, 2 + len(platforms)]
    booked = await connection.fetch("SELECT source, calls FROM api_calls ORDER BY source")
    assert [row["calls"] for row in booked] == [3, 2 + len(platforms)]


async def test_lists_are_fetched_once_a_day(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    for hour in range(26):
        clock.now = BEGIN + hour * HOUR
        await run_sources(database, apis(simulator)[1:], clock=clock, interval=HOUR)

    assert requested(simulator) == ["/coins/list"] * 2


FAULTS: dict[str, AnyFault] = {
    "404": Status(api="coingecko", path="/coins/list", code=404),
    "429": Status(api="coingecko", path="/coins/list", code=429, retry_after=119),
    "500": Status(api="coingecko", path="/coins/list", code=500, body="html"),
    "html": Html(api="coingecko", path="/coins/list"),
    "object": NotAnArray(api="coingecko", path="/coins/list"),
    "truncated": Truncated(api="coingecko", path="/coins/list"),
    "reset": Reset(api="coingecko", path="/coins/list"),
    "garbage": GzipGarbage(api="coingecko", path="/coins/list"),
    "drift": SchemaDrift(api="coingecko", path="/coins/list", field="platforms", change="rename"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_failure_costs_one_line_and_no_contract(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: ManualClock,
    logged: LogEvents,
    name: str,
) -> None:
    await run_sources(database, apis(simulator)[1:], clock=clock)
    before = await stored_contracts(connection)
    simulator.add_fault(FAULTS[name])
    clock.now += DAY
    logged.seen.clear()
    simulator.calls.clear()

    done = await run_and_report(database, apis(simulator)[1:], clock=clock)

    assert (done.status, done.sources[0].error) == ("succeeded", None)
    assert requested(simulator) == ["/coins/list"]
    (warning,) = [event for event in logged.seen if event["level"] in {"warning", "error"}]
    assert (warning["event"], warning["path"]) == ("contract_list_failed", "/coins/list")
    assert "\n" not in warning["reason"]
    assert await stored_contracts(connection) == before


@pytest.mark.parametrize(
    "fault",
    [
        ShortList(api="coingecko", path="/coins/list", coins=120),
        LostCoins(api="coingecko", path="/coins/list", coins=100),
        ShortList(api="coingecko", path="/coins/list", coins=0),
    ],
)
async def test_shrunken_list_wipes_nothing(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: ManualClock,
    logged: LogEvents,
    fault: AnyFault,
) -> None:
    await run_sources(database, apis(simulator)[1:], clock=clock)
    before = await stored_contracts(connection)
    simulator.add_fault(fault)
    clock.now += DAY

    assert await run_sources(database, apis(simulator)[1:], clock=clock) == "succeeded"

    assert await stored_contracts(connection) == before
    (warning,) = await logged.reached(1, "contract_list_short", path="/coins/list")
    assert warning["kept"] > 0


async def test_failed_source_fetches_no_lists(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    simulator.add_fault(Status(api="coingecko", path="/coins/markets", code=500))

    assert await run_sources(database, apis(simulator)[1:], clock=clock) == "failed"

    assert requested(simulator) == []


async def test_tight_budget_is_left_to_the_prices(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    plan: dict[str, Any] = {"budget": lambda _: 500, "interval": HOUR, "clock": clock}
    assert await run_sources(database, apis(simulator), **plan) == "succeeded"

    assert requested(simulator) == []


async def test_platforms_are_fetched_over_several_days_within_the_budget(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    plan: dict[str, Any] = {"budget": lambda _: 2_401, "interval": HOUR, "clock": clock}
    days = []
    for _ in range(4):
        simulator.calls.clear()
        await run_sources(database, apis(simulator)[:1], **plan)
        days.append(requested(simulator))
        clock.now += DAY

    # After the call for the prices, 5 % of the rest are 120 calls, or 4 a day.
    assert [len(day) for day in days[:2]] == [4, 4]
    assert days[0][0] == "/contracts"
    assert {path for day in days for path in day} >= {
        f"/contracts/{platform}" for platform in coinpaprika_platforms()
    }


class Tide:
    """A source of somebody else, with a contract list and no records."""

    name = "tide"
    contract_root = "/tokens"

    def __init__(self, *found: tuple[str, str, str]) -> None:
        self._found = list(found)

    async def extract(self, context: SourceContext) -> AsyncGenerator[Batch, None]:
        del context
        return
        yield

    async def contract_lists(
        self, context: SourceContext, paths: AsyncIterator[str]
    ) -> AsyncGenerator[ContractList, None]:
        async for path in paths:
            yield ContractList(path=path, received_at=context.clock(), contracts=self._found)


async def test_any_source_may_have_contract_lists(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", clock: ManualClock
) -> None:
    assert await run_sources(database, [Tide(("a", "eth", "0x1"))], clock=clock) == "succeeded"

    assert await stored_contracts(connection) == [Contract("tide", "a", "eth", "0x1")]


async def test_stopped_run_does_not_wait_for_a_list(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    simulator.add_fault(Hang(api="coingecko", path="/coins/list"))
    stop = asyncio.Event()
    async with Run(database, apis(simulator)[1:], "etl", clock=clock) as run:
        working = asyncio.create_task(run.work(stop))
        await simulator.calls.reached(3)
        stop.set()
        assert await working == "succeeded"


async def test_replay_loads_the_lists_again(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: ManualClock,
) -> None:
    async with Run(database, apis(simulator), "etl", clock=clock, retention=Retention()) as run:
        await run.work(asyncio.Event())
    before = await stored_contracts(connection)
    await connection.execute("TRUNCATE contracts, contract_lists, unified_data, unified_history")
    simulator.calls.clear()

    prepared = await prepare_replay(database, run.id)
    assert (
        await run_sources(database, prepared.sources, "replay", fetched_at=prepared.fetched_at, clock=clock)
        == "succeeded"
    )

    assert await stored_contracts(connection) == before
    assert await connection.fetchval("SELECT sum(rejected) FROM run_sources") == 0
    assert len(simulator.calls) == 0


@pytest.mark.parametrize(
    ("remaining", "day", "lists"),
    [
        (10_000, 1, 16),
        (20_000, 1, 33),
        (600, 1, 1),
        (599, 1, 0),
        (0, 1, 0),
        (40, 29, 1),
        (20, 30, 1),
        (19, 30, 0),
    ],
)
def test_lists_of_a_day_come_from_the_reserve(remaining: int, day: int, lists: int) -> None:
    now = datetime(2026, 6, day, 0, 0, tzinfo=BEGIN.tzinfo)
    assert daily_lists(MonthlyCalls(limit=20_000, remaining=remaining), now) == lists


def test_without_limit_every_list_is_fetched() -> None:
    assert daily_lists(None, BEGIN) is None
