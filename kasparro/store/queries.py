"""Reads /data and /assets by page and by row, as text that PostgreSQL has formatted."""

from collections.abc import Sequence
from datetime import datetime

import asyncpg
import msgspec

from kasparro.store import cursors
from kasparro.store.cursors import CursorPosition
from kasparro.store.pool import Connection
from kasparro.store.row_counts import Totals
from kasparro.store.selection import Selection, columns
from kasparro.store.sql import templates

_SQL = templates("read/data.sql")


class Page(msgspec.Struct, frozen=True):
    """A page.

    `json` has its rows as objects separated by commas, `total` is the number of rows of the selection (None
    with `as_of`, because counting would read every coin's history), and `last` is the position of its last
    row (None if no row follows it). `version` is the data version of the server.
    """

    json: str
    total: int | None
    last: CursorPosition | None
    version: int


class Row(msgspec.Struct, frozen=True):
    """A row as a JSON object, and the data version that it was read at.

    For a moment before the coin's first record, there is the time of that record instead of the row.
    """

    line: str | None
    first_observed_at: datetime | None
    version: int


async def page(
    connection: Connection,
    totals: Totals,
    selection: Selection,
    *,
    limit: int,
    offset: int = 0,
    after: CursorPosition | None = None,
    slow: bool = True,
) -> Page:
    """The page at an offset, as the rows are now, or the page after a position, as they were at its version.

    `slow` says whether the connection is one of the slow pool. Raises as `cursors.next_page` does.
    """
    if after is None:
        found, total = await _first_page(connection, totals, selection, limit, offset)
        version, manual_edits = found["version"], found["manual_edits"]
    else:
        found = await cursors.next_page(connection, selection, limit, after, newest=totals.version, slow=slow)
        version, total, manual_edits = after.version, after.total, after.manual_edits
    totals.version = found["version"]
    last = None
    if found["key"] is not None:
        last = CursorPosition(
            version, total, found["value"], tuple(found["key"]), manual_edits, found["listing_state"]
        )
    return Page(found["lines"] or "", total, last, found["version"])


async def _first_page(
    connection: Connection, totals: Totals, selection: Selection, limit: int, offset: int
) -> tuple[asyncpg.Record, int | None]:
    values = selection.values()
    variables = selection.variables(values)
    values["offset"] = offset
    while True:
        needed = None if selection.as_of is not None else totals.needed(selection.filters)
        # The limit is in the text: for an unknown one, PostgreSQL plans for a tenth of the table.
        statement = _SQL["first_page"].compose(variables, limit=limit, offset=offset > 0, total=needed)
        (found,) = await connection.fetch(statement.text, *statement.values(values))
        if selection.as_of is not None:
            return found, None
        if (total := await totals.of(connection, selection.filters, found)) is not None:
            return found, total


async def row(
    connection: Connection,
    source: str,
    source_id: str,
    *,
    fields: Sequence[str] = (),
    as_of: datetime | None = None,
) -> Row | None:
    """One row as it is now or was at a moment; None if there is no such coin."""
    statement = _SQL["row"].compose(list="data", fields=columns(fields), as_of=as_of is not None)
    found = await connection.fetchrow(
        statement.text, *statement.values({"source": source, "source_id": source_id, "as_of": as_of})
    )
    return None if found is None else Row(**found)
