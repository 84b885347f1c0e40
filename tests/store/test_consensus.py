"""The consensus of an asset is the exact median of its fresh quotes, and says why others do not count."""

import asyncio
import random
from datetime import datetime, timedelta
from decimal import Decimal
from statistics import median
from typing import Any

import pytest

from kasparro.assets.knowledge import knowledge_of
from kasparro.model.asset import Resolution
from kasparro.model.asset_documents import ResolutionDocuments
from kasparro.model.consensus import ConsensusLimits
from kasparro.pipeline.identity import AssetOptions, Linker
from kasparro.store import assets
from kasparro.store.pool import Connection, Database
from kasparro.store.runs import RunRecord
from kasparro.store.sql import statements
from tests.support.assets import make_link, resolve
from tests.support.batches import T0, load_records, make_record
from tests.support.citus import counts_versions, on_one_server

_SQL = statements("assets/consensus.sql")
SOURCES = ("coinpaprika", "coingecko", "csv")
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


async def consensus(connection: Connection, asset: str = "btc-bitcoin") -> dict[str, Any]:
    """The row of an asset in unified_assets."""
    return dict(await connection.fetchrow("SELECT * FROM unified_assets WHERE asset = $1", asset) or {})


async def load(database: Database, source: str, price: str | None, at: datetime = T0, **values: Any) -> None:
    """Load a record of Bitcoin of a source."""
    record = make_record(at=at, price_usd=None if price is None else Decimal(price), **values)
    await load_records(database, source, record, now=at)


async def test_median_of_two_quotes_is_exact(database: Database, connection: Connection) -> None:
    await load(database, "coinpaprika", "0.0000000000000000012345678901")
    await load(database, "coingecko", "0.0000000000000000012345678904", T0 + MINUTE)

    await resolve(database, make_link("coinpaprika"), make_link("coingecko"))

    row = await consensus(connection)
    assert row["price_usd"] == Decimal("0.00000000000000000123456789025")
    assert row["source_count"] == 2
    assert row["observed_at"] == T0 + MINUTE
    assert row["oldest_observed_at"] == T0
    assert row["excluded"] is None


@counts_versions
async def test_batch_moves_the_consensus_in_its_own_version(
    database: Database, connection: Connection
) -> None:
    await load(database, "coinpaprika", "100")
    await resolve(database, make_link("coinpaprika"))
    before = await connection.fetchval("SELECT data_version FROM instance")

    await load(database, "coinpaprika", "102", T0 + HOUR)

    row = await consensus(connection)
    assert row["price_usd"] == 102
    assert row["version"] == before + 1 == await connection.fetchval("SELECT data_version FROM instance")
    (saved,) = await connection.fetch("SELECT price_usd, replaced_by_version FROM unified_assets_versions")
    assert tuple(saved) == (100, before + 1)


async def test_stale_quote_does_not_count(database: Database, connection: Connection) -> None:
    await load(database, "coinpaprika", "100")
    await load(database, "coingecko", "104", T0 + HOUR + MINUTE)

    await resolve(database, make_link("coinpaprika"), make_link("coingecko"))

    row = await consensus(connection)
    assert row["price_usd"] == 104
    assert (row["source_count"], row["price_spread_percent"], row["diverging"]) == (1, None, False)
    assert "coinpaprika" in row["excluded"]
    assert "stale" in row["excluded"]


async def test_renamed_row_does_not_count_from_the_batch_that_renames_it(
    database: Database, connection: Connection
) -> None:
    await load(database, "coinpaprika", "100")
    await load(database, "coingecko", "100")
    await resolve(database, make_link("coinpaprika"), make_link("coingecko"))

    await load(database, "coingecko", "0.5", T0 + MINUTE, name="Another Coin")

    row = await consensus(connection)
    assert (row["price_usd"], row["source_count"]) == (100, 1)
    assert "renamed" in row["excluded"]


async def test_confirmed_rename_counts_again(database: Database, connection: Connection) -> None:
    await load(database, "coingecko", "100")
    await resolve(database, make_link("coingecko"))
    await load(database, "coingecko", "101", T0 + MINUTE, name="New Name")
    assert (await consensus(connection))["source_count"] == 0

    await resolve(database, make_link("coingecko", name="New Name"))

    row = await consensus(connection)
    assert (row["name"], row["price_usd"], row["source_count"]) == ("New Name", 101, 1)


