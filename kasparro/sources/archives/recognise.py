"""What a file is: settled by its header, its name and its rows together before a row of it is loaded."""

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from hashlib import blake2b
from zoneinfo import ZoneInfo

import msgspec

from kasparro.model.record import LABELS, RejectedValue, slug
from kasparro.sources.archives.filename_hints import NO_PAIR, Named, named
from kasparro.sources.archives.files import ArchiveFile
from kasparro.sources.archives.header_names import (
    CLOCKS,
    COINS,
    CURRENCIES,
    FIAT,
    FIELD_OF,
    NAMES,
    PEGGED,
    SIGNS,
    TICKER_ROW,
    Heading,
    Layout,
    heading,
    layout_of,
)
from kasparro.sources.archives.numbers import Ambiguous, Kind, Notation, Sign, decimal_sign
from kasparro.sources.archives.overrides import NO_OVERRIDES, Coin, Field, Overrides
from kasparro.sources.archives.text import (
    Encoding,
    decoder,
    encoding_of,
    fitted,
    holds,
    rows_of,
    shown,
    text_codec,
    told_rows,
    windows,
)
from kasparro.sources.archives.times import (
    PERIODS,
    Epoch,
    Order,
    Stamp,
    day_order,
    epoch_unit,
    period,
    read_time,
)

# The fields that a description may name, as the vocabulary calls them.
TOLD = {field: field for field in Field.__args__ if field != "ignore"} | {  # type: ignore[attr-defined]
    "source_id": "id",
    "price_usd": "price",
    "observed_at": "time",
}
MONEY_FIELDS = frozenset({"price_usd", "market_cap_usd", "volume_24h_usd"})
# What gives way to a told field besides others of its own.
RIVALS = {"price": ("close",), "time": ("closed_at",), "volume_24h_usd": ("volume",)}
_SAID = "by its description"
_SYMBOL = re.compile(r"[A-Z0-9]{2,10}")
_DAY_NUMBER = re.compile(r"[34]\d{4}(?:\.\d+)?", re.ASCII)
_GLUED = re.compile(r"([A-Z0-9]{3,10}?)(USDT|USDC|FDUSD|BUSD|USD|EUR|GBP|JPY|KRW|TRY|BRL)")

# What stands between the two of a pair.
DIVIDERS = "/-_"
DELIMITERS = (",", ";", "\t", "|")
# A header stands at the top, below a title or a link at most.
HEADER_WITHIN = 20
TOP_CHARACTERS = 64 * 1024
SAMPLES = 3
STABLE = frozenset({"usdt", "usdc", "tether", "usd-coin", "usdt-tether", "usdc-usd-coin", "dai", "busd"})

# How each field of the record that is a number is written.
NUMBERS: dict[str, Kind] = {
    "price_usd": "money",
    "market_cap_usd": "money",
    "volume_24h_usd": "money",
    "circulating_supply": "supply",
    "total_supply": "supply",
    "max_supply": "supply",
    "percent_change_1h": "percent",
    "percent_change_24h": "percent",
    "percent_change_7d": "percent",
}


