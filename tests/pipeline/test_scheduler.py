"""When runs happen, in which process, and how they end."""

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
from kasparro.pipeline import scheduler as module
from kasparro.pipeline.scheduler import Scheduler
from kasparro.settings import load
from kasparro.simulator import Simulator
from kasparro.simulator.faults import Hang
from kasparro.sources import coingecko, coinpaprika
from kasparro.sources.base import utc_now
from kasparro.store.bootstrap import prepare
from kasparro.store.pool import Database
from kasparro.store.runs import AdvisoryLease, RunRecord
from tests.conftest import LogEvents


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK_S", 0.05)


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(seed=3, coins=40, manual=True) as running:
        yield running


def looped(
    simulator: Simulator,
    database: Database,
    interval: str = "1h",
    clock: Callable[[], datetime] = utc_now,
    *,
    runs_at_start: bool = True,
) -> Scheduler:
    told = load(
        {
            "KASPARRO_COINPAPRIKA_URL": simulator.coinpaprika_url,
            "KASPARRO_COINGECKO_URL": simulator.coingecko_url,
            "KASPARRO_SOURCES": "coinpaprika,coingecko",
            "KASPARRO_INTERVAL": interval,
        }
    )
    return Scheduler(
        told, database, prepare=partial(prepare, database), clock=clock, runs_at_start=runs_at_start
    )


async def test_a_run_at_start_and_then_every_interval(
    database: Database, simulator: Simulator, logged: LogEvents
) -> None:
    async with looped(simulator, database, "1s"):
        await logged.reached(2, "run_finished", status="succeeded")

    assert [event["trigger"] for event in await logged.reached(2, "run_started")] == ["startup", "schedule"]


async def test_a_process_that_replaces_another_keeps_its_schedule(
    database: Database, simulator: Simulator, logged: LogEvents
) -> None:
    async with looped(simulator, database):
        await logged.reached(1, "run_finished")
    replacement = looped(simulator, database, runs_at_start=False)
    async with replacement, asyncio.timeout(10):
        while replacement.next_run_at is None:  # noqa: ASYNC110 - no event tells when it is set
            await asyncio.sleep(0)

    assert timedelta(minutes=55) < replacement.next_run_at - utc_now() <= timedelta(hours=1)
    assert len([event for event in logged.seen if event["event"] == "run_started"]) == 1


async def test_it_tells_when_the_next_run_is_due(
    database: Database, simulator: Simulator, logged: LogEvents
) -> None:
    async with looped(simulator, database, "1h") as scheduler:
        await logged.reached(1, "scheduler_waiting")

        assert scheduler.next_run_at is not None
        assert timedelta(minutes=59) < scheduler.next_run_at - datetime.now(UTC) <= timedelta(hours=1)


async def test_a_real_service_and_a_demo_do_not_share_a_database(
    empty_database_url: str, simulator: Simulator, logged: LogEvents
) -> None:
    async with Database(empty_database_url) as database:
        await prepare(database, demo=True)
        await RunRecord.start(database, "etl", ("csv",), datetime.now(UTC))
        async with looped(simulator, database):
            refused = await logged.reached(1, "background_task_failed", task="scheduler")

    assert "invented figures" in refused[0]["reason"]


async def test_what_a_dead_process_left_running_is_marked_by_who_leads_next(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    logged: LogEvents,
) -> None:
    await RunRecord.start(database, "etl", ("csv",), datetime.now(UTC))

    async with looped(simulator, database, "off"):
        await logged.reached(1, "run_marked_interrupted")

    assert await connection.fetchval("SELECT status FROM runs") == "interrupted"


async def test_no_run_by_itself_when_the_interval_is_off(
    database: Database, simulator: Simulator, logged: LogEvents
) -> None:
    async with looped(simulator, database, "off") as scheduler:
        assert await scheduler.trigger() == 1
        await logged.reached(1, "run_finished")

    assert [event["trigger"] for event in await logged.reached(1, "run_started")] == ["api"]


