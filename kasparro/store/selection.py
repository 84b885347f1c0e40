"""Which rows of the data a query selects, in which order, with which fields, and of which moment."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import msgspec

# The fields that /data can be sorted by, in the order of the contract, and the types of their values in a
# sort key.
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
# Fields that a row has only on request.
ON_REQUEST = ("rank_observed_at",)
# Fields that are never null.
_REQUIRED = frozenset({"source", "source_id", "observed_at", "first_seen_at", "updated_at"})


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """The conditions of a selection; without any, all rows are selected.

    Bounds are inclusive. A row without a value is in no range.
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

    def values(self) -> dict[str, Any]:
        """The value that the statements compare with, for each condition."""
        found = {
            name: value for name, value in msgspec.structs.asdict(self).items() if value not in ((), None)
        }
        if self.symbols:
            folded = _folded(found.pop("symbols"))
            # An index has the rows of one symbol in the order by rank.
            found |= {"symbol": folded[0]} if len(folded) == 1 else {"symbols": folded}
        if self.text is not None:
            found["text"] = _pattern(self.text)
        return found


CONDITIONS = (*Filters.__struct_fields__, "symbol")
# Conditions that few rows meet, so that PostgreSQL should begin with them.
_SELECTIVE = frozenset({"ids", "assets", "symbol", "symbols", "text"})


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows, in what order, with which of their fields (as `in_order` gives them), and of what moment.

    `sort` is a field, with `-` in front for descending order. Rows without a value come last in both
    directions, and source and source_id break ties, so the order is total. `as_of` selects the newest record
    of each coin at that moment in place of the current one; then only the order by source reads no more coins
    than it returns.
    """

    filters: Filters = Filters()
    sort: str = "rank"
    fields: tuple[str, ...] = ()
    as_of: datetime | None = None

    @property
    def column(self) -> str:
        """The sorted column. Raises ValueError if it is no field of a row."""
        name = self.sort.removeprefix("-")
        if name not in FIELDS:
            raise ValueError(f"no field of a row: {name!r}")
        return name

    @property
    def nullable(self) -> bool:
        """Whether the sorted column may be null."""
        return self.column not in _REQUIRED

    @property
    def descending(self) -> bool:
        """Whether high values come first."""
        return self.sort.startswith("-")

    def values(self) -> dict[str, Any]:
        """The named values of the statements for this selection."""
        return {**self.filters.values(), "as_of": self.as_of}

    def variables(self) -> dict[str, Any]:
        """The variables of the templates for this selection."""
        given = self.filters.values().keys()
        # One symbol in the order by rank is what its index serves.
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
    """These fields in the order of the contract; without names, all but those on request."""
    return [name for name in (*FIELDS, *ON_REQUEST) if name in (names or FIELDS)]


def columns(names: Sequence[str]) -> str:
    """The list of these fields for a statement. Raises ValueError if one is no field of a row."""
    if unknown := set(names).difference(FIELDS, ON_REQUEST):
        raise ValueError(f"no field of a row: {min(unknown)!r}")
    return ", ".join(in_order(names))


def _folded(symbols: tuple[str, ...]) -> list[str]:
    # The index folds ASCII letters only (collation "C"), as bytes.lower does. Other letters are looked up in
    # both cases, unless the other case is more than one letter.
    found = set()
    for symbol in symbols:
        for case in (symbol, symbol.lower(), symbol.upper()):
            if len(case) == len(symbol):
                found.add(case.encode().lower().decode())
    return sorted(found)


# Escapes what LIKE would take for a wildcard.
_ESCAPED = str.maketrans({"\\": "\\\\", "%": "\\%", "_": "\\_"})


def _pattern(text: str) -> str:
    return f"%{text.translate(_ESCAPED)}%"
