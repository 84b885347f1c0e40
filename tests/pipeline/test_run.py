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
from kasparro.store.pool import Database
from kasparro.store.runs import AdvisoryLease
from tests.support.runs import apis, run_sources, source_outcomes


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(seed=7, coins=600, manual=True) as running:
        yield running


async def test_the_same_payloads_again_write_nothing_and_a_moved_market_updates(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    await run_sources(database, apis(simulator))
    await run_sources(database, apis(simulator))
    again = await source_outcomes(connection)
    simulator.advance(1)
    await run_sources(database, apis(simulator))
    moved = await source_outcomes(connection)

    assert [(one["inserted"], one["updated"]) for one in again.values()] == [(0, 0), (0, 0)]
    assert all(one["updated"] > 0 for one in moved.values())


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Status(api="coingecko", code=500), "answered 500"),
        (Status(api="coingecko", code=429, retry_after=119), "asks to wait 119 s"),
        (Status(api="coingecko", code=401), "the key is missing or not accepted"),
        (Html(api="coingecko"), "answered an HTML page"),
    ],
)
async def test_a_dead_upstream_costs_only_itself_and_the_next_run_repairs_it(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    fault: AnyFault,
    said: str,
) -> None:
    simulator.add_fault(fault)

    assert await run_sources(database, apis(simulator)) == "partial"

    sources = await source_outcomes(connection)
    assert sources["coinpaprika"]["status"] == "succeeded"
    assert sources["coingecko"]["status"] == "failed"
    assert said in sources["coingecko"]["error"]
    assert "\n" not in sources["coingecko"]["error"]

    simulator.clear_faults()
    assert await run_sources(database, apis(simulator)) == "succeeded"
    assert (await source_outcomes(connection))["coingecko"]["inserted"] > 0


