"""The result of checking an archive, as `kasparro check` shows it."""

import msgspec

from kasparro.model.record import CONTENT_COLUMNS, KEY_COLUMNS, Reject
from kasparro.sources.archives.findings import Finding

# The columns of the table whose values come from cells.
STORED_COLUMNS = (*KEY_COLUMNS[3:], *CONTENT_COLUMNS[1:])


class Cell(msgspec.Struct, frozen=True):
    """A cell of a file, and its value in the table."""

    raw: str
    stored: str | None


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """A column: the field that it gives, or why it is not read, and some of its cells."""

    header: str
    field: str | None
    note: str | None
    cells: tuple[Cell, ...]

    @property
    def stored(self) -> bool:
        """Whether its values are stored in a column of the table."""
        return self.field in STORED_COLUMNS


class Recognition(msgspec.Struct, frozen=True, kw_only=True):
    """How a file was understood, or would be with the guesses for what it leaves open."""

    layout: str
    encoding: str
    delimiter: str
    header_line: int | None
    decimal: str
    findings: tuple[Finding, ...]
    columns: tuple[Column, ...]
    notes: tuple[str, ...]


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """A reason why rows are rejected: how many, and the first of them."""

    field: str | None
    reason: str
    rows: int
    first: tuple[Reject, ...]


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """What a file would load.

    `problem` says why it would not be loaded, or not to its end. If overrides may help, it ends with their
    lines, the `setting`.
    """

    name: str
    rows: int
    rejected: int
    problem: str | None
    setting: str | None = None
    reasons: tuple[Reason, ...]
    recognition: Recognition | None
    invalid: dict[str, int] = {}
    """How many values of each field cannot be, and are stored as null."""

    @property
    def whole(self) -> bool:
        """Whether every row would be loaded."""
        return self.problem is None and not self.rejected


def not_checked(name: str, problem: str) -> Checked:
    """The result for a file that cannot be read. `problem` is the whole line."""
    return Checked(name=name, rows=0, rejected=0, problem=problem, reasons=(), recognition=None)