async def test_resolver_reads_the_record_before_a_rename(database: Database, connection: Connection) -> None:
    await load(database, "coingecko", "100", rank=7)
    await resolve(database, make_link("coingecko"))
    await load(database, "coingecko", "101", T0 + MINUTE, name="New Name")
    await load(database, "coingecko", "102", T0 + HOUR, name="New Name")

    known = knowledge_of(await assets.known(connection))

    (found,) = known.relabelled.values()
    before, since = found.before, found.since
    assert (before.name, before.rank, before.price_usd, before.observed_at) == (
        "Bitcoin",
        7,
        Decimal(100),
        T0,
    )
    assert since == T0 + MINUTE


async def test_resolver_confirms_a_rename_that_the_price_continues(
    database: Database, connection: Connection
) -> None:
    await load(database, "coingecko", "100")
    await resolve(database, make_link("coingecko"))
    await load(database, "coingecko", "101", T0 + MINUTE, name="New Name")

    run = await RunRecord.start(database, "etl", (), T0)
    async with Linker(database, run.id, AssetOptions(), (), lambda: T0) as linker:
        await linker.link_rows()

    row = await consensus(connection)
    assert (row["asset"], row["name"], row["price_usd"]) == ("btc-bitcoin", "New Name", 101)


async def test_of_two_quotes_the_one_far_from_the_day_before_is_outlying(
    database: Database, connection: Connection
) -> None:
    for hour in range(4):
        await load(database, "coinpaprika", f"{100 + hour}", T0 + hour * HOUR)
        await load(database, "coingecko", f"{100 + hour}.5", T0 + hour * HOUR + MINUTE)
    await resolve(database, make_link("coinpaprika"), make_link("coingecko"))

    await load(database, "coingecko", "1040", T0 + 3 * HOUR + 2 * MINUTE)

    row = await consensus(connection)
    assert (row["price_usd"], row["source_count"], row["diverging"]) == (103, 1, True)
    assert "outlying" in row["excluded"]


async def test_two_quotes_without_a_past_both_count(database: Database, connection: Connection) -> None:
    await load(database, "coinpaprika", "100")
    await load(database, "coingecko", "1000")

    await resolve(database, make_link("coinpaprika"), make_link("coingecko"))

    row = await consensus(connection)
    assert (row["price_usd"], row["source_count"], row["diverging"]) == (550, 2, True)
    assert row["price_spread_percent"] == Decimal("163.6364")


async def test_row_that_is_taken_back_leaves_the_asset(database: Database, connection: Connection) -> None:
    await load(database, "coinpaprika", "100")
    await resolve(database, make_link("coinpaprika"))

    await resolve(database, ended={("coinpaprika", "btc-bitcoin"): T0})

    assert await consensus(connection) == {}
    assert await connection.fetchval("SELECT asset FROM unified_data") is None
    assert await connection.fetchval("SELECT valid_until FROM asset_links") == T0


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (ConsensusLimits(), (2, False)),
        (ConsensusLimits(divergence_percent=Decimal(2)), (2, True)),
        (ConsensusLimits(max_lag=timedelta(seconds=30)), (1, False)),
    ],
)
async def test_other_limits_are_applied_by_the_next_resolution(
    database: Database, connection: Connection, limits: ConsensusLimits, expected: tuple[int, bool]
) -> None:
    await load(database, "coinpaprika", "100")
    await load(database, "coingecko", "103", T0 + MINUTE)
    await resolve(database, make_link("coinpaprika"), make_link("coingecko"))

    run = await RunRecord.start(database, "etl", (), T0)
    async with Linker(database, run.id, AssetOptions(limits=limits), (), lambda: T0) as linker:
        await linker.link_rows()

    row = await consensus(connection)
    assert (row["source_count"], row["diverging"]) == expected


@counts_versions
async def test_links_move_the_version_also_where_the_consensus_stays(
    database: Database, connection: Connection
) -> None:
    """The history of an asset depends on them, and cached responses are of one version."""
    await load(database, "coinpaprika", "100")
    await resolve(database, make_link("coinpaprika"))
    await load(database, "coinpaprika", None, T0 + HOUR, name="New Name")
    before = await connection.fetchval("SELECT data_version FROM instance")
    run = await RunRecord.start(database, "etl", (), T0)
    confirmed = ResolutionDocuments.of(Resolution(links=[make_link("coinpaprika", name="New Name")]))

    async with database.writing() as other:
        await assets.apply(other, confirmed, ConsensusLimits(), T0, run_id=run.id, depends_on="")

    assert await connection.fetchval("SELECT data_version FROM instance") == before + 1


