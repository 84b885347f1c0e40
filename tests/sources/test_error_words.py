"""The words of an upstream are found in any shape of its body, and become one short line."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.printable import printable
from kasparro.sources.error_words import find_words, shorten
from tests.support.unsafe_characters import UNSAFE_CHARACTERS

WORDS = "the words that a user needs"
TIME = "2026-02-03T04:05:06Z"


@pytest.mark.parametrize(
    "body",
    [
        f'{{"error":"{WORDS}"}}',
        f'{{"status":{{"error_code":10005,"error_message":"{WORDS}"}}}}',
        f'{{"error":{{"status":{{"timestamp":"{TIME}","error_code":1,"error_message":"{WORDS}"}}}}}}',
        f'{{"timestamp":"{TIME}","error_code":1,"status":{{"error_message":"{WORDS}"}}}}',
        f'{{"errors":["{WORDS}"]}}',
        f'{{"errors":[{{"code":"E7","detail":"{WORDS}"}}]}}',
        f'[{{"errorMessage":"{WORDS}"}}]',
        f'{{"Message":"{WORDS}"}}',
        f'{{"type":"about:blank","status":400,"detail":"{WORDS}"}}',
        f'{{"data":null,"error":"","meta":[{{"title":"{WORDS}"}}]}}',
        f'"{WORDS}"',
        f"<html><head><title>{WORDS}</title></head><body>Ray ID: 1</body></html>",
        WORDS,
        f" {WORDS}\n",
    ],
)
def test_words_are_found(body: str) -> None:
    assert shorten(find_words(body.encode())) == WORDS


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"title":"Bad Request","detail":"no such page"}', "Bad Request: no such page"),
        ('{"error":"x","message":"x","status":{"error":"y"}}', "x: y"),
        ('{"errors":{"vs_currency":["is missing"],"page":["is no number"]}}', "is missing: is no number"),
        ('{"error":{"code":"E7","reason":"is missing"}}', "E7: is missing"),
        ('{"error":10012}', '{"error":10012}'),
        ('{"code":7,"reason":"closed"}', '{"code":7,"reason":"closed"}'),
        ('{"error":"no en', '{"error":"no en'),
        ("サービス停止中", "サービス停止中"),
        ("\ufeffbusy", "\\ufeffbusy"),
        ("a\x1b[31m\x00b\nc", "a\\x1b[31m\\x00b c"),
        ("<html><body>none</body></html>", ""),
        ("<html><title>a &amp; b</title>", "a & b"),
        ("[]", ""),
        ("", ""),
    ],
)
def test_other_bodies(body: str, words: str) -> None:
    assert printable(shorten(find_words(body.encode()))) == words


def test_body_without_words_shows_its_beginning() -> None:
    assert shorten(find_words(b'{"reason":"' + b"a" * 9_000)) == '{"reason":"' + "a" * 189


def test_long_message_keeps_its_beginning_and_its_end() -> None:
    line = shorten(f"Not allowed. {'So it is. ' * 200}Use api.vendor.example.")
    assert line.startswith("Not allowed. So it is. ")
    assert line.endswith(" So it is. Use api.vendor.example.")
    assert len(line) < 1_000


@pytest.mark.parametrize("depth", [100, 5_000, 100_000])
def test_deep_nesting_is_no_error(depth: int) -> None:
    found = find_words(b'{"error":' * depth + b'"deep"' + b"}" * depth)
    assert found == "deep" or found.startswith('{"error":{"error":')


KEYS = ["error", "errors", "message", "error_message", "detail", "title"]
keys = st.sampled_from(KEYS)
others = st.text("abcxyz", max_size=8)
plain = st.none() | st.booleans() | st.integers(-(2**60), 2**60)
texts = st.text(st.characters(codec="utf-8"), max_size=30)
anything = st.recursive(
    plain | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | others | texts, inner, max_size=3),
    max_leaves=20,
)


@given(
    path=st.lists(keys | others | st.none(), max_size=12),
    key=keys,
    beside=st.dictionaries(others, plain, max_size=3),
)
def test_words_are_found_at_any_depth(path: list[str | None], key: str, beside: dict[str, Any]) -> None:
    value: Any = beside | {key: WORDS}
    for step in path:
        # None stands for a list.
        value = [*beside.values(), value] if step is None else beside | {step: value}
    assert shorten(find_words(msgspec.json.encode(value))) == WORDS


@given(anything.map(msgspec.json.encode) | st.binary(max_size=300))
def test_any_body_becomes_one_short_line(body: bytes) -> None:
    line = shorten(find_words(body))
    assert len(line) <= 1_000
    assert len(line.splitlines()) <= 1
    assert UNSAFE_CHARACTERS.isdisjoint(printable(line))
