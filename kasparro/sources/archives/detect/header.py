"""Finds the header of an archive: its delimiter, its row, and the layout that its names fit."""

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

from kasparro.printable import one_line
from kasparro.sources.archives.errors import FileRejected, Guess
from kasparro.sources.archives.layouts import HEADERLESS, TICKER_ROW, Layout, layout_of
from kasparro.sources.archives.numbers import NULLS
from kasparro.sources.archives.overrides import ColumnField, Overrides
from kasparro.sources.archives.pairs import PairNotation
from kasparro.sources.archives.text import filled_rows, is_filled, rows_of
from kasparro.sources.archives.times import looks_like_time
from kasparro.sources.archives.vocabulary import (
    FIELD_OF,
    NAMES,
    TWO_LEVELS,
    Heading,
    currency_in,
    heading,
    normal,
    zone_in,
)

DELIMITERS = (",", ";", "\t", "|")
# Only a title or a link may be above a header, so it is in the first rows.
HEADER_WITHIN = 20
HEADER_CHARACTERS = 64 * 1024
MONEY_FIELDS = frozenset({"price_usd", "market_cap_usd", "volume_24h_usd"})
# The fields that overrides may name, as NAMES calls them.
OVERRIDE_FIELDS: dict[str, str] = {
    field: field
    for field in ColumnField.__args__  # type: ignore[attr-defined]
    if field != "ignore"
} | {"source_id": "id", "price_usd": "price", "observed_at": "time"}
# Headers that name the coin and the currency of the only price. FRED: Coinbase's prices, in US dollars.
# blockchain.com: the market price of bitcoin, in US dollars.
SERIES = {
    "cbbtcusd": "BTC-USD",
    "cbethusd": "ETH-USD",
    "cbltcusd": "LTC-USD",
    "cbbchusd": "BCH-USD",
    "market-price": "BTC-USD",
}
# Rows from which the columns of a file without a header are guessed.
_GUESSED_ROWS = 200
# In a file of so few columns, the only one of numbers is likely to be the price.
_FEW_COLUMNS = 4
_TICKER = re.compile(r"[A-Z0-9.]{1,12}[-/][A-Z]{3,5}")


class Header(NamedTuple):
    """A header and the rows below it.

    `row` counts the filled rows above the header; -1 means that the file has no header row. `ticker` is the
    one pair that the header gives for all columns.
    """

    delimiter: str
    row: int
    cells: list[str]
    layout: Layout
    rows: list[list[str]]
    ticker: str | None


async def find_header(text: str, overrides: Overrides) -> Header:
    """Find the header in the beginning of a file. Raises FileRejected if there is none of a known layout."""
    top_lines = text[:8192].splitlines()[:HEADER_WITHIN]
    counts = {delimiter: sum(line.count(delimiter) for line in top_lines) for delimiter in DELIMITERS}
    delimiters = (
        [overrides.delimiter]
        if overrides.delimiter
        else sorted(DELIMITERS, key=lambda delimiter: -counts[delimiter])
    )
    if overrides.header is not None:
        rows = [row async for row in filled_rows(text, delimiters[0])]
        layout = layout_of(headings_of(overrides.header, overrides))
        if layout is None:
            raise _unknown_header(overrides.header, rows, overrides)
        return Header(delimiters[0], -1, list(overrides.header), layout, rows, None)
    widest: list[list[str]] = [[]]
    for delimiter in delimiters:
        top = [row async for row in filled_rows(text[:HEADER_CHARACTERS], delimiter)]
        for position in range(min(len(top), HEADER_WITHIN)):
            cells, lines_below, ticker = _merged(top, position)
            if len(cells) <= 1 or not overrides.columns.keys() <= {column_name(cell) for cell in cells}:
                continue
            headings = [*headings_of(cells, overrides), *([TICKER_ROW] if ticker else [])]
            if (layout := layout_of(headings)) is not None:
                row = position + lines_below
                rows = [filled async for filled in filled_rows(text, delimiter)][row + 1 :]
                return Header(delimiter, row, cells, layout, rows, ticker or _series(cells))
        if (
            not overrides.columns
            and top
            and (headerless := _headerless(top[:-1] if len(top) > 1 else top)) is not None
        ):
            rows = [row async for row in filled_rows(text, delimiter)]
            return Header(delimiter, -1, [*headerless.header], headerless, rows, None)
        if top and len(top[0]) > len(widest[0]):
            widest = top
    if missing := overrides.columns.keys() - {column_name(cell) for cell in widest[0]}:
        names = one_line(", ".join(column_name(cell) for cell in widest[0][:12]))
        raise FileRejected(
            f"no column {one_line(min(missing))!r}, which its overrides name; its columns: {names[:120]}"
        )
    raise _unknown_header(widest[0], widest[1:], overrides)


