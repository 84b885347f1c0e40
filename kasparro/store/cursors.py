"""Pages after a cursor: each shows the data version of the first page, whatever was committed since."""

from typing import Any

import asyncpg
import msgspec

from kasparro.errors import KasparroError
from kasparro.store.pool import Connection
from kasparro.store.selection import Selection
from kasparro.store.sql import statements, templates

_SQL = templates("read/cursor.sql")
_INSTANCE = statements("operations/instance.sql")

# After more versions than this, a hundred thousand changed rows may have to be searched for a page.
FAR_VERSIONS = 8


class CursorPosition(msgspec.Struct, frozen=True, array_like=True):
    """The position of a client in a list.

    `version` is the data version that the list shows, and `total` its number of rows (None with `as_of`).
    `value` and `key` are the sort key of the last row that the client has seen, and so is `listing_state` in
    the order by rank.
    `manual_edits` counts the data versions that were no batches: nobody saved what rows contained before.
    """

    version: int
    total: int | None
    value: Any
    key: tuple[str, ...]
    manual_edits: int
    listing_state: int


class CursorExpired(KasparroError):
    """The rows of the cursor's data version cannot be shown any more; the message is the reason."""


class CursorNeedsSlowPool(KasparroError):
    """So much was committed since the first page that this one may take long."""


class CursorAhead(KasparroError):
    """This server does not have the data version of the cursor, `version`."""

    def __init__(self, version: int) -> None:
        super().__init__(f"this server has not reached data version {version}")
        self.version = version


async def signing_key(connection: Connection) -> bytes:
    """The key that signs this database's cursors."""
    key: str = await connection.fetchval(_INSTANCE["cursor_key"])
    return key.encode()


def position(selection: Selection, decoded: Any) -> CursorPosition:
    """The position in a decoded cursor; the value gets the type of the sorted column.

    Raises msgspec.ValidationError if it does not fit.
    """
    found = msgspec.convert(decoded, CursorPosition)
    if found.value is None:
        return found
    kind = selection.rows.fields[selection.column]
    return msgspec.structs.replace(found, value=msgspec.convert(found.value, kind))


async def next_page(
    connection: Connection,
    selection: Selection,
    limit: int,
    after: CursorPosition,
    *,
    newest: int = 0,
    slow: bool,
) -> asyncpg.Record:
    """The page after a position, as the rows were at the version of the position.

    `newest` is the newest data version that an earlier page had: after a commit, a statement for the current
    version would read a page in vain. With `as_of`, the order by source continues whatever is committed,
    another order only until a commit.

    Raises CursorExpired; CursorAhead; CursorNeedsSlowPool if the page may take long and the connection is
    not one of the slow pool (`slow`).
    """
    values = selection.values()
    variables = selection.variables(values)
    kind = kind_of(selection, after)
    options = {"position": kind, "limit": limit}
    values |= {
        "version": after.version,
        "value": after.value,
        "last_state": after.listing_state,
        **{f"key_{number}": text for number, text in enumerate(after.key, 1)},
    }
    if selection.as_of is not None or newest <= after.version:
        for null_rows in attempts(selection, kind):
            statement = _SQL["next_page"].compose(variables, **options, null_rows=null_rows)
            (found,) = await connection.fetch(statement.text, *statement.values(values))
            if found["key"] is not None:
                break
        newest = found["version"]
        if newest == after.version:
            return found
        _check_reached(newest, after)
        if selection.as_of is not None:
            if selection.sort == selection.rows.key:
                return found
            raise CursorExpired(
                "the data has changed, and with as_of only the order by source continues then"
            )
    if not slow and newest - after.version > FAR_VERSIONS:
        raise CursorNeedsSlowPool("so much was committed since the first page that this one may take long")
    bounded = selection.sort == "rank" and after.value is not None
    statement = _SQL["next_page_of_snapshot"].compose(
        variables, **options, bounded=bounded, null_rows=selection.nullable
    )
    (found,) = await connection.fetch(statement.text, *statement.values(values))
    _check_reached(found["version"], after)
    if after.version < found["oldest_cursor_version"]:
        raise CursorExpired("its first page is too old")
    if after.manual_edits != found["manual_edits"]:
        raise CursorExpired("rows were changed manually, or by an older version of Kasparro")
    return found


def _check_reached(version: int, after: CursorPosition) -> None:
    if version < after.version:
        raise CursorAhead(after.version)


def kind_of(selection: Selection, after: CursorPosition) -> str:
    """What follows a position: the variable `position` of the templates."""
    if after.value is None:
        return "null"
    return "key" if selection.sort == selection.rows.key else "value"


def attempts(selection: Selection, kind: str) -> tuple[bool, ...]:
    """Whether to read rows without a value too (`null_rows`), by attempt, until a page is full.

    Most pages are full without them, which takes a tenth less time in PostgreSQL.
    """
    if not selection.nullable:
        return (False,)
    return (True,) if kind == "null" else (False, True)
