"""Finds the header of an archive: its delimiter, its row, and the layout that its names fit."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kasparro.sources.archives.errors import FileRejected
from kasparro.sources.archives.header_names import (
    FIELD_OF,
    NAMES,
    TICKER_ROW,
    Heading,
    Layout,
    heading,
    layout_of,
)
from kasparro.sources.archives.overrides import ColumnField, Overrides
from kasparro.sources.archives.text import filled_rows, is_filled, one_line, rows_of

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


class Header(NamedTuple):
    """A header and the rows below it.

    `row` counts the filled rows above the header; -1 means that the overrides give the header. `ticker` is
    the one ticker that a line below the header gives for all columns.
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
        layout = layout_of(headings_of(overrides.header, overrides))
        if layout is None:
            raise _unknown_header(overrides.header, overrides)
        rows = [row async for row in filled_rows(text, delimiters[0])]
        return Header(delimiters[0], -1, list(overrides.header), layout, rows, None)
    widest: list[str] = []
    for delimiter in delimiters:
        top = [row async for row in filled_rows(text[:HEADER_CHARACTERS], delimiter)][:HEADER_WITHIN]
        for position in range(len(top)):
            cells, lines_below, ticker = _merged(top, position)
            if len(cells) <= 1 or not overrides.columns.keys() <= {column_name(cell) for cell in cells}:
                continue
            headings = [*headings_of(cells, overrides), *([TICKER_ROW] if ticker else [])]
            if (layout := layout_of(headings)) is not None:
                row = position + lines_below
                rows = [filled async for filled in filled_rows(text, delimiter)][row + 1 :]
                return Header(delimiter, row, cells, layout, rows, ticker)
        if top and len(top[0]) > len(widest):
            widest = top[0]
    if missing := overrides.columns.keys() - {column_name(cell) for cell in widest}:
        names = one_line(", ".join(column_name(cell) for cell in widest[:12]))
        raise FileRejected(
            f"no column {one_line(min(missing))!r}, which its overrides name; its columns: {names[:120]}"
        )
    raise _unknown_header(widest, overrides)


async def line_of(text: str, header_row: int, delimiter: str) -> int | None:
    """The line that a header ends on, from 1; None if the overrides give the header."""
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
            headings.append(Heading("", "", None))
        else:
            currency = heading(cell).currency if field in MONEY_FIELDS else None
            headings.append(Heading(field, NAMES[OVERRIDE_FIELDS[field]][0], currency, explicit=True))
    return headings


def _merged(top: Sequence[list[str]], position: int) -> tuple[list[str], int, str | None]:
    # The header at a position, how many lines of it are below its first, and its ticker. yfinance writes a
    # header of three lines: `Price,Close,…`, `Ticker,BTC-USD,…` and `Date,,…`.
    row = top[position]
    lines = top[position : position + 3]
    if [cells[0].strip().lower() for cells in lines[:2]] != ["price", "ticker"] or len(lines) < 3:
        return row, 0, None
    tickers = {cell.strip() for cell in lines[1][1:]} - {""}
    if len(tickers) != 1 or any(lines[2][1:]):
        names = one_line(", ".join(sorted(tickers)))
        raise FileRejected(f"it has columns of several tickers ({names[:60]}): write a file for each ticker")
    return [lines[2][0], *row[1:]], 2, tickers.pop()


def _unknown_header(cells: Sequence[str], overrides: Overrides) -> FileRejected:
    names = ", ".join(cell.strip() for cell in cells[:8])
    if len(cells) <= 1:
        return FileRejected(f"its header is one cell ({names[:60]!r}), so it is no table")
    if any(_is_value(cell) for cell in cells):
        return FileRejected(
            f"it has no header; it begins with {names[:120]}", 'header = ["timestamp", "open", "high", …]'
        )
    fields = {FIELD_OF.get(heading.base) for heading in headings_of(cells, overrides)}
    price, time = 'columns."HEADER" = "price_usd"', 'columns."HEADER" = "observed_at"'
    if not fields - {None}:
        return FileRejected(f"none of its columns is known ({names[:120]})", f"{price}, and {time}")
    if not fields & {"price", "close"}:
        return FileRejected(f"none of its columns is known to hold a price ({names[:120]})", price)
    return FileRejected(f"its columns fit no layout ({names[:120]})", time)


def _is_value(cell: str) -> bool:
    # No column name has digits and no letter.
    return any(c.isdigit() for c in cell) and not any(c.isalpha() for c in cell)
