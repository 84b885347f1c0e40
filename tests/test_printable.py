"""Unsafe characters are escaped; ordinary text stays as it is."""

import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.printable import printable, printable_json, printable_lines
from tests.support.unsafe_characters import UNSAFE_CHARACTERS

ORDINARY = (
    "Bitcoin",
    "1 234,5 €\u00a0\u202f$",
    "ビットコイン\u3000比特币 비트코인",
    "Ünïcödé e\u0301",
    "🚀 👨\u200d👩\u200d👧 ❤\ufe0f 🇨🇭 👍🏽 \U0001fae8",
    "می\u200cخواهم हिन्दी עברית العربية",
    "back\\slash 'quotes' [bold]x[/bold] :smile:",
)


def test_every_unsafe_character_is_escaped() -> None:
    for char in UNSAFE_CHARACTERS:
        shown = printable(f"a{char}b")
        assert shown.isascii()
        assert shown.isprintable()


def test_escapes_name_the_character() -> None:
    shown = printable("\x1b]0;x\x07 \x9b2J \x7f \u202e\u2066\u200f\u061c \u2028 \ud800 \U000e0041\r\n\t")
    assert shown == (r"\x1b]0;x\x07 \x9b2J \x7f \u202e\u2066\u200f\u061c \u2028 \ud800 \U000e0041\r\n\t")


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert printable(text) == text
    assert printable_json(json.dumps(text, ensure_ascii=False)) == json.dumps(text, ensure_ascii=False)


def test_letters_marks_numbers_and_symbols_are_unchanged() -> None:
    text = "".join(
        char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char)[0] in "LMNPS"
    )
    assert printable(text) == text


@given(st.text(st.characters()))
def test_no_output_contains_unsafe_characters(text: str) -> None:
    assert UNSAFE_CHARACTERS.isdisjoint(printable(text))
    assert "\n".join(map(printable, text.split("\n"))) == printable_lines(text)


@given(st.text(st.characters(), max_size=300), st.integers(1, 100))
def test_long_text_is_truncated_with_its_length(text: str, limit: int) -> None:
    shown = printable(text, limit)
    if printable(text) == text and len(text) <= limit:
        assert shown == text
    assert len(shown) <= limit + len(f"… ({len(text):,} characters)")


def test_truncated_text_states_its_length() -> None:
    assert printable("x" * 3_000, 5) == "xxxxx… (3,000 characters)"


def test_truncation_of_very_long_text() -> None:
    assert printable("\x1b" * 10_000_000, 8) == r"\x1b\x1b… (10,000,000 characters)"


@pytest.mark.slow
@given(st.recursive(st.text(st.characters(exclude_categories=["Cs"])), st.lists))
def test_json_values_are_unchanged(value: object) -> None:
    shown = printable_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(shown) == value
    assert UNSAFE_CHARACTERS.isdisjoint(shown)
