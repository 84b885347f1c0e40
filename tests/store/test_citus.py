"""Statements and schema keep to what Citus allows, and a distributed database does the whole main job.

The rules are checked everywhere. What needs Citus runs where KASPARRO_TEST_CITUS names a coordinator.
"""

import itertools
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from kasparro.errors import MigrationError
from kasparro.sources.archives.source import Archives
from kasparro.store.citus import DISTRIBUTED, ON_ALL_NODES, distribute
from kasparro.store.migrations import Migration, available, migrate
from kasparro.store.pool import Connection, Database
from kasparro.store.sql import folder, statements, templates
from kasparro.store.tables import TABLES
from tests.support import statement_cases
from tests.support.batches import load_records, make_record
from tests.support.citus import database_of_nodes, distributed_database, needs_citus, shards
from tests.support.runs import run_sources

SQL = Path(str(folder("read"))).parent
# The first migration after those that a database has before it can be distributed.
FIRST_LATER_MIGRATION = 11
_COMMENT = re.compile(r"--[^\n]*")


def texts() -> Iterator[tuple[str, str, str]]:
    """Path, name and text of every statement, and of those with many combinations some of these."""
    for path in statement_cases.FIXED:
        for name, text in statements(path).items():
            yield path, name, _COMMENT.sub("", text)
    for path, name, cases in COMBINATIONS:
        for case in cases():
            yield path, name, _COMMENT.sub("", templates(path)[name].compose(**case).text)


def some(cases: Callable[[], Iterator[dict[str, Any]]], **others: Any) -> Callable[[], list[dict[str, Any]]]:
    """A function that returns some of many combinations."""
    return lambda: [case | others for case in itertools.islice(cases(), 0, None, 211)]


_ROWS = list(itertools.product(("source, rank", "source, listed_at, quoted_in"), (False, True)))
_UPKEEP = {
    "month": "unified_history_2024_06",
    "begins_at": "2024-06-01 UTC",
    "ends_at": "2024-07-01 UTC",
    "unit": "day",
    "table": "unified_history_2024_06",
}
_ROWS = list(itertools.product(("source, rank", "source, listed_at, quoted_in"), (False, True)))
_CANDLES = list(itertools.product(("1h", "1w"), (False, True)))
COMBINATIONS: list[tuple[str, str, Callable[[], Iterable[dict[str, Any]]]]] = [
    ("read/data.sql", "first_page", some(statement_cases.first_pages)),
    ("read/data.sql", "row", lambda: [{"list": "data", "fields": f, "as_of": a} for f, a in _ROWS]),
    ("read/exports.sql", "ndjson", some(statement_cases.exports)),
    ("read/exports.sql", "csv", some(statement_cases.exports, spreadsheet=True)),
    ("read/cursor.sql", "next_page", some(statement_cases.next_pages)),
    ("read/cursor.sql", "next_page_of_snapshot", some(statement_cases.next_pages_of_snapshots)),
    ("read/archives.sql", "records", lambda: [{"tables": True}]),
    ("read/assets.sql", "asset", lambda: [{}]),
    ("read/assets.sql", "totals", lambda: [{}]),
    ("read/history.sql", "span", lambda: [{}]),
    ("read/history.sql", "points", lambda: [{"limit": 50}]),
    ("read/history.sql", "exported_points", lambda: [{"csv": csv} for csv in (False, True)]),
    *(
        ("read/history.sql", name, lambda: [{"csv": False, "interval": i, "of_days": d} for i, d in _CANDLES])
        for name in ("candles", "exported_candles")
    ),
    ("read/history.sql", "next_price", lambda: [{}]),
    ("read/history.sql", "asset_parts", lambda: [{}]),
    ("read/history.sql", "asset_points", lambda: [{"parts": 2}]),
    ("read/history.sql", "asset_candles", lambda: [{"days_of_parts": (True, False), "interval": "1d"}]),
    ("read/sparklines.sql", "sparklines", lambda: [{}]),
    *(
        ("operations/history.sql", name, lambda: [_UPKEEP])
        for name in templates("operations/history.sql")
        # These change the schema, or need the thinned table.
        if not re.search("thinned|detach|set_aside|rename|attach|drop", name) or name == "note_thinned"
    ),
]


def broken(pattern: str) -> list[str]:
    """The statements in which a pattern occurs."""
    return [f"{path}: {name}" for path, name, text in texts() if re.search(pattern, text, re.DOTALL)]


async def test_unique_keys_of_distributed_tables_hold_source_id(connection: Connection) -> None:
    await connection.execute("SELECT create_history_partition('2024-06-01')")

    keys = await connection.fetch(
        """
        SELECT indrelid::regclass::text AS table, array_agg(attname::text) AS columns
        FROM pg_index
        INNER JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY(indkey)
        WHERE indisunique AND indrelid = ANY($1::text[]::regclass[])
        GROUP BY indexrelid, indrelid
        """,
        [*DISTRIBUTED, "unified_history_2024_06"],
    )

    assert len(keys) == 5
    assert [key["table"] for key in keys if "source_id" not in key["columns"]] == []


