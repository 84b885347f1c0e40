"""The retry schedule: a source with a transient failure runs again soon, with growing pauses."""

import math
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from kasparro.pipeline import circuit_breaker, retry_schedule
from kasparro.pipeline import scheduler as scheduler_module
from kasparro.pipeline.retry_schedule import RetrySchedule
from kasparro.pipeline.scheduler import Scheduler
from kasparro.simulator import Simulator
from kasparro.simulator.faults import AnyFault, Hang, Html, Reset, Status, Truncated
from kasparro.sources import http
from kasparro.sources.base import Source
from kasparro.sources.coingecko import CoinGecko
from kasparro.sources.coinpaprika import CoinPaprika
from kasparro.sources.registry import load_settings
from kasparro.store.bootstrap import prepare
from kasparro.store.pool import Connection, Database
from kasparro.store.runs import RunRecord
from tests.conftest import LogEvents
from tests.support.postgres import free_port
from tests.support.runs import QUICK

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "CHECK_S", 0.02)
    monkeypatch.setattr(retry_schedule, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(circuit_breaker, "COOL_DOWN", timedelta())


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(seed=3, coins=40, manual=True) as running:
        yield running


def scheduler_for(
    database: Database, paprika_url: str, gecko_url: str, interval: str = "1h", **environment: str
) -> Scheduler:
    settings = load_settings(
        {"KASPARRO_SOURCES": "coinpaprika,coingecko", "KASPARRO_INTERVAL": interval, **environment}
    )
    scheduler = Scheduler(settings, database, prepare=partial(prepare, database))
    sources: list[Source] = [
        CoinPaprika(paprika_url, None, QUICK),
        CoinGecko(gecko_url, "public", None, QUICK),
    ]
    scheduler._sources = sources
    return scheduler


def scheduler_over(
    database: Database, simulator: Simulator, interval: str = "1h", **environment: str
) -> Scheduler:
    return scheduler_for(
        database, simulator.coinpaprika_url, simulator.coingecko_url, interval, **environment
    )


TRANSIENT: dict[str, AnyFault] = {
    "503": Status(api="coinpaprika", code=503),
    "429": Status(api="coinpaprika", code=429),
    "500": Status(api="coinpaprika", code=500),
    "hang": Hang(api="coinpaprika"),
    "reset": Reset(api="coinpaprika"),
    "truncated": Truncated(api="coinpaprika"),
    "html": Html(api="coinpaprika"),
}


@pytest.mark.parametrize("fault", TRANSIENT)
async def test_failed_source_is_retried_until_it_succeeds(
    database: Database,
    connection: Connection,
    simulator: Simulator,
    logged: LogEvents,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """Only that source is retried."""
    monkeypatch.setattr(http, "SILENCE_S", 0.1)
    simulator.add_fault(TRANSIENT[fault])
    async with scheduler_over(database, simulator) as scheduler:
        failed = await logged.reached(2, "source_retry_scheduled", source="coinpaprika")
        simulator.clear_faults()
        await logged.reached(1, "run_finished", status="succeeded")
        await logged.reached(1, "source_retries_ended", source="coinpaprika")
        assert scheduler._retries is not None
        assert scheduler._retries.next_at == math.inf
        # The schedule is unchanged.
        assert scheduler.next_run_at is not None
        assert scheduler.next_run_at - datetime.now(UTC) > timedelta(minutes=58)

    assert [event["failures"] for event in failed[:2]] == [1, 2]
    runs = await logged.reached(3, "run_started")
    assert (runs[0]["trigger"], {run["trigger"] for run in runs[1:]}) == ("startup", {"retry"})
    assert {run["sources"] for run in runs[1:]} == {("coinpaprika",)}
    assert await connection.fetchval("SELECT DISTINCT trigger FROM runs WHERE id > 1") == "retry"


@pytest.mark.parametrize("code", [401, 403, 404])
async def test_permanent_failure_is_not_retried(
    database: Database, simulator: Simulator, logged: LogEvents, code: int
) -> None:
    simulator.add_fault(Status(api="coinpaprika", code=code))
    async with scheduler_over(database, simulator) as scheduler:
        await logged.reached(1, "scheduler_waiting")
        assert scheduler._retries is not None
        assert scheduler._retries.next_at == math.inf


async def test_spent_budget_is_not_retried(
    database: Database, connection: Connection, simulator: Simulator, logged: LogEvents
) -> None:
    simulator.add_fault(Status(api="coinpaprika", code=503))
    async with scheduler_over(database, simulator, KASPARRO_COINPAPRIKA_MONTHLY_CALLS="5") as scheduler:
        # Each run makes two calls; the third run has one call left.
        await logged.reached(2, "source_retry_scheduled", source="coinpaprika")
        await logged.reached(1, "source_retries_ended", source="coinpaprika", failures=2)
        assert scheduler._retries is not None
        assert scheduler._retries.next_at == math.inf

    assert await connection.fetchval("SELECT calls FROM api_calls WHERE source = 'coinpaprika'") == 5
    assert "is spent" in await connection.fetchval("SELECT error FROM run_sources WHERE run_id = 3")


async def test_interval_off_retries_nothing(
    database: Database, simulator: Simulator, logged: LogEvents
) -> None:
    simulator.add_fault(Status(api="coinpaprika", code=503))
    async with scheduler_over(database, simulator, "off") as scheduler:
        await scheduler.trigger()
        await logged.reached(1, "run_finished")

    assert not [event for event in logged.seen if event["event"] == "source_retry_scheduled"]


async def test_first_start_without_network(
    database: Database, connection: Connection, logged: LogEvents
) -> None:
    async with Simulator(seed=3, coins=40, manual=True) as simulator:
        port = free_port()
        paprika = simulator.coinpaprika_url.replace(simulator.url, f"http://127.0.0.1:{port}")
        gecko = simulator.coingecko_url.replace(simulator.url, "http://nowhere.invalid")
        async with scheduler_for(database, paprika, gecko) as scheduler:
            # A failed connection is not a call.
            await logged.reached(3, "source_retry_scheduled", source="coinpaprika")
            await logged.reached(3, "source_retry_scheduled", source="coingecko")
            assert await connection.fetchval("SELECT coalesce(sum(calls), 0) FROM api_calls") == 0
            assert await connection.fetchval("SELECT sum(calls) FROM run_sources") == 0
            scheduler._sources[:] = [
                CoinPaprika(simulator.coinpaprika_url, None, QUICK),
                CoinGecko(simulator.coingecko_url, "public", None, QUICK),
            ]
            await logged.reached(1, "run_finished", status="succeeded")

    assert await connection.fetchval("SELECT count(*) FROM unified_data") > 0
    assert await connection.fetchval("SELECT count(DISTINCT source) FROM unified_data") == 2


async def test_new_leader_retries_failed_sources(
    database: Database, connection: Connection, simulator: Simulator, logged: LogEvents
) -> None:
    other = scheduler_over(database, simulator)
    async with scheduler_over(database, simulator):
        await logged.reached(1, "run_finished", status="succeeded")
        await other.__aenter__()
        await logged.reached(1, "another_process_leads")
        previous = await RunRecord.start(
            database, "schedule", ("coinpaprika", "coingecko"), datetime.now(UTC)
        )
        await previous.finish_source(
            "coinpaprika", "failed", "no", datetime.now(UTC), upstream_unavailable=True
        )
        await previous.finish_source("coingecko", "succeeded", None, datetime.now(UTC))
        await previous.finish("partial", None, datetime.now(UTC))
    (planned,) = await logged.reached(1, "source_retry_scheduled")
    runs = await logged.reached(1, "run_started", trigger="retry")
    await logged.reached(2, "run_finished", status="succeeded")
    await other.__aexit__(None, None, None)

    assert planned["source"] == "coinpaprika"
    assert [run["sources"] for run in runs] == [("coinpaprika",)]
    del connection


async def test_pauses_double_up_to_the_interval(monkeypatch: pytest.MonkeyPatch, logged: LogEvents) -> None:
    del logged
    now = 1_000.0
    monkeypatch.setattr("kasparro.pipeline.retry_schedule.time.monotonic", lambda: now)
    monkeypatch.setattr(retry_schedule, "FIRST_PAUSE_S", 30.0)
    planned = RetrySchedule(timedelta(minutes=10))
    pauses = []
    for _ in range(7):
        planned.failed("coingecko")
        pauses.append(planned.next_at - now)

    assert pauses == [30, 60, 120, 240, 480, math.inf, math.inf]
    planned.settled("coingecko")
    planned.failed("coingecko", 300.0)
    assert planned.next_at - now == 300
    planned.failed("coinpaprika")
    assert planned.due() == set()
    now += 30
    assert planned.due() == {"coinpaprika"}
    now += 270
    assert planned.due() == {"coinpaprika", "coingecko"}
    # The pause would be longer than the interval.
    planned.failed("coingecko", 86_400.0)
    assert planned.due() == {"coinpaprika"}


async def test_skipped_source_is_retried_after_its_cool_down(
    database: Database, simulator: Simulator, logged: LogEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_breaker, "COOL_DOWN", timedelta(minutes=1))
    simulator.add_fault(Status(api="coinpaprika", code=500))
    async with scheduler_over(database, simulator):
        (planned,) = await logged.reached(1, "source_retry_scheduled", failures=4)
        skipped = await logged.reached(1, "source_skipped")

    assert 50 < planned["in_s"] <= 60
    assert len(skipped) == 1
    # Three runs with two calls each; the fourth run skipped the source.
    assert len([call for call in simulator.calls if call.api == "coinpaprika"]) == 6
