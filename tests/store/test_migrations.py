"""Migrations are applied once and in order, keep rows, and stop at files that do not fit."""

import asyncio
import itertools
import uuid

import asyncpg
import pytest

from kasparro.errors import MigrationError
from kasparro.store.migrations import Migration, available, migrate, pending
from kasparro.store.pool import Connection, Database
from kasparro.store.tables import TABLES as ALL_TABLES


def migration(version: int, text: str, checksum: str = "") -> Migration:
    return Migration(version, f"{version:04}_test.sql", text, checksum or text)


async def test_empty_database_is_migrated_once(empty_database_url: str) -> None:
    async with Database(empty_database_url) as database:
        names = [migration.name for migration in available()]

        assert await pending(database) == names
        assert await migrate(database) == names
        assert await pending(database) == []
        assert await migrate(database) == []


async def test_processes_that_start_together_migrate_once(empty_database_url: str) -> None:
    async with (
        Database(empty_database_url) as first,
        Database(empty_database_url) as second,
        Database(empty_database_url) as third,
    ):
        done = await asyncio.gather(migrate(first), migrate(second), migrate(third))

    assert sorted(itertools.chain.from_iterable(done)) == [migration.name for migration in available()]


async def test_edited_migration_is_an_error(empty_database_url: str) -> None:
    async with Database(empty_database_url) as database:
        await migrate(database, [migration(1, "SELECT 1")])

        with pytest.raises(MigrationError, match=r"0001_test\.sql was edited after it was applied"):
            await migrate(database, [migration(1, "SELECT 2")])


async def test_unknown_applied_migration_is_an_error(empty_database_url: str) -> None:
    async with Database(empty_database_url) as database:
        await migrate(database, [migration(1, "SELECT 1"), migration(2, "SELECT 1")])

        with pytest.raises(MigrationError, match=r"0002_test\.sql, which this program does not know"):
            await migrate(database, [migration(1, "SELECT 1")])


async def test_new_migration_below_an_applied_one_is_an_error(empty_database_url: str) -> None:
    async with Database(empty_database_url) as database:
        await migrate(database, [migration(2, "SELECT 1")])

        with pytest.raises(MigrationError, match="give it a higher number"):
            await migrate(database, [migration(1, "SELECT 1"), migration(2, "SELECT 1")])


