"""What changed since a data version is found from the tables."""

from datetime import datetime, timedelta
from decimal import Decimal

from kasparro.store import changes
from kasparro.store.changes import Changes
from kasparro.store.migrations import available, migrate
from kasparro.store.pool import Connection, Database
from kasparro.store.row_versions import CURSOR_LIFETIME, delete_expired
from tests.support.assets import make_link, resolve
from tests.support.batches import T0, load_batches, load_records, make_batch, make_record
from tests.support.citus import counts_versions

HOUR = timedelta(hours=1)


async def load(database: Database, *ids: str, price: int = 1, at: datetime = T0) -> None:
    records = [
        make_record(source_id, at=at, price_usd=Decimal(price), rank=rank)
        for rank, source_id in enumerate(ids, 1)
    ]
    await load_records(database, "coinpaprika", *records, now=at)


async def since(connection: Connection, version: int) -> Changes:
    return await changes.changes(connection, version)


def source_ids(found: Changes) -> list[str]:
    assert all(source == "coinpaprika" for source, _, _ in found.rows)
    return [source_id for _, source_id, _ in found.rows]


async def test_inserted_and_updated_rows_are_found_the_leading_first(
    database: Database, connection: Connection
) -> None:
    await load(database, "b", "a", "c")
    first = await changes.state(connection)
    await load(database, "c", price=2, at=T0 + HOUR)
    last = await changes.state(connection)

    everything, second, nothing = [
        await since(connection, version) for version in (0, first.version, last.version)
    ]

    assert source_ids(everything) == ["b", "c", "a"]
    assert source_ids(second) == ["c"]
    assert source_ids(nothing) == []
    assert everything.state == second.state == nothing.state == last


async def test_unchanged_records_make_no_version(database: Database, connection: Connection) -> None:
    await load(database, "a")
    before = await changes.state(connection)
    await load(database, "a")

    after = await changes.state(connection)
    assert (after.version, after.committed_at) == (before.version, before.committed_at)
    assert after.run_id == 2


async def test_linked_row_is_found_with_both_assets(database: Database, connection: Connection) -> None:
    await load(database, "btc-bitcoin")
    await resolve(database, make_link("coinpaprika"))

    found = await since(connection, 1)

    assert set(found.rows) == {
        ("coinpaprika", "btc-bitcoin", None),
        ("coinpaprika", "btc-bitcoin", "btc-bitcoin"),
    }
    assert found.assets == ["btc-bitcoin"]


async def test_asset_without_a_quote_is_found(database: Database, connection: Connection) -> None:
    await load(database, "btc-bitcoin")
    await resolve(database, make_link("coinpaprika"))
    await resolve(database, ended={("coinpaprika", "btc-bitcoin"): T0})

    found = await since(connection, 2)

    assert await connection.fetchval("SELECT count(*) FROM unified_assets") == 0
    assert found.assets == ["btc-bitcoin"]


async def test_version_has_its_time_and_run(database: Database, connection: Connection) -> None:
    assert (await changes.state(connection)).committed_at is None
    before = await connection.fetchval("SELECT clock_timestamp()")
    await load_batches(database, make_batch(make_record()))

    state = await changes.state(connection)

    assert state.committed_at is not None
    assert before < state.committed_at < await connection.fetchval("SELECT clock_timestamp()")
    assert (state.committed_by_run, state.run_id, state.run_status) == (1, 1, "running")


@counts_versions
async def test_manual_edit_has_neither_and_is_counted(database: Database, connection: Connection) -> None:
    await load(database, "a")
    await connection.execute("UPDATE instance SET data_version = data_version + 1")

    state = await changes.state(connection)

    assert (state.version, state.manual_edits) == (2, 1)
    assert (state.committed_at, state.committed_by_run) == (None, None)


@counts_versions
async def test_deleted_row_versions_raise_the_oldest_version(
    database: Database, connection: Connection
) -> None:
    await load(database, "a")
    await load(database, "a", price=2, at=T0 + HOUR)
    await delete_expired(database, T0 + HOUR + CURSOR_LIFETIME + HOUR)

    assert (await changes.state(connection)).oldest_version == 2


async def test_databases_have_different_names(database: Database, empty_database_url: str) -> None:
    async with database.reading() as connection:
        one = await changes.state(connection)
    async with Database(empty_database_url) as another:
        await migrate(another)
        async with another.reading() as connection:
            other = await changes.state(connection)

    assert one.database != other.database
    assert len(one.database) == 12


async def test_first_version_after_the_migration_is_described(empty_database_url: str) -> None:
    async with Database(empty_database_url) as database:
        await migrate(database, [each for each in available() if each.version < 9])
        async with database.writing() as connection:
            await connection.execute("UPDATE instance SET data_version = 7, counted_versions = 7")
        await migrate(database)
        async with database.reading() as connection:
            old = await changes.state(connection)
        await load(database, "a")
        async with database.reading() as connection:
            new = await changes.state(connection)

    assert (old.version, old.committed_at) == (7, None)
    assert new.version == 8
    assert new.committed_at is not None
