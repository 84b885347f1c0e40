"""Reads unified_data, in pages and row by row, as JSON that PostgreSQL wrote."""

import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from functools import cache
from types import MappingProxyType
from typing import Any

import msgspec

from kasparro.store.database import Connection
from kasparro.store.statements import statements

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
    """Which rows are asked for; an empty filter lets all through."""

    sources: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    text: str | None = None


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


class Statement(msgspec.Struct, frozen=True):
    """SQL with numbered parameters, and the names of the values in their order."""

    text: str
    names: tuple[str, ...]

    def values(self, named: Mapping[str, Any]) -> list[Any]:
        """The values in the order of the parameters."""
        return [named[name] for name in self.names]


_OPTIONAL = re.compile(r"^.*/\* if (\w+) \*/[ ]*\n", re.MULTILINE)
_IDENTIFIER = re.compile(r':"(\w+)"')
_VALUE = re.compile(r"(?<!:):([a-z_]+)\b")


@cache
def compose(
    text: str, conditions: frozenset[str] = frozenset(), identifiers: tuple[tuple[str, str], ...] = ()
) -> Statement:
    """A statement for one case: without the lines whose `/* if x */` is not among `conditions`, with its
    identifiers in place and its values numbered.

    Identifiers and conditions come from fixed lists, so the cache is bounded; values never enter the text.
    """
    names: dict[str, int] = {}
    chosen = dict(identifiers)
    text = _OPTIONAL.sub(lambda line: line[0] if line[1] in conditions else "", text)
    text = _IDENTIFIER.sub(lambda match: chosen[match[1]], text)
    text = _VALUE.sub(lambda match: f"${names.setdefault(match[1], len(names) + 1)}", text)
    return Statement(text, tuple(names))


async def page(
    connection: Connection,
    *,
    filters: Filters,
    sort: str,
    limit: int,
    offset: int = 0,
    after: Key | None = None,
) -> Rows:
    """The rows after an offset or after a key, in the order of `sort`: a field, with `-` from high to low.

    Rows without a value come last either way; ties are settled by source and source_id, so the order is
    total.
    """
    column = sort.removeprefix("-")
    down = sort.startswith("-")
    conditions = {"down" if down else "up"}
    if filters.sources:
        conditions.add("sources")
    if filters.symbols:
        conditions.add("symbols")
    if filters.text is not None:
        conditions.add("pattern")
    if after is None:
        conditions |= {"paged", "headed"}
    elif after.value is None:
        conditions.add("tail")
    else:
        conditions.add("below" if down else "above")
        if column in _REQUIRED:
            conditions.add("headed")
    statement = compose(_SQL["page"], frozenset(conditions), (("column", _column(column)),))
    (found,) = await connection.fetch(
        statement.text,
        *statement.values(
            {
                "sources": filters.sources,
                "symbols": _spellings(filters.symbols),
                "pattern": _pattern(filters.text or ""),
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


async def row(connection: Connection, source: str, source_id: str) -> str | None:
    """One row as a JSON object; None where there is no such row."""
    statement = compose(_SQL["row"])
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