async def test_of_two_processes_one_leads_and_the_other_takes_over(
    database: Database, simulator: Simulator, logged: LogEvents
) -> None:
    async with looped(simulator, database, "2s"):
        await logged.reached(1, "run_finished")
        other = looped(simulator, database, "2s")
        await other.__aenter__()
        await logged.reached(1, "another_process_leads")

    # The first has left; the other goes on with the rhythm of the runs there were.
    started = await logged.reached(2, "run_started")
    await other.__aexit__(None, None, None)
    assert [event["trigger"] for event in started] == ["startup", "schedule"]


async def test_a_run_that_is_asked_for_while_one_works_is_refused(
    database: Database, simulator: Simulator, logged: LogEvents
) -> None:
    simulator.add_fault(Hang(api="coinpaprika"))

    async with looped(simulator, database, "off") as scheduler:
        await scheduler.trigger()
        with pytest.raises(RunInProgress):
            await scheduler.trigger()


async def test_a_stop_ends_the_run_at_work_and_marks_it(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    logged: LogEvents,
) -> None:
    simulator.add_fault(Hang(api="coinpaprika"))

    async with asyncio.timeout(10):
        async with looped(simulator, database):
            await logged.reached(1, "source_finished", source="coingecko")

    assert await connection.fetchval("SELECT status FROM runs") == "interrupted"
    sources = await connection.fetch("SELECT source, status FROM run_sources")
    assert {row["source"]: row["status"] for row in sources} == {
        "coinpaprika": "interrupted",
        "coingecko": "succeeded",
    }


async def test_the_loop_survives_what_it_cannot_foresee_with_a_line_and_an_entry(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    logged: LogEvents,
) -> None:
    await connection.execute("ALTER TABLE unified_data RENAME TO hidden")

    async with looped(simulator, database, "1s"):
        await logged.reached(1, "run_finished", status="failed")
        await connection.execute("ALTER TABLE hidden RENAME TO unified_data")
        await logged.reached(1, "run_finished", status="succeeded")

    assert {event["level"] for event in await logged.reached(1, "source_failed")} == {"error"}
    assert await connection.fetchval("SELECT error FROM run_sources WHERE run_id = 1 LIMIT 1")


async def test_a_database_that_is_down_at_the_start_is_waited_for(
    home: Path, simulator: Simulator, logged: LogEvents
) -> None:
    async with EmbeddedPostgres(home) as server:
        url = server.dsn
    async with Database(url) as database, looped(simulator, database):
        await logged.reached(1, "waiting_for_database")
        async with EmbeddedPostgres(home):
            await logged.reached(1, "run_finished", status="succeeded")


async def test_a_set_back_clock_puts_off_no_run(
    database: Database, simulator: Simulator, logged: LogEvents
) -> None:
    ahead = timedelta(days=400)
    async with looped(simulator, database, "1s", clock=lambda: datetime.now(UTC) + ahead):
        await logged.reached(1, "run_finished")

    async with looped(simulator, database, "1s"):
        await logged.reached(3, "run_finished")


async def test_a_clock_that_was_set_back_puts_off_nobody_who_takes_over(
    database: Database, simulator: Simulator, logged: LogEvents
) -> None:
    ahead = timedelta(days=400)
    async with looped(simulator, database, "2s", clock=lambda: datetime.now(UTC) + ahead):
        await logged.reached(1, "run_finished")
        other = looped(simulator, database, "2s")
        await other.__aenter__()
        await logged.reached(1, "another_process_leads")

    runs = len([event for event in logged.seen if event["event"] == "run_finished"])
    await logged.reached(runs + 1, "run_finished")
    await other.__aexit__(None, None, None)


