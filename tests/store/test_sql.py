"""PostgreSQL accepts every statement in every combination of its conditions."""

import itertools
from collections.abc import Iterator
from typing import Any

import jinja2
import pytest

from kasparro.store.pool import Connection
from kasparro.store.selection import Selection
from kasparro.store.sql import statements, templates
from tests.support.statement_cases import (
    FIXED,
    create_staging,
    exports,
    first_pages,
    next_pages,
    next_pages_of_snapshots,
    variables,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "name", "cases"),
    [
        ("read/data.sql", "first_page", first_pages()),
        ("read/cursor.sql", "next_page", next_pages()),
        ("read/cursor.sql", "next_page_of_snapshot", next_pages_of_snapshots()),
        (
            "read/data.sql",
            "row",
            [{"list": "data", "fields": "source, rank", "as_of": as_of} for as_of in (False, True)],
        ),
        ("read/exports.sql", "ndjson", exports()),
        (
            "read/exports.sql",
            "csv",
            ({**case, "spreadsheet": flag} for case in exports() for flag in (False, True)),
        ),
        (
            "read/archives.sql",
            "page",
            [
                {"after": after, "states": states, "problem": problem, "text": text}
                for after, states, problem, text in itertools.product(
                    (False, True), (False, True), (None, False, True), (False, True)
                )
            ],
        ),
        ("read/archives.sql", "records", [{"tables": tables} for tables in (False, True)]),
        ("read/assets.sql", "asset", [{}]),
        ("read/assets.sql", "totals", [{}]),
        (
            "read/assets.sql",
            "candidates",
            [{"after": a, "kind": k} for a in (False, True) for k in (False, True)],
        ),
        ("read/history.sql", "span", [{}]),
        ("read/history.sql", "points", [{"limit": 50}]),
        (
            "read/history.sql",
            "candles",
            [
                {"interval": interval, "of_days": of_days}
                for interval, of_days in itertools.product(("1h", "1d", "1w"), (False, True))
            ],
        ),
        ("read/history.sql", "exported_points", [{"csv": csv} for csv in (False, True)]),
        (
            "read/history.sql",
            "exported_candles",
            [
                {"csv": csv, "interval": interval, "of_days": of_days}
                for csv, interval, of_days in itertools.product(
                    (False, True), ("1h", "1d", "1w"), (False, True)
                )
            ],
        ),
        ("read/history.sql", "next_price", [{}]),
        ("read/sparklines.sql", "sparklines", [{}]),
        ("read/tables.sql", "tables", [{}]),
        ("read/tables.sql", "count", [{"table": "runs"}]),
        *(
            ("read/runs.sql", name, [{"after": a, "status": s} for a in (False, True) for s in (False, True)])
            for name in templates("read/runs.sql")
        ),
    ],
)
async def test_all_combinations_can_be_prepared(
    connection: Connection, path: str, name: str, cases: Iterator[dict[str, Any]]
) -> None:
    texts = {templates(path)[name].compose(**case).text for case in cases}

    for text in texts:
        await connection.prepare(text)

    assert texts


@pytest.mark.parametrize("path", FIXED)
async def test_fixed_statements_can_be_prepared(connection: Connection, path: str) -> None:
    await create_staging(connection)

    for name, text in statements(path).items():
        if name != "staging":
            await connection.prepare(text)


async def test_statements_of_the_upkeep_can_be_prepared(connection: Connection) -> None:
    found = templates("operations/history.sql")
    variables = {
        "month": "unified_history_2024_06",
        "begins_at": "2024-06-01 UTC",
        "ends_at": "2024-07-01 UTC",
        "unit": "day",
        "table": "unified_history_2024_06_new",
    }
    await connection.execute("SELECT create_history_partition('2024-06-01')")
    await connection.execute(found["create_thinned"].compose(**variables).text)

    for template in found.values():
        await connection.prepare(template.compose(**variables).text)


def test_missing_variable_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="is undefined"):
        templates("read/data.sql")["first_page"].compose(limit=50)


def test_values_are_parameters_in_order() -> None:
    case = variables(Selection(), ("sources", "text"))
    statement = templates("read/data.sql")["first_page"].compose(**case, offset=True, total=None, limit=50)

    values = statement.values({"sources": ["csv"], "text": "%btc%", "offset": 7})

    assert statement.names == ("sources", "text", "offset")
    assert values == [["csv"], "%btc%", 7]
    assert "btc" not in statement.text