async def test_a_lost_page_costs_that_page(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    simulator.add_fault(Status(api="coingecko", code=502, page=2))

    assert await run_sources(database, apis(simulator)) == "partial"

    source = (await source_outcomes(connection))["coingecko"]
    assert source["status"] == "partial"
    assert source["error"].startswith("page 2: CoinGecko answered 502")
    assert source["fetched"] == len(simulator.market.listing("coingecko")) - 250


async def test_pages_that_shift_while_they_are_walked_double_no_coin(
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


async def test_bad_records_cost_only_themselves(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    bad: list[BadRecord] = [
        "missing-id",
        "null-id",
        "string-price",
        "negative-price",
        "future",
        "long-number",
        "long-name",
        "nul",
    ]
    simulator.add_fault(BadRecords(api="coingecko", page=1, records=bad))

    assert await run_sources(database, apis(simulator)) == "succeeded"

    source = (await source_outcomes(connection))["coingecko"]
    rejects = await connection.fetch("SELECT reason, field, raw FROM rejects ORDER BY id")
    assert source["rejected"] == len(rejects) == len(bad)
    assert source["valid"] == len(simulator.market.listing("coingecko"))
    assert all(reject["reason"] and reject["raw"] for reject in rejects)
    assert not await connection.fetchval("SELECT count(*) FROM unified_data WHERE source_id LIKE 'bad-%'")


@pytest.mark.parametrize("change", ["rename", "drop"])
async def test_a_field_that_vanishes_fails_the_source_and_nulls_nothing(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    change: Literal["rename", "drop"],
) -> None:
    await run_sources(database, apis(simulator))
    simulator.advance(1)
    simulator.add_fault(SchemaDrift(api="coingecko", field="current_price", change=change))
    simulator.add_fault(SchemaDrift(api="coinpaprika", field="quotes.USD.price", change=change))

    assert await run_sources(database, apis(simulator)) == "failed"

    for source in (await source_outcomes(connection)).values():
        assert source["inserted"] == source["updated"] == 0
        assert "records were rejected, most often: " in source["error"]
        assert "Object missing required field" in source["error"]


async def test_every_call_that_an_upstream_sees_was_booked(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    simulator.add_fault(Reset(api="coinpaprika"))
    simulator.add_fault(Reset(api="coingecko", page=2))

    await run_sources(database, apis(simulator))

    seen = Counter(call.api for call in simulator.calls)
    booked = {row["source"]: row["calls"] for row in await connection.fetch("SELECT * FROM api_calls")}
    assert booked == seen
    assert {name: one["calls"] for name, one in (await source_outcomes(connection)).items()} == seen


async def test_one_run_works_on_a_database_at_a_time(database: Database, simulator: Simulator) -> None:
    async with Run(database, apis(simulator), "etl"):
        with pytest.raises(RunInProgress):
            async with Run(database, apis(simulator), "schedule"):
                pass

    assert await run_sources(database, apis(simulator)) == "succeeded"


async def test_a_run_whose_process_died_is_marked_interrupted_by_the_next(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    dead = Run(database, apis(simulator), "etl")
    await dead.__aenter__()
    await dead._lock.release()

    await run_sources(database, apis(simulator))

    assert [row["status"] for row in await connection.fetch("SELECT status FROM runs ORDER BY id")] == [
        "interrupted",
        "succeeded",
    ]
    with pytest.raises(LeaseLost):
        await dead.work(asyncio.Event())


async def test_a_run_that_lost_its_lock_to_another_writes_nothing_more(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    async with Run(database, apis(simulator), "etl") as one, AdvisoryLease(database, "run") as other:
        await connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name LIKE 'kasparro run%' AND datname = current_database()"
        )
        assert await other.acquire()
        async for attempt in stamina.retry_context(on=AssertionError, attempts=None, wait_max=0.02):
            with attempt:
                assert not one._lock.held
        with pytest.raises(LeaseLost, match=f"run {one.id} lost its lock to another run"):
            await one.work(asyncio.Event())

    assert await connection.fetchval("SELECT count(*) FROM unified_data") == 0
    assert len(simulator.calls) == 0


async def test_a_stop_ends_the_run_at_a_batch_border(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    simulator.add_fault(Hang(api="coingecko", page=2))
    stop = asyncio.Event()

    async with Run(database, apis(simulator)[1:], "etl") as one:
        working = asyncio.create_task(one.work(stop))
        await simulator.calls.reached(2)
        stop.set()
        async with asyncio.timeout(5):
            assert await working == "interrupted"

    source = (await source_outcomes(connection))["coingecko"]
    assert (source["status"], source["fetched"]) == ("interrupted", 250)
    assert await connection.fetchval("SELECT count(*) FROM unified_data") == 250


async def test_a_stop_is_heard_while_the_source_is_always_ahead(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    stop = asyncio.Event()

    async with Run(database, [Endless(stop)], "etl") as one:
        async with asyncio.timeout(5):
            assert await one.work(stop) == "interrupted"

    assert (await source_outcomes(connection))["csv"]["status"] == "interrupted"


async def test_a_run_outlives_the_loss_of_every_connection(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    async with Run(database, [Severed(connection)], "etl") as one:
        assert await one.work(asyncio.Event()) == "succeeded"

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
async def test_a_source_that_breaks_is_a_failed_source_not_a_broken_run(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    error: BaseException,
    kind: str,
) -> None:
    assert await run_sources(database, [Broken(error), apis(simulator)[0]]) == "partial"

    source = (await source_outcomes(connection))["csv"]
    assert source["status"] == "failed"
    assert source["error"] == f"internal error ({kind}); the log has the details"


async def test_a_cancel_that_nobody_asked_for_is_a_failed_run(
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


async def test_a_spent_budget_ends_the_walk_and_says_so(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    now = datetime.now(UTC)

    def budget(source: str) -> int:
        # As if somebody else had used it up meanwhile.
        return 10_000 if len(simulator.calls) < 2 else 2

    status = await run_sources(database, apis(simulator)[1:], budget=budget, clock=lambda: now)

    source = (await source_outcomes(connection))["coingecko"]
    assert (status, source["calls"], source["fetched"]) == ("partial", 2, 500)
    assert source["error"] == f"the budget of 2 calls for {now:%B %Y} is spent; it begins anew on the first"


def test_outcomes_of_a_source() -> None:
    assert outcome_of(True, False, None, []) == ("succeeded", None)
    assert outcome_of(False, False, None, []) == ("succeeded", None)
    assert outcome_of(False, False, None, ["all were rejected"]) == ("failed", "all were rejected")
    assert outcome_of(True, False, None, ["page 2 lost"]) == ("partial", "page 2 lost")
    assert outcome_of(False, False, "dead", []) == ("failed", "dead")
    assert outcome_of(True, False, "dead", ["page 2 lost"]) == ("partial", "dead (and 1 more before it)")
    assert outcome_of(True, True, None, []) == ("interrupted", "stopped before its end")


class Severed:
    """A source during whose pass all of Kasparro's connections are cut, again and again."""

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


class Endless:
    """A source that has its next batch ready always, and asks for the stop with its third."""

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


class Broken:
    """A source with a bug."""

    name = "csv"

    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def extract(self, passing: SourceContext) -> AsyncGenerator[Batch, None]:
        if passing is None:
            yield BatchBuilder().take()
        raise self._error