async def test_distributed_tables_have_no_triggers_foreign_keys_or_narrow_sequences(
    connection: Connection,
) -> None:
    tables = [*DISTRIBUTED, *ON_ALL_NODES]

    triggers = await connection.fetch(
        # Citus adds triggers of its own.
        "SELECT tgname FROM pg_trigger WHERE tgrelid = ANY($1::text[]::regclass[])"
        " AND NOT tgisinternal AND tgname NOT LIKE 'truncate_trigger_%'",
        tables,
    )
    foreign_keys = await connection.fetch(
        "SELECT conname FROM pg_constraint WHERE contype = 'f'"
        " AND (conrelid = ANY($1::text[]::regclass[]) OR confrelid = ANY($1::text[]::regclass[]))",
        tables,
    )
    sequences = await connection.fetch(
        "SELECT attname FROM pg_attribute WHERE attrelid = ANY($1::text[]::regclass[])"
        " AND attidentity <> '' AND atttypid <> 'bigint'::regtype",
        tables,
    )

    assert triggers == foreign_keys == sequences == []


def test_every_table_of_coins_is_distributed_or_named_in_the_decision() -> None:
    decision = (SQL.parent / "docs/decisions/0015-citus.md").read_text(encoding="utf-8")

    assert set(DISTRIBUTED) | set(ON_ALL_NODES) <= set(TABLES)
    assert [name for name in TABLES if f"`{name}`" not in decision] == []


def test_times_are_given_to_updates_on_conflict() -> None:
    assert broken(r"\bDO UPDATE\b(?:(?!\bRETURNING\b).)*\b(?:now|clock_timestamp)\(\)") == []


def test_updates_on_conflict_of_distributed_tables_have_no_subqueries() -> None:
    tables = "|".join((*DISTRIBUTED, *ON_ALL_NODES))
    # What follows, up to the end of the CTE or of the statement.
    update = rf"\bINSERT INTO (?:{tables})\b(?:(?!\bINSERT INTO\b).)*?\bDO UPDATE\b(?:(?!\n\)|;).)*"

    assert broken(update + r"\bSELECT\b") == []


def test_columns_of_subqueries_are_named_where_a_node_answers_them() -> None:
    tables = "|".join(DISTRIBUTED)

    assert broken(rf"EXISTS\s*\(\s*SELECT\s+FROM (?:{tables})\b(?! AS (?:history|shared|others)\b)") == []


def test_a_staged_row_is_looked_up_without_limit_and_outer_join() -> None:
    """LIMIT and OFFSET are allowed where the look-up starts from a row that is distributed, too."""
    staged = r"(?:changes|incoming|looked_up|coins|settled|touched|staged|touched_assets|relinked|given|pair)"
    tables = "|".join(DISTRIBUTED)
    lookup = rf"LATERAL \(\s*SELECT\b[^()]*FROM (?:{tables})\b[^()]*= {staged}\.source_id\b[^()]*"

    assert broken(lookup + r"\b(?:LIMIT|OFFSET)\b") == []
    assert broken(r"LEFT JOIN " + lookup) == []


def test_rows_become_objects_on_the_coordinator() -> None:
    """Citus names the fields f1, f2 and so on if several nodes make the objects of a subquery's rows."""
    tables = "|".join(DISTRIBUTED)
    objects = re.compile(r"row_to_json\((\w+)\)(?:(?!row_to_json).)*?FROM \((.*?)\) AS \1\b", re.DOTALL)

    assert [
        f"{path}: {name}"
        for path, name, text in texts()
        for _, rows in objects.findall(text)
        if re.search(rf"\b(?:{tables})\b", rows) and not re.search(r"\bOFFSET\b|source_id = \$", rows)
    ] == []


def test_locks_and_notifications_are_not_in_statements_about_distributed_tables() -> None:
    tables = "|".join(DISTRIBUTED)

    for function in ("pg_notify", "pg_try_advisory_lock", "pg_advisory_xact_lock"):
        assert set(broken(rf"\b{function}\(")) & set(broken(rf"\b(?:{tables})\b")) == set()


def test_later_migrations_do_what_citus_can_do_to_distributed_tables() -> None:
    tables = "|".join(DISTRIBUTED)
    later = [m for m in available() if m.version >= FIRST_LATER_MIGRATION]

    for migration in later:
        text = _COMMENT.sub("", migration.text)
        assert not re.search(r"CREATE TRIGGER|LATERAL \([^;]*LIMIT", text), migration.name
        assert not re.search(rf"ALTER TABLE (?:{tables})\s[^;]*\b(?:IDENTITY|SERIAL)\b", text), migration.name


