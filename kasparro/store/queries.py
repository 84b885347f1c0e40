"""Reads the data in pages, row by row and whole, as text that PostgreSQL wrote."""

import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Literal

import asyncpg
import msgspec

from kasparro.errors import KasparroError
from kasparro.store.pool import Connection
from kasparro.store.sql import compose, statements

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
# Fields that a row has only where they are asked for.
ON_REQUEST = ("rank_observed_at",)
_REQUIRED = frozenset({"source", "source_id", "observed_at", "first_seen_at", "updated_at"})

# How often the rows of whole sources are counted, at most while nobody moves the version by hand.
COUNTED_AGAIN_S = 60.0
FILTERS_REMEMBERED = 1_000

# Where a limit is put into a statement that was composed for all limits.
_LIMIT = "{limit}"

# Walks over more versions than this may have a hundred thousand changed rows to look through for a page.
FAR_VERSIONS = 8

# Rows that an export holds at once.
EXPORTED_AT_ONCE = 250

# Tables of the service, as /tables lists them.
TABLES = (
    "unified_data",
    "unified_data_versions",
    "unified_history",
    "insert_counters",
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
            spellings = _spellings(found.pop("symbols"))
            # The index has the rows of one in the order by rank.
            found |= {"symbol": spellings[0]} if len(spellings) == 1 else {"symbols": spellings}
        if self.text is not None:
            found["text"] = _pattern(self.text)
        return found


# Filters that few rows pass, so that it is best to begin with them.
_SELECTIVE = frozenset({"ids", "assets", "symbol", "symbols", "text"})


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows, in what order, which of their fields (as `in_order`), and of when.

    `sort` is a field, with `-` from high to low. Rows without a value come last either way; ties are settled
    by source and source_id, so the order is total. `as_of` asks for the newest record of each coin at that
    moment, in place of those of now; the order by source is the one that reads no more coins than it shows.
    """

    filters: Filters = Filters()
    sort: str = "rank"
    fields: tuple[str, ...] = ()
    as_of: datetime | None = None


class CursorPosition(msgspec.Struct, frozen=True, array_like=True):
    """Where a walk stands: the version of the data that it shows, how many rows it has in all (None with
    `as_of`), of the last row the value in the sorted column and what makes it unique, and how many versions
    were no batches, of which nobody kept what the rows said before.
    """

    version: int
    total: int | None
    value: Any
    source: str
    source_id: str
    manual_edits: int


class Rows(msgspec.Struct, frozen=True):
    """A page: its rows as JSON objects divided by commas, how many rows pass the filters in all (None with
    `as_of`, where counting would read every coin's history), and the place of the last row here, None where
    no row follows it.
    """

    json: str
    total: int | None
    last: CursorPosition | None


class CursorExpired(KasparroError):
    """What the rows of the walk said when it began cannot be told any more; the message says why."""


class CursorNeedsSlowPool(KasparroError):
    """So much was loaded since the walk began that its page may take long."""


class ReplicaBehind(KasparroError):
    """This replica has not yet come to the version of the data that the walk shows."""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """One table: its rows (counted, or estimated where it is large), and its bytes with all its indexes."""

    name: str
    rows: int
    bytes: int
    estimated: bool


class Totals:
    """How many rows pass a selection's filters, without counting them for every page.

    Whole sources are counted now and then. In between, their rows grow by what the batches say that they
    inserted; a version that no batch made has them counted again. What passes other filters is counted once
    a version.
    """

    def __init__(self) -> None:
        self._beyond: dict[str, int] = {}
        self._manual_edits = -1
        self._expires = float("-inf")
        self._filtered: OrderedDict[Filters, tuple[int, int]] = OrderedDict()

    def condition(self, filters: Filters) -> str:
        """What the page of a selection has to bring along for its total."""
        if filters == Filters(sources=filters.sources):
            return "summed"
        return "remembered" if filters in self._filtered else "counted"

    async def of(self, connection: Connection, filters: Filters, found: asyncpg.Record) -> int | None:
        """The total of a page that brought along what `condition` told; None where the data has moved on
        since, so that the page is to be read again.
        """
        if "inserted" in found:
            if found["manual_edits"] != self._manual_edits or time.monotonic() > self._expires:
                await self._count(connection)
            if found["manual_edits"] != self._manual_edits:
                return None
            inserted = msgspec.json.decode(found["inserted"] or b"{}", type=dict[str, int])
            sources = filters.sources or self._beyond | inserted
            return sum(self._beyond.get(source, 0) + inserted.get(source, 0) for source in set(sources))
        if "total" in found:
            self._filtered[filters] = found["version"], found["total"]
            if len(self._filtered) > FILTERS_REMEMBERED:
                self._filtered.popitem(last=False)
        version, total = self._filtered.get(filters, (None, 0))
        if version != found["version"]:
            self._filtered.pop(filters, None)
            return None
        return total

    async def _count(self, connection: Connection) -> None:
        rows = await connection.fetch(_SQL["rows"])
        self._beyond = {row["source"]: row["beyond"] for row in rows if row["source"] is not None}
        self._manual_edits = rows[0]["manual_edits"]
        self._expires = time.monotonic() + COUNTED_AGAIN_S


async def page(
    connection: Connection,
    totals: Totals,
    asked: Selection,
    *,
    limit: int,
    offset: int = 0,
    after: CursorPosition | None = None,
    slow: bool = True,
) -> Rows:
    """The rows after an offset, as they are now, or after a place, as they were when its walk began. A walk
    `as_of` a moment goes on in the order by source whatever is loaded, in another until something is.

    Raises CursorExpired and ReplicaBehind for a place whose version cannot be shown, and
    CursorNeedsSlowPool for one that may take long to go on from, if the connection is
    not of the slow pool (`slow`).
    """
    if after is None:
        found, total = await _counted(connection, totals, asked, limit, offset)
        version, manual_edits = found["version"], found["manual_edits"]
    else:
        found = await _onward(connection, asked, limit, after, slow=slow)
        version, total, manual_edits = after.version, after.total, after.manual_edits
    last = None
    if found["source"] is not None:
        last = CursorPosition(
            version, total, found["value"], found["source"], found["source_id"], manual_edits
        )
    return Rows(found["lines"] or "", total, last)


async def _counted(
    connection: Connection, totals: Totals, asked: Selection, limit: int, offset: int
) -> tuple[asyncpg.Record, int | None]:
    while True:
        case = {"headed"} | ({"offset"} if offset else set())
        if asked.as_of is not None:
            return await _read(connection, asked, case, limit=limit, offset=offset), None
        case.add(totals.condition(asked.filters))
        found = await _read(connection, asked, case, limit=limit, offset=offset)
        if (total := await totals.of(connection, asked.filters, found)) is not None:
            return found, total


async def _onward(
    connection: Connection, asked: Selection, limit: int, after: CursorPosition, *, slow: bool
) -> asyncpg.Record:
    case = set()
    if after.value is None:
        case.add("tail")
    else:
        # The order by source is that of the key.
        down = asked.sort.startswith("-")
        case.add("by_key" if asked.sort == "source" else "below" if down else "above")
        if asked.sort.removeprefix("-") in _REQUIRED:
            case.add("headed")
    place = msgspec.structs.asdict(after)
    values = {**place, "last_source": after.source, "last_id": after.source_id, "limit": limit}
    found = await _read(connection, asked, case, **values)
    if found["version"] < after.version:
        raise ReplicaBehind("this replica has not yet come to the version of the data that the walk shows")
    if found["version"] != after.version and asked.as_of is not None:
        if asked.sort != "source":
            raise CursorExpired(
                "the data has changed since, and as_of is walked through changes by source alone"
            )
    elif found["version"] != after.version:
        if not slow and found["version"] - after.version > FAR_VERSIONS:
            raise CursorNeedsSlowPool("so much was loaded since the walk began that its page may take long")
        case.add("walked")
        if asked.sort == "rank" and after.value is not None:
            case.add("bounded")
        found = await _read(connection, asked, case, **values)
        if after.version < found["oldest_cursor_version"]:
            raise CursorExpired("its walk began too long ago")
        if after.manual_edits != found["manual_edits"]:
            raise CursorExpired("rows were changed by hand since, or by an older version of this service")
    return found


async def _read(
    connection: Connection, asked: Selection, case: set[str], *, limit: int, **values: Any
) -> asyncpg.Record:
    conditions, identifiers, given = _case(asked)
    statement = compose(_SQL["page"], conditions | case, (*identifiers, ("limit", _LIMIT)))
    # The limit stands in the text: where it is not known, plans are made for a tenth of the table.
    text = statement.text.replace(_LIMIT, str(limit))
    (found,) = await connection.fetch(text, *statement.values({**values, **given}))
    return found


def _case(asked: Selection) -> tuple[frozenset[str], tuple[tuple[str, str], ...], dict[str, Any]]:
    # What makes a statement that of a selection: its conditions, identifiers and values.
    given = asked.filters.given()
    conditions = {
        *given,
        "down" if asked.sort.startswith("-") else "up",
        "now" if asked.as_of is None else "as_of",
    }
    ordered = {"symbol"} if asked.sort == "rank" and asked.as_of is None else set()
    if not _SELECTIVE.isdisjoint(given.keys() - ordered):
        conditions.add("selective")
    identifiers = (("column", _column(asked.sort.removeprefix("-"))), ("fields", _columns(asked.fields)))
    return frozenset(conditions), identifiers, {**given, "as_of": asked.as_of}


def place(sort: str, told: Any) -> CursorPosition:
    """A place as a cursor carried it, with the type of its sorted column restored.

    Raises msgspec.ValidationError where it does not fit.
    """
    found = msgspec.convert(told, CursorPosition)
    kind: Any = FIELDS[sort.removeprefix("-")]
    return msgspec.structs.replace(found, value=msgspec.convert(found.value, kind | None))


async def row(
    connection: Connection,
    source: str,
    source_id: str,
    *,
    fields: Sequence[str] = (),
    as_of: datetime | None = None,
) -> str | datetime | None:
    """One row as a JSON object, as it is now or was at a moment; for a moment before the first record of its
    coin, the time of that record; None where there is no such coin.
    """
    case = frozenset({"now" if as_of is None else "as_of"})
    statement = compose(_SQL["row"], case, (("fields", _columns(fields)),))
    found = await connection.fetchrow(
        statement.text, *statement.values({"source": source, "source_id": source_id, "as_of": as_of})
    )
    return None if found is None else found["line"] or found["first_observed_at"]


async def export(
    connection: Connection, asked: Selection, form: Literal["csv", "ndjson"], *, spreadsheet: bool = False
) -> AsyncGenerator[list[str], None]:
    """All rows of a selection as lines of text without their ends, `EXPORTED_AT_ONCE` at a time, all of one
    moment. PostgreSQL makes no more of them than are asked for. CSV for a spreadsheet has no formulas.
    """
    conditions, identifiers, given = _case(asked)
    statement = compose(_SQL[form], conditions | {"spreadsheet" if spreadsheet else "exact"}, identifiers)
    # A cursor lives in a transaction; its one statement sees one moment of the data.
    async with connection.transaction(readonly=True):
        cursor = await connection.cursor(statement.text, *statement.values(given))
        while rows := await cursor.fetch(EXPORTED_AT_ONCE):
            yield [row[0] for row in rows]


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


def in_order(names: Sequence[str]) -> list[str]:
    """The fields among these in the order of the contract; where none is named, all but those on request."""
    return [name for name in (*FIELDS, *ON_REQUEST) if name in (names or FIELDS)]


def _columns(names: Sequence[str]) -> str:
    if unknown := set(names).difference(FIELDS, ON_REQUEST):
        raise ValueError(f"no field of a record: {min(unknown)!r}")
    return ", ".join(in_order(names))


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
