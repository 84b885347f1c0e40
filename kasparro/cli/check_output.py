"""What `kasparro check` prints, in tables for people."""

from collections.abc import Sequence

from rich.table import Table

from kasparro.cli.terminal import PrintableConsole
from kasparro.sources.archives.explain import Cell, Checked, Column, Recognition

CELL_SHOWN = 40
RAW_SHOWN = 100
_DELIMITERS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar"}
_SIGNS = {".": "point", ",": "comma"}


def show(console: PrintableConsole, checked: Sequence[Checked], *, explain: bool) -> None:
    """Print what each file came to, then why rows were refused, and with `explain` how it was understood."""
    files = Table("file", "layout", "rows", "rejects")
    for column in files.columns[2:]:
        column.justify = "right"
    for one in checked:
        layout = one.recognition.layout if one.recognition else "-"
        files.add_row(one.name, layout, f"{one.rows:,}", f"{one.rejected:,}")
    console.print(files)
    for one in checked:
        if one.problem is not None:
            console.print(one.problem, soft_wrap=True)
        if one.reasons:
            _show_rejects(console, one)
        if explain and one.recognition is not None:
            _show_recognition(console, one.name, one.recognition)


def _show_rejects(console: PrintableConsole, one: Checked) -> None:
    console.print()
    console.print(f"{one.name}: why rows are refused", soft_wrap=True)
    table = Table("rows", "field", "reason", "line", "raw")
    table.columns[0].justify = table.columns[3].justify = "right"
    for reason in one.reasons:
        for place, reject in enumerate(reason.first):
            table.add_row(
                "" if place else f"{reason.rows:,}",
                "" if place else reason.field or "row",
                reject.reason,
                f"{reject.line}",
                _short(reject.raw, RAW_SHOWN),
            )
    console.print(table)


def _show_recognition(console: PrintableConsole, name: str, found: Recognition) -> None:
    console.print()
    console.print(f"{name}: how it was understood", soft_wrap=True)
    facts = Table(show_header=False)
    for what, value in _facts(found):
        facts.add_row(what, value)
    console.print(facts)
    table = Table("column", "field", "first values -> stored")
    for column in found.columns:
        table.add_row(column.header or "(blank)", _field(column), _cells(column.cells, column.stored))
    console.print(table)


def _facts(found: Recognition) -> list[tuple[str, str]]:
    facts = [
        ("layout", found.layout),
        ("coin", found.coin),
        ("currency", found.currency),
        ("encoding", found.encoding),
        ("delimiter", _DELIMITERS.get(found.delimiter, found.delimiter)),
        ("header", f"line {found.header_line}" if found.header_line else "told, none in the file"),
        ("decimal sign", _SIGNS[found.decimal]),
        ("date order", found.day_order or "told by each date itself"),
        ("epoch unit", found.epoch or "no epoch times"),
        ("time zone", found.zone),
    ]
    if found.candles_s:
        facts.append(("period", f"{found.candles_s:,} s; a close is of its last second"))
    return [*facts, *(("note", note) for note in found.notes)]


def _field(column: Column) -> str:
    if column.field:
        return column.field
    return f"not read: {column.note}" if column.note else "not read"


def _cells(cells: Sequence[Cell], read: bool) -> str:
    told = []
    for cell in cells:
        raw = _short(cell.raw.strip(), CELL_SHOWN) or "(empty)"
        stored = "null" if cell.stored is None else _short(cell.stored, CELL_SHOWN)
        told.append(f"{raw} -> {stored}" if read else raw)
    return "; ".join(told)


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
