"""The circuit breaker: a source whose upstream gives nothing gets fewer calls."""

from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest

from kasparro.pipeline.source_run import Trigger
from kasparro.simulator import Simulator
from kasparro.simulator.faults import Status
from kasparro.sources.coinpaprika import CoinPaprika
from kasparro.store.pool import Database
from tests.support.runs import BEGIN, MINUTE, QUICK, ManualClock, coingecko_source, run_and_report

pytestmark = pytest.mark.slow


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """Five pages of CoinGecko, one call of CoinPaprika."""
    async with Simulator(seed=7, coins=1_150, base=BEGIN, manual=True) as running:
        yield running


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(BEGIN)


async def test_unavailable_source_gets_one_call_per_run(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    """It recovers with the first successful call."""
    simulator.add_fault(Status(api="coingecko", code=500))
    calls = [
        (await run_and_report(database, [coingecko_source(simulator)], clock=clock)).sources[0].calls
        for _ in range(5)
    ]
    simulator.clear_faults()

    done = await run_and_report(database, [coingecko_source(simulator)], clock=clock)

    assert calls == [2, 2, 2, 1, 1]
    assert (done.status, done.sources[0].calls) == ("succeeded", 7)


async def test_run_without_calls_does_not_close_the_circuit(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: ManualClock,
) -> None:
    simulator.add_fault(Status(api="coingecko", code=500))
    for _ in range(3):
        await run_and_report(database, [coingecko_source(simulator)], clock=clock)
    await connection.execute(
        "WITH run AS ("
        "  INSERT INTO runs (trigger, status, started_at) VALUES ('etl', 'succeeded', $1) RETURNING id"
        ") INSERT INTO run_sources (run_id, source, status, started_at, finished_at) "
        "SELECT id, 'coingecko', 'succeeded', $1, $1 FROM run",
        BEGIN,
    )

    assert (await run_and_report(database, [coingecko_source(simulator)], clock=clock)).sources[0].calls == 1


async def test_scheduler_skips_unavailable_source_for_a_minute(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    simulator.add_fault(Status(api="coinpaprika", code=500))
    sources = [CoinPaprika(simulator.coinpaprika_url, None, QUICK), coingecko_source(simulator)]
    for _ in range(3):
        await run_and_report(database, sources, "schedule", clock=clock)
    simulator.calls.clear()
    clock.now += 30 * timedelta(seconds=1)
    rested_run = await run_and_report(database, sources, "schedule", clock=clock)
    calls = [call for call in simulator.calls if call.api == "coinpaprika"]
    simulator.clear_faults()
    clock.now += 30 * timedelta(seconds=1)
    recovered = await run_and_report(database, sources, "schedule", clock=clock)

    paprika = next(source for source in rested_run.sources if source.source == "coinpaprika")
    assert (rested_run.status, paprika.status, calls) == ("partial", "skipped", [])
    assert paprika.error == "its last 3 runs failed; the next attempt is after 00:01:00 UTC"
    assert recovered.status == "succeeded"


@pytest.mark.parametrize(
    ("trigger", "later"), [("etl", timedelta()), ("api", timedelta()), ("schedule", -MINUTE)]
)
async def test_circuit_does_not_stop_manual_runs(
    database: Database, simulator: Simulator, clock: ManualClock, trigger: Trigger, later: timedelta
) -> None:
    """Nor scheduled runs after a clock was set back."""
    simulator.add_fault(Status(api="coingecko", code=500))
    for _ in range(3):
        await run_and_report(database, [coingecko_source(simulator)], "schedule", clock=clock)
    simulator.clear_faults()
    clock.now += later

    assert (
        await run_and_report(database, [coingecko_source(simulator)], trigger, clock=clock)
    ).status == "succeeded"


async def test_other_failures_do_not_open_the_circuit(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: ManualClock,
) -> None:
    await connection.execute("ALTER TABLE unified_data RENAME TO hidden")
    for _ in range(3):
        assert (await run_and_report(database, [coingecko_source(simulator)], clock=clock)).status == "failed"
    await connection.execute("ALTER TABLE hidden RENAME TO unified_data")

    assert (
        await run_and_report(database, [coingecko_source(simulator)], "schedule", clock=clock)
    ).status == "succeeded"