@pytest.fixture
async def plain_url() -> AsyncIterator[str]:
    """The URL of a migrated database on all nodes that is not distributed yet."""
    async with database_of_nodes() as url:
        async with Database(url) as database:
            await migrate(database)
        yield url


async def test_without_the_extension_the_reason_is_given(database: Database) -> None:
    if await _is_distributed(database):
        pytest.skip("the databases of this test run are distributed")

    with pytest.raises(MigrationError, match="lacks the extension citus: let a superuser run CREATE"):
        await distribute(database)


async def _is_distributed(database: Database) -> bool:
    async with database.writing() as connection:
        found: bool = await connection.fetchval(statements("operations/citus.sql")["has_extension"])
    return found


@needs_citus
@pytest.mark.slow
@pytest.mark.citus
async def test_without_workers_the_reason_is_given() -> None:
    async with database_of_nodes(workers=False) as url, Database(url) as database:
        await migrate(database)

        with pytest.raises(MigrationError, match=r"knows no worker.*SELECT citus_add_node\('HOST', PORT\)"):
            await distribute(database)


@needs_citus
@pytest.mark.slow
@pytest.mark.citus
async def test_existing_rows_are_distributed_once(plain_url: str) -> None:
    start = datetime(2024, 3, 1, tzinfo=UTC)
    records = [
        make_record(f"coin-{number}", start + timedelta(days=day), price_usd=str(number + day))
        for number, day in itertools.product(range(50), (0, 40))
    ]
    async with Database(plain_url) as database:
        await load_records(database, "csv", *records)
        async with database.writing() as connection:
            before = await _rows(connection)

        assert await distribute(database) == ["archive_files", *DISTRIBUTED]
        assert await distribute(database) == []

        async with database.writing() as connection:
            assert await _rows(connection) == before
            found = await shards(connection, "unified_data")
            # What the coordinator had before is gone.
            assert await connection.fetchval("SELECT pg_relation_size('unified_data')") == 0
    assert len(found) == 2
    assert sum(found.values()) == 50
    assert all(found.values())


async def _rows(connection: Connection) -> list[list[tuple[Any, ...]]]:
    return [
        list(map(tuple, await connection.fetch(f"SELECT * FROM {table} ORDER BY source_id, observed_at")))
        for table in ("unified_data", "unified_history")
    ]


@needs_citus
@pytest.mark.slow
@pytest.mark.citus
async def test_later_migrations_change_a_distributed_schema() -> None:
    added = Migration(
        9999,
        "9999_later.sql",
        "ALTER TABLE unified_data ADD COLUMN later integer;\n"
        "ALTER TABLE unified_history ADD COLUMN later integer;\n"
        "CREATE INDEX unified_data_later ON unified_data (later);\n"
        "UPDATE unified_data SET later = 1;\n",
        "0" * 64,
    )
    async with distributed_database() as url, Database(url) as database:
        await load_records(database, "csv", make_record("bitcoin", datetime(2024, 3, 1, tzinfo=UTC)))

        assert await migrate(database, [*available(), added]) == ["9999_later.sql"]

        async with database.writing() as connection:
            assert await connection.fetchval("SELECT later FROM unified_data") == 1


@needs_citus
@pytest.mark.slow
@pytest.mark.citus
async def test_database_that_an_earlier_schema_distributed_is_migrated() -> None:
    earlier = [migration for migration in available() if migration.version < FIRST_LATER_MIGRATION]
    start = datetime(2024, 3, 1, tzinfo=UTC)
    records = [make_record(f"coin-{number}", start, price_usd=str(number)) for number in range(40)]
    async with database_of_nodes() as url, Database(url) as database:
        await migrate(database, earlier)
        await distribute(database)
        await load_records(database, "csv", *records)
        async with database.writing() as connection:
            before = await _rows(connection)

        assert await migrate(database) == [each.name for each in available() if each not in earlier]

        await load_records(database, "csv", make_record("coin-1", start + timedelta(days=40), price_usd="7"))
        async with database.writing() as connection:
            rows, history = await _rows(connection)
            migrated = await _schema(connection)
    async with distributed_database() as url, Database(url) as database:
        await load_records(database, "csv", *records)
        await load_records(database, "csv", make_record("coin-1", start + timedelta(days=40), price_usd="7"))
        async with database.writing() as connection:
            assert await _schema(connection) == migrated
    assert len(rows) == 40
    assert set(history) == set(before[1]) | {row for row in history if row[2] > start}


