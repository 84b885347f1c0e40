"""Migrations run once, in order, and stop at anything that does not fit."""

import asyncio
import itertools
import uuid

import asyncpg
import pytest

from kasparro.errors import MigrationError
from kasparro.store.migrations import Migration, available, migrate, pending
from kasparro.store.pool import Database


def migration(version: int, text: str, checksum: str = "") -> Migration:
    return Migration(version, f"{version:04}_test.sql", text, checksum or text)


async def test_an_empty_database_is_brought_up_to_date_once(empty_database_url: str) -> None:
    async with Database(empty_database_url) as database:
        names = [one.name for one in available()]

        assert await pending(database) == names
        assert await migrate(database) == names
        assert await pending(database) == []
        assert await migrate(database) == []


async def test_processes_that_start_together_share_the_work(empty_database_url: str) -> None:
    async with (
        Database(empty_database_url) as one,
        Database(empty_database_url) as two,
        Database(empty_database_url) as three,
    ):
        done = await asyncio.gather(migrate(one), migrate(two), migrate(three))

    assert sorted(itertools.chain.from_iterable(done)) == [one.name for one in available()]


async def test_an_edited_migration_stops_the_start(empty_database_url: str) -> None:
    async with Database(empty_database_url) as database:
        await migrate(database, [migration(1, "SELECT 1")])

        with pytest.raises(MigrationError, match=r"0001_test\.sql was edited after it was applied"):
            await migrate(database, [migration(1, "SELECT 2")])


async def test_a_missing_migration_stops_the_start(empty_database_url: str) -> None:
    async with Database(empty_database_url) as database:
        await migrate(database, [migration(1, "SELECT 1"), migration(2, "SELECT 1")])

        with pytest.raises(MigrationError, match=r"0002_test\.sql, which this program does not know"):
            await migrate(database, [migration(1, "SELECT 1")])


async def test_a_migration_below_an_applied_one_stops_the_start(empty_database_url: str) -> None:
    async with Database(empty_database_url) as database:
        await migrate(database, [migration(2, "SELECT 1")])

        with pytest.raises(MigrationError, match="give it a higher number"):
            await migrate(database, [migration(1, "SELECT 1"), migration(2, "SELECT 1")])


async def test_a_failing_migration_leaves_nothing_behind_and_the_earlier_ones_stand(
    empty_database_url: str,
) -> None:
    async with Database(empty_database_url) as database:
        with pytest.raises(MigrationError, match=r"migrating stopped at 0002_test\.sql"):
            await migrate(
                database,
                [migration(1, "CREATE TABLE a ()"), migration(2, "CREATE TABLE b (); SELECT nonsense")],
            )

    connection = await asyncpg.connect(empty_database_url)
    assert await connection.fetchval("SELECT to_regclass('a') IS NOT NULL AND to_regclass('b') IS NULL")
    await connection.close()


async def test_a_database_that_refuses_the_extension_is_migrated_without_its_index(
    empty_database_url: str,
) -> None:
    # A role may create an extension where it may create in the database; this one may in a schema alone.
    owner = await asyncpg.connect(empty_database_url)
    role = f"limited_{uuid.uuid4().hex[:12]}"
    await owner.execute(f"CREATE ROLE {role}; GRANT ALL ON SCHEMA public TO {role}")

    async with Database(
        f"{empty_database_url}{'&' if '?' in empty_database_url else '?'}role={role}"
    ) as limited:
        assert await migrate(limited) == [one.name for one in available()]

    indexes = await owner.fetch("SELECT indexname FROM pg_indexes WHERE tablename = 'unified_data'")
    assert "unified_data_by_rank" in {row[0] for row in indexes}
    assert "unified_data_by_text" not in {row[0] for row in indexes}
    await owner.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    await owner.close()


async def test_an_extension_off_the_search_path_serves_too(empty_database_url: str) -> None:
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute('CREATE SCHEMA "Tools"; CREATE EXTENSION pg_trgm SCHEMA "Tools"')

    async with Database(empty_database_url) as database:
        await migrate(database)

    assert await connection.fetchval("SELECT to_regclass('unified_data_by_text') IS NOT NULL")
    await connection.close()


async def test_rows_of_before_unknown_fields_do_not_say_that_null_is_known(empty_database_url: str) -> None:
    async with Database(empty_database_url) as database:
        await migrate(database, [known for known in available() if known.version < 11])
        connection = await asyncpg.connect(empty_database_url)
        await connection.execute(
            "INSERT INTO unified_data (source, source_id, symbol, observed_at, first_seen_at, updated_at,"
            " content_hash) SELECT source, 'a', 'A', now(), now(), now(), gen_random_uuid()"
            " FROM unnest('{csv,coingecko}'::text[]) AS source"
        )
        await migrate(database)

        rows = await connection.fetch(
            "SELECT source, symbol_observed_at IS NULL AS symbol, name_observed_at = '-infinity' AS name,"
            " rank_observed_at = '-infinity' AS rank FROM unified_data ORDER BY source"
        )
        assert [tuple(row) for row in rows] == [("coingecko", True, None, None), ("csv", True, True, True)]
        await connection.close()
