"""One run over real HTTP servers and a real PostgreSQL."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

import asyncpg
import pytest
import stamina

from kasparro.concurrency import UnexpectedCancel
from kasparro.errors import LeaseLost, RunInProgress
from kasparro.model.batch import Batch, BatchBuilder
from kasparro.model.record import Record
from kasparro.pipeline.run import Run
from kasparro.pipeline.source_run import Trigger, outcome_of
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
from kasparro.sources.base import Source, SourceContext
from kasparro.sources.coingecko import CoinGecko
from kasparro.sources.coinpaprika import CoinPaprika
from kasparro.sources.http import RetryLimits
from kasparro.store.loader import Loader
from kasparro.store.pool import Database
from kasparro.store.runs import AdvisoryLease

QUICK = RetryLimits(attempts=2, total_s=5, initial_s=0.01, longest_s=0.02)


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(seed=7, coins=600, manual=True) as running:
        yield running


def apis(simulator: Simulator) -> list[Source]:
    return [
        CoinPaprika(simulator.coinpaprika_url, None, QUICK),
        CoinGecko(simulator.coingecko_url, "public", None, QUICK),
    ]


async def run(database: Database, sources: Sequence[Source], trigger: Trigger = "etl", **options: Any) -> str:
    async with Run(database, sources, trigger, **options) as one:
        return await one.work(asyncio.Event())


def exact(numeral: object) -> Decimal | None:
    """The value of a number as the simulator served it."""
    return None if numeral is None else Decimal(str(numeral))


async def outcomes(connection: "asyncpg.Connection[asyncpg.Record]") -> dict[str, Any]:
    """The last run's sources, each by its name."""
    rows = await connection.fetch(
        "SELECT * FROM run_sources WHERE run_id = (SELECT max(id) FROM runs) ORDER BY source"
    )
    return {row["source"]: dict(row) for row in rows}


