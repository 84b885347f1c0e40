"""Values of both APIs reach the tables exactly."""

from collections.abc import AsyncIterator
from decimal import Decimal

import asyncpg
import pytest

from kasparro.simulator import Simulator
from kasparro.simulator.faults import (
    BadRecord,
    BadRecords,
    SchemaDrift,
)
from kasparro.store.pool import Database
from tests.support.runs import apis, run_sources, source_outcomes


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(seed=7, coins=600, manual=True) as running:
        yield running


def exact(number: object) -> Decimal | None:
    """The value of a number that the simulator sent."""
    return None if number is None else Decimal(str(number))


@pytest.mark.parametrize("bad", ["nan", "lone-surrogate"])
async def test_invalid_json_costs_its_record_and_changes_no_other(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    bad: BadRecord,
) -> None:
    simulator.add_fault(BadRecords(api="coinpaprika", records=[bad]))
    assert await run_sources(database, apis(simulator)[:1]) == "succeeded"
    with_fault = await source_outcomes(connection)
    simulator.clear_faults()
    await run_sources(database, apis(simulator)[:1])

    assert with_fault["coinpaprika"]["rejected"] == 1
    assert with_fault["coinpaprika"]["inserted"] > 500
    without_fault = (await source_outcomes(connection))["coinpaprika"]
    assert (without_fault["inserted"], without_fault["updated"]) == (0, 0)


async def test_times_of_the_source_replace_times_of_fetching(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    simulator.add_fault(SchemaDrift(api="coingecko", field="last_updated", change="drop"))
    await run_sources(database, apis(simulator)[1:])
    simulator.clear_faults()
    await run_sources(database, apis(simulator)[1:])

    without_source_time = await connection.fetchval(
        "SELECT count(*) FROM unified_data WHERE NOT has_source_time"
    )
    assert without_source_time == 0


async def test_too_long_page_costs_that_page(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    simulator.put_payload("coingecko", b"[" + b"{}," * 3_000_000 + b"{}]", page=2)

    assert await run_sources(database, apis(simulator)[1:]) == "partial"

    outcome = (await source_outcomes(connection))["coingecko"]
    assert (outcome["valid"], outcome["rejected"]) == (326, 0)
    assert "page 2: CoinGecko sent a list that is too long: more than" in outcome["error"]


async def test_values_are_stored_exactly(
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

    await run_sources(database, apis(simulator)[:1])

    a, b = await connection.fetch("SELECT * FROM unified_data ORDER BY source_id")
    assert a["name"] == "比特币"
    assert a["price_usd"] == Decimal("0.000000000012")
    assert a["market_cap_usd"] == Decimal("123456789012345678.123456789")
    assert (a["volume_24h_usd"], a["total_supply"], a["max_supply"]) == (0, 0, None)
    assert (b["price_usd"], b["market_cap_usd"], b["total_supply"]) == (0, None, None)


async def test_zero_is_a_value_unless_the_source_means_unknown(
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
    simulator.put_payload("coingecko", b"[]", page=2)

    assert await run_sources(database, apis(simulator)) == "succeeded"

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


@pytest.mark.slow
async def test_tables_have_the_values_that_were_sent(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", simulator: Simulator
) -> None:
    assert await run_sources(database, apis(simulator)) == "succeeded"

    for quote in simulator.market.listing("coingecko"):
        row = await connection.fetchrow(
            "SELECT * FROM unified_data WHERE source = 'coingecko' AND source_id = $1", quote.id
        )
        assert row is not None
        assert (row["symbol"], row["name"], row["rank"]) == (quote.symbol, quote.name, quote.rank)
        assert row["price_usd"] == exact(quote.price_usd)
        assert row["total_supply"] == exact(quote.total_supply)
