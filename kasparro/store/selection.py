"""Describes a query of /data or /assets: its filters, order, fields and moment."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from kasparro.store.sql import Variables

# The fields of a row of /data in the order of the API, with the types of their values in a sort key. A list
# can be sorted by each of them.
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
# Fields that a row of /data has only if the query names them.
ON_REQUEST = ("rank_observed_at", "listed_at", "quoted_in")
# The same for /assets.
ASSET_FIELDS: Mapping[str, type] = MappingProxyType(
    {
        "asset": str,
        "symbol": str,
        "name": str,
        "rank": int,
        "price_usd": Decimal,
        "price_spread_percent": Decimal,
        "source_count": int,
        "diverging": bool,
        "market_cap_usd": Decimal,
        "volume_24h_usd": Decimal,
        "circulating_supply": Decimal,
        "total_supply": Decimal,
        "max_supply": Decimal,
        "percent_change_1h": Decimal,
        "percent_change_24h": Decimal,
        "percent_change_7d": Decimal,
        "observed_at": datetime,
        "oldest_observed_at": datetime,
    }
)


class RowList(msgspec.Struct, frozen=True, kw_only=True):
    """A list of rows that the API serves; LISTS in sql/macros/columns.sql has its table and columns.

    `texts` are the fields that are text, and `required` those that are never null. `key` is the first field
    of the rows' key: the order by it is the order of the key. `conditions` are the filters that the rows can
    have.
    """

    name: Literal["data", "assets"]
    fields: Mapping[str, type]
    on_request: tuple[str, ...]
    texts: frozenset[str]
    required: frozenset[str]
    key: str
    conditions: tuple[str, ...]


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """The conditions of a selection. Without conditions, all rows are selected.

    Bounds are inclusive. A row whose value is null is in no range. Rows of a source without a list are
    neither listed nor delisted.
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
    listed: bool | None = None
    listed_since: datetime | None = None
    diverging: bool | None = None
    source_count_min: int | None = None

    def values(self) -> dict[str, Any]:
        """The conditions that are set, with the values that the statements compare with."""
        found = {
            name: value
            for name, value in zip(self.__struct_fields__, msgspec.structs.astuple(self), strict=True)
            if value is not None and value != ()
        }
        if self.symbols:
            folded = _folded(found.pop("symbols"))
            # A single symbol has its own condition, because an index orders the rows of one symbol by rank.
            found |= {"symbol": folded[0]} if len(folded) == 1 else {"symbols": folded}
        if self.text is not None:
            found["text"] = _pattern(self.text)
        return found


CONDITIONS = (*Filters.__struct_fields__, "symbol")
_ONLY_ASSETS = ("diverging", "source_count_min")
_ONLY_DATA = ("sources", "ids", "updated_since", "listed_since")
DATA = RowList(
    name="data",
    fields=FIELDS,
    on_request=ON_REQUEST,
    texts=frozenset({"source", "source_id", "asset", "symbol", "name", "quoted_in"}),
    required=frozenset({"source", "source_id", "observed_at", "first_seen_at", "updated_at"}),
    key="source",
    conditions=tuple(name for name in CONDITIONS if name not in _ONLY_ASSETS),
)
ASSETS = RowList(
    name="assets",
    fields=ASSET_FIELDS,
    on_request=(),
    texts=frozenset({"asset", "symbol", "name"}),
    required=frozenset({"asset", "source_count", "diverging"}),
    key="asset",
    conditions=tuple(name for name in CONDITIONS if name not in _ONLY_DATA),
)
# Few rows meet one of these conditions, so PostgreSQL should begin with it.
_SELECTIVE = frozenset({"ids", "assets", "symbol", "symbols", "text", "diverging"})


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows of a list a query selects, their order, their fields, and the moment.

    `sort` is a field, with `-` in front for descending order. Nulls come last in both directions. The key
    breaks ties, so the order is total; of equal ranks, listed rows come before delisted ones, and
    those before rows of archives. `as_of` selects the newest record of each coin at that
    moment, not the current record. Then only the order by source is fast: any other order reads every coin.
    """

    filters: Filters = Filters()
    sort: str = "rank"
    fields: tuple[str, ...] = ()
    as_of: datetime | None = None
    rows: RowList = DATA

    @property
    def column(self) -> str:
        """The column to sort by. Raises ValueError if a row has no such field."""
        name = self.sort.removeprefix("-")
        if name not in self.rows.fields:
            raise ValueError(f"a row has no field {name!r}")
        return name

    @property
    def nullable(self) -> bool:
        """Whether the column to sort by may be null."""
        return self.column not in self.rows.required

    @property
    def descending(self) -> bool:
        """Whether high values come first."""
        return self.sort.startswith("-")

    @property
    def shown(self) -> list[str]:
        """The fields that are shown, in the order of the API."""
        return in_order(self.fields, self.rows)

    def values(self) -> dict[str, Any]:
        """The values for the statements, by name."""
        return {**self.filters.values(), "as_of": self.as_of}

    def variables(self, values: Mapping[str, Any] | None = None) -> Variables:
        """The variables for the templates of the statements; `values` are those of `values()`, if known."""
        given = tuple(self.values() if values is None else values)
        return _variables(self.rows.name, given, self.sort, self.fields, self.as_of is not None)


# Most requests have the same few kinds of selections; to list the variables takes as long as half a page.
@lru_cache(maxsize=1_024)
def _variables(
    name: Literal["data", "assets"], given: tuple[str, ...], sort: str, fields: tuple[str, ...], as_of: bool
) -> Variables:
    rows = DATA if name == "data" else ASSETS
    selection = Selection(sort=sort, rows=rows)
    # An index returns the rows of one symbol in order of rank: this condition needs no separation from the
    # order.
    ordered = {"symbol"} if sort == "rank" and not as_of else set()
    found = {
        **{condition: condition in given for condition in CONDITIONS},
        "list": name,
        "as_of": as_of,
        "column": selection.column,
        "descending": selection.descending,
        "fields": columns(fields, rows),
        "selective": not _SELECTIVE.isdisjoint({*given} - ordered),
    }
    return frozenset(found.items())


def in_order(names: Sequence[str], rows: RowList = DATA) -> list[str]:
    """These fields in the order of the API; without names, all fields except those on request."""
    return [name for name in (*rows.fields, *rows.on_request) if name in (names or rows.fields)]


def columns(names: Sequence[str], rows: RowList = DATA) -> str:
    """The list of these fields for a statement. Raises ValueError if a row has no such field."""
    if unknown := set(names).difference(rows.fields, rows.on_request):
        raise ValueError(f"a row has no field {min(unknown)!r}")
    return ", ".join(in_order(names, rows))


def _folded(symbols: tuple[str, ...]) -> list[str]:
    # The index folds ASCII letters only (collation "C"), as bytes.lower does. Other letters are looked up in
    # both cases, unless a letter becomes several letters in the other case.
    found = set()
    for symbol in symbols:
        if symbol.isascii():
            found.add(symbol.lower())
            continue
        for case in (symbol, symbol.lower(), symbol.upper()):
            if len(case) == len(symbol):
                found.add(case.encode().lower().decode())
    return sorted(found)


# Escapes the special characters of LIKE.
_ESCAPED = str.maketrans({"\\": "\\\\", "%": "\\%", "_": "\\_"})


def _pattern(text: str) -> str:
    return f"%{text.translate(_ESCAPED)}%"
