"""One run over real HTTP servers and a real PostgreSQL."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from typing import Literal

import asyncpg
import pytest
import stamina

from kasparro.concurrency import UnexpectedCancel
from kasparro.errors import LeaseLost, RunInProgress
from kasparro.model.batch import Batch, BatchBuilder
from kasparro.model.record import Record
from kasparro.pipeline.run import Run
from kasparro.pipeline.source_run import outcome_of
from kasparro.simulator import Simulator
from kasparro.simulator.faults import (
    AnyFault,
    BadRecord,
    BadRecords,
    Hang,
    Html,
    PageShift,
    Reset,
    SchemaDrift,
    Status,
)
from kasparro.sources.base import SourceContext
from kasparro.store.loader import Loader
from kasparro.store.locks import AdvisoryLease
from kasparro.store.pool import Database
from tests.support.runs import apis, run_sources, source_outcomes


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(seed=7, coins=600, manual=True) as running:
        yield running


@pytest.mark.slow
async def test_unchanged_payloads_write_nothing(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    """A moved market updates the rows."""
    await run_sources(database, apis(simulator))
    await run_sources(database, apis(simulator))
    again = await source_outcomes(connection)
    simulator.advance(1)
    await run_sources(database, apis(simulator))
    moved = await source_outcomes(connection)

    assert [(source["inserted"], source["updated"]) for source in again.values()] == [(0, 0), (0, 0)]
    assert all(source["updated"] > 0 for source in moved.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Status(api="coingecko", code=500), "answered 500"),
        (Status(api="coingecko", code=429, retry_after=119), "asks to wait 119 s"),
        (Status(api="coingecko", code=401), "the key is missing or not accepted"),
        (Html(api="coingecko"), "sent an HTML page"),
    ],
)
async def test_unavailable_upstream_fails_only_its_source(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    fault: AnyFault,
    error: str,
) -> None:
    """The next run repairs it."""
    simulator.add_fault(fault)

    assert await run_sources(database, apis(simulator)) == "partial"

    sources = await source_outcomes(connection)
    assert sources["coinpaprika"]["status"] == "succeeded"
    assert sources["coingecko"]["status"] == "failed"
    assert error in sources["coingecko"]["error"]
    assert "\n" not in sources["coingecko"]["error"]

    simulator.clear_faults()
    assert await run_sources(database, apis(simulator)) == "succeeded"
    assert (await source_outcomes(connection))["coingecko"]["inserted"] > 0


@pytest.mark.slow
async def test_lost_page_makes_the_source_partial(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    simulator.add_fault(Status(api="coingecko", code=502, page=2))

    assert await run_sources(database, apis(simulator)) == "partial"

    source = (await source_outcomes(connection))["coingecko"]
    assert source["status"] == "partial"
    assert source["error"].startswith("page 2: CoinGecko answered 502")
    assert source["fetched"] == len(simulator.market.listing("coingecko")) - 250


@pytest.mark.slow
async def test_shifting_pages_duplicate_no_coin(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    simulator.add_fault(PageShift(api="coingecko", by=3))

    await run_sources(database, apis(simulator))
    await run_sources(database, apis(simulator))

    source = (await source_outcomes(connection))["coingecko"]
    assert source["status"] == "succeeded"
    assert (
        source["fetched"] == source["valid"] == source["unchanged"] + source["updated"] + source["inserted"]
    )


@pytest.mark.slow
async def test_bad_records_are_rejected_alone(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    bad: list[BadRecord] = [
        "missing-id",
        "null-id",
        "string-price",
        "negative-price",
        "future",
        "long-number",
    ]
    simulator.add_fault(BadRecords(api="coingecko", page=1, records=bad))

    assert await run_sources(database, apis(simulator)) == "succeeded"

    source = (await source_outcomes(connection))["coingecko"]
    rejects = await connection.fetch("SELECT reason, field, raw FROM rejects ORDER BY id")
    assert source["rejected"] == len(rejects) == len(bad)
    assert source["valid"] == len(simulator.market.listing("coingecko"))
    assert all(reject["reason"] and reject["raw"] for reject in rejects)
    assert not await connection.fetchval("SELECT count(*) FROM unified_data WHERE source_id LIKE 'bad-%'")


@pytest.mark.slow
@pytest.mark.parametrize("change", ["rename", "drop"])
async def test_vanished_field_fails_the_source(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    change: Literal["rename", "drop"],
) -> None:
    """No value becomes null."""
    await run_sources(database, apis(simulator))
    simulator.advance(1)
    simulator.add_fault(SchemaDrift(api="coingecko", field="current_price", change=change))
    simulator.add_fault(SchemaDrift(api="coinpaprika", field="quotes.USD.price", change=change))

    assert await run_sources(database, apis(simulator)) == "failed"

    for source in (await source_outcomes(connection)).values():
        assert source["inserted"] == source["updated"] == 0
        assert "records were rejected, most often: " in source["error"]
        assert "Object missing required field" in source["error"]


async def test_every_call_is_counted(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    simulator.add_fault(Reset(api="coinpaprika"))
    simulator.add_fault(Reset(api="coingecko", page=2))

    await run_sources(database, apis(simulator))

    seen = Counter(call.api for call in simulator.calls)
    booked = {row["source"]: row["calls"] for row in await connection.fetch("SELECT * FROM api_calls")}
    assert booked == seen
    assert {name: source["calls"] for name, source in (await source_outcomes(connection)).items()} == seen


@pytest.mark.slow
async def test_second_run_is_rejected(database: Database, simulator: Simulator) -> None:
    async with Run(database, apis(simulator), "etl"):
        with pytest.raises(RunInProgress):
            async with Run(database, apis(simulator), "schedule"):
                pass

    assert await run_sources(database, apis(simulator)) == "succeeded"


async def test_run_of_a_crashed_process_is_marked_interrupted(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    crashed = Run(database, apis(simulator), "etl")
    await crashed.__aenter__()
    await crashed._lease.release()

    await run_sources(database, apis(simulator))

    assert [row["status"] for row in await connection.fetch("SELECT status FROM runs ORDER BY id")] == [
        "interrupted",
        "succeeded",
    ]
    with pytest.raises(LeaseLost):
        await crashed.work(asyncio.Event())


async def test_run_without_lease_writes_nothing(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    async with Run(database, apis(simulator), "etl") as run, AdvisoryLease(database, "run") as other:
        await connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name LIKE 'kasparro run%' AND datname = current_database()"
        )
        assert await other.acquire()
        async for attempt in stamina.retry_context(on=AssertionError, attempts=None, wait_max=0.02):
            with attempt:
                assert not run._lease.held
        with pytest.raises(LeaseLost, match=f"run {run.id} lost its lock to another run"):
            await run.work(asyncio.Event())

    assert await connection.fetchval("SELECT count(*) FROM unified_data") == 0
    assert len(simulator.calls) == 0


async def test_stop_ends_the_run_after_its_batch(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    simulator.add_fault(Hang(api="coingecko", page=2))
    stop = asyncio.Event()

    async with Run(database, apis(simulator)[1:], "etl") as run:
        working = asyncio.create_task(run.work(stop))
        await simulator.calls.reached(2)
        stop.set()
        async with asyncio.timeout(5):
            assert await working == "interrupted"

    source = (await source_outcomes(connection))["coingecko"]
    assert (source["status"], source["fetched"]) == ("interrupted", 250)
    assert await connection.fetchval("SELECT count(*) FROM unified_data") == 250


async def test_stop_ends_a_source_that_never_waits(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    stop = asyncio.Event()

    async with Run(database, [EndlessSource(stop)], "etl") as run:
        async with asyncio.timeout(5):
            assert await run.work(stop) == "interrupted"

    assert (await source_outcomes(connection))["csv"]["status"] == "interrupted"


@pytest.mark.slow
async def test_run_survives_the_loss_of_all_connections(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    async with Run(database, [TerminatingSource(connection)], "etl") as run:
        assert await run.work(asyncio.Event()) == "succeeded"

    source = (await source_outcomes(connection))["csv"]
    assert (source["fetched"], source["inserted"], source["batches"]) == (20, 20, 20)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ZeroDivisionError(), "ZeroDivisionError"),
        (ExceptionGroup("two", [ValueError()]), "ExceptionGroup"),
        (asyncio.CancelledError(), "UnexpectedCancel"),
    ],
)
async def test_bug_in_a_source_fails_only_that_source(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    error: BaseException,
    kind: str,
) -> None:
    assert await run_sources(database, [BrokenSource(error), apis(simulator)[0]]) == "partial"

    source = (await source_outcomes(connection))["csv"]
    assert source["status"] == "failed"
    assert source["error"] == f"internal error ({kind}); the log has the details"


async def test_unexpected_cancel_fails_the_run(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def load(*arguments: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(Loader, "load", load)
    with pytest.raises(UnexpectedCancel):
        await run_sources(database, apis(simulator))

    (ended,) = await connection.fetch("SELECT status, error FROM runs")
    assert (ended["status"], ended["error"]) == ("failed", "internal error (UnexpectedCancel)")


async def test_spent_budget_ends_the_crawl(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    now = datetime.now(UTC)

    def budget(source: str) -> int:
        # As if another process had used it up.
        return 10_000 if len(simulator.calls) < 2 else 2

    status = await run_sources(database, apis(simulator)[1:], budget=budget, clock=lambda: now)

    source = (await source_outcomes(connection))["coingecko"]
    assert (status, source["calls"], source["fetched"]) == ("partial", 2, 500)
    assert source["error"] == f"the budget of 2 calls for {now:%B %Y} is spent; a new one starts on the first"


def test_outcome_of() -> None:
    assert outcome_of(True, False, None, []) == ("succeeded", None)
    assert outcome_of(False, False, None, []) == ("succeeded", None)
    assert outcome_of(False, False, None, ["all were rejected"]) == ("failed", "all were rejected")
    assert outcome_of(True, False, None, ["page 2 lost"]) == ("partial", "page 2 lost")
    assert outcome_of(False, False, "no answer", []) == ("failed", "no answer")
    assert outcome_of(True, False, "no answer", ["page 2 lost"]) == (
        "partial",
        "no answer (and 1 more before it)",
    )
    assert outcome_of(True, True, None, []) == ("interrupted", "stopped before its end")


class TerminatingSource:
    """A source that terminates all connections of Kasparro several times while it runs."""

    name = "csv"

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._connection = connection

    async def extract(self, passing: SourceContext) -> AsyncGenerator[Batch, None]:
        builder = BatchBuilder()
        for number in range(20):
            if number % 4 == 1:
                await self._connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name LIKE 'kasparro%' AND datname = current_database()"
                )
            builder.add(Record(source_id=f"c-{number}", symbol=None, name=None, observed_at=passing.clock()))
            yield builder.take()


class EndlessSource:
    """A source that always has its next batch ready; it sets the stop with its third batch."""

    name = "csv"

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop

    async def extract(self, passing: SourceContext) -> AsyncGenerator[Batch, None]:
        builder = BatchBuilder()
        for number in itertools.count():
            builder.add(Record(source_id=f"c-{number}", symbol=None, name=None, observed_at=passing.clock()))
            if number == 2:
                self._stop.set()
            yield builder.take()


class BrokenSource:
    """A source with a bug."""

    name = "csv"

    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def extract(self, passing: SourceContext) -> AsyncGenerator[Batch, None]:
        if passing is None:
            yield BatchBuilder().take()
        raise self._error
