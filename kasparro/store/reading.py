"""Reads unified_data, in pages and row by row, as JSON that PostgreSQL wrote."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import msgspec

from kasparro.store.database import Connection
from kasparro.store.statements import compose, statements

_SQL = statements("read/data.sql")
_INSTANCE = statements("read/instance.sql")

# What /data can be sorted by: every field of a record, and the type its values have in a key.
FIELDS: Mapping[str, type] = MappingProxyType(
    {
        "source": str,
        "source_id": str,
        "asset": str,
        "symbol": str,
        "name": str,
        "rank": int,
        "price_usd": Decimal,
        "market_cap_usd": Decimal,
        "volume_24h_usd": Decimal,
        "circulating_supply": Decimal,
        "total_supply": Decimal,
        "max_supply": Decimal,
        "percent_change_1h": Decimal,
        "percent_change_24h": Decimal,
        "percent_change_7d": Decimal,
        "observed_at": datetime,
        "first_seen_at": datetime,
        "updated_at": datetime,
    }
)
_REQUIRED = frozenset({"source", "source_id", "observed_at", "first_seen_at", "updated_at"})

# Tables of the service, as /tables lists them.
TABLES = (
    "unified_data",
    "unified_history",
    "runs",
    "run_sources",
    "payloads",
    "rejects",
    "reject_counts",
    "checkpoints",
    "pages",
    "source_profiles",
    "api_calls",
    "instance",
    "schema_migrations",
)
# Counting a table up to this size takes a few milliseconds; a larger one's rows are estimated.
COUNTED_BYTES = 32 * 2**20


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows are asked for; an empty filter lets all through.

    Bounds belong to the range. A row without a value lies in no range.
    """

    sources: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    text: str | None = None
    rank_min: int | None = None
    rank_max: int | None = None
    price_usd_min: Decimal | None = None
    price_usd_max: Decimal | None = None
    market_cap_usd_min: Decimal | None = None
    market_cap_usd_max: Decimal | None = None
    volume_24h_usd_min: Decimal | None = None
    volume_24h_usd_max: Decimal | None = None
    updated_since: datetime | None = None

    def given(self) -> dict[str, Any]:
        """The filters that are not empty, each with the value that the statements compare with."""
        found = {
            name: value for name, value in msgspec.structs.asdict(self).items() if value not in ((), None)
        }
        if self.symbols:
            found["symbols"] = _spellings(self.symbols)
        if self.text is not None:
            found["text"] = _pattern(self.text)
        return found


# Filters that few rows pass, so that it is best to begin with them.
_SELECTIVE = frozenset({"ids", "assets", "symbols", "text"})


class Key(msgspec.Struct, frozen=True, array_like=True):
    """Where a row stands in an order: its value in the sorted column, then what makes it unique."""

    value: Any
    source: str
    source_id: str


class Rows(msgspec.Struct, frozen=True):
    """A page: its rows as JSON objects divided by commas, how many rows pass the filters in all, and the key
    of the last row here, None where no row follows it.
    """

    json: str
    total: int
    last: Key | None


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """One table: its rows (counted, or estimated where it is large), and its bytes with all its indexes."""

    name: str
    rows: int
    bytes: int
    estimated: bool


async def page(
    connection: Connection,
    *,
    filters: Filters,
    sort: str,
    limit: int,
    offset: int = 0,
    after: Key | None = None,
    fields: Sequence[str] = (),
) -> Rows:
    """The rows after an offset or after a key, in the order of `sort`: a field, with `-` from high to low.

    Rows without a value come last either way; ties are settled by source and source_id, so the order is
    total. `fields` are those that the rows have, all where none is named.
    """
    column = sort.removeprefix("-")
    down = sort.startswith("-")
    given = filters.given()
    conditions = {"down" if down else "up", *given}
    if not _SELECTIVE.isdisjoint(given):
        conditions.add("selective")
    if after is None:
        conditions |= {"paged", "headed"}
    elif after.value is None:
        conditions.add("tail")
    else:
        # The order by source is that of the key.
        conditions.add("by_key" if sort == "source" else "below" if down else "above")
        if column in _REQUIRED:
            conditions.add("headed")
    statement = compose(
        _SQL["page"], frozenset(conditions), (("column", _column(column)), ("fields", _columns(fields)))
    )
    (found,) = await connection.fetch(
        statement.text,
        *statement.values(
            {
                **given,
                "limit": limit,
                "offset": offset,
                "value": after and after.value,
                "last_source": after and after.source,
                "last_id": after and after.source_id,
            }
        ),
    )
    last = None if found["source"] is None else Key(found["value"], found["source"], found["source_id"])
    return Rows(found["lines"] or "", found["total"], last)


def key(sort: str, told: Any) -> Key:
    """A key as a cursor carried it, with the type of its sorted column restored.

    Raises msgspec.ValidationError where it does not fit.
    """
    found = msgspec.convert(told, Key)
    kind: Any = FIELDS[sort.removeprefix("-")]
    return Key(msgspec.convert(found.value, kind | None), found.source, found.source_id)


async def row(
    connection: Connection, source: str, source_id: str, *, fields: Sequence[str] = ()
) -> str | None:
    """One row as a JSON object; None where there is no such row."""
    statement = compose(_SQL["row"], identifiers=(("fields", _columns(fields)),))
    found: str | None = await connection.fetchval(
        statement.text, *statement.values({"source": source, "source_id": source_id})
    )
    return found


async def cursor_key(connection: Connection) -> bytes:
    """The key that signs this database's cursors."""
    found: str = await connection.fetchval(_INSTANCE["cursor_key"])
    return found.encode()


async def tables(connection: Connection) -> list[Table]:
    """The service's tables in the order of `TABLES`; those that are not there yet are left out."""
    statement = compose(_INSTANCE["tables"])
    found = []
    for name, size, estimate in await connection.fetch(statement.text, *statement.values({"names": TABLES})):
        estimated = size > COUNTED_BYTES
        count = compose(_INSTANCE["count"], identifiers=(("table", name),))
        rows = estimate if estimated else await connection.fetchval(count.text)
        found.append(Table(name=name, rows=rows, bytes=size, estimated=estimated))
    return found


def _column(name: str) -> str:
    if name not in FIELDS:
        raise ValueError(f"no field of a record: {name!r}")
    return name


def _columns(names: Sequence[str]) -> str:
    for name in names:
        _column(name)
    return ", ".join(name for name in FIELDS if not names or name in names)


def _spellings(symbols: tuple[str, ...]) -> list[str]:
    # The index folds ASCII letters alone (collation "C"), as bytes.lower does; a letter beyond them is
    # looked for in both its cases, unless the other case is not a single letter.
    found = set()
    for symbol in symbols:
        for spelling in (symbol, symbol.lower(), symbol.upper()):
            if len(spelling) == len(symbol):
                found.add(spelling.encode().lower().decode())
    return sorted(found)


# Escapes what LIKE would take for a wildcard.
_PLAIN = str.maketrans({"\\": "\\\\", "%": "\\%", "_": "\\_"})


def _pattern(text: str) -> str:
    return f"%{text.translate(_PLAIN)}%"
