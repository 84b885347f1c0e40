"""Converts rows to lines of COPY text, with a converter made for the columns of one file."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from functools import partial
from operator import itemgetter
from typing import TypeVar
from zoneinfo import ZoneInfo

from kasparro.model.record import (
    NAME_LIMIT,
    RANK_LIMIT,
    SYMBOL_LIMIT,
    VALUE_FIELDS,
    RejectedValue,
    check_id,
    check_not_negative,
    check_text,
    check_time,
    compose_id,
    copy_cell,
)
from kasparro.sources.archives.detect import NUMBERS, Detection
from kasparro.sources.archives.known_coins import SYMBOL_SPELLINGS
from kasparro.sources.archives.numbers import NumberKind, read_plain, read_plain_all
from kasparro.sources.archives.text import trimmed
from kasparro.sources.archives.times import Stamp, day_end, read_time
from kasparro.sources.archives.vocabulary import CURRENCIES, PEGGED

# The numeric fields of each kind, in the order of `VALUE_FIELDS`.
FIELDS = {kind: [field for field in NUMBERS if NUMBERS[field] == kind] for kind in NUMBERS.values()}
NULL = copy_cell(None)
_COLUMN_FIELDS = ("id", "symbol", "name", "currency", "rank", "time", "closed_at", *NUMBERS)

_KINDS: tuple[NumberKind, ...] = ("money", "supply", "percent")

# Cells that mean no symbol or no id. Words are not among them: NULL and NAN are symbols of real coins.
_NO_COIN = frozenset({"", "-", "--", "?", "n/a"})

# Supplies, coins and times are often repeated, so their values are cached. These limits on the number and the
# length of entries limit the memory.
CACHE_ENTRIES = 50_000
CACHE_TEXT_LENGTH = 200

# The cells of many rows by column, all of the same length.
Columns = Sequence[Sequence[str]]
_One = Callable[[list[str]], tuple[str, str]]
_Many = Callable[[Columns], tuple[list[str], list[str]] | None]
_Cells = TypeVar("_Cells", bound=str | tuple[str, ...])
_Value = TypeVar("_Value", bound=str | tuple[str, ...])


class _Cache(dict[_Cells, _Value]):
    # The values of cells. Reads a cell that is not among them.
    def __init__(self, read: Callable[[_Cells], _Value]) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, cells: _Cells) -> _Value:
        value = self._read(cells)
        if len("".join(value)) <= CACHE_TEXT_LENGTH and len("".join(cells)) <= CACHE_TEXT_LENGTH:
            if len(self) >= CACHE_ENTRIES:
                self.clear()
            self[cells] = value
        return value


class Converter:
    """Converts the rows of one file with the detected format. Times after `now` are rejected.

    `convert(row)` returns a row's key and content as `copy_lines` takes them. It may append a blank cell to
    the row, which represents every column that the file does not have. It raises RejectedValue.

    `convert_columns(columns)` returns the same for many rows as wide as the header, in half the time, and
    `convert_all(rows)` for rows. They return None if a row needs `convert`, as every rejected row does.

    A row with a time, a coin and a price is accepted whatever its other cells hold: `invalid` has the fields
    and reasons of those that `convert` made null in its last row. `damaged` says that a number in that row
    has the sign of fractions between its thousands, as some spreadsheet programs leave it: then all its
    numbers are in doubt. `quoted_in` has the currencies of the prices converted so far.
    """

    def __init__(self, detection: Detection, now: datetime) -> None:
        self._detection = detection
        self._now = now
        self._notation = detection.notation
        self._width = detection.width
        self._zone = _zone(detection.zone)
        self._grid_zone = _zone(detection.grid.zone) if detection.grid is not None else UTC
        column_of = detection.column_of
        blank = detection.width
        self.invalid: Sequence[RejectedValue] = ()
        self.damaged = False
        self.quoted_in: set[str] = set()
        # `1.234.567` where points begin fractions, and then `1.234` may be 1234.
        sign = re.escape(detection.notation.decimal)
        self._grouped = re.compile(rf"\d{sign}\d{{3}}{sign}\d{{3}}(?!\d)", re.ASCII)
        self._group_or_fraction = re.compile(rf"(?<![\d.,])[1-9]\d{{0,2}}{sign}\d{{3}}(?![\d.,])", re.ASCII)
        self._required = column_of["price_usd"] if detection.layout.kind == "candles" else None
        self.convert, self.convert_columns = self._compiled(
            {field: column_of.get(field, blank) for field in _COLUMN_FIELDS}, column_of.get("clock")
        )

    def convert_all(self, rows: Sequence[list[str]]) -> tuple[list[str], list[str]] | None:
        """Convert many rows at once, if all are as wide as the header and none is rejected."""
        width = self._width
        if any(len(row) != width for row in rows):
            rows = [trimmed(row, width) for row in rows]
            if any(len(row) != width for row in rows):
                return None
        return self.convert_columns([*zip(*rows, strict=True)])

    def _compiled(self, at: Mapping[str, int], clock: int | None) -> tuple[_One, _Many]:
        # All that a row needs is a local variable: an attribute of `self` costs as much time as a cell.
        width = self._width
        day = at["closed_at"] if "closed_at" in self._detection.column_of else at["time"]
        rank = at["rank"]
        is_candles = self._detection.layout.kind == "candles"
        coin_cells = itemgetter(at["id"], at["symbol"], at["name"], at["currency"])
        money_cells, supply_cells, percent_cells = (
            itemgetter(*(at[field] for field in FIELDS[kind])) for kind in _KINDS
        )
        coins = _Cache(self._read_coin)
        times = _Cache(self._read_when)
        ranks = _Cache(self._read_rank)
        money, supply, percent = (self._number_reader(kind) for kind in _KINDS)

        def convert(row: list[str]) -> tuple[str, str]:
            if len(row) != width:
                row = trimmed(row, width)
                if len(row) != width:
                    raise RejectedValue(None, f"{len(row)} cells where the header has {width}")
            row.append("")
            self.invalid, self.damaged = (), False
            stamp = row[day] if clock is None else f"{row[day]} {row[clock]}"
            try:
                when = times[stamp]
                source_id, labels = coins[coin_cells(row)]
                values = [labels, ranks[row[rank]]]
                values += map(money, money_cells(row))
                values += map(supply, supply_cells(row))
                values += map(percent, percent_cells(row))
            except RejectedValue:
                when = times[stamp]
                source_id, content = self._without_invalid(row, at, coin_cells(row))
                return f"{when}\t{source_id}", content
            if values[2] == NULL:
                self._without_price(row, values[2:8])
            elif is_candles and values[2] != "0":
                values[3:5] = [NULL if value == "0" else value for value in values[3:5]]
            return f"{when}\t{source_id}", "\t".join(values)

        def convert_columns(columns: Columns) -> tuple[list[str], list[str]] | None:
            columns = [*columns, ("",) * len(columns[0])]
            stamps = (
                columns[day]
                if clock is None
                else map(" ".join, zip(columns[day], columns[clock], strict=True))
            )
            try:
                whens = [*map(times.__getitem__, stamps)]
                ids, labels = zip(
                    *map(coins.__getitem__, zip(*coin_cells(columns), strict=True)), strict=True
                )
                ranked = [*map(ranks.__getitem__, columns[rank])]
                figures = [self._amounts(column, money) for column in money_cells(columns)]
                figures += ([*map(supply, column)] for column in supply_cells(columns))
                figures += ([*map(percent, column)] for column in percent_cells(columns))
            except RejectedValue:
                return None
            if NULL in figures[0] and (
                self._required is not None
                or any(set(row) == {NULL} for row in zip(*figures[:6], strict=True))
            ):
                return None
            if is_candles and ("0" in figures[1] or "0" in figures[2]):
                figures[1:3] = (_known_only(figures[0], column) for column in figures[1:3])
            keys = map("\t".join, zip(whens, ids, strict=True))
            return [*keys], [*map("\t".join, zip(labels, ranked, *figures, strict=True))]

        return convert, convert_columns

    def _amounts(self, cells: Sequence[str], read: Callable[[str], str]) -> list[str]:
        values = read_plain_all(cells) if self._notation.decimal == "." else None
        if values is None:
            return [*map(read, cells)]
        return [value or NULL for value in values] if "" in values else values

    def _number_reader(self, kind: NumberKind) -> Callable[[str], str]:
        plain = self._notation.decimal == "."
        signed = kind == "percent"

        def read(text: str) -> str:
            if not text:
                return NULL
            value = read_plain(text) if plain else None
            if value is None or (value[0] == "-" and not signed):
                return self._read_number(kind, "", text)
            return value

        # Amounts of money are hardly ever repeated, so a cache would cost more than it saves.
        return read if kind == "money" else _Cache(read).__getitem__

    def _without_price(self, row: Sequence[str], figures: Sequence[str]) -> None:
        if self._required is not None:
            raise RejectedValue("price_usd", f"no close: {row[self._required].strip()!r}")
        if all(figure == NULL for figure in figures):
            raise RejectedValue(None, "none of its cells holds a figure")

    def _without_invalid(
        self, row: Sequence[str], at: Mapping[str, int], coin: tuple[str, ...]
    ) -> tuple[str, str]:
        # The id and the content of a row with cells that cannot be read, which become null.
        invalid: list[RejectedValue] = []
        source_id, labels = self._read_coin(coin, invalid)
        values = [_or_null(partial(self._read_rank, row[at["rank"]]), invalid)]
        for field in VALUE_FIELDS:
            read = partial(self._read_number, NUMBERS[field], field, row[at[field]])
            values.append(read() if field == "price_usd" else _or_null(read, invalid))
        self.damaged = any(
            self._grouped.search(row[at[error.field]]) for error in invalid if error.field in NUMBERS
        )
        price = row[at["price_usd"]]
        if self.damaged and self._group_or_fraction.search(price):
            raise RejectedValue("price_usd", f"a fraction or thousands, as in the same row: {price[:60]!r}")
        if values[1] == NULL:
            if self._required is None and all(figure == NULL for figure in values[1:7]):
                raise invalid[0]
            self._without_price(row, values[1:7])
        self.invalid = invalid
        return source_id, "\t".join([labels, *values])

    def _read_number(self, kind: NumberKind, field: str, text: str) -> str:
        value = self._notation.read(text, field, kind)
        return copy_cell(value if kind == "percent" else check_not_negative(value, field))

    def _read_rank(self, text: str) -> str:
        value = self._notation.read(text, "rank", "supply")
        if value is not None and (not value.isdigit() or not 0 < int(value) <= RANK_LIMIT):
            raise RejectedValue("rank", f"not a rank: {text[:60]!r}")
        return copy_cell(value)

    def _read_coin(
        self, cells: tuple[str, ...], invalid: list[RejectedValue] | None = None
    ) -> tuple[str, str]:
        coin_id, symbol, name, currency = (cell.strip() for cell in cells)
        if currency:
            self._expect_dollars(currency.upper())
        symbol, quote = self._detection.pairs.split(symbol)
        if quote is not None:
            self._expect_dollars(quote)
            symbol = SYMBOL_SPELLINGS.get(symbol.lower(), symbol)
        self.quoted_in.add(quote or currency.upper() or self._detection.quoted_in)
        if (coin := self._detection.coin) is not None:
            return _coin_cells(coin.source_id, coin.symbol or "", coin.name or "", invalid)
        symbol, name = (("" if text.lower() in _NO_COIN else text) for text in (symbol, name))
        if coin_id.lower() not in _NO_COIN:
            source_id = check_id(coin_id)
        elif symbol or name:
            # An id that is made of them is only as good as they are.
            return _coin_cells(compose_id(symbol, name), symbol, name, None)
        else:
            raise RejectedValue("id", "empty")
        return _coin_cells(source_id, symbol, name, invalid)

    def _expect_dollars(self, currency: str) -> None:
        if currency != "USD" and not (self._detection.accept_pegged and currency in PEGGED):
            if currency.lower() in CURRENCIES:
                raise RejectedValue("currency", f"in {currency}, not USD")
            # Rejects are counted by the text before the colon, so it must not contain text of the file.
            raise RejectedValue("currency", f"not in USD: {currency[:20]!r}")

    def _read_when(self, text: str) -> str:
        detection = self._detection
        stamp = detection.moment or read_time(
            text, detection.order, "observed_at", self._zone, detection.epoch
        )
        return check_time(self._end(stamp), "observed_at", self._now).isoformat(" ")

    def _end(self, stamp: Stamp) -> datetime:
        grid = self._detection.grid
        if grid is None:
            at = day_end(stamp, self._zone)
            if at == stamp.at:
                return at
        else:
            at = grid.close(stamp, self._grid_zone)
        if at > self._now:
            raise RejectedValue("observed_at", f"its period is not over yet: {at.isoformat()}")
        return at


def _known_only(prices: Sequence[str], figures: Sequence[str]) -> list[str]:
    # In a candle, a market cap or volume of 0 next to a price means that it is not known, or not yet.
    return [
        NULL if figure == "0" and price not in {"0", NULL} else figure
        for price, figure in zip(prices, figures, strict=True)
    ]


def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)


def _coin_cells(
    source_id: str, symbol: str, name: str, invalid: list[RejectedValue] | None
) -> tuple[str, str]:
    # The id, and symbol and name as COPY text. With `invalid`, bad ones become null and are added to it.
    labels = []
    for text, field, limit in ((symbol, "symbol", SYMBOL_LIMIT), (name, "name", NAME_LIMIT)):
        read = partial(_label, text, field, limit)
        labels.append(read() if invalid is None else _or_null(read, invalid))
    return copy_cell(_encodable(source_id, "id")), "\t".join(labels)


def _label(text: str, field: str, limit: int) -> str:
    return copy_cell(_encodable(check_text(text, field, limit), field) or None)


def _or_null(read: Callable[[], str], invalid: list[RejectedValue]) -> str:
    try:
        return read()
    except RejectedValue as error:
        invalid.append(error)
        return NULL


def _encodable(text: str, field: str) -> str:
    # Bytes that do not decode became surrogates, which UTF-8 cannot encode.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RejectedValue(field, "holds bytes that are not of the file's encoding") from None
    return text
