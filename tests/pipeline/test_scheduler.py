"""The scheduler: when runs start, which process leads, how a run ends at shutdown."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import asyncpg
import pytest
import stamina

from kasparro.embedded.server import EmbeddedPostgres
from kasparro.errors import RunInProgress
from kasparro.pipeline import scheduler as scheduler_module
from kasparro.pipeline.scheduler import Scheduler
from kasparro.simulator import Simulator
from kasparro.simulator.faults import Hang
from kasparro.sources import coingecko, coinpaprika
from kasparro.sources.base import utc_now
from kasparro.sources.registry import load_settings
from kasparro.store.bootstrap import prepare
from kasparro.store.locks import AdvisoryLease
from kasparro.store.pool import Database
from kasparro.store.runs import RunRecord
from tests.conftest import LogEvents


@pytest.fixture(autouse=True)
def fast_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "CHECK_S", 0.05)


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(seed=3, coins=40, manual=True) as running:
        yield running


def scheduler_over(
    simulator: Simulator,
    database: Database,
    interval: str = "1h",
    clock: Callable[[], datetime] = utc_now,
    *,
    runs_at_start: bool = True,
) -> Scheduler:
    settings = load_settings(
        {
            "KASPARRO_COINPAPRIKA_URL": simulator.coinpaprika_url,
            "KASPARRO_COINGECKO_URL": simulator.coingecko_url,
            "KASPARRO_SOURCES": "coinpaprika,coingecko",
            "KASPARRO_INTERVAL": interval,
        }
    )
    return Scheduler(
        settings, database, prepare=partial(prepare, database), clock=clock, runs_at_start=runs_at_start
    )


@pytest.mark.slow
async def test_runs_at_start_and_every_interval(
    database: Database, simulator: Simulator, logged: LogEvents
) -> None:
    async with scheduler_over(simulator, database, "1s"):
        await logged.reached(2, "run_finished", status="succeeded")

    assert [event["trigger"] for event in await logged.reached(2, "run_started")] == ["startup", "schedule"]


async def test_replacing_process_keeps_the_schedule(
    database: Database, simulator: Simulator, logged: LogEvents
) -> None:
    async with scheduler_over(simulator, database):
        await logged.reached(1, "run_finished")
    replacement = scheduler_over(simulator, database, runs_at_start=False)
    async with replacement, asyncio.timeout(10):
        while replacement.next_run_at is None:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)

    assert timedelta(minutes=55) < replacement.next_run_at - utc_now() <= timedelta(hours=1)
    assert len([event for event in logged.seen if event["event"] == "run_started"]) == 1


async def test_next_run_at(database: Database, simulator: Simulator, logged: LogEvents) -> None:
    async with scheduler_over(simulator, database, "1h") as scheduler:
        await logged.reached(1, "scheduler_waiting")

        assert scheduler.next_run_at is not None
        assert timedelta(minutes=59) < scheduler.next_run_at - datetime.now(UTC) <= timedelta(hours=1)


async def test_demo_database_is_rejected(
    empty_database_url: str, simulator: Simulator, logged: LogEvents
) -> None:
    async with Database(empty_database_url) as database:
        await prepare(database, demo=True)
        await RunRecord.start(database, "etl", ("csv",), datetime.now(UTC))
        async with scheduler_over(simulator, database):
            failed = await logged.reached(1, "background_task_failed", task="scheduler")

    assert "simulated data" in failed[0]["reason"]


async def test_next_leader_marks_abandoned_runs(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    logged: LogEvents,
) -> None:
    await RunRecord.start(database, "etl", ("csv",), datetime.now(UTC))

    async with scheduler_over(simulator, database, "off"):
        await logged.reached(1, "run_marked_interrupted")

    assert await connection.fetchval("SELECT status FROM runs") == "interrupted"


async def test_interval_off_starts_no_run(
    database: Database, simulator: Simulator, logged: LogEvents
) -> None:
    async with scheduler_over(simulator, database, "off") as scheduler:
        assert await scheduler.trigger() == 1
        await logged.reached(1, "run_finished")

    assert [event["trigger"] for event in await logged.reached(1, "run_started")] == ["api"]


@pytest.mark.slow
async def test_follower_takes_over(database: Database, simulator: Simulator, logged: LogEvents) -> None:
    async with scheduler_over(simulator, database, "2s"):
        await logged.reached(1, "run_finished")
        other = scheduler_over(simulator, database, "2s")
        await other.__aenter__()
        await logged.reached(1, "another_process_leads")

    # The first has left; the other continues its schedule.
    started = await logged.reached(2, "run_started")
    await other.__aexit__(None, None, None)
    assert [event["trigger"] for event in started] == ["startup", "schedule"]


async def test_trigger_during_a_run_is_rejected(
    database: Database, simulator: Simulator, logged: LogEvents
) -> None:
    simulator.add_fault(Hang(api="coinpaprika"))

    async with scheduler_over(simulator, database, "off") as scheduler:
        await scheduler.trigger()
        with pytest.raises(RunInProgress):
            await scheduler.trigger()


async def test_stop_interrupts_the_run(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    logged: LogEvents,
) -> None:
    simulator.add_fault(Hang(api="coinpaprika"))

    async with asyncio.timeout(10):
        async with scheduler_over(simulator, database):
            await logged.reached(1, "source_finished", source="coingecko")

    assert await connection.fetchval("SELECT status FROM runs") == "interrupted"
    sources = await connection.fetch("SELECT source, status FROM run_sources")
    assert {row["source"]: row["status"] for row in sources} == {
        "coinpaprika": "interrupted",
        "coingecko": "succeeded",
    }


@pytest.mark.slow
async def test_scheduler_survives_an_internal_error(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    logged: LogEvents,
) -> None:
    """The error is logged and recorded in the run."""
    await connection.execute("ALTER TABLE unified_data RENAME TO hidden")

    async with scheduler_over(simulator, database, "1s"):
        await logged.reached(1, "run_finished", status="failed")
        await connection.execute("ALTER TABLE hidden RENAME TO unified_data")
        await logged.reached(1, "run_finished", status="succeeded")

    assert {event["level"] for event in await logged.reached(1, "source_failed")} == {"error"}
    assert await connection.fetchval("SELECT error FROM run_sources WHERE run_id = 1 LIMIT 1")


@pytest.mark.slow
async def test_waits_for_a_database_that_is_down_at_start(
    home: Path, simulator: Simulator, logged: LogEvents
) -> None:
    async with EmbeddedPostgres(home) as server:
        url = server.dsn
    async with Database(url) as database, scheduler_over(simulator, database):
        await logged.reached(1, "waiting_for_database")
        async with EmbeddedPostgres(home):
            await logged.reached(1, "run_finished", status="succeeded")


@pytest.mark.slow
async def test_restart_after_clock_was_set_back(
    database: Database, simulator: Simulator, logged: LogEvents
) -> None:
    ahead = timedelta(days=400)
    async with scheduler_over(simulator, database, "1s", clock=lambda: datetime.now(UTC) + ahead):
        await logged.reached(1, "run_finished")

    async with scheduler_over(simulator, database, "1s"):
        await logged.reached(3, "run_finished")


@pytest.mark.slow
async def test_takeover_after_clock_was_set_back(
    database: Database, simulator: Simulator, logged: LogEvents
) -> None:
    ahead = timedelta(days=400)
    async with scheduler_over(simulator, database, "2s", clock=lambda: datetime.now(UTC) + ahead):
        await logged.reached(1, "run_finished")
        other = scheduler_over(simulator, database, "2s")
        await other.__aenter__()
        await logged.reached(1, "another_process_leads")

    runs = len([event for event in logged.seen if event["event"] == "run_finished"])
    await logged.reached(runs + 1, "run_finished")
    await other.__aexit__(None, None, None)


@pytest.mark.slow
async def test_clock_set_back_between_runs(
    database: Database, simulator: Simulator, logged: LogEvents
) -> None:
    behind = timedelta(0)
    async with scheduler_over(simulator, database, "1s", clock=lambda: datetime.now(UTC) - behind):
        await logged.reached(1, "run_finished")
        behind = timedelta(days=400)
        await logged.reached(3, "run_finished")


@pytest.mark.slow
async def test_scheduler_is_restarted_after_its_own_error(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    logged: LogEvents,
) -> None:
    await connection.execute("ALTER TABLE runs RENAME TO hidden")
    async with scheduler_over(simulator, database):
        await logged.reached(1, "background_task_failed", task="scheduler", level="error")
        await connection.execute("ALTER TABLE hidden RENAME TO runs")
        await logged.reached(1, "run_finished", status="succeeded")


async def test_waiting_leader_marks_abandoned_runs(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    logged: LogEvents,
) -> None:
    async with scheduler_over(simulator, database):
        await logged.reached(1, "scheduler_waiting")
        abandoned = await RunRecord.start(database, "etl", ("csv",), datetime.now(UTC))
        await logged.reached(1, "run_marked_interrupted", run=abandoned.id)

    assert await connection.fetchval("SELECT status FROM run_sources WHERE source = 'csv'") == "interrupted"


@pytest.mark.slow
async def test_late_batch_is_terminated_at_shutdown(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    logged: LogEvents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler_module, "STOP_GRACE_S", 0.2)
    async with connection.transaction():
        await connection.execute("LOCK TABLE instance IN EXCLUSIVE MODE")
        async with asyncio.timeout(10):
            async with scheduler_over(simulator, database):
                async for attempt in stamina.retry_context(on=AssertionError, attempts=None, wait_max=0.05):
                    with attempt:
                        assert await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
    await logged.reached(1, "run_terminated_by_shutdown")

    assert await connection.fetchval("SELECT count(*) FROM unified_data") == 0


@pytest.mark.slow
async def test_due_run_waits_for_another_run(
    database: Database, simulator: Simulator, logged: LogEvents
) -> None:
    async with AdvisoryLease(database, "run") as lock:
        await lock.acquire()
        other = scheduler_over(simulator, database)
        await other.__aenter__()
        await logged.reached(1, "waiting_for_other_run")

    await logged.reached(1, "run_finished", status="succeeded")
    await other.__aexit__(None, None, None)
    assert {event["level"] for event in logged.seen} <= {"info", "debug"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "base_url"),
    [
        ("coingecko", "http://api.coingecko.com/coingecko/api/v3"),
        ("coinpaprika", "http://api.coinpaprika.com/coinpaprika/v1"),
    ],
)
async def test_runs_share_the_upstream_rate_limit(
    database: Database, logged: LogEvents, monkeypatch: pytest.MonkeyPatch, source: str, base_url: str
) -> None:
    # The rate limit applies to the vendor's host only. The simulator answers for it as an HTTP proxy.
    monkeypatch.setitem(coingecko.CALLS_A_MINUTE, "public", 60)
    monkeypatch.setattr(coinpaprika, "CALLS_A_SECOND", 1)
    async with Simulator(seed=3, coins=40) as simulator:
        monkeypatch.setenv("HTTP_PROXY", simulator.url)
        settings = load_settings(
            {
                f"KASPARRO_{source.upper()}_URL": base_url,
                "KASPARRO_SOURCES": source,
                "KASPARRO_INTERVAL": "off",
            }
        )
        async with Scheduler(settings, database, prepare=partial(prepare, database)) as scheduler:
            for number in range(1, 4):
                async for attempt in stamina.retry_context(on=RunInProgress, attempts=None, timeout=20):
                    with attempt:
                        await scheduler.trigger()
                await logged.reached(number, "run_finished", status="succeeded")
        times = [call.at for call in simulator.calls]

    # The first run also fetches the contract lists: one of CoinGecko, nine of CoinPaprika. The first crawl of
    # CoinGecko makes one more call, for the end of the list.
    assert len(times) == {"coingecko": 5, "coinpaprika": 12}[source]
    # The first and the third call are sent two seconds apart. A busy machine may delay the first.
    assert times[2] - times[0] > timedelta(seconds=1.5)