async def test_the_tables_hold_what_the_upstreams_served(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    assert await run(database, apis(simulator)) == "succeeded"

    for quote in simulator.market.listing("coingecko"):
        row = await connection.fetchrow(
            "SELECT * FROM unified_data WHERE source = 'coingecko' AND source_id = $1", quote.id
        )
        assert row is not None
        assert (row["symbol"], row["name"], row["rank"]) == (quote.symbol, quote.name, quote.rank)
        assert row["price_usd"] == exact(quote.price_usd)
        assert row["total_supply"] == exact(quote.total_supply)


async def test_the_same_payloads_again_write_nothing_and_a_moved_market_updates(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    await run(database, apis(simulator))
    await run(database, apis(simulator))
    again = await outcomes(connection)
    simulator.advance(1)
    await run(database, apis(simulator))
    moved = await outcomes(connection)

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

    assert await run(database, apis(simulator)) == "partial"

    sources = await outcomes(connection)
    assert sources["coinpaprika"]["status"] == "succeeded"
    assert sources["coingecko"]["status"] == "failed"
    assert said in sources["coingecko"]["error"]
    assert "\n" not in sources["coingecko"]["error"]

    simulator.clear_faults()
    assert await run(database, apis(simulator)) == "succeeded"
    assert (await outcomes(connection))["coingecko"]["inserted"] > 0


async def test_a_lost_page_costs_that_page(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    simulator.add_fault(Status(api="coingecko", code=502, page=2))

    assert await run(database, apis(simulator)) == "partial"

    source = (await outcomes(connection))["coingecko"]
    assert source["status"] == "partial"
    assert source["error"].startswith("page 2: CoinGecko answered 502")
    assert source["fetched"] == len(simulator.market.listing("coingecko")) - 250


async def test_pages_that_shift_while_they_are_walked_double_no_coin(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    simulator.add_fault(PageShift(api="coingecko", by=3))

    await run(database, apis(simulator))
    await run(database, apis(simulator))

    source = (await outcomes(connection))["coingecko"]
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

    assert await run(database, apis(simulator)) == "succeeded"

    source = (await outcomes(connection))["coingecko"]
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
    await run(database, apis(simulator))
    simulator.advance(1)
    simulator.add_fault(SchemaDrift(api="coingecko", field="current_price", change=change))
    simulator.add_fault(SchemaDrift(api="coinpaprika", field="quotes.USD.price", change=change))

    assert await run(database, apis(simulator)) == "failed"

    for source in (await outcomes(connection)).values():
        assert source["inserted"] == source["updated"] == 0
        assert "records were rejected, most often: " in source["error"]
        assert "Object missing required field" in source["error"]


@pytest.mark.parametrize("bad", ["nan", "lone-surrogate"])
async def test_what_is_no_json_costs_its_record_and_changes_no_digit_of_the_others(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    bad: BadRecord,
) -> None:
    simulator.add_fault(BadRecords(api="coinpaprika", records=[bad]))
    assert await run(database, apis(simulator)[:1]) == "succeeded"
    spoilt = await outcomes(connection)
    simulator.clear_faults()
    await run(database, apis(simulator)[:1])

    assert spoilt["coinpaprika"]["rejected"] == 1
    assert spoilt["coinpaprika"]["inserted"] > 500
    sound = (await outcomes(connection))["coinpaprika"]
    assert (sound["inserted"], sound["updated"]) == (0, 0)


async def test_a_source_that_tells_its_times_again_is_believed(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    simulator.add_fault(SchemaDrift(api="coingecko", field="last_updated", change="drop"))
    await run(database, apis(simulator)[1:])
    simulator.clear_faults()
    await run(database, apis(simulator)[1:])

    ahead = await connection.fetchval("SELECT count(*) FROM unified_data WHERE NOT has_source_time")
    assert ahead == 0


async def test_a_page_longer_than_any_list_costs_that_page(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    simulator.put_payload("coingecko", b"[" + b"{}," * 3_000_000 + b"{}]", page=2)

    assert await run(database, apis(simulator)[1:]) == "partial"

    ended = (await outcomes(connection))["coingecko"]
    assert (ended["valid"], ended["rejected"]) == (326, 0)
    assert "page 2: CoinGecko answered a list longer than any there is: more than" in ended["error"]


async def test_exact_values_come_to_rest(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    simulator.put_payload(
        "coinpaprika",
        """[{"id":"a-a","name":"比特币","symbol":"A","rank":1,"total_supply":0,"max_supply":0,
        "last_updated":"2026-01-01T00:00:00Z","quotes":{"USD":{"price":1.2e-11,"volume_24h":0,
        "market_cap":123456789012345678.123456789,"percent_change_24h":null}}},
        {"id":"b-b","name":"B","symbol":"","rank":2,"total_supply":"",
        "quotes":{"USD":{"price":0,"volume_24h":null,"market_cap":0}}}]""".encode(),
    )

    await run(database, apis(simulator)[:1])

    a, b = await connection.fetch("SELECT * FROM unified_data ORDER BY source_id")
    assert a["name"] == "比特币"
    assert a["price_usd"] == Decimal("0.000000000012")
    assert a["market_cap_usd"] == Decimal("123456789012345678.123456789")
    assert (a["volume_24h_usd"], a["total_supply"], a["max_supply"]) == (0, 0, None)
    assert (b["price_usd"], b["market_cap_usd"], b["total_supply"]) == (0, None, None)


async def test_a_zero_is_a_value_but_where_the_source_writes_it_for_unknown(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    simulator.put_payload(
        "coinpaprika",
        b"""[{"id":"p","name":"P","symbol":"P","rank":0,"circulating_supply":0,"total_supply":0,"max_supply":0,
        "quotes":{"USD":{"price":0,"volume_24h":0,"market_cap":0,"percent_change_1h":0}}}]""",
    )
    shared = (
        '"symbol":"g","name":"G","current_price":0,"market_cap":0,"total_volume":0,"circulating_supply":0,'
    )
    supplies = '"total_supply":0,"max_supply":0,"price_change_percentage_1h_in_currency":0'
    gecko = ",".join(
        f'{{"id":"g-{rank}","market_cap_rank":{rank},{shared}{supplies}}}' for rank in (0, 7, "null")
    )
    simulator.put_payload("coingecko", f"[{gecko}]".encode())

    assert await run(database, apis(simulator)) == "succeeded"

    rows = await connection.fetch("SELECT * FROM unified_data ORDER BY source_id")
    columns = ("market_cap_usd", "circulating_supply", "max_supply", "rank")
    assert {row["source_id"]: tuple(row[column] for column in columns) for row in rows} == {
        "g-0": (None, 0, 0, None),
        "g-7": (0, 0, 0, 7),
        "g-null": (None, 0, 0, None),
        "p": (None, None, None, None),
    }
    for row in rows:
        zeros = ("price_usd", "volume_24h_usd", "total_supply", "percent_change_1h")
        assert [row[column] for column in zeros] == [0] * 4


async def test_every_call_that_an_upstream_sees_was_booked(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    simulator.add_fault(Reset(api="coinpaprika"))
    simulator.add_fault(Reset(api="coingecko", page=2))

    await run(database, apis(simulator))

    seen = Counter(call.api for call in simulator.calls)
    booked = {row["source"]: row["calls"] for row in await connection.fetch("SELECT * FROM api_calls")}
    assert booked == seen
    assert {name: one["calls"] for name, one in (await outcomes(connection)).items()} == seen


async def test_one_run_works_on_a_database_at_a_time(database: Database, simulator: Simulator) -> None:
    async with Run(database, apis(simulator), "etl"):
        with pytest.raises(RunInProgress):
            async with Run(database, apis(simulator), "schedule"):
                pass

    assert await run(database, apis(simulator)) == "succeeded"


async def test_a_run_whose_process_died_is_marked_interrupted_by_the_next(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    dead = Run(database, apis(simulator), "etl")
    await dead.__aenter__()
    await dead._lock.release()

    await run(database, apis(simulator))

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

    source = (await outcomes(connection))["coingecko"]
    assert (source["status"], source["fetched"]) == ("interrupted", 250)
    assert await connection.fetchval("SELECT count(*) FROM unified_data") == 250


async def test_a_stop_is_heard_while_the_source_is_always_ahead(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    stop = asyncio.Event()

    async with Run(database, [Endless(stop)], "etl") as one:
        async with asyncio.timeout(5):
            assert await one.work(stop) == "interrupted"

    assert (await outcomes(connection))["csv"]["status"] == "interrupted"


async def test_a_run_outlives_the_loss_of_every_connection(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    async with Run(database, [Severed(connection)], "etl") as one:
        assert await one.work(asyncio.Event()) == "succeeded"

    source = (await outcomes(connection))["csv"]
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
    assert await run(database, [Broken(error), apis(simulator)[0]]) == "partial"

    source = (await outcomes(connection))["csv"]
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
        await run(database, apis(simulator))

    (ended,) = await connection.fetch("SELECT status, error FROM runs")
    assert (ended["status"], ended["error"]) == ("failed", "internal error (UnexpectedCancel)")


async def test_a_spent_budget_ends_the_walk_and_says_so(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    now = datetime.now(UTC)

    def budget(source: str) -> int:
        # As if somebody else had used it up meanwhile.
        return 10_000 if len(simulator.calls) < 2 else 2

    status = await run(database, apis(simulator)[1:], budget=budget, clock=lambda: now)

    source = (await outcomes(connection))["coingecko"]
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
