"""Describes a query of the data: its filters, order, fields and moment."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import msgspec

# The fields of a row in the order of the API, with the types of their values in a sort key. /data can be
# sorted by each of them.
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
# Fields that a row has only if the query names them.
ON_REQUEST = ("rank_observed_at", "listed_at", "quoted_in")
# Fields that are never null.
_REQUIRED = frozenset({"source", "source_id", "observed_at", "first_seen_at", "updated_at"})


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

    def values(self) -> dict[str, Any]:
        """The conditions that are set, with the values that the statements compare with."""
        found = {
            name: value for name, value in msgspec.structs.asdict(self).items() if value not in ((), None)
        }
        if self.symbols:
            folded = _folded(found.pop("symbols"))
            # A single symbol has its own condition, because an index orders the rows of one symbol by rank.
            found |= {"symbol": folded[0]} if len(folded) == 1 else {"symbols": folded}
        if self.text is not None:
            found["text"] = _pattern(self.text)
        return found


CONDITIONS = (*Filters.__struct_fields__, "symbol")
# Few rows meet one of these conditions, so PostgreSQL should begin with it.
_SELECTIVE = frozenset({"ids", "assets", "symbol", "symbols", "text"})


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows a query selects, their order, their fields (in the order of `in_order`), and the moment.

    `sort` is a field, with `-` in front for descending order. Nulls come last in both directions. source and
    source_id break ties, so the order is total; of equal ranks, listed rows come before delisted ones, and
    those before rows of archives. `as_of` selects the newest record of each coin at that
    moment, not the current record. Then only the order by source is fast: any other order reads every coin.
    """

    filters: Filters = Filters()
    sort: str = "rank"
    fields: tuple[str, ...] = ()
    as_of: datetime | None = None

    @property
    def column(self) -> str:
        """The column to sort by. Raises ValueError if a row has no such field."""
        name = self.sort.removeprefix("-")
        if name not in FIELDS:
            raise ValueError(f"a row has no field {name!r}")
        return name

    @property
    def nullable(self) -> bool:
        """Whether the column to sort by may be null."""
        return self.column not in _REQUIRED

    @property
    def descending(self) -> bool:
        """Whether high values come first."""
        return self.sort.startswith("-")

    def values(self) -> dict[str, Any]:
        """The values for the statements, by name."""
        return {**self.filters.values(), "as_of": self.as_of}

    def variables(self) -> dict[str, Any]:
        """The variables for the templates of the statements."""
        given = self.filters.values().keys()
        # An index returns the rows of one symbol in order of rank: this condition needs no separation from
        # the order.
        ordered = {"symbol"} if self.sort == "rank" and self.as_of is None else set()
        return {
            **{condition: condition in given for condition in CONDITIONS},
            "as_of": self.as_of is not None,
            "column": self.column,
            "descending": self.descending,
            "fields": columns(self.fields),
            "selective": not _SELECTIVE.isdisjoint(given - ordered),
        }


def in_order(names: Sequence[str]) -> list[str]:
    """These fields in the order of the API; without names, all fields except ON_REQUEST."""
    return [name for name in (*FIELDS, *ON_REQUEST) if name in (names or FIELDS)]


def columns(names: Sequence[str]) -> str:
    """The list of these fields for a statement. Raises ValueError if a row has no such field."""
    if unknown := set(names).difference(FIELDS, ON_REQUEST):
        raise ValueError(f"a row has no field {min(unknown)!r}")
    return ", ".join(in_order(names))


def _folded(symbols: tuple[str, ...]) -> list[str]:
    # The index folds ASCII letters only (collation "C"), as bytes.lower does. Other letters are looked up in
    # both cases, unless a letter becomes several letters in the other case.
    found = set()
    for symbol in symbols:
        for case in (symbol, symbol.lower(), symbol.upper()):
            if len(case) == len(symbol):
                found.add(case.encode().lower().decode())
    return sorted(found)


# Escapes the special characters of LIKE.
_ESCAPED = str.maketrans({"\\": "\\\\", "%": "\\%", "_": "\\_"})


def _pattern(text: str) -> str:
    return f"%{text.translate(_ESCAPED)}%"
