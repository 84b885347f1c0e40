"""A resolution is written as a whole or not at all, once, and only by the run that holds the lease."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import pytest

from kasparro.assets.knowledge import knowledge_of
from kasparro.errors import LeaseLost
from kasparro.model.asset import ALWAYS, Asset, Candidate, Resolution
from kasparro.model.asset_documents import ResolutionDocuments
from kasparro.model.consensus import ConsensusLimits
from kasparro.model.record import Record
from kasparro.store import assets
from kasparro.store.loader import Loader
from kasparro.store.pool import Connection, Database
from kasparro.store.runs import RunRecord
from tests.support.assets import make_link
from tests.support.batches import T0, load_records, make_batch, make_record
from tests.support.citus import counts_versions

TABLES = ("assets", "asset_links", "asset_candidates", "unified_assets", "unified_data", "instance")
BITCOIN = Asset(asset="btc-bitcoin", symbol="BTC", name="Bitcoin")
CANDIDATE = Candidate(
    source="coingecko",
    source_id="bitcoin-2",
    kind="candidate",
    asset="btc-bitcoin",
    score=0.8,
    reason="it may be coinpaprika/btc-bitcoin",
    evidence=[{"kind": "name", "verdict": "for", "text": "names are equal"}],
    symbol="BTC",
    name="Bitcoin",
)
_SOMEBODY_WAITS = (
    "SELECT EXISTS (SELECT FROM pg_locks"
    " WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid)))"
)
RESOLUTION = Resolution(
    assets=[BITCOIN],
    links=[make_link("coinpaprika"), make_link("coingecko", source_id="bitcoin")],
    candidates=[CANDIDATE],
)


@pytest.fixture
async def run(database: Database) -> RunRecord:
    """A run that has loaded three rows named Bitcoin."""
    await load_records(database, "coinpaprika", make_record(price_usd="100"), now=T0)
    theirs = [make_record(source_id, price_usd="102") for source_id in ("bitcoin", "bitcoin-2")]
    await load_records(database, "coingecko", *theirs, now=T0)
    return await RunRecord.start(database, "etl", ("coinpaprika", "coingecko"), T0)


async def apply(database: Database, run_id: int, resolution: Resolution = RESOLUTION, **options: Any) -> int:
    """Write a resolution; returns how many rows have another asset."""
    async with database.writing() as connection:
        resolved = await assets.apply(
            *(connection, ResolutionDocuments.of(resolution), ConsensusLimits(), T0),
            run_id=run_id,
            depends_on="rules",
            **options,
        )
    return resolved.rows


async def contents(connection: Connection) -> dict[str, list[str]]:
    """The rows of all tables that a resolution writes."""
    return {
        table: [row[0] for row in await connection.fetch(f"SELECT t::text FROM {table} AS t ORDER BY 1")]
        for table in TABLES
    }


async def pending(database: Database, depends_on: str = "rules") -> bool:
    """Whether the resolver has something to decide."""
    async with database.reading() as connection:
        return await assets.is_pending(connection, depends_on)


@counts_versions
async def test_resolution_is_one_data_version(
    database: Database, connection: Connection, run: RunRecord
) -> None:
    before = await connection.fetchval("SELECT data_version FROM instance")

    assert await apply(database, run.id) == 2

    version = await connection.fetchval("SELECT data_version FROM instance")
    assert version == before + 1
    rows = await connection.fetch("SELECT source_id, asset, version FROM unified_data ORDER BY source_id")
    assert [tuple(row) for row in rows] == [
        ("bitcoin", "btc-bitcoin", version),
        ("bitcoin-2", None, before),
        ("btc-bitcoin", "btc-bitcoin", version),
    ]
    (asset,) = await connection.fetch("SELECT asset, price_usd, version FROM unified_assets")
    assert tuple(asset) == ("btc-bitcoin", 101, version)
    saved = await connection.fetch("SELECT source_id, asset FROM unified_data_versions")
    assert {tuple(row) for row in saved} == {("bitcoin", None), ("btc-bitcoin", None)}


async def test_same_resolution_again_changes_nothing(
    database: Database, connection: Connection, run: RunRecord
) -> None:
    await apply(database, run.id)
    before = await contents(connection)

    assert await apply(database, run.id) == 0

    # Links that are written again are a new data version, because the history of assets follows from them.
    after = await contents(connection)
    assert {table: after[table] for table in TABLES[:-1]} == {table: before[table] for table in TABLES[:-1]}


async def test_what_was_written_is_read_as_it_was_decided(
    database: Database, connection: Connection, run: RunRecord
) -> None:
    """Links without beginning or end, and any text."""
    odd = 'a "quoted", \\ name\nof two lines \u2028 \U0001f680'
    resolution = Resolution(
        assets=[BITCOIN, Asset(asset="odd", symbol=None, name=odd)],
        links=[
            make_link("coinpaprika", score=0.1 + 0.2, evidence=[{"text": odd, "score": 1.5}]),
            make_link("coingecko", "odd", "bitcoin", symbol=None, name=odd, valid_from=T0),
        ],
        candidates=[CANDIDATE, msgspec.structs.replace(CANDIDATE, reason=odd, asset=None)],
    )
    await apply(database, run.id, resolution)

    known = knowledge_of(await assets.known(connection))

    assert known.assets == {each.asset: each for each in resolution.assets}
    assert sorted(known.links, key=lambda link: link.key, reverse=True) == resolution.links
    assert known.candidates == resolution.candidates

    await apply(database, run.id, Resolution(ended={("coinpaprika", "btc-bitcoin"): ALWAYS}))

    known = knowledge_of(await assets.known(connection))
    assert [link.key for link in known.links] == [("coingecko", "bitcoin")]


async def test_nothing_is_left_to_decide(database: Database, connection: Connection, run: RunRecord) -> None:
    assert await pending(database)
    await apply(database, run.id)
    assert not await pending(database)

    # The same values again, and other prices, are no news.
    await load_records(database, "coinpaprika", make_record(price_usd="100"), now=T0)
    await load_records(
        database, "coinpaprika", make_record(at=datetime(2026, 3, 1, tzinfo=UTC), price_usd="99")
    )
    assert not await pending(database)


@pytest.mark.parametrize(
    "news",
    [
        ("coinpaprika", "btc-bitcoin", "Bitcoin Core"),
        ("coingecko", "bitcoin-2", "Bitcoin Two"),
        ("coingecko", "bitcoin-3", "Bitcoin"),
    ],
)
async def test_new_rows_and_labels_are_to_be_decided(
    database: Database, run: RunRecord, news: tuple[str, str, str]
) -> None:
    """A linked row that was renamed, a candidate that was, and a row that nobody has judged."""
    await apply(database, run.id)
    source, source_id, name = news
    await load_records(
        database, source, make_record(source_id, datetime(2026, 3, 1, tzinfo=UTC), name=name, price_usd="99")
    )
    assert await pending(database)


async def test_other_rules_or_contracts_are_to_be_decided(database: Database, run: RunRecord) -> None:
    await apply(database, run.id)
    assert await pending(database, "other rules")


async def test_failure_leaves_everything_as_it_was(
    database: Database, connection: Connection, run: RunRecord
) -> None:
    """A link that ends when it begins cannot be."""
    before = await contents(connection)
    bad = make_link("coingecko", source_id="bitcoin-2", valid_from=T0, valid_until=T0)

    with pytest.raises(asyncpg.CheckViolationError):
        await apply(
            database,
            run.id,
            Resolution(assets=[BITCOIN], links=[*RESOLUTION.links, bad], candidates=[CANDIDATE]),
        )

    assert await contents(connection) == before


async def test_run_that_was_ended_writes_nothing(
    database: Database, connection: Connection, run: RunRecord
) -> None:
    before = await contents(connection)
    await connection.execute("UPDATE runs SET status = 'interrupted', finished_at = $1", T0)

    with pytest.raises(LeaseLost):
        await apply(database, run.id)

    assert await contents(connection) == before


async def test_run_that_is_ended_meanwhile_waits_for_the_resolution(
    database: Database, connection: Connection, run: RunRecord
) -> None:
    """The next run marks it as interrupted: before its first statement, or after its commit."""
    async with database.writing() as other, other.transaction():
        await assets.apply(
            *(other, ResolutionDocuments.of(RESOLUTION), ConsensusLimits(), T0),
            run_id=run.id,
            depends_on="rules",
        )
        ending = asyncio.create_task(connection.execute("UPDATE runs SET status = 'interrupted'"))
        async with asyncio.timeout(20):
            while not await other.fetchval(_SOMEBODY_WAITS):  # noqa: ASYNC110 - PostgreSQL has no event for it
                await asyncio.sleep(0.01)
        assert not ending.done()
    await ending
    assert await connection.fetchval("SELECT count(*) FROM asset_links") == 2
    with pytest.raises(LeaseLost):
        await apply(database, run.id, Resolution())


async def test_batches_and_a_resolution_at_once_agree(
    database: Database, connection: Connection, run: RunRecord
) -> None:
    """Whichever commits first: the consensus is that of the rows."""

    async def load(source: str, record: Record) -> None:
        await Loader(database, run.id, source).load(make_batch(record), T0)

    for hour in range(1, 6):
        at = T0.replace(hour=hour, day=1, month=hour + 1)
        moved = RESOLUTION if hour % 2 else Resolution(ended=dict.fromkeys([("coingecko", "bitcoin")], at))
        await asyncio.gather(
            apply(database, run.id, moved),
            load("coinpaprika", make_record(at=at, price_usd=str(100 + hour))),
            load("coingecko", make_record("bitcoin", at=at, price_usd=str(200 + hour))),
        )
        rows = await connection.fetch("SELECT price_usd FROM unified_data WHERE asset = 'btc-bitcoin'")
        expected = sum(row["price_usd"] for row in rows) / len(rows)
        assert await connection.fetchval("SELECT price_usd FROM unified_assets") == expected
