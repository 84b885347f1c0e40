"""The consoles of the commands escape every unsafe character."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from kasparro.cli.terminal import PrintableConsole, write_json
from tests.support.unsafe_characters import UNSAFE_CHARACTERS

HOSTILE = "\x1b]0;title\x07\x9b2J\u202e\u2028\r\ud800[red]:smile:"


def console(**options: object) -> tuple[PrintableConsole, io.StringIO]:
    shown = PrintableConsole()
    written = io.StringIO()
    shown.file = written
    for name, value in options.items():
        setattr(shown, name, value)
    return shown, written


@given(st.text(st.characters()))
def test_strings_texts_and_tables_are_escaped(text: str) -> None:
    shown, written = console()
    table = Table(text, text, title=text)
    table.add_row(text, Text(text))
    shown.print(text)
    shown.print(Text(text))
    shown.print(table)
    shown.print(text, soft_wrap=True)
    assert UNSAFE_CHARACTERS.isdisjoint(written.getvalue().replace("\n", ""))


def test_string_is_one_line_without_markup() -> None:
    shown, written = console()
    shown.print("a\nrun 7: succeeded " + HOSTILE, soft_wrap=True)
    assert written.getvalue() == (
        r"a\nrun 7: succeeded \x1b]0;title\x07\x9b2J\u202e\u2028\r\ud800[red]:smile:" + "\n"
    )


def test_table_stays_aligned_and_truncates_nothing() -> None:
    shown, written = console(_width=60)
    table = Table("name", "rows")
    table.add_row(HOSTILE * 2, "1")
    table.add_row("日本", "2")
    shown.print(table)
    lines = written.getvalue().splitlines()
    assert len({cell_len(line) for line in lines}) == 1
    cells = "".join(line.split("│")[1].strip() for line in lines if "│" in line)
    assert cells.startswith(r"\x1b]0;title\x07\x9b2J\u202e\u2028\r\ud800[red]:smile:" * 2)


def test_progress_bar_uses_only_the_control_codes_of_rich() -> None:
    shown, written = console(_force_terminal=True)
    with Progress(TextColumn("{task.description}", markup=False), console=shown, transient=True) as progress:
        progress.add_task(HOSTILE, total=None)
    assert "\x1b]0" not in written.getvalue()
    assert UNSAFE_CHARACTERS.isdisjoint(
        written.getvalue().replace("\x1b", "").replace("\n", "").replace("\r", "")
    )


def test_json_is_exact_and_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    write_json('{"error": "\x7f\x9b\u202e 日本"}'.encode())
    assert capsys.readouterr().out == '{"error": "\\u007f\\u009b\\u202e 日本"}\n'
