"""Rows to the lines of a COPY: for each file one converter, made for where its columns stand."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, tzinfo
from functools import partial
from operator import itemgetter
from zoneinfo import ZoneInfo

from kasparro.record import (
    NAME_LIMIT,
    RANK_LIMIT,
    SYMBOL_LIMIT,
    Refused,
    composed_id,
    copy_cell,
    identifier,
    label,
    moment,
    positive,
)
from kasparro.sources.archives.numbers import Kind
from kasparro.sources.archives.recognise import NUMBERS, Recognised, pair_of
from kasparro.sources.archives.times import Stamp, day_end, period_end, read_time

# The fields of each kind, in the order of the columns; together they are all of `VALUE_FIELDS`.
FIELDS = {kind: [field for field in NUMBERS if NUMBERS[field] == kind] for kind in NUMBERS.values()}
NULL = copy_cell(None)
_NO_MONEY = "\t".join([NULL] * len(FIELDS["money"]))
_NO_SUPPLY = "\t".join([NULL] * len(FIELDS["supply"]))

_KINDS: tuple[Kind, ...] = ("money", "supply", "percent")

# What stands for no symbol and no id. Words are left out: NULL and NAN are symbols of real coins.
_NO_COIN = frozenset({"", "-", "--", "?", "n/a"})

# What was read once is looked up from then on: supplies, coins and times come again and again. A bound on how
# many and on how long a text is kept bounds the memory.
KNOWN = 20_000
KNOWN_LENGTH = 200


class _Known(dict[str, str]):
    # Texts read before; a new one is read, and kept while there is room.
    def __init__(self, read: Callable[[str], str]) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, text: str) -> str:
        value = self._read(text)
        if len(text) <= KNOWN_LENGTH:
            if len(self) >= KNOWN:
                self.clear()
            self[text] = value
        return value


class _KnownCoins(dict[tuple[str, ...], str]):
    # The same for the cells that tell a coin.
    def __init__(self, read: Callable[[tuple[str, ...]], str]) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, cells: tuple[str, ...]) -> str:
        value = self._read(cells)
        if sum(map(len, cells)) <= KNOWN_LENGTH:
            if len(self) >= KNOWN:
                self.clear()
            self[cells] = value
        return value


class Converter:
    """Reads the rows of one file by what was recognised; `now` bounds what has happened yet."""

    def __init__(self, recognised: Recognised, now: datetime) -> None:
        self._recognised = recognised
        self._now = now
        self._notation = recognised.notation
        self._width = recognised.width
        self._zone: tzinfo = UTC if recognised.zone == "UTC" else ZoneInfo(recognised.zone)
        places = recognised.places
        # One blank cell more stands for every column that the file has not.
        absent = recognised.width
        self._coin_cells = _cells([places.get(field, absent) for field in ("id", "symbol", "name", "currency")])
        self._money_cells, self._supply_cells, self._percent_cells = (
            _cells([places.get(field, absent) for field in FIELDS[kind]]) for kind in _KINDS
        )
        self._rank = places.get("rank", absent)
        self._time = places.get("closed_at", places.get("time", absent))
        self._clock = places.get("clock")
        self._must = places["price_usd"] if recognised.layout.kind == "candles" else None
        self._known_coins = _KnownCoins(self._read_coin)
        self._known_times = _Known(self._read_when)
        self._known_ranks = _Known(self._read_rank)
        self._money, self._supply, self._percent = (
            _Known(partial(self._read_number, kind, "")).__getitem__ for kind in _KINDS
        )

    def convert(self, row: list[str]) -> tuple[str, str]:
        """A row's time and its other values, as `copy_line` takes them; the row gets one cell more.

        Raises Refused where the row cannot be taken.
        """
        if len(row) != self._width:
            raise Refused(None, f"{len(row)} cells where the header has {self._width}")
        row.append("")
        try:
            clock = self._clock
            when = self._known_times[row[self._time] if clock is None else f"{row[self._time]} {row[clock]}"]
            coin = self._known_coins[self._coin_cells(row)]
            rank = self._known_ranks[row[self._rank]]
            money = "\t".join(map(self._money, self._money_cells(row)))
            supplies = "\t".join(map(self._supply, self._supply_cells(row)))
            percents = "\t".join(map(self._percent, self._percent_cells(row)))
        except Refused as refused:
            raise self._blamed(row, refused) from None
        if money[0] == "\\":
            self._without_price(row, money, supplies)
        return when, f"{coin}\t{rank}\t{money}\t{supplies}\t{percents}"

    def _without_price(self, row: Sequence[str], money: str, supplies: str) -> None:
        if self._must is not None:
            raise Refused("price_usd", f"no close: {row[self._must].strip()!r}")
        if money == _NO_MONEY and supplies == _NO_SUPPLY:
            raise Refused(None, "none of its cells holds a figure")

    def _blamed(self, row: Sequence[str], refused: Refused) -> Refused:
        # A number reader serves many columns; which of them it was is found out only when one failed.
        if refused.field:
            return refused
        for field, kind in NUMBERS.items():
            place = self._recognised.places.get(field)
            if place is not None:
                try:
                    self._read_number(kind, field, row[place])
                except Refused as named:
                    return named
        return refused

    def _read_number(self, kind: Kind, field: str, text: str) -> str:
        value = self._notation.read(text, field, kind)
        return copy_cell(value if kind == "percent" else positive(value, field))

    def _read_rank(self, text: str) -> str:
        value = self._notation.read(text, "rank", "supply")
        if value is not None and (not value.isdigit() or not 0 < int(value) <= RANK_LIMIT):
            raise Refused("rank", f"not a rank: {text[:60]!r}")
        return copy_cell(value)

    def _read_coin(self, cells: tuple[str, ...]) -> str:
        told_id, symbol, name, currency = (cell.strip() for cell in cells)
        if currency and currency.upper() != "USD":
            raise Refused("currency", f"in {currency[:20]}, not USD")
        symbol, quote = pair_of(symbol)
        if quote not in {None, "USD"}:
            raise Refused("currency", f"in {quote}, not USD")
        symbol, name = (("" if text.lower() in _NO_COIN else text) for text in (symbol, name))
        if told_id.lower() not in _NO_COIN:
            source_id = identifier(told_id)
        elif symbol or name:
            source_id = composed_id(symbol, name)
        elif self._recognised.coin is not None:
            source_id = self._recognised.coin
        else:
            raise Refused("id", "empty")
        return "\t".join(
            (
                copy_cell(_encodable(source_id, "id")),
                copy_cell(_encodable(label(symbol, "symbol", SYMBOL_LIMIT), "symbol") or None),
                copy_cell(_encodable(label(name, "name", NAME_LIMIT), "name") or None),
            )
        )

    def _read_when(self, text: str) -> str:
        recognised = self._recognised
        stamp = recognised.day or read_time(text, recognised.order, "observed_at", self._zone)
        return moment(self._ended(stamp), "observed_at", self._now).isoformat(" ")

    def _ended(self, stamp: Stamp) -> datetime:
        recognised = self._recognised
        if recognised.layout.kind != "candles" or "closed_at" in recognised.places or recognised.period is None:
            at = day_end(stamp)
            if at == stamp.at:
                return at
        else:
            at = period_end(stamp, recognised.period)
        if at > self._now:
            raise Refused("observed_at", f"its period is not over yet: {at.isoformat()}")
        return at


def _cells(places: list[int]) -> Callable[[Sequence[str]], tuple[str, ...]]:
    return itemgetter(*places)


def _encodable(text: str, field: str) -> str:
    # Bytes that are not of the file's encoding came as surrogates, which no UTF-8 can hold.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused(field, "holds bytes that are not of the file's encoding") from None
    return text
