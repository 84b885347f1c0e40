"""A record that cannot be true is rejected with its reason; the coin keeps its earlier row."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal, TypeAlias

import asyncpg
import pytest

from kasparro.model.payload import Retention
from kasparro.pipeline.run import Run
from kasparro.simulator import Simulator
from kasparro.simulator.damage import edited
from kasparro.simulator.faults import BadRecords
from kasparro.store.loader import REJECTS_LIMIT
from kasparro.store.pool import Database
from kasparro.store.text import TEXT_LIMIT
from kasparro.web import reports
from tests.support.runs import apis, run_sources, source_outcomes

pytestmark = pytest.mark.slow

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Api = Literal["coinpaprika", "coingecko"]

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
EARLIER, LATER = "2026-06-01T11:00:00Z", "2026-06-01T11:59:00Z"
PRICE: dict[Api, str] = {"coinpaprika": "quotes.USD.price", "coingecko": "current_price"}
DEEP = b"[" * 50_000 + b"]" * 50_000


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(seed=7, coins=40, manual=True) as running:
        yield running


def coin(api: Api, coin_id: str, price: str, last_updated: str) -> bytes:
    """A valid record in the format of the API."""
    known = f'"id":"{coin_id}","symbol":"C","name":"Coin","last_updated":"{last_updated}"'
    if api == "coingecko":
        values = f'"current_price":{price},"market_cap":9,"market_cap_rank":1,"total_volume":3'
    else:
        values = f'"rank":1,"quotes":{{"USD":{{"price":{price},"volume_24h":3,"market_cap":9}}}}'
    return f"{{{known},{values}}}".encode()


Damage: TypeAlias = Callable[[bytes, Api], bytes]


def price(value: bytes) -> Damage:
    return lambda record, api: edited(record, PRICE[api], value)


def field(name: str, value: bytes | None) -> Damage:
    return lambda record, _: edited(record, name, value)


def tail(extra: bytes) -> Damage:
    return lambda record, _: record[:-1] + b',"more":' + extra + b"}"


# By defect: how to damage a record, the field that the reject names, how its reason begins.
BAD: dict[str, tuple[Damage, str | None, str]] = {
    "negative price": (price(b"-1.5"), "price", "below zero: '-1.5'"),
    "price of 400 digits": (price(b"7" * 400), "price", "number out of bounds: '777"),
    "price of a megabyte": (price(b"7" * 1_000_000), "price", "not a number: '777"),
    "price with a huge exponent": (
        price(b"1e99999999999999999999"),
        "price",
        "number out of bounds: '1e99999999999999999999'",
    ),
    "price with a tiny exponent": (
        price(b"1e-99999999999999999999"),
        "price",
        "number out of bounds: '1e-99999999999999999999'",
    ),
    "price NaN": (price(b"NaN"), None, "JSON is malformed"),
    "price Infinity": (price(b"-Infinity"), None, "JSON is malformed"),
    "price in words": (price(b'"a lot"'), "price", "not a number: 'a lot'"),
    "price true": (price(b"true"), "price", "not a number: 'true'"),
    "price an object": (price(b'{"usd":1}'), "price", "not a number: '{"),
    "price a list": (price(b"[1]"), "price", "not a number: '[1]'"),
    "price nested without end": (price(DEEP), None, "nested too deeply"),
    "price missing": (lambda record, api: edited(record, PRICE[api], None), "price", "Object missing"),
    "time in the future": (field("last_updated", b'"2026-06-02T12:00:00Z"'), "last_updated", "in the future"),
    "time before any market": (
        field("last_updated", b'"1970-01-01T00:00:00Z"'),
        "last_updated",
        "before 2009",
    ),
    "time at the calendar's end": (
        field("last_updated", b'"9999-12-31T23:59:59Z"'),
        "last_updated",
        "in the",
    ),
    "time beyond the calendar's end": (
        field("last_updated", b'"9999-12-31T23:59:59-01:00"'),
        "last_updated",
        "out of bounds: 9999-12-31T23:59:59-01:00",
    ),
    "time in words": (field("last_updated", b'"noon"'), "last_updated", "not an RFC 3339 time"),
    "time without a zone": (
        field("last_updated", b'"2026-06-01T11:59:00"'),
        "last_updated",
        "not an RFC 3339",
    ),
    "time a number": (
        field("last_updated", b"1780315140"),
        "last_updated",
        "Expected `str | null`, got `int`",
    ),
    "name with half a surrogate pair": (
        field("name", b'"half \\ud800"'),
        None,
        "JSON is malformed: unexpected",
    ),
    "id missing": (field("id", None), "id", "Object missing required field"),
    "id null": (field("id", b"null"), "id", "Expected `str`, got `null`"),
    "id a number": (field("id", b"7"), "id", "Expected `str`, got `int`"),
    "id empty": (field("id", b'" "'), "id", "empty"),
    "id with a line break": (field("id", b'"known\\n"'), "id", "contains a control character"),
    "id of a megabyte": (field("id", b'"' + b"k" * 1_000_000 + b'"'), "id", "longer than 200 characters"),
    "a field unknown to us nested without end": (tail(DEEP), None, "nested too deeply"),
    "not an object": (lambda _, __: b'"known"', None, "Expected `object`, got `str`"),
    "null": (lambda _, __: b"null", None, "Expected `object`, got `null`"),
    "nothing between two commas": (lambda _, __: b"", None, "Input data was truncated"),
}


# By defect: how to damage a record, and the field that then is null; None if null is what the source wrote.
INVALID: dict[str, tuple[Damage, str | None]] = {
    "rank of a third": (
        lambda record, api: edited(record, "market_cap_rank" if api == "coingecko" else "rank", b"0.3"),
        "rank",
    ),
    "rank beyond an integer": (
        lambda record, api: edited(
            record, "market_cap_rank" if api == "coingecko" else "rank", b"2147483648"
        ),
        "rank",
    ),
    "name of a megabyte": (field("name", b'"' + b"A" * 1_000_000 + b'"'), "name"),
    "name null": (field("name", b"null"), None),
    "name with NUL": (field("name", b'"nul \\u0000 inside"'), "name"),
    "name that is not UTF-8": (field("name", b'"\xff\xfe"'), "name"),
    "symbol a list": (field("symbol", b'["C"]'), "symbol"),
}


@pytest.mark.parametrize("api", ["coinpaprika", "coingecko"])
@pytest.mark.parametrize("name", INVALID)
async def test_invalid_value_costs_no_record(
    database: Database, connection: Connection, simulator: Simulator, api: Api, name: str
) -> None:
    source = [source for source in apis(simulator) if source.name == api]
    damage, field_name = INVALID[name]
    simulator.replay(api, [b"[" + damage(coin(api, "known", "1.50", LATER), api) + b"]"])

    assert await run_sources(database, source, clock=lambda: NOW) == "succeeded"

    row = await connection.fetchrow("SELECT * FROM unified_data")
    assert row is not None
    assert (row["source_id"], str(row["price_usd"])) == ("known", "1.5")
    counted = await connection.fetch("SELECT field, records, samples FROM invalid_values")
    assert [(found["field"], found["records"]) for found in counted] == (
        [(field_name, 1)] if field_name else []
    )
    if field_name:
        assert row[field_name] is None
        assert counted[0]["samples"].startswith('["known: ')


@pytest.mark.parametrize("api", ["coinpaprika", "coingecko"])
async def test_impossible_record_is_rejected(
    database: Database, connection: Connection, simulator: Simulator, api: Api
) -> None:
    """The coin keeps its earlier row."""
    source = [source for source in apis(simulator) if source.name == api]
    valid = [coin(api, f"valid-{number}", "2.50", LATER) for number in range(len(BAD) + 1)]
    simulator.replay(api, [b"[" + coin(api, "known", "1.25", EARLIER) + b"]"])
    assert await run_sources(database, source, clock=lambda: NOW) == "succeeded"
    good = coin(api, "known", "1.50", LATER)
    bad = [damage(good, api) for damage, _, _ in BAD.values()]
    mixed = [record for pair in zip(valid[1:], bad, strict=True) for record in pair]
    simulator.replay(api, [b"[" + b",".join([valid[0], *mixed]) + b"]"])

    assert await run_sources(database, source, clock=lambda: NOW) == "succeeded"

    outcome = (await source_outcomes(connection))[api]
    assert (outcome["valid"], outcome["inserted"], outcome["rejected"]) == (len(valid), len(valid), len(BAD))
    assert await connection.fetchval("SELECT count(*) FROM unified_data") == len(valid) + 1
    known = await connection.fetch("SELECT price_usd FROM unified_history WHERE source_id = 'known'")
    assert [str(row["price_usd"]) for row in known] == ["1.25"]
    rejects = await connection.fetch("SELECT reason, field, raw FROM rejects ORDER BY id")
    for (name, (_, field_name, reason)), raw, reject in zip(BAD.items(), bad, rejects, strict=True):
        assert reject["reason"].startswith(reason), name
        assert (reject["field"] or "").endswith(field_name or ""), name
        assert (reject["field"] is None) == (field_name is None), name
        shown = raw.decode("utf-8", "backslashreplace")
        assert reject["raw"] == (shown if len(shown) <= TEXT_LIMIT else f"{shown[:TEXT_LIMIT]}…"), name


async def test_duplicate_coin_on_a_page_is_one_row(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    """The newest record wins."""
    pages = [coin("coingecko", "twice", "1", LATER), coin("coingecko", "twice", "2", EARLIER)]
    again = coin("coingecko", "twice", "3", LATER)
    simulator.replay("coingecko", [b"[" + b",".join([*pages, again]) + b"]"])

    assert await run_sources(database, apis(simulator)[1:], clock=lambda: NOW) == "succeeded"

    rows = await connection.fetch("SELECT price_usd FROM unified_history")
    assert [int(row["price_usd"]) for row in rows] == [1]
    outcome = (await source_outcomes(connection))["coingecko"]
    assert (outcome["fetched"], outcome["valid"], outcome["inserted"], outcome["unchanged"]) == (3, 3, 1, 2)


async def test_all_rejects_are_counted_and_the_first_are_kept(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    records = [coin("coinpaprika", f"c-{number}", "1", LATER) for number in range(2 * REJECTS_LIMIT)]
    records += [coin("coinpaprika", f"bad-{number}", "-1", LATER) for number in range(REJECTS_LIMIT + 300)]
    simulator.replay("coinpaprika", [b"[" + b",".join(records) + b"]"])

    assert await run_sources(database, apis(simulator)[:1], clock=lambda: NOW) == "succeeded"

    outcome = (await source_outcomes(connection))["coinpaprika"]
    assert outcome["rejected"] == REJECTS_LIMIT + 300
    assert await connection.fetchval("SELECT count(*) FROM rejects") == REJECTS_LIMIT
    counted = await connection.fetch("SELECT field, reason, rejects FROM reject_counts")
    assert [tuple(row) for row in counted] == [("quotes.USD.price", "below zero", REJECTS_LIMIT + 300)]


@pytest.mark.parametrize(("bad", "status"), [(5, "succeeded"), (6, "partial")])
async def test_mostly_rejected_source_is_partial(
    database: Database, connection: Connection, simulator: Simulator, bad: int, status: str
) -> None:
    """The error names the most common reason."""
    records = [coin("coingecko", f"c-{number}", "1", LATER) for number in range(5)]
    records += [coin("coingecko", f"bad-{number}", "-1", LATER) for number in range(bad)]
    simulator.replay("coingecko", [b"[" + b",".join(records) + b"]"])

    assert await run_sources(database, apis(simulator)[1:], clock=lambda: NOW) == status

    outcome = (await source_outcomes(connection))["coingecko"]
    assert outcome["inserted"] == 5
    line = f"{bad} of {5 + bad} records were rejected, most often: current_price: below zero"
    assert outcome["error"] == (None if status == "succeeded" else line)


async def test_expired_rejects_are_deleted_but_counted(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    simulator.add_fault(BadRecords(api="coingecko", records=["negative-price", "null-id"]))
    ids = []
    for days in (0, 3, 8):
        at = datetime.now(UTC) + timedelta(days=days)
        clock = partial(datetime.fromtimestamp, at.timestamp(), UTC)
        async with Run(database, apis(simulator)[1:], "etl", clock=clock, retention=Retention()) as run:
            await run.work(asyncio.Event())
        ids.append(run.id)

    left = await connection.fetch("SELECT DISTINCT run_id FROM rejects ORDER BY run_id")
    assert [row["run_id"] for row in left] == ids[1:]
    oldest = await reports.run_report(connection, ids[0])
    assert oldest is not None
    assert oldest.records.rejected == 2
    assert [(count.field, count.rejects) for count in oldest.sources[0].rejects] == [
        ("current_price", 1),
        ("id", 1),
    ]
    assert oldest.sources[0].payloads == 0
    newest = await reports.run_report(connection, ids[2])
    assert newest is not None
    assert newest.sources[0].payloads == 2