async def test_all_that_the_resolver_reads_is_of_one_moment(
    database: Database, connection: Connection
) -> None:
    """It waits while a thinned month takes its place: a snapshot from before would miss its rows."""
    await load(database, "coinpaprika", "100")
    async with database.writing() as other:
        async with connection.transaction():
            await connection.execute("LOCK TABLE unified_history IN ACCESS EXCLUSIVE MODE")
            reading = asyncio.create_task(assets.known(other))
            # pg_locks is not cached in a transaction, as pg_stat_activity is.
            waiting = (
                "SELECT count(*) FROM pg_locks WHERE relation = 'unified_history'::regclass AND NOT granted"
            )
            while await connection.fetchval(waiting) == 0:
                pass
            await connection.execute("UPDATE unified_data SET name = 'New Name'")
        known = knowledge_of(await reading)

    assert [coin.name for coin in known.coins] == ["New Name"]


async def test_consensus_is_a_plain_median(database: Database, connection: Connection) -> None:
    """Three hundred assets with random quotes, compared with Python's statistics."""
    chance = random.Random(14)
    quotes: dict[str, dict[str, tuple[Decimal | None, int]]] = {}
    for number in range(300):
        price = Decimal(chance.randrange(1, 10**9)).scaleb(-chance.randrange(18))
        quotes[f"coin-{number}"] = {
            source: (
                None if chance.random() < 0.1 else price * Decimal(chance.randrange(900, 1100)) / 1000,
                chance.choice((0, 1, 30, 59, 61, 300)),
            )
            for source in SOURCES[: chance.randrange(1, 4)]
        }
    for source in SOURCES:
        records = [
            make_record(source_id, T0 - found[source][1] * MINUTE, price_usd=found[source][0])
            for source_id, found in quotes.items()
            if source in found
        ]
        await load_records(database, source, *records, now=T0)

    await resolve(
        database,
        *(
            make_link(source, asset=source_id, source_id=source_id)
            for source_id, found in quotes.items()
            for source in found
        ),
    )

    for source_id, found in quotes.items():
        row = await consensus(connection, source_id)
        fresh = fresh_prices(list(found.values()))
        assert row["source_count"] == len(fresh)
        assert row["price_usd"] == (median(fresh) if fresh else None)
        spread = (max(fresh) - min(fresh)) / median(fresh) * 100 if len(fresh) > 1 else None
        assert row["price_spread_percent"] == (None if spread is None else round(spread, 4))
        assert row["diverging"] == (spread is not None and spread > 5)


def fresh_prices(quotes: list[tuple[Decimal | None, int]]) -> list[Decimal]:
    """The prices that are at most an hour older than the newest one."""
    newest = min((minutes for price, minutes in quotes if price is not None), default=0)
    return [price for price, minutes in quotes if price is not None and minutes <= newest + 60]


@on_one_server
async def test_links_of_an_asset_are_looked_up_without_reading_all_links(
    database: Database, connection: Connection
) -> None:
    # Without statistics of the tables, as after a first load. PostgreSQL then liked to read the whole index
    # of current links for each asset.
    await connection.execute(
        "INSERT INTO asset_links (source, source_id, asset, method, score, evidence, linked_at)"
        " SELECT 'csv', 'coin-' || n, 'coin-' || n, 'id', 1, '[]', now() FROM generate_series(1, 3000) AS n"
    )
    async with connection.transaction():
        await connection.execute(_SQL["staging"])
        await connection.execute(
            "INSERT INTO touched_assets SELECT 'coin-' || n FROM generate_series(1, 3000) AS n"
        )
        limits = ConsensusLimits()
        plan = await connection.fetch(
            f"EXPLAIN {_SQL['settle']}", 1, T0, limits.max_lag, limits.divergence_percent
        )
    lines = [row[0] for row in plan]
    assert any("asset_links_by_asset" in line for line in lines)
    assert not any("asset_links_current" in line for line in lines)


@pytest.mark.parametrize("price", ["100", "0", None])
async def test_only_quote_is_the_consensus(
    database: Database, connection: Connection, price: str | None
) -> None:
    await load(database, "coinpaprika", price, rank=3, market_cap_usd=Decimal("1.5"))
    await resolve(database, make_link("coinpaprika"))
    row = await consensus(connection)
    priced = price is not None
    assert (row["source_count"], row["diverging"], row["price_spread_percent"]) == (int(priced), False, None)
    assert row["price_usd"] == (Decimal(price) if price is not None else None)
    assert row["rank"] == (3 if priced else None)
    assert row["market_cap_usd"] == (Decimal("1.5") if priced else None)
    assert row["fresh_spread_percent"] == (0 if price == "100" else None)
    assert row["observed_at"] == row["oldest_observed_at"] == (T0 if priced else None)
    assert (row["excluded"] is None) == priced