async def _schema(connection: Connection) -> list[str]:
    """Tables, columns, indexes and settings of the coordinator and of all shards, for each node."""
    described = (
        "SELECT coalesce(string_agg(line, E'\\n' ORDER BY line), '') FROM ("
        " SELECT regexp_replace(concat_ws(' ', relname, relkind, reloptions::text, attname,"
        " format_type(atttypid, atttypmod), attnotnull), '_\\d{6,}', '') AS line"
        " FROM pg_class LEFT JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped"
        " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'i', 'I')) AS lines"
    )
    nodes = await connection.fetch(
        "SELECT success, result FROM run_command_on_workers($1) ORDER BY nodeport", described
    )
    assert [node["success"] for node in nodes] == [True, True]
    return [await connection.fetchval(described), *(node["result"] for node in nodes)]


@needs_citus
@pytest.mark.slow
@pytest.mark.citus
async def test_files_are_loaded_also_if_nodes_write_in_parallel(tmp_path: Path) -> None:
    """Citus writes in parallel if the nodes are slow to answer; here it always does where it may."""
    for name, price in (("a", 1), ("b", 2), ("c", 1)):
        rows = [f"coin-{n},C{n},{price},2024-03-{day:02}\n" for n in range(40) for day in range(1, 4)]
        (tmp_path / f"{name}.csv").write_text("id,symbol,price_usd,date\n" + "".join(rows))
    async with distributed_database() as url:
        async with Database(url) as database, database.writing() as connection:
            name = await connection.fetchval("SELECT current_database()")
            await connection.execute(f"ALTER DATABASE {name} SET citus.force_max_query_parallelization = on")
        async with Database(url) as database:
            assert await run_sources(database, [Archives(str(tmp_path))]) == "succeeded"


@needs_citus
@pytest.mark.slow
@pytest.mark.citus
async def test_partition_of_a_new_month_is_on_the_nodes_of_its_coins() -> None:
    async with distributed_database() as url, Database(url) as database:
        for month in (3, 4):
            moment = datetime(2024, month, 1, tzinfo=UTC)
            await load_records(database, "csv", *(make_record(f"coin-{n}", moment) for n in range(40)))

        async with database.writing() as connection:
            found = [await shards(connection, f"unified_history_2024_0{month}") for month in (3, 4)]
            local = await connection.fetchval("SELECT pg_relation_size('unified_history_2024_04')")

    assert local == 0
    assert found[0] == found[1]
    assert sum(found[0].values()) == 40
    assert len(found[0]) == 2


@needs_citus
@pytest.mark.slow
@pytest.mark.citus
async def test_new_version_is_seen_again_once_all_nodes_have_committed() -> None:
    async with distributed_database() as url, Database(url) as database:
        await load_records(database, "csv", make_record("bitcoin", datetime(2024, 3, 1, tzinfo=UTC)))

        async with database.writing() as connection:
            version = await connection.fetchval("SELECT data_version FROM instance")
            written = await connection.fetchval("SELECT version FROM unified_data")

    assert version == written + 1


@needs_citus
@pytest.mark.slow
@pytest.mark.citus
async def test_every_statement_can_be_planned_on_a_distributed_database() -> None:
    async with distributed_database() as url:
        connection = await asyncpg.connect(url)
        await connection.execute("SELECT create_history_partition('2024-06-01')")
        await statement_cases.create_staging(connection)
        refused = {
            (path, name): reason
            for path, name, text in texts()
            if name != "staging" and "terminate" not in name
            # Values of these are never null.
            for empty in ((False,) if name in {"settle_coins", "sparklines"} else (True, False))
            if (reason := await _refusal(connection, text, empty=empty)) is not None
        }
        await connection.close()

    assert refused == {}


_VALUES: dict[str, Any] = {
    "bool": True,
    "date": datetime(2024, 6, 1, tzinfo=UTC).date(),
    "float8": 1.0,
    "int2": 1,
    "int4": 1,
    "int8": 1,
    "interval": timedelta(1),
    "json": "{}",
    "numeric": 1,
    "text": "x",
    "timestamptz": datetime(2024, 6, 1, tzinfo=UTC),
    "varchar": "x",
    "bytea": b"",
    "name": "runs",
}


async def _refusal(connection: Connection, text: str, *, empty: bool) -> str | None:
    # Why Citus refuses a statement. Citus plans a statement when it is executed. With `empty`, the values are
    # null.
    transaction = connection.transaction()
    await transaction.start()
    try:
        statement = await connection.prepare(text)
        given = [
            None
            if empty
            else [_VALUES[kind.name.removesuffix("[]")]]
            if kind.name.endswith("[]")
            else _VALUES[kind.name]
            for kind in statement.get_parameters()
        ]
        await statement.fetch(*given)
    except asyncpg.FeatureNotSupportedError as error:
        return str(error)
    except asyncpg.PostgresSyntaxError as error:
        return str(error)
    except asyncpg.PostgresError:
        # The values break a rule of the tables.
        return None
    finally:
        await transaction.rollback()
    return None