# What is no table for all its name, by its first bytes: what it is, and what to do.
NO_TABLES = (
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet: unpack it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old spreadsheet (.xls): save the sheet as CSV"),
    (b"BZh", "compressed by bzip2: unpack it, or pack it by gzip or zstd"),
    (b"\xfd7zXZ", "compressed by xz: unpack it, or pack it by gzip or zstd"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it"),
    (b"Rar!", "a RAR archive: unpack it"),
    (b"PAR1", "a Parquet file: write it as CSV"),
    (b"SQLite format 3", "a SQLite database: write its table as CSV"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file itself by git lfs pull"),
    (b"{", "JSON: write it as CSV"),
    (b"[{", "JSON: write it as CSV"),
    (b"[[", "JSON: write it as CSV"),
    (b"<", "a web page or XML: the download has failed, or needs to be saved as CSV"),
)


class FileRejected(Exception):
    """A file is not loaded at all; the text completes "FILE: ", `setting` is the line of a description that
    would settle what it left open."""

    def __init__(self, text: str, setting: str | None = None) -> None:
        super().__init__(text)
        self.setting = setting


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One column as it was understood: the field it goes to, or why to none, with some of its cells."""

    header: str
    field: str | None
    note: str | None = None
    samples: tuple[str, ...] = ()


class Recognised(msgspec.Struct, frozen=True, kw_only=True):
    """All that was settled about a file; what its rows are read by, and what `explain` shows.

    `places` gives the column of each field that is read. `coin` is the id for all rows where the file's name
    or its description tells it. `divided` holds the signs that divide its symbols where they are
    pairs (BTC/USD), `glued` says that they are pairs without a sign between (BTCUSD),
    `pegged` that coins made to be worth a dollar are taken for it.
    """

    encoding: Encoding
    delimiter: str
    header_row: int
    width: int
    layout: Layout
    columns: tuple[Column, ...]
    places: dict[str, int]
    decimal: Sign
    order: Order | None
    zone: str
    period: timedelta | None
    currency_by: str
    coin: Coin | None
    day: Stamp | None
    divided: str
    glued: bool
    pegged: bool
    epoch: Epoch | None
    epoch_unit: str | None
    coin_by: str
    notes: tuple[str, ...]

    @property
    def notation(self) -> Notation:
        """How its numbers are read."""
        return Notation(self.decimal)

    @property
    def lacks(self) -> tuple[str, ...]:
        """The labels that no row of it has: no column holds them, and no description gives them."""
        given = {*self.places}
        if self.coin is not None:
            # The one coin of a file outranks its columns.
            given -= {"symbol", "name"}
            given |= {field for field in ("symbol", "name") if getattr(self.coin, field) is not None}
        return tuple(field for field in LABELS if field not in given)

    @property
    def interpretation(self) -> str:
        """The same for files whose rows are read the same way."""
        settled = (
            self.encoding.codec,
            self.delimiter,
            self.header_row,
            self.width,
            self.layout.kind,
            self.places,
            self.decimal,
            self.order,
            self.zone,
            self.period,
            self.coin,
            self.day,
            self.divided,
            self.glued,
            self.pegged,
            self.epoch,
        )
        return blake2b(msgspec.json.encode(settled, order="deterministic"), digest_size=16).hexdigest()


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The rows looked at: their header, and whether they are all that the file has; `ticker` is what a line
    below the header tells all its columns to be about."""

    encoding: Encoding
    delimiter: str
    header_row: int
    header: list[str]
    layout: Layout
    rows: list[list[str]]
    whole: bool
    header_line: int | None
    ticker: str | None


async def sampled(file: ArchiveFile, said: Overrides = NO_OVERRIDES) -> Sample:
    """Look at a file: its beginning, and windows further on. Raises FileRejected where it is no table."""
    looked = windows(file)
    head = next(looked, None)
    if head is None or not head.content:
        raise FileRejected("it is empty, or nothing of it can be read")
    for magic, what in NO_TABLES:
        if head.content.startswith(magic):
            raise FileRejected(f"it is {what}")
    encoding = _encoding(head.content, said)
    try:
        text = decoder(encoding).decode(head.content, final=head.last)
    except UnicodeError as error:
        raise FileRejected(f"its bytes do not decode as {encoding.codec} ({error})") from None
    if text.count("\x00") * 20 > len(text):
        raise FileRejected("it is not text")
    delimiter, header_row, header, layout, rows, ticker = await _header(text, said)
    if not head.last and rows:
        rows.pop()
    _drop_trailing_blanks(header, rows)
    width = len(header)
    rows = [fitted(row, width) for row in rows]
    for window in looked:
        content = window.content[: len(window.content) // encoding.unit * encoding.unit]
        part = decoder(encoding if encoding.codec != "utf-16" else _marked(head.content)).decode(content)
        _, _, part = part.partition("\n")
        further = [row async for row in told_rows(part, delimiter)]
        # A window may begin or end within a row or a quoted cell: only what has the header's width counts.
        rows += [row for row in (fitted(row, width) for row in further[:-1]) if len(row) == width]
    return Sample(
        encoding=encoding,
        delimiter=delimiter,
        header_row=header_row,
        header=header,
        layout=layout,
        rows=rows,
        whole=head.last,
        ticker=ticker,
        header_line=await _line_of(text, header_row, delimiter) if header_row >= 0 else None,
    )


def _encoding(head: bytes, said: Overrides) -> Encoding:
    # By its description, else by its beginning.
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise FileRejected("it is UTF-32 by its byte order mark: save it as UTF-8")
    codec = text_codec(said.encoding) if said.encoding else None
    if codec is None:
        return encoding_of(head)
    if codec == "utf-16" and not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FileRejected(
            "it has no byte order mark of UTF-16",
            'encoding = "utf-16-le", or "utf-16-be", or the encoding that it really has',
        )
    return Encoding(codec)


def _drop_trailing_blanks(header: list[str], rows: Sequence[list[str]]) -> None:
    # A blank last header cell is a trailing delimiter and no more, if rows end before it or are blank there.
    if header[-1].strip():
        return
    shortest = min(map(len, rows), default=len(header))
    widest = max((_extent(row) for row in rows), default=0)
    while not header[-1].strip() and shortest < len(header) and widest < len(header):
        header.pop()


def _extent(row: Sequence[str]) -> int:
    # How many cells a row has up to the last one that is not empty.
    return next((count for count in range(len(row), 0, -1) if row[count - 1]), 0)


def _marked(head: bytes) -> Encoding:
    # The byte order that a mark at the beginning told holds for windows further on, which have none.
    return Encoding("utf-16-le" if head[:2] == b"\xff\xfe" else "utf-16-be")


async def _header(
    text: str, said: Overrides
) -> tuple[str, int, list[str], Layout, list[list[str]], str | None]:
    best: list[str] = []
    counts = {
        sign: sum(row.count(sign) for row in text[:8192].splitlines()[:HEADER_WITHIN]) for sign in DELIMITERS
    }
    delimiters = [said.delimiter] if said.delimiter else sorted(DELIMITERS, key=lambda sign: -counts[sign])
    if said.header is not None:
        layout = layout_of(headings_of(said.header, said))
        if layout is None:
            raise _no_header(said.header, said)
        rows = [row async for row in told_rows(text, delimiters[0])]
        return delimiters[0], -1, list(said.header), layout, rows, None
    for delimiter in delimiters:
        top = [row async for row in told_rows(text[:TOP_CHARACTERS], delimiter)][:HEADER_WITHIN]
        for position in range(len(top)):
            row, below, ticker = _unstacked(top, position)
            if len(row) <= 1 or not said.columns.keys() <= {cell_name(cell) for cell in row}:
                continue
            told = [*headings_of(row, said), *([TICKER_ROW] if ticker else [])]
            if (layout := layout_of(told)) is not None:
                rows = [row async for row in told_rows(text, delimiter)][position + below + 1 :]
                return delimiter, position + below, row, layout, rows, ticker
        if top and len(top[0]) > len(best):
            best = top[0]
    if missing := said.columns.keys() - {cell_name(cell) for cell in best}:
        some = shown(", ".join(cell_name(cell) for cell in best[:12]))
        raise FileRejected(f"no column {shown(min(missing))!r}, which its description names ({some[:120]})")
    raise _no_header(best, said)


def _unstacked(top: Sequence[list[str]], position: int) -> tuple[list[str], int, str | None]:
    # A header as it is, or one of three lines as yfinance writes it: `Price,Close,…`, `Ticker,BTC-USD,…` and
    # `Date,,…`. Gives the header, how many lines of it stand below its first, and the ticker.
    row = top[position]
    stack = top[position : position + 3]
    if [cells[0].strip().lower() for cells in stack[:2]] != ["price", "ticker"] or len(stack) < 3:
        return row, 0, None
    tickers = {cell.strip() for cell in stack[1][1:]} - {""}
    if len(tickers) != 1 or any(stack[2][1:]):
        some = shown(", ".join(sorted(tickers)))
        raise FileRejected(f"it holds several tickers side by side ({some[:60]}): write a file for each")
    return [stack[2][0], *row[1:]], 2, tickers.pop()


async def _line_of(text: str, header_row: int, delimiter: str) -> int | None:
    # The line that the header ends on; None where the file has none.
    rows = rows_of(text[:TOP_CHARACTERS], delimiter)
    async for row in rows:
        header_row -= holds(row)
        if header_row < 0:
            return rows.line_num
    return None


def cell_name(cell: str) -> str:
    """A header cell as a description names it."""
    return cell.replace("\ufeff", "").strip()


def headings_of(cells: Iterable[str], said: Overrides) -> list[Heading]:
    """What header cells say, where a description does not say it."""
    headings = []
    for cell in cells:
        field = said.columns.get(cell_name(cell))
        if field is None:
            headings.append(heading(cell))
        elif field == "ignore":
            headings.append(Heading("", "", None))
        else:
            currency = heading(cell).currency if field in MONEY_FIELDS else None
            headings.append(Heading(f"said {field}", NAMES[TOLD[field]][0], currency))
    return headings


def _no_header(cells: Sequence[str], said: Overrides) -> FileRejected:
    some = ", ".join(cell.strip() for cell in cells[:8])
    if len(cells) <= 1:
        return FileRejected(f"its header is one cell ({some[:60]!r}), no table")
    if any(_is_value(cell) for cell in cells):
        return FileRejected(
            f"no header was found; it begins with {some[:120]}", 'header = ["timestamp", "open", "high", …]'
        )
    fields = {FIELD_OF.get(told.base) for told in headings_of(cells, said)}
    price, time = 'columns."HEADER" = "price_usd"', 'columns."HEADER" = "observed_at"'
    if not fields - {None}:
        return FileRejected(f"none of its columns is known ({some[:120]})", f"{price}, and {time}")
    if not fields & {"price", "close"}:
        return FileRejected(f"none of its columns is known to hold a price ({some[:120]})", price)
    return FileRejected(f"its columns fit no layout ({some[:120]})", time)


def _is_value(cell: str) -> bool:
    # No name has digits and not a letter.
    return any(c.isdigit() for c in cell) and not any(c.isalpha() for c in cell)


def recognise(sample: Sample, name: str, now: datetime, said: Overrides = NO_OVERRIDES) -> Recognised:
    """Settle everything about a file. Raises FileRejected with the reason where something cannot be."""
    try:
        return _Recogniser(sample, named(name), now, said).settle()
    except Ambiguous as unsettled:
        raise FileRejected(str(unsettled), unsettled.setting) from None


class _Recogniser:
    # One file on its way to being understood.
    def __init__(self, sample: Sample, told: Named, now: datetime, said: Overrides) -> None:
        self.sample = sample
        self.told = told
        self.now = now
        self.said = said
        self.headings: list[Heading] = headings_of(sample.header, said)
        self.notes: list[str] = [sample.encoding.note] if sample.encoding.note else []
        self.why_not: dict[int, str] = {}

    def cells(self, column: int) -> Iterable[str]:
        return (row[column] for row in self.sample.rows if len(row) > column)

    def settle(self) -> Recognised:
        layout = self.sample.layout
        if self.said.period and layout.kind != "candles":
            layout = msgspec.structs.replace(layout, kind="candles")
        candidates = self._candidates(layout)
        glued = self._glued(candidates, layout)
        currency_by = self._choose_money(candidates, layout)
        places: dict[str, int] = {}
        for field in ("id", "symbol", "name", "currency", "rank", *NUMBERS):
            if candidates.get(field):
                places[field] = candidates[field][0]
        self._choose_id(candidates, places)
        self._choose_name(candidates, places)
        zone, order, stamps = self._choose_time(candidates, places)
        length = self._choose_period(layout, places, stamps)
        if length is not None and length != PERIODS["1d"] and "volume_24h_usd" in places:
            self.why_not[places.pop("volume_24h_usd")] = "the volume of a candle that is no day"
        coin = self._choose_coin(candidates, places, stamps)
        # Columns that are not loaded are written by the same hand, so they may tell as well.
        numeric = [places[field] for field in NUMBERS if field in places]
        numeric += [column for field in ("open", "high", "low") for column in candidates.get(field, [])]
        decimal = self.said.decimal or decimal_sign(
            (cell for column in numeric for cell in self.cells(column)), self.sample.delimiter
        )
        field_at = {column: field for field, column in places.items()}
        return Recognised(
            encoding=self.sample.encoding,
            delimiter=self.sample.delimiter,
            header_row=self.sample.header_row,
            width=len(self.sample.header),
            layout=layout,
            columns=tuple(
                Column(
                    header=shown(cell),
                    field=field_at.get(column),
                    note=self.why_not.get(column),
                    samples=tuple(_first(self.cells(column), SAMPLES)),
                )
                for column, cell in enumerate(self.sample.header)
            ),
            places=places,
            decimal=decimal,
            order=order,
            zone=zone,
            period=length,
            currency_by=currency_by,
            coin=coin,
            day=self._day() if "time" not in places and "closed_at" not in places else None,
            divided=self._divided(candidates),
            glued=glued,
            pegged=self.said.currency == "USD",
            epoch=self.said.epoch,
            epoch_unit=self._epoch_unit(places),
            coin_by=self._coin_by(coin, places),
            notes=tuple(self.notes),
        )

    def _epoch_unit(self, places: dict[str, int]) -> str | None:
        place = places.get("closed_at", places.get("time"))
        if self.said.epoch or place is None:
            return self.said.epoch
        return epoch_unit(next((cell.strip() for cell in self.cells(place) if cell.strip()), ""))

    def _coin_by(self, coin: Coin | None, places: dict[str, int]) -> str:
        if coin is None:
            told = [field for field in ("id", "symbol", "name") if field in places]
            return f"by its columns ({', '.join(told)})"
        if self.said.coin is not None:
            return f"{coin.source_id}, {_SAID}"
        by_name = self.told.coin is not None and self.sample.ticker is None
        return f"{coin.source_id}, by its {'name' if by_name else 'header'}"

    def _day(self) -> Stamp | None:
        return self.said.moment or self.told.day

    def _candidates(self, layout: Layout) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        seen: dict[str, int] = {}
        for column, told in enumerate(self.headings):
            field = layout.reads.get(told.base) or FIELD_OF.get(told.base)
            if field is None:
                continue
            if told.currency not in {None, "USD"} and field.startswith("percent"):
                self.why_not[column] = f"in {told.currency}, not USD (by its header)"
                continue
            if told.full in seen:
                self.why_not[column] = f"the same name as column {seen[told.full] + 1}, which is read"
                continue
            seen[told.full] = column
            found.setdefault(field, []).append(column)
        for field, columns in found.items():
            # A header that only this layout knows stands for the whole field.
            names = NAMES[field]
            columns.sort(
                key=lambda column: (
                    names.index(self.headings[column].base) if self.headings[column].base in names else -1
                )
            )
        self._heed_columns(found)
        self._settle_currency_column(found)
        return found

    def _heed_columns(self, found: dict[str, list[int]]) -> None:
        # A column that the description names stands alone for its field, and for what is much the same.
        for column, told in enumerate(self.headings):
            if not told.full.startswith("said "):
                continue
            field = TOLD[self.said.columns[cell_name(self.sample.header[column])]]
            for rival in (field, *RIVALS.get(field, ())):
                for other in found.pop(rival, []):
                    if other != column:
                        self.why_not[other] = "its description names another column"
            found[field] = [column]

    def _settle_currency_column(self, found: dict[str, list[int]]) -> None:
        # A column called currency may as well hold the coins.
        columns = found.get("currency", [])
        if not columns or found.keys() & {"id", "symbol", "name"} or "currency" in self.said.columns.values():
            return
        codes = {cell.strip() for cell in self.cells(columns[0])} - {""}
        priced = [*found.get("price", []), *found.get("close", [])]
        told = any(self.headings[column].currency for column in priced)
        if not codes or all(code.lower() in (FIAT if told else CURRENCIES) for code in codes):
            return
        symbols = all(_SYMBOL.fullmatch(code) for code in codes)
        found["symbol" if symbols else "name"] = found.pop("currency")

    def _glued(self, candidates: dict[str, list[int]], layout: Layout) -> bool:
        if layout.kind != "candles" or candidates.get("id") or candidates.get("name"):
            return False
        cells = {cell.strip() for column in candidates.get("symbol", [])[:1] for cell in self.cells(column)}
        return bool(cells - {""}) and all(pair_of(cell, glued=True)[1] for cell in cells - {""})

    def _divided(self, candidates: dict[str, list[int]]) -> str:
        # Beside a column of ids or names a symbol such as BSC-USD is a coin's own, unless all of them are so.
        if not (candidates.get("id") or candidates.get("name")):
            return DIVIDERS
        cells = {cell.strip() for column in candidates.get("symbol", [])[:1] for cell in self.cells(column)}
        return DIVIDERS if all(pair_of(cell)[1] for cell in cells - {""}) else "/"

    def _choose_money(self, candidates: dict[str, list[int]], layout: Layout) -> str:
        # Takes the columns that are in US dollars; says by what, and why the others are left.
        price = "close" if layout.kind == "candles" and "close" in candidates else "price"
        candidates["price_usd"] = prices = candidates.get(price, [])
        plain_volume = candidates.get("volume", [])
        trusted = [
            column
            for column in plain_volume
            if layout.volume_usd
            or layout.kind == "quotes"
            or self.headings[column].currency
            or self._sign(column)
        ]
        for column in set(plain_volume) - set(trusted):
            self.why_not[column] = "may count coins or dollars"
        candidates["volume_24h_usd"] = candidates.get("volume_24h_usd", []) + trusted
        by: dict[str, str] = {}
        common = self._common_currency(candidates, layout)
        for field in ("price_usd", "market_cap_usd", "volume_24h_usd"):
            taken: list[int] = []
            for column in candidates.get(field, []):
                currency, how = self._currency(column, common)
                if currency == "USD":
                    taken.append(column)
                    by.setdefault(field, how)
                else:
                    self.why_not[column] = f"in {currency}, not USD ({how})" if currency else how
            candidates[field] = taken
        if not candidates["price_usd"] and self.said.currency == "USD":
            # None is in dollars by its own word, so the description's outranks it.
            for column in prices:
                self.why_not.pop(column, None)
            candidates["price_usd"] = prices
            by["price_usd"] = _SAID
        if not candidates["price_usd"]:
            reasons = [self.why_not[column] for column in prices if column in self.why_not]
            raise FileRejected(
                f"its prices are {reasons[0]}"
                if reasons and reasons[0].startswith("in ")
                else "".join(reasons[:1]),
                'currency = "USD"' if not self.said.currency else None,
            )
        return by["price_usd"]

    def _common_currency(self, candidates: dict[str, list[int]], layout: Layout) -> tuple[str | None, str]:
        if self.said.currency:
            return self.said.currency, _SAID
        if candidates.get("currency"):
            codes = {cell.strip().upper() for cell in self.cells(candidates["currency"][0])}
            if codes and all(code.lower() in CURRENCIES for code in codes):
                if "USD" in codes:
                    return "USD", "by its currency column"
                return min(codes), "by its currency column"
            candidates["currency"] = []
        told = self.told.currency
        by_pair = self._pair_currency(candidates)
        if by_pair is not None:
            return by_pair, "by the pairs in its symbols"
        if told is not None:
            return told, "by its name"
        stable = self._stable(candidates)
        if stable is not None:
            if stable:
                return "USD", "by the stablecoins in it"
            return "another currency", "by the stablecoins in it"
        if layout.usd:
            return "USD", f"as {layout.name} is"
        return None, (
            "nothing tells the currency of its prices: neither header, cells nor name; "
            "a name such as coin-usd.csv would"
        )

    def _pair_currency(self, candidates: dict[str, list[int]]) -> str | None:
        if self.sample.ticker is not None:
            return pair_of(self.sample.ticker)[1]
        for column in candidates.get("symbol", [])[:1]:
            glued = self._glued(candidates, self.sample.layout)
            divided = self._divided(candidates)
            quotes = {pair_of(cell, divided, glued=glued)[1] for cell in self.cells(column)}
            if quotes and None not in quotes:
                return "USD" if "USD" in quotes else min(str(quote) for quote in quotes)
        return None

    def _stable(self, candidates: dict[str, list[int]]) -> bool | None:
        # Whether coins that are worth a dollar cost one here; None where there are none.
        who = [column for field in ("id", "symbol", "name") for column in candidates.get(field, [])[:1]]
        price = candidates["price_usd"][:1]
        if not who or not price:
            return None
        values: list[Decimal] = []
        for row in self.sample.rows:
            if len(row) > max(*who, *price) and any(row[column].strip().lower() in STABLE for column in who):
                try:
                    value = Notation().read(row[price[0]], "price_usd", "money")
                except RejectedValue:
                    continue
                if value is not None:
                    values.append(Decimal(value))
        if not values:
            return None
        values.sort()
        return Decimal("0.97") < values[len(values) // 2] < Decimal("1.03")

    def _currency(self, column: int, common: tuple[str | None, str]) -> tuple[str | None, str]:
        if (told := self.headings[column].currency) is not None:
            return told, "by its header"
        sign = self._sign(column)
        if sign is not None and common[1] != _SAID and (sign != "USD" or common[0] is None):
            return sign, "by the signs in its cells"
        return common

    def _sign(self, column: int) -> str | None:
        dollars = 0
        for cell in self.cells(column):
            for sign, currency in SIGNS.items():
                if sign in cell:
                    return currency
            dollars += "$" in cell
        return "USD" if dollars else None

    def _choose_id(self, candidates: dict[str, list[int]], places: dict[str, int]) -> None:
        for column in candidates.get("id", []):
            if self.headings[column].full.startswith("said "):
                return
            cells = [cell.strip() for cell in self.cells(column)]
            if cells and all(cell.isdigit() for cell in cells if cell):
                self.why_not[column] = "bare numbers: a counter, or keys of a table that is not here"
                continue
            places["id"] = column
            return
        places.pop("id", None)

    def _choose_name(self, candidates: dict[str, list[int]], places: dict[str, int]) -> None:
        # CoinMarketCap's own export has the number of the currency in a column called name.
        for column in candidates.get("name", [])[:1]:
            cells = {cell.strip() for cell in self.cells(column)} - {""}
            if cells and all(cell.isdigit() for cell in cells) and not self.said.columns:
                self.why_not[places.pop("name")] = "bare numbers, no names"

    def _choose_coin(
        self, candidates: dict[str, list[int]], places: dict[str, int], stamps: Sequence[Stamp]
    ) -> Coin | None:
        if self.said.coin is not None:
            for field in ("id", "name", "symbol"):
                if field in places and (field != "symbol" or self._pair_currency(candidates) is None):
                    self.why_not[places.pop(field)] = "its description tells the coin"
            return self.said.coin
        if places.keys() & {"id", "symbol", "name"}:
            return None
        setting = 'coin.id = "bitcoin", or columns."HEADER" = "symbol"'
        for column in candidates.get("id", []):
            numbers = [cell.strip() for cell in self.cells(column)]
            if 1 < len(set(numbers)) <= len(numbers) // 2:
                header = shown(self.sample.header[column])
                raise FileRejected(f"its column {header!r} tells coins by bare numbers only", setting)
        if self.sample.ticker is not None:
            symbol, _ = pair_of(self.sample.ticker)
            return Coin(id=slug(symbol), symbol=symbol)
        coin = self.told.coin or self._coin_by_volume()
        if coin is None:
            raise FileRejected("neither a column nor its name tells which coin it is about", setting)
        self._expect_one_coin(places, stamps, setting)
        return Coin(id=coin)

    def _coin_by_volume(self) -> str | None:
        # `Volume_(BTC)` beside prices in dollars: the coin that was traded.
        coins = {
            told.currency
            for told in self.headings
            if told.base == "volume" and told.currency and told.currency.lower() in COINS
        } - PEGGED
        return min(coins).lower() if len(coins) == 1 else None

    def _expect_one_coin(self, places: dict[str, int], stamps: Sequence[Stamp], setting: str) -> None:
        # Different prices for one and the same time are of different coins, of whichever column they are.
        place = places.get("closed_at", places.get("time"))
        if place is None:
            return
        clock = places.get("clock")
        prices: dict[tuple[str, str], set[str]] = {}
        rows = 0
        for row in self.sample.rows:
            if len(row) == len(self.sample.header):
                rows += 1
                when = (row[place].strip(), "" if clock is None else row[clock].strip())
                prices.setdefault(when, set()).add(row[places["price_usd"]].strip())
        repeated = sum(len(told) - 1 for told in prices.values())
        if stamps and repeated * 5 > rows:
            raise FileRejected(
                "many of its rows tell another price for the same time, so it is about several coins, "
                "and no column is known to tell which",
                setting,
            )

    def _choose_time(
        self, candidates: dict[str, list[int]], places: dict[str, int]
    ) -> tuple[str, Order | None, list[Stamp]]:
        columns = candidates.get("time", [])
        for column in candidates.get("closed_at", [])[:1]:
            places["closed_at"] = column
        days = [column for column in columns if "time" not in self.headings[column].base or len(columns) == 1]
        zone = self.said.timezone or "UTC"
        if columns:
            places["time"] = columns[0]
            clocks = [
                column
                for column, told in enumerate(self.headings)
                if told.full in CLOCKS and column != columns[0] and self._all(column, _is_clock)
            ]
            if clocks and columns[0] in days and self._all(columns[0], _is_day):
                places["clock"] = clocks[0]
                zone = self.said.timezone or CLOCKS[self.headings[clocks[0]].full]
        if "time" not in places and "closed_at" not in places:
            if self._day() is None:
                raise FileRejected(
                    "neither a column nor its name tells the time of its figures",
                    "observed_at = 2018-01-31T12:00:00Z, or its own",
                )
            by = "description" if self.said.moment else "name"
            self.notes.append(f"the time of its figures is told by its {by}")
            return zone, None, []
        place = places.get("closed_at", places.get("time", 0))
        order = self.said.order or day_order(self.cells(place), self.now)
        stamps: list[Stamp] = []
        refusals: list[str] = []
        for cell in self.cells(place):
            try:
                stamps.append(read_time(cell, order, epoch=self.said.epoch))
            except RejectedValue as refused:
                refusals.append(refused.reason)
        if not stamps and self.sample.rows:
            some = next(iter(self.cells(place)), "")
            why = refusals[0].removeprefix("not a date: ") if refusals else repr(some)
            if self._all(place, lambda cell: _DAY_NUMBER.fullmatch(cell.strip()) is not None):
                raise FileRejected(
                    f"its column {self.sample.header[place].strip()!r} holds a spreadsheet's day numbers "
                    f"({some[:60]!r}), which count from 1900 or from 1904: write them as dates"
                )
            raise FileRejected(
                f"its column {self.sample.header[place].strip()!r} holds no times ({why})",
                'columns."HEADER" = "observed_at"',
            )
        if zone != "UTC":
            ZoneInfo(zone)
            self.notes.append(f"its clock is the time of {zone}")
        elif any(stamp.local and not stamp.bare for stamp in stamps):
            self.notes.append("its times tell no zone, so they are UTC")
        return zone, order, stamps

    def _all(self, column: int, test: Callable[[str], bool]) -> bool:
        cells = [cell for cell in self.cells(column) if cell.strip()]
        return bool(cells) and sum(test(cell) for cell in cells) >= 0.9 * len(cells)

    def _choose_period(
        self, layout: Layout, places: dict[str, int], stamps: Sequence[Stamp]
    ) -> timedelta | None:
        if layout.kind != "candles":
            return None
        length = (
            self.said.length
            or self.told.period
            or period(stamps)
            or (PERIODS["1d"] if layout.daily else None)
        )
        if length is None and "closed_at" not in places and stamps:
            raise FileRejected("neither its rows nor its name tell how long its candles are", 'period = "1d"')
        return length


def pair_of(cell: str, divided: str = DIVIDERS, *, glued: bool = False) -> tuple[str, str | None]:
    """A symbol, and the currency that it is paired with: `BTC/USD` and `BTC-EUR` tell one where the file's
    symbols are `divided` by such signs, and `BTCUSD` where they are known to be `glued`.
    """
    cell = cell.strip()
    for sign in divided:
        base, found, quote = cell.partition(sign)
        if found and base and quote.lower() in CURRENCIES:
            return base, quote.upper()
    if glued and cell.upper() not in NO_PAIR and (match := _GLUED.fullmatch(cell.upper())):
        return cell[: match.end(1)], match[2]
    return cell, None


def _is_clock(cell: str) -> bool:
    return len(cell.strip()) <= 15 and ":" in cell.strip()[:3] and cell.strip()[0].isdigit()


def _is_day(cell: str) -> bool:
    return ":" not in cell


def _first(cells: Iterable[str], count: int) -> list[str]:
    # Some cells to show: the first that hold something, shortened.
    some: list[str] = []
    for cell in cells:
        if cell.strip():
            some.append(shown(cell)[:60])
            if len(some) == count:
                break
    return some