async def test_failing_migration_leaves_nothing(
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


async def test_forbidden_table_of_migrations_is_an_error(empty_database_url: str) -> None:
    async with Database(empty_database_url) as database:
        await migrate(database, [migration(1, "SELECT 1")])
    role = f"limited_{uuid.uuid4().hex[:12]}"
    owner = await asyncpg.connect(empty_database_url)
    await owner.execute(f"CREATE ROLE {role}; GRANT ALL ON SCHEMA public TO {role}")
    limited = f"{empty_database_url}{'&' if '?' in empty_database_url else '?'}role={role}"

    async with Database(limited) as database:
        with pytest.raises(MigrationError, match="stopped at the table schema_migrations: permission denied"):
            await migrate(database, [migration(1, "SELECT 1")])

    await owner.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    await owner.close()


async def test_database_that_forbids_the_extension_lacks_only_its_index(
    empty_database_url: str,
) -> None:
    # Only a role that may create objects in the database may create an extension; this one may in a schema.
    owner = await asyncpg.connect(empty_database_url)
    role = f"limited_{uuid.uuid4().hex[:12]}"
    await owner.execute(f"CREATE ROLE {role}; GRANT ALL ON SCHEMA public TO {role}")

    async with Database(
        f"{empty_database_url}{'&' if '?' in empty_database_url else '?'}role={role}"
    ) as limited:
        assert await migrate(limited) == [migration.name for migration in available()]

    indexes = await owner.fetch("SELECT indexname FROM pg_indexes WHERE tablename = 'unified_data'")
    assert "unified_data_by_rank" in {row[0] for row in indexes}
    assert "unified_data_by_text" not in {row[0] for row in indexes}
    await owner.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    await owner.close()


async def test_extension_outside_the_search_path_is_used(empty_database_url: str) -> None:
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute('CREATE SCHEMA "Tools"; CREATE EXTENSION pg_trgm SCHEMA "Tools"')

    async with Database(empty_database_url) as database:
        await migrate(database)

    assert await connection.fetchval("SELECT to_regclass('unified_data_by_text') IS NOT NULL")
    await connection.close()


async def test_database_of_a_development_version_is_an_error(empty_database_url: str) -> None:
    async with Database(empty_database_url) as database:
        await migrate(database, [migration(1, "SELECT 1"), migration(2, "SELECT 1")])
        async with database.writing() as connection:
            await connection.execute(
                "UPDATE schema_migrations SET checksum = $1 WHERE version = 1",
                "a7805e5341c94c286c658d17cd64b2cc04f2b4e1eee19ccf68ccecdfc6324314",
            )

        with pytest.raises(
            MigrationError, match=r"created by a development version before 0\.1.*empty database"
        ):
            await migrate(database)


async def test_migrations_keep_the_rows_of_a_populated_database(empty_database_url: str) -> None:
    """Each migration, and a later one, is applied to a database with a row in every table."""
    async with Database(empty_database_url) as database:
        connection = await asyncpg.connect(empty_database_url)
        known = available()
        for count in range(1, len(known) + 1):
            await migrate(database, known[:count])
            await populate(connection)
        before = await contents(connection)

        later = Migration(known[-1].version + 1, "9999_later.sql", "ALTER TABLE runs ADD extra int", "later")
        failing = Migration(later.version + 1, "9999_failing.sql", "DROP TABLE rejects; SELECT nonsense", "x")
        with pytest.raises(MigrationError, match=r"migrating stopped at 9999_failing\.sql"):
            await migrate(database, [*known, later, failing])

        after = await contents(connection)
        assert {table: len(rows) for table, rows in before.items()} == dict.fromkeys(TABLES, 1)
        assert after.pop("runs")[0].endswith('"extra":null}')
        del before["runs"]
        assert after == before
        await connection.close()


TABLES = [name for name in ALL_TABLES if name != "schema_migrations"]


async def populate(connection: Connection) -> None:
    """Insert a row into every table that has none."""
    await connection.execute("SELECT create_history_partition('2024-06-01')")
    await connection.execute(
        "INSERT INTO runs (trigger, status, started_at)"
        " SELECT 'etl', 'running', now() WHERE NOT EXISTS (SELECT FROM runs)"
    )
    tables = await connection.fetch(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition"
        " AND relnamespace = 'public'::regnamespace"
    )
    for (table,) in tables:
        if await connection.fetchval(f"SELECT EXISTS (SELECT FROM {table})"):
            continue
        columns = await connection.fetch(
            "SELECT column_name, data_type FROM information_schema.columns"
            " WHERE table_name = $1 AND is_identity = 'NO' ORDER BY ordinal_position",
            table,
        )
        values = [VALUES.get(f"{table}.{row['column_name']}") or VALUES[row["data_type"]] for row in columns]
        names = ", ".join(row["column_name"] for row in columns)
        await connection.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join(values)})")


# The values of `populate`, by the name of the column or by its type.
VALUES = {
    "asset_candidates.kind": "'conflict'",
    "asset_links.valid_until": "'infinity'",
    "run_sources.status": "'running'",
    "usual_lists.began_at": "'{2024-06-01T12:00:00Z}'",
    "ARRAY": "'{2,3}'",
    "bigint": "1",
    "boolean": "true",
    "bytea": "'abc'",
    "date": "'2024-06-01'",
    "integer": "3",
    "json": "'{}'",
    "jsonb": "'{}'",
    "numeric": "0.1",
    "double precision": "0.5",
    "smallint": "200",
    "text": "'text'",
    "timestamp with time zone": "'2024-06-01T12:00:00Z'",
    "uuid": "'00000000-0000-0000-0000-000000000001'",
}


async def contents(connection: Connection) -> dict[str, list[str]]:
    """The rows of each table as JSON."""
    return {
        table: [row[0] for row in await connection.fetch(f"SELECT row_to_json({table})::text FROM {table}")]
        for table in TABLES
    }
