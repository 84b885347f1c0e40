"""Finds the columns that may hold each field, by their names, and gives access to their cells."""

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from operator import itemgetter

import msgspec

from kasparro.printable import one_line
from kasparro.sources.archives.detect.header import OVERRIDE_FIELDS, column_name
from kasparro.sources.archives.detect.sample import Sample
from kasparro.sources.archives.errors import FileRejected
from kasparro.sources.archives.file_names import FileName
from kasparro.sources.archives.layouts import Layout
from kasparro.sources.archives.overrides import Overrides
from kasparro.sources.archives.pairs import PairNotation
from kasparro.sources.archives.vocabulary import CURRENCIES, FIAT, FIELD_OF, NAMES, Heading

# The fields that an override for a field also replaces.
REPLACED_FIELDS = {"price": ("close",), "time": ("closed_at",), "volume_24h_usd": ("volume",)}
# Fields of which a file may not have two columns with the same name and different values.
_ONCE = frozenset({"price", "close", "time", "closed_at", "id", "symbol"})
_SYMBOL = re.compile(r"[A-Z0-9]{2,10}")


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the detection of a file's format may use.

    `layout` is the sample's, or one of candles if the overrides give a period.
    """

    sample: Sample
    headings: list[Heading]
    layout: Layout
    file_name: FileName
    overrides: Overrides
    now: datetime
    # By column. Many questions read the same columns.
    _cells: dict[int, list[str]] = {}

    def cells(self, column: int) -> Sequence[str]:
        """The cells of a column."""
        if column not in self._cells:
            rows = self.sample.rows
            if min(map(len, rows), default=0) <= column:
                rows = [row for row in rows if len(row) > column]
            self._cells[column] = [*map(itemgetter(column), rows)]
        return self._cells[column]

    def distinct(self, columns: Sequence[int]) -> set[str]:
        """The different cells of columns, without blanks around them and without empty cells."""
        return {cell.strip() for column in columns for cell in set(self.cells(column))} - {""}

    def most(self, column: int, test: Callable[[str], bool]) -> bool:
        """Whether nine of ten cells of a column that are not blank have a property."""
        cells = [cell for cell in self.cells(column) if cell.strip()]
        return bool(cells) and sum(test(cell) for cell in cells) >= 0.9 * len(cells)


class Candidates(msgspec.Struct, frozen=True, kw_only=True):
    """The columns that may hold each field, best first; and why other columns are not read, by column."""

    columns: dict[str, list[int]]
    unread: dict[int, str]

    def of(self, field: str) -> list[int]:
        """The columns that may hold a field."""
        return self.columns.get(field, [])

    def first(self, field: str) -> list[int]:
        """The best column for a field, if there is one."""
        return self.of(field)[:1]


def find_candidates(inputs: Inputs) -> Candidates:
    """Find the candidates of all fields."""
    headings, layout = inputs.headings, inputs.layout
    found: dict[str, list[int]] = {}
    unread: dict[int, str] = {}
    first_of_name: dict[tuple[str, bool], int] = {}
    for column, heading in enumerate(headings):
        field = layout.fields.get(heading.base) or FIELD_OF.get(heading.base)
        if field is None:
            continue
        if heading.currency not in {None, "USD"} and field.startswith("percent"):
            unread[column] = f"in {heading.currency}, not USD (by its header)"
            continue
        name = (heading.full, heading.explicit)
        if name in first_of_name:
            _require_equal(inputs, field, first_of_name[name], column)
            unread[column] = f"the same name as column {first_of_name[name] + 1}, which is read"
            continue
        first_of_name[name] = column
        found.setdefault(field, []).append(column)
    for field, columns in found.items():
        columns.sort(key=lambda column: _preference(headings[column], NAMES[field]))
    if not found.keys() & {"id", "symbol", "name"} and (pairs := _column_of_pairs(inputs)) is not None:
        found["symbol"] = [pairs]
    _put_varying_times_first(inputs, found)
    unread |= _apply_overrides(inputs, found)
    meaning = _field_of_currency_column(inputs, found)
    if meaning != "currency":
        found[meaning] = found.pop("currency")
    return Candidates(columns=found, unread=unread)


def _require_equal(inputs: Inputs, field: str, first: int, second: int) -> None:
    # Two columns of one name may belong to two coins.
    if field in _ONCE and [*inputs.cells(first)] != [*inputs.cells(second)]:
        name = one_line(inputs.sample.header[second])[:60]
        raise FileRejected(
            f"two of its columns are called {name!r} and have different values: give them different names"
        )


def _column_of_pairs(inputs: Inputs) -> int | None:
    # A column whose cells are pairs names the coin and the currency of each row, whatever it is called.
    notation = PairNotation()
    for column, heading in enumerate(inputs.headings):
        if FIELD_OF.get(heading.base) is None and not heading.explicit:
            cells = inputs.distinct([column])
            if cells and all(notation.split(cell)[1] for cell in cells):
                return column
    return None


def _put_varying_times_first(inputs: Inputs, found: dict[str, list[int]]) -> None:
    # A time that is the same in all rows is not the time of each row if another column has one.
    times = found.get("time", [])
    if len(times) > 1 and len(inputs.sample.rows) > 1:
        times.sort(key=lambda column: len(inputs.distinct([column])) == 1)


def _preference(heading: Heading, names: tuple[str, ...]) -> int:
    # A name that only this layout knows comes first.
    return names.index(heading.base) if heading.base in names else -1


def _apply_overrides(inputs: Inputs, found: dict[str, list[int]]) -> dict[int, str]:
    # A column that the overrides name is the only candidate for its field and for similar fields. Returns why
    # others are not read.
    unread = {}
    for column, heading in enumerate(inputs.headings):
        if not heading.explicit:
            continue
        field = OVERRIDE_FIELDS[inputs.overrides.columns[column_name(inputs.sample.header[column])]]
        for replaced in (field, *REPLACED_FIELDS.get(field, ())):
            for other in found.pop(replaced, []):
                if other != column:
                    unread[other] = "its overrides name another column"
        found[field] = [column]
    return unread


def _field_of_currency_column(inputs: Inputs, found: dict[str, list[int]]) -> str:
    # In a file without columns for the coin, a column called currency may hold the coins.
    columns = found.get("currency", [])
    if not columns or found.keys() & {"id", "symbol", "name"}:
        return "currency"
    if "currency" in inputs.overrides.columns.values():
        return "currency"
    codes = inputs.distinct(columns[:1])
    prices = [*found.get("price", []), *found.get("close", [])]
    headers_name_currency = any(inputs.headings[column].currency for column in prices)
    if all(code.lower() in (FIAT if headers_name_currency else CURRENCIES) for code in codes):
        return "currency"
    return "symbol" if all(_SYMBOL.fullmatch(code) for code in codes) else "name"
