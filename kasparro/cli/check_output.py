"""Prints the results of `kasparro check` as tables."""

from collections.abc import Sequence

from rich.table import Table

from kasparro.cli.terminal import PrintableConsole, print_problem
from kasparro.sources.archives.checked import Cell, Checked, Column, Recognition

# Lengths in characters. Longer texts are truncated.
MAX_CELL = 40
MAX_RAW = 100
_DELIMITERS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar"}
_SIGNS = {".": "point", ",": "comma"}


def show(console: PrintableConsole, checked: Sequence[Checked], *, explain: bool) -> None:
    """Print the counts and rejects of each file. With `explain`, also print how each file was understood."""
    files = Table("file", "layout", "rows", "rejects")
    for column in files.columns[2:]:
        column.justify = "right"
    for file in checked:
        layout = file.recognition.layout if file.recognition else "-"
        files.add_row(file.name, layout, f"{file.rows:,}", f"{file.rejected:,}")
    console.print(files)
    for file in checked:
        if file.problem is not None:
            print_problem(console, file.problem, file.setting)
        if file.invalid:
            counts = ", ".join(
                f"{field} in {rows:,} row{'' if rows == 1 else 's'}" for field, rows in file.invalid.items()
            )
            console.print(f"{file.name}: invalid values, stored as null: {counts}", soft_wrap=True)
        if file.reasons:
            _show_rejects(console, file)
        if explain and file.recognition is not None:
            _show_recognition(console, file.name, file.recognition)


def _show_rejects(console: PrintableConsole, file: Checked) -> None:
    console.print()
    console.print(f"{file.name}: why rows are rejected", soft_wrap=True)
    table = Table("rows", "field", "reason", "line", "raw")
    table.columns[0].justify = table.columns[3].justify = "right"
    for reason in file.reasons:
        for index, reject in enumerate(reason.first):
            table.add_row(
                "" if index else f"{reason.rows:,}",
                "" if index else reason.field or "row",
                reject.reason,
                f"{reject.line}",
                _truncated(reject.raw, MAX_RAW),
            )
    console.print(table)


def _show_recognition(console: PrintableConsole, name: str, found: Recognition) -> None:
    console.print()
    console.print(f"{name}: how it was understood", soft_wrap=True)
    facts = Table(show_header=False)
    for fact in _facts(found):
        facts.add_row(*fact)
    console.print(facts)
    questions = Table("question", "answer", "evidence", "ruled out")
    for finding in found.findings:
        answer = f"open; a guess: {finding.answer}" if finding.open else finding.answer
        questions.add_row(finding.question, answer, "; ".join(finding.evidence), "; ".join(finding.ruled_out))
    console.print(questions)
    table = Table("column", "field", "first values -> stored")
    for column in found.columns:
        table.add_row(column.header or "(blank)", _field(column), _cells(column.cells, column.stored))
    console.print(table)


def _facts(found: Recognition) -> list[tuple[str, str]]:
    facts = [
        ("layout", found.layout),
        ("encoding", found.encoding),
        ("delimiter", _DELIMITERS.get(found.delimiter, found.delimiter)),
        ("header", f"line {found.header_line}" if found.header_line else "the file has none"),
        ("decimal sign", _SIGNS[found.decimal]),
    ]
    return [*facts, *(("note", note) for note in found.notes)]


def _field(column: Column) -> str:
    if column.field:
        return column.field
    return f"not read: {column.note}" if column.note else "not read"


def _cells(cells: Sequence[Cell], stored: bool) -> str:
    texts = []
    for cell in cells:
        raw = _truncated(cell.raw.strip(), MAX_CELL) or "(empty)"
        value = "null" if cell.stored is None else _truncated(cell.stored, MAX_CELL)
        texts.append(f"{raw} -> {value}" if stored else raw)
    return "; ".join(texts)


def _truncated(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
