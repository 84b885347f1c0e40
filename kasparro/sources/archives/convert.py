"""Rows to the lines of a COPY: for each file one converter, made for where its columns stand."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from operator import itemgetter
from typing import TypeVar
from zoneinfo import ZoneInfo

from kasparro.model.record import (
    NAME_LIMIT,
    RANK_LIMIT,
    SYMBOL_LIMIT,
    RejectedValue,
    check_id,
    check_not_negative,
    check_text,
    check_time,
    compose_id,
    copy_cell,
)
from kasparro.sources.archives.header_names import CURRENCIES, PEGGED
from kasparro.sources.archives.numbers import Kind, read_plain, read_plain_all
from kasparro.sources.archives.recognise import NUMBERS, Recognised, pair_of
from kasparro.sources.archives.text import fitted
from kasparro.sources.archives.times import Stamp, day_end, period_end, read_time

# The fields of each kind, in the order of the columns; together they are all of `VALUE_FIELDS`.
FIELDS = {kind: [field for field in NUMBERS if NUMBERS[field] == kind] for kind in NUMBERS.values()}
NULL = copy_cell(None)
_ALL = ("id", "symbol", "name", "currency", "rank", "time", "closed_at", *NUMBERS)

_KINDS: tuple[Kind, ...] = ("money", "supply", "percent")

# What stands for no symbol and no id. Words are left out: NULL and NAN are symbols of real coins.
_NO_COIN = frozenset({"", "-", "--", "?", "n/a"})

# What was read once is looked up from then on: supplies, coins and times come again and again. A bound on how
# many and on how long a text is kept bounds the memory.
KNOWN = 50_000
KNOWN_LENGTH = 200

_One = Callable[[list[str]], tuple[str, str]]
_Many = Callable[[Sequence[list[str]]], tuple[list[str], list[str]] | None]
_Cells = TypeVar("_Cells", bound=str | tuple[str, ...])
_Value = TypeVar("_Value", bound=str | tuple[str, ...])


class _Known(dict[_Cells, _Value]):
    # Cells read before; new ones are read, and kept while there is room.
    def __init__(self, read: Callable[[_Cells], _Value]) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, cells: _Cells) -> _Value:
        value = self._read(cells)
        if len("".join(value)) <= KNOWN_LENGTH and len("".join(cells)) <= KNOWN_LENGTH:
            if len(self) >= KNOWN:
                self.clear()
            self[cells] = value
        return value


class Converter:
    """Reads the rows of one file by what was recognised; `now` bounds what has happened yet.

    `convert(row)` gives a row's key and content as `copy_lines` takes them, and may lengthen the row by
    one blank cell, which stands for every column that the file has not. It raises Refused where the row
    cannot be taken.

    `convert_all(rows)` gives the same for many rows at once, column by column, in half the time; None where
    one of them has to be looked at by itself, as every row is that cannot be taken.
    """

    def __init__(self, recognised: Recognised, now: datetime) -> None:
        self._recognised = recognised
        self._now = now
        self._notation = recognised.notation
        self._width = recognised.width
        self._zone: tzinfo = UTC if recognised.zone == "UTC" else ZoneInfo(recognised.zone)
        places = recognised.places
        absent = recognised.width
        self._must = places["price_usd"] if recognised.layout.kind == "candles" else None
        self.convert, self.convert_all = self._compiled(
            {field: places.get(field, absent) for field in _ALL}, places.get("clock")
        )

    def _compiled(self, at: Mapping[str, int], clock: int | None) -> tuple[_One, _Many]:
        # Everything a row needs stands in this frame: a look-up through `self` costs as much as a cell.
        width = self._width
        day = at["closed_at"] if "closed_at" in self._recognised.places else at["time"]
        rank = at["rank"]
        coin_cells = itemgetter(at["id"], at["symbol"], at["name"], at["currency"])
        money_cells, supply_cells, percent_cells = (
            itemgetter(*(at[field] for field in FIELDS[kind])) for kind in _KINDS
        )
        coins = _Known(self._read_coin)
        times = _Known(self._read_when)
        ranks = _Known(self._read_rank)
        money, supply, percent = (self._number_reader(kind) for kind in _KINDS)

        def convert(row: list[str]) -> tuple[str, str]:
            if len(row) != width:
                row = fitted(row, width)
                if len(row) != width:
                    raise RejectedValue(None, f"{len(row)} cells where the header has {width}")
            row.append("")
            try:
                when = times[row[day] if clock is None else f"{row[day]} {row[clock]}"]
                source_id, labels = coins[coin_cells(row)]
                values = [labels, ranks[row[rank]]]
                values += map(money, money_cells(row))
                values += map(supply, supply_cells(row))
                values += map(percent, percent_cells(row))
            except RejectedValue as refused:
                raise self._blamed(row, refused) from None
            if values[2] == NULL:
                self._without_price(row, values[2:8])
            return f"{when}\t{source_id}", "\t".join(values)

        def convert_all(rows: Sequence[list[str]]) -> tuple[list[str], list[str]] | None:
            if any(len(row) != width for row in rows):
                rows = [fitted(row, width) for row in rows]
                if any(len(row) != width for row in rows):
                    return None
            columns = [*zip(*rows, strict=True), ("",) * len(rows)]
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
                self._must is not None or any(set(row) == {NULL} for row in zip(*figures[:6], strict=True))
            ):
                return None
            keys = map("\t".join, zip(whens, ids, strict=True))
            return [*keys], [*map("\t".join, zip(labels, ranked, *figures, strict=True))]

        return convert, convert_all

    def _amounts(self, cells: Sequence[str], read: Callable[[str], str]) -> list[str]:
        values = read_plain_all(cells) if self._notation.decimal == "." else None
        return [*map(read, cells)] if values is None else [value or NULL for value in values]

    def _number_reader(self, kind: Kind) -> Callable[[str], str]:
        plain = self._notation.decimal == "."
        signed = kind == "percent"

        def read(text: str) -> str:
            if not text:
                return NULL
            value = read_plain(text) if plain else None
            if value is None or (value[0] == "-" and not signed):
                return self._read_number(kind, "", text)
            return value

        # Amounts of money hardly ever come again, so looking for them costs more than reading them.
        return read if kind == "money" else _Known(read).__getitem__

    def _without_price(self, row: Sequence[str], figures: Sequence[str]) -> None:
        if self._must is not None:
            raise RejectedValue("price_usd", f"no close: {row[self._must].strip()!r}")
        if all(figure == NULL for figure in figures):
            raise RejectedValue(None, "none of its cells holds a figure")

    def _blamed(self, row: Sequence[str], refused: RejectedValue) -> RejectedValue:
        # A number reader serves many columns; which of them it was is found out only when one failed.
        if refused.field:
            return refused
        for field, kind in NUMBERS.items():
            place = self._recognised.places.get(field)
            if place is not None:
                try:
                    self._read_number(kind, field, row[place])
                except RejectedValue as named:
                    return named
        return refused

    def _read_number(self, kind: Kind, field: str, text: str) -> str:
        value = self._notation.read(text, field, kind)
        return copy_cell(value if kind == "percent" else check_not_negative(value, field))

    def _read_rank(self, text: str) -> str:
        value = self._notation.read(text, "rank", "supply")
        if value is not None and (not value.isdigit() or not 0 < int(value) <= RANK_LIMIT):
            raise RejectedValue("rank", f"not a rank: {text[:60]!r}")
        return copy_cell(value)

    def _read_coin(self, cells: tuple[str, ...]) -> tuple[str, str]:
        told_id, symbol, name, currency = (cell.strip() for cell in cells)
        if currency:
            self._expect_dollars(currency.upper())
        symbol, quote = pair_of(symbol, self._recognised.divided, glued=self._recognised.glued)
        if quote is not None:
            self._expect_dollars(quote)
        if self._recognised.coin is not None:
            coin = self._recognised.coin
            return _coin_cells(coin.source_id, coin.symbol or "", coin.name or "")
        symbol, name = (("" if text.lower() in _NO_COIN else text) for text in (symbol, name))
        if told_id.lower() not in _NO_COIN:
            source_id = check_id(told_id)
        elif symbol or name:
            source_id = compose_id(symbol, name)
        else:
            raise RejectedValue("id", "empty")
        return _coin_cells(source_id, symbol, name)

    def _expect_dollars(self, currency: str) -> None:
        if currency != "USD" and not (self._recognised.pegged and currency in PEGGED):
            if currency.lower() in CURRENCIES:
                raise RejectedValue("currency", f"in {currency}, not USD")
            # Rejects are counted by what stands before the colon, so no text of a file may stand there.
            raise RejectedValue("currency", f"not in USD: {currency[:20]!r}")

    def _read_when(self, text: str) -> str:
        recognised = self._recognised
        stamp = recognised.day or read_time(
            text, recognised.order, "observed_at", self._zone, recognised.epoch
        )
        return check_time(self._ended(stamp), "observed_at", self._now).isoformat(" ")

    def _ended(self, stamp: Stamp) -> datetime:
        recognised = self._recognised
        if (
            recognised.layout.kind != "candles"
            or "closed_at" in recognised.places
            or recognised.period is None
        ):
            at = day_end(stamp)
            if at == stamp.at:
                return at
        else:
            at = period_end(stamp, recognised.period)
        if at > self._now:
            raise RejectedValue("observed_at", f"its period is not over yet: {at.isoformat()}")
        return at


def _coin_cells(source_id: str, symbol: str, name: str) -> tuple[str, str]:
    # The id, and symbol and name as they stand in a line.
    labels = (
        _encodable(check_text(symbol, "symbol", SYMBOL_LIMIT), "symbol"),
        _encodable(check_text(name, "name", NAME_LIMIT), "name"),
    )
    return copy_cell(_encodable(source_id, "id")), "\t".join(copy_cell(text or None) for text in labels)


def _encodable(text: str, field: str) -> str:
    # Bytes that are not of the file's encoding came as surrogates, which no UTF-8 can hold.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RejectedValue(field, "holds bytes that are not of the file's encoding") from None
    return text