async def test_a_clock_that_is_set_back_meanwhile_moves_no_run(
    database: Database, simulator: Simulator, logged: LogEvents
) -> None:
    behind = timedelta(0)
    async with looped(simulator, database, "1s", clock=lambda: datetime.now(UTC) - behind):
        await logged.reached(1, "run_finished")
        behind = timedelta(days=400)
        await logged.reached(3, "run_finished")


async def test_the_loop_goes_on_after_an_error_of_its_own(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    logged: LogEvents,
) -> None:
    await connection.execute("ALTER TABLE runs RENAME TO hidden")
    async with looped(simulator, database):
        await logged.reached(1, "background_task_failed", task="scheduler", level="error")
        await connection.execute("ALTER TABLE hidden RENAME TO runs")
        await logged.reached(1, "run_finished", status="succeeded")


async def test_a_run_that_dies_elsewhere_is_marked_while_the_loop_waits(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    logged: LogEvents,
) -> None:
    async with looped(simulator, database):
        await logged.reached(1, "scheduler_waiting")
        dead = await RunRecord.start(database, "etl", ("csv",), datetime.now(UTC))
        await logged.reached(1, "run_marked_interrupted", run=dead.id)

    assert await connection.fetchval("SELECT status FROM run_sources WHERE source = 'csv'") == "interrupted"


async def test_a_batch_that_does_not_end_in_time_is_cut_off_and_told(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    logged: LogEvents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STOP_GRACE_S", 0.2)
    async with connection.transaction():
        await connection.execute("LOCK TABLE instance IN EXCLUSIVE MODE")
        async with asyncio.timeout(10):
            async with looped(simulator, database):
                async for attempt in stamina.retry_context(on=AssertionError, attempts=None, wait_max=0.05):
                    with attempt:
                        assert await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
    await logged.reached(1, "run_terminated_by_shutdown")

    assert await connection.fetchval("SELECT count(*) FROM unified_data") == 0


async def test_a_run_that_is_due_while_another_works_is_made_after_it(
    database: Database, simulator: Simulator, logged: LogEvents
) -> None:
    async with AdvisoryLease(database, "run") as lock:
        await lock.acquire()
        other = looped(simulator, database)
        await other.__aenter__()
        await logged.reached(1, "waiting_for_other_run")

    await logged.reached(1, "run_finished", status="succeeded")
    await other.__aexit__(None, None, None)
    assert {event["level"] for event in logged.seen} <= {"info", "debug"}


@pytest.mark.parametrize(
    ("source", "base_url"),
    [
        ("coingecko", "http://api.coingecko.com/coingecko/api/v3"),
        ("coinpaprika", "http://api.coinpaprika.com/coinpaprika/v1"),
    ],
)
async def test_runs_of_one_process_share_the_rate_that_an_upstream_sets(
    database: Database, logged: LogEvents, monkeypatch: pytest.MonkeyPatch, source: str, base_url: str
) -> None:
    # The rate holds for the vendor's host, which the simulator stands in for as a proxy does.
    monkeypatch.setitem(coingecko.CALLS_A_MINUTE, "public", 60)
    monkeypatch.setattr(coinpaprika, "CALLS_A_SECOND", 1)
    async with Simulator(seed=3, coins=40) as simulator:
        monkeypatch.setenv("HTTP_PROXY", simulator.url)
        told = load(
            {
                f"KASPARRO_{source.upper()}_URL": base_url,
                "KASPARRO_SOURCES": source,
                "KASPARRO_INTERVAL": "off",
            }
        )
        async with Scheduler(told, database, prepare=partial(prepare, database)) as scheduler:
            for number in range(1, 4):
                async for attempt in stamina.retry_context(on=RunInProgress, attempts=None, timeout=20):
                    with attempt:
                        await scheduler.trigger()
                await logged.reached(number, "run_finished", status="succeeded")
        times = [call.at for call in simulator.calls]

    assert len(times) == 3
    # Sent two seconds apart at least, and as late at the simulator as a machine at work has it.
    assert times[2] - times[0] > timedelta(seconds=1.5)
