"""Splitting text into rows does not depend on where its reads end."""

import csv
import io
from collections.abc import AsyncIterable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kasparro.sources.archives import text
from kasparro.sources.archives.text import ArchiveText, Encoding, columns_of, rows_of

pytestmark = pytest.mark.slow

UTF_8 = Encoding("utf-8")
cells = st.text(st.sampled_from('ab é" ,;\n\r'), max_size=5)
ends = st.sampled_from(["\n", "\r\n", "\r"])


@st.composite
def tables(draw: st.DrawFn) -> str:
    """CSV text with blanks around cells, partly malformed."""
    end = draw(ends)
    blank = st.sampled_from(["", "", " ", "  "])
    rows = []
    for row in draw(st.lists(st.lists(cells, min_size=1, max_size=4), max_size=6)):
        malformed = draw(st.booleans())
        rows.append(
            ",".join(
                draw(blank) + (cell if malformed else '"{}"'.format(cell.replace('"', '""'))) + draw(blank)
                for cell in row
            )
        )
    return end.join(rows) + draw(st.sampled_from(["", end]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=500)
@given(table=tables(), size=st.integers(1, 12))
async def test_rows_equal_the_csv_module_on_the_whole_text(
    monkeypatch: pytest.MonkeyPatch, table: str, size: int
) -> None:
    monkeypatch.setattr(text, "READ_BYTES", size)
    content = io.BytesIO(table.encode())

    read = await rows(rows_of(ArchiveText(content, content, UTF_8, ","), ","))

    # A carriage return at the end of the file ends the last line even inside an open quote.
    whole_text = f"{table}\n" if table.endswith("\r") else table
    whole = [
        without_leading_blanks(row)
        for row in csv.reader(io.StringIO(whole_text, newline=""), skipinitialspace=True)
    ]
    assert read == whole
    assert await rows(rows_of(table, ",")) == whole


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=500)
@given(table=tables(), size=st.integers(1, 12), together=st.integers(1, 20), width=st.integers(1, 4))
async def test_rows_without_quotes_are_the_same_if_they_are_split_together(
    monkeypatch: pytest.MonkeyPatch, table: str, size: int, together: int, width: int
) -> None:
    monkeypatch.setattr(text, "READ_BYTES", size)
    monkeypatch.setattr(text, "PLAIN_CHARACTERS", together)
    content = io.BytesIO(table.encode())
    archive = ArchiveText(content, content, UTF_8, ",")

    split: list[list[str]] = []
    for lines in archive.plain_texts():
        columns = columns_of(lines, ",", width)
        singly = [line.split(",") if line else [] for line in lines.split("\n")[:-1]]
        assert columns is None or [*map(list, zip(*columns, strict=True))] == [row or [""] for row in singly]
        assert (columns is None) == any(len(row or [""]) != width for row in singly)
        split += ([cell.lstrip(" ") for cell in row] for row in singly)
    split += await rows(rows_of(archive, ","))

    assert split == await rows(rows_of(table, ","))


async def rows(reader: AsyncIterable[list[str]]) -> list[list[str]]:
    return [without_leading_blanks(row) async for row in reader]


def without_leading_blanks(row: list[str]) -> list[str]:
    """Blanks before a cell have no meaning, and the two parsers treat them differently."""
    return [cell.lstrip(" ") for cell in row]