async def line_of(text: str, header_row: int, delimiter: str) -> int | None:
    """The line that a header ends on, from 1; None if the file has no header row."""
    if header_row < 0:
        return None
    rows = rows_of(text[:HEADER_CHARACTERS], delimiter)
    async for row in rows:
        header_row -= is_filled(row)
        if header_row < 0:
            return rows.line_num
    return None


def column_name(cell: str) -> str:
    """A header cell as overrides name the column."""
    return cell.replace("\ufeff", "").strip()


def headings_of(cells: Iterable[str], overrides: Overrides) -> list[Heading]:
    """The meaning of header cells; overrides outrank the cell."""
    headings = []
    for cell in cells:
        field = overrides.columns.get(column_name(cell))
        if field is None:
            headings.append(heading(cell))
        elif field == "ignore":
            headings.append(Heading("", ""))
        else:
            own = heading(cell)
            currency = None
            if field in MONEY_FIELDS:
                currency = own.currency or currency_in(cell) or PairNotation(joined=True).split(cell)[1]
            zone, unclear_zone = zone_in(cell) if field == "observed_at" else (None, None)
            base = NAMES[OVERRIDE_FIELDS[field]][0]
            if field == "price_usd" and "close" in own.full:
                # The price at the end of a candle, so the file is one of candles.
                base = NAMES["close"][0]
            headings.append(
                Heading(field, base, currency, explicit=True, zone=zone, unclear_zone=unclear_zone)
            )
    return headings


def _merged(top: Sequence[list[str]], position: int) -> tuple[list[str], int, str | None]:
    # The header at a position, how many lines of it are below its first, and its ticker. yfinance writes
    # headers of two or three lines, in either order: names of figures (`Price,Close,…`, `Date,Close,…`),
    # tickers (`Ticker,BTC-USD,…`), and the name of the index (`Date,,…`).
    lines = [[cell.strip() for cell in cells] for cells in top[position : position + 3]]
    row = top[position]
    levels = [match for cell in row if (match := TWO_LEVELS.fullmatch(cell.strip()))]
    if levels:
        parts = {part for match in levels for part in match.groups()}
        return row, 0, _only_ticker({part for part in parts if _TICKER.fullmatch(part)})
    if len(lines) < 2:
        return row, 0, None
    for names, tickers in ((0, 1), (1, 0)):
        few = set(lines[tickers][1:]) - {""}
        if (
            not few
            or not all(map(_TICKER.fullmatch, few))
            or lines[tickers][0].lower() not in {"", "ticker", "tickers", "symbol"}
            or not any(normal(cell) in FIELD_OF for cell in lines[names][1:])
        ):
            continue
        index = lines[2] if len(lines) > 2 else [""]
        if index[0] and not any(index[1:]) and normal(index[0]) in FIELD_OF:
            return [index[0], *lines[names][1:]], 2, _only_ticker(few)
        return ["Date" if not lines[names][0] else lines[names][0], *lines[names][1:]], 1, _only_ticker(few)
    return row, 0, None


def _only_ticker(tickers: set[str]) -> str | None:
    if len(tickers) > 1:
        names = one_line(", ".join(sorted(tickers)))
        raise FileRejected(f"it has columns of several tickers ({names[:60]}): write a file for each ticker")
    return next(iter(tickers), None)


def _series(cells: Sequence[str]) -> str | None:
    # The pair of a file of one series, by the name of its column.
    found = [SERIES[cell.strip().lower()] for cell in cells if cell.strip().lower() in SERIES]
    return found[0] if len(found) == 1 and len(cells) == 2 else None


def _headerless(rows: Sequence[list[str]]) -> Layout | None:
    # The layout without a header that all rows at the beginning fit.
    if not rows or not all(_is_value(cell) for cell in rows[0] if cell.strip()):
        return None
    width = len(rows[0])
    for layout in HEADERLESS:
        names = layout.header
        if len(names) != width or any(len(row) != width for row in rows):
            continue
        columns = dict(zip(names, zip(*rows, strict=True), strict=True))
        times = columns.get("timestamp") or columns["date"]
        if all(map(looks_like_time, times)) and _are_candles(
            [columns[name] for name in ("open", "high", "low", "close")]
        ):
            counts = columns.get("trades", ())
            bounded = columns.get("average")
            if all(count.strip().isdigit() for count in counts) and (
                bounded is None or _are_candles([bounded, columns["high"], columns["low"], bounded])
            ):
                return layout
    return None


