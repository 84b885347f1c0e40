"""Arrays are split into their elements whatever these hold; other bodies are rejected."""

import json
import string
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.sources.json_array import ELEMENTS_LIMIT, ArrayTooLong, split_array

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.text(alphabet='\\"[]{},:\n\t '),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)
DEEP = b"[" * 100_000 + b"]" * 100_000


def split(body: bytes) -> list[bytes]:
    return [bytes(element) for element in split_array(body)]


@pytest.mark.slow
@given(st.lists(values, max_size=6), st.booleans(), st.sampled_from([None, 1]))
def test_invalid_element_leaves_the_others_unchanged(
    elements: list[object], ascii_only: bool, indent: int | None
) -> None:
    body = json.dumps(elements, ensure_ascii=ascii_only, indent=indent).encode()
    spoilt = body[:-1] + (b"," if elements else b"") + b'{"price": NaN}]'

    *valid, bad = split(spoilt)

    assert [json.loads(element) for element in valid] == elements
    assert bad == b'{"price": NaN}'


@pytest.mark.slow
@given(st.lists(values, max_size=6))
def test_valid_json_is_split_into_its_elements(elements: list[object]) -> None:
    assert [json.loads(element) for element in split(json.dumps(elements).encode())] == elements


@pytest.mark.parametrize("bad", [b"NaN", b'{"a": "\\ud800"}', b'{"a": "\xff\xfe"}', b"{'a': 1}", DEEP, b""])
def test_bad_element_costs_only_itself(bad: bytes) -> None:
    assert split(b'[{"id": "a", "p": 1.10}, ' + bad + b' ,{"id":"c"}]') == [
        b'{"id": "a", "p": 1.10}',
        bad,
        b'{"id":"c"}',
    ]


@pytest.mark.parametrize("body", [b"[]", b" [ ]\r\n"])
def test_empty_array_has_no_elements(body: bytes) -> None:
    assert split(body) == []


@given(st.text(alphabet=string.printable + 'é[]{}"\\,', max_size=40))
def test_anything_but_an_array_is_a_value_error(text: str) -> None:
    for body in (text.encode(), f"[{text}".encode(), f"[{text}]".encode()):
        try:
            split(body)
        except ValueError:
            continue
        assert body.strip()[:1] + body.strip()[-1:] == b"[]"


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"null", b"7", b"{}", b'{"data": []}', b"<html>", b"[", b"]", b"[1", b"1]", b"[1]]", b"[[1]"),
        *(
            b'["a]',
            b'[{"a": "b}]',
            b"[1][2]",
            b"[1] [NaN]",
            b"[NaN]]",
            b"[" * 100_000,
            b'[NaN, "' + b"\\" * 1_000_001,
        ),
    ],
)
def test_other_bodies_are_rejected(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        split_array(body)


@pytest.mark.slow
@pytest.mark.parametrize("element", [b"{}", b"1", b'{"id":"a"}'])
@pytest.mark.parametrize("first", [b"0", b"NaN"])
@pytest.mark.parametrize("count", [ELEMENTS_LIMIT, 5_000_000])
def test_too_long_array_is_rejected_with_little_memory(first: bytes, element: bytes, count: int) -> None:
    body = b"[" + first + (b"," + element) * count + b"]"
    tracemalloc.start()
    with pytest.raises(ArrayTooLong, match=r"^more than \d+,000,?\d* (records|values)$"):
        split_array(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 32 << 20


def test_array_of_the_largest_allowed_length() -> None:
    assert len(split_array(b"[0" + b",{}" * (ELEMENTS_LIMIT - 1) + b"]")) == ELEMENTS_LIMIT
    assert len(split_array(b"[NaN" + b",{}" * (ELEMENTS_LIMIT - 1) + b"]")) == ELEMENTS_LIMIT
