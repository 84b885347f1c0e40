"""The statements of `sql/`, and the combinations of variables in which templates are composed."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg

from kasparro.store.cursors import CursorPosition, attempts, kind_of
from kasparro.store.pool import Connection
from kasparro.store.selection import ASSETS, CONDITIONS, DATA, RowList, Selection
from kasparro.store.sql import folder, statements

SQL = Path(str(folder("read"))).parent
TEMPLATES = (
    "read/archives.sql",
    "read/assets.sql",
    "operations/history.sql",
    "operations/transfer.sql",
    "read/cursor.sql",
    "read/data.sql",
    "read/exports.sql",
    "read/history.sql",
    "read/runs.sql",
    "read/sparklines.sql",
    "read/tables.sql",
)
# Their statements need an extension; tests/store/test_citus.py executes them where it is.
CITUS = "operations/citus.sql"
FIXED = sorted(
    path
    for file in SQL.glob("*/*.sql")
    if (path := f"{file.parent.name}/{file.name}") not in {*TEMPLATES, CITUS}
    and file.parent.name not in {"macros", "migrations"}
)
# Each sort of each list with each of its conditions alone, with all of them, and with none.
LISTS = [
    (rows, f"{sign}{field}", given)
    for rows in (DATA, ASSETS)
    for field in rows.fields
    for sign in ("", "-")
    for given in [(), *((name,) for name in rows.conditions), rows.conditions]
]


def moments(rows: RowList) -> tuple[bool, ...]:
    """Whether a selection of the list may be of an earlier moment."""
    return (False, True) if rows is DATA else (False,)


def variables(selection: Selection, given: tuple[str, ...], as_of: bool = False) -> dict[str, Any]:
    """The variables of a selection with these conditions."""
    return (
        dict(selection.variables())
        | {name: name in given for name in CONDITIONS}
        | {"as_of": as_of, "selective": "text" in given}
    )


def first_pages() -> Iterator[dict[str, Any]]:
    """The variables of all first pages."""
    for rows, sort, given in LISTS:
        for as_of, offset, total in itertools.product(
            moments(rows), (False, True), (None, "inserts", "count")
        ):
            case = variables(Selection(rows=rows, sort=sort), given, as_of)
            yield case | {"offset": offset, "total": total, "limit": 50}


def next_pages() -> Iterator[dict[str, Any]]:
    """The variables of all pages after a cursor."""
    for rows, sort, given in LISTS:
        selection = Selection(rows=rows, sort=sort)
        for as_of, value in itertools.product(moments(rows), (None, 1)):
            if value is None and not selection.nullable:
                continue
            kind = kind_of(selection, CursorPosition(1, None, value, ("csv", "a"), 0, 2))
            case = variables(selection, given, as_of)
            for null_rows in attempts(selection, kind):
                yield case | {"position": kind, "null_rows": null_rows, "limit": 50}


def next_pages_of_snapshots() -> Iterator[dict[str, Any]]:
    """The variables of all pages after the cursor of an earlier version."""
    for found in next_pages():
        if not found["as_of"]:
            by_rank = found["column"] == "rank" and not found["descending"]
            yield found | {"bounded": by_rank and found["position"] == "value"}


def exports() -> Iterator[dict[str, Any]]:
    """The variables of all exports."""
    for rows, sort, given in LISTS:
        for as_of in moments(rows):
            yield variables(
                Selection(rows=rows, sort=sort, fields=(*rows.fields, *rows.on_request)), given, as_of
            )


async def create_staging(connection: "Connection | asyncpg.Connection[asyncpg.Record]") -> None:
    """Create the temporary tables that statements of loads and of the resolver use."""
    for staging in (
        "load/batch.sql",
        "load/settle.sql",
        "load/contracts.sql",
        "assets/consensus.sql",
        "assets/links.sql",
    ):
        await connection.execute(statements(staging)["staging"])