def _are_candles(columns: Sequence[Sequence[str]]) -> bool:
    # Whether columns of open, high, low and close fit each other in every row, and are not all equal.
    differ = False
    for row in zip(*columns, strict=True):
        figures = [_number(cell) for cell in row]
        if any(figure is None for figure in figures):
            return False
        open_, high, low, close = (figure or Decimal(0) for figure in figures)
        if not low <= min(open_, close) or not high >= max(open_, close) or low < 0:
            return False
        differ = differ or low < high
    return differ or len(columns[0]) < 3


def _number(cell: str) -> Decimal | None:
    try:
        value = Decimal(cell.strip())
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _unknown_header(cells: Sequence[str], rows: Sequence[list[str]], overrides: Overrides) -> FileRejected:
    names = ", ".join(cell.strip() for cell in cells[:8])
    if len(cells) <= 1:
        return FileRejected(f"its header is one cell ({names[:60]!r}), so it is no table")
    if overrides.header is None and any(_is_value(cell) for cell in cells):
        return FileRejected(
            f"it has no header; it begins with {names[:120]}",
            _guessed_header([list(cells), *rows]),
            question="header",
        )
    headings = headings_of(cells, overrides)
    fields = {FIELD_OF.get(heading.base) for heading in headings}
    guessed: dict[str, str] = {}
    time = price = None
    body = [row for row in rows[:_GUESSED_ROWS] if len(row) == len(cells)]
    open_columns = [
        column
        for column, cell in enumerate(cells)
        if column_name(cell) not in overrides.columns and column_name(cell) and body
    ]
    if not fields & {"time", "closed_at"}:
        time = next(
            (
                column
                for column in open_columns
                if all(_is_time(row[column]) for row in body)
                and any(looks_like_time(row[column]) for row in body)
            ),
            None,
        )
        if time is not None:
            guessed[column_name(cells[time])] = "observed_at"
    if not fields & {"price", "close"}:
        price = _guessed_price([c for c in open_columns if c != time], cells, headings, body)
        if price is not None:
            guessed[column_name(cells[price])] = "price_usd"
    if not fields & {"price", "close"} and price is None:
        return FileRejected(
            f"none of its columns is known to hold a price ({names[:120]})", None, question="header"
        )
    missing = " and ".join(
        name
        for name, lacks in (
            ("a price", not fields & {"price", "close"}),
            ("a time", not fields & {"time", "closed_at"} and time is not None),
        )
        if lacks
    )
    return FileRejected(
        f"none of its columns is known to hold {missing or 'a time'} ({names[:120]})",
        Guess({"columns": guessed}) if guessed else None,
        question="header",
    )


def _guessed_price(
    columns: Sequence[int], cells: Sequence[str], headings: Sequence[Heading], rows: Sequence[list[str]]
) -> int | None:
    # The column that most likely holds the price: by a word in its name, or the only one of numbers.
    numeric = [
        column
        for column in columns
        if headings[column].base not in FIELD_OF
        and any(_number(row[column].strip().strip("$€£").replace(",", "")) is not None for row in rows)
        and not all(_is_time(row[column]) for row in rows)
    ]
    for word in ("price", "close", "last", "usd", "kurs", "wert", "value"):
        if named := [column for column in numeric if word in normal(cells[column])]:
            return named[0] if len(named) == 1 else None
    return numeric[0] if len(numeric) == 1 and len(cells) <= _FEW_COLUMNS else None


def _guessed_header(rows: Sequence[list[str]]) -> Guess | None:
    # Column names for a file without a header, if its columns look like a time and candles or one price.
    width = len(rows[0])
    rows = [row for row in rows[:_GUESSED_ROWS] if len(row) == width]
    if not rows or not all(_is_time(row[0]) for row in rows):
        return None
    names = ["timestamp", *(f"column {column + 1}" for column in range(1, width))]
    if width >= 5 and _are_candles([[row[column] for row in rows] for column in range(1, 5)]):
        names[1:5] = ["open", "high", "low", "close"]
    elif width == 2:
        names[1] = "price"
    else:
        return None
    return Guess({"header": tuple(names)})


def _is_time(cell: str) -> bool:
    return looks_like_time(cell) or cell.strip().lower() in NULLS


def _is_value(cell: str) -> bool:
    # No column name has digits and no letter.
    return any(c.isdigit() for c in cell) and not any(c.isalpha() for c in cell)
