"""An array is cut into its elements whatever they hold, and nothing else is taken for one."""

import json
import string
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.sources.json_array import ELEMENTS_LIMIT, TooMany, elements

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.text(alphabet='\\"[]{},:\n\t '),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)
DEEP = b"[" * 100_000 + b"]" * 100_000


def cut(body: bytes) -> list[bytes]:
    return [bytes(one) for one in elements(body)]


@given(st.lists(values, max_size=6), st.booleans(), st.sampled_from([None, 1]))
def test_what_is_no_json_inside_an_element_leaves_the_others_as_they_are(
    told: list[object], ascii_only: bool, indent: int | None
) -> None:
    body = json.dumps(told, ensure_ascii=ascii_only, indent=indent).encode()
    spoilt = body[:-1] + (b"," if told else b"") + b'{"price": NaN}]'

    *sound, bad = cut(spoilt)

    assert [json.loads(one) for one in sound] == told
    assert bad == b'{"price": NaN}'


@given(st.lists(values, max_size=6))
def test_json_is_cut_as_msgspec_cuts_it(told: list[object]) -> None:
    assert [json.loads(one) for one in cut(json.dumps(told).encode())] == told


@pytest.mark.parametrize("bad", [b"NaN", b'{"a": "\\ud800"}', b'{"a": "\xff\xfe"}', b"{'a': 1}", DEEP, b""])
def test_one_bad_element_costs_one(bad: bytes) -> None:
    assert cut(b'[{"id": "a", "p": 1.10}, ' + bad + b' ,{"id":"c"}]') == [
        b'{"id": "a", "p": 1.10}',
        bad,
        b'{"id":"c"}',
    ]


@pytest.mark.parametrize("body", [b"[]", b" [ ]\r\n"])
def test_an_empty_array_has_none(body: bytes) -> None:
    assert cut(body) == []


@given(st.text(alphabet=string.printable + 'é[]{}"\\,', max_size=40))
def test_what_is_no_array_is_a_value_error_and_nothing_else(text: str) -> None:
    for body in (text.encode(), f"[{text}".encode(), f"[{text}]".encode()):
        try:
            cut(body)
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
def test_other_bodies_are_refused_whole(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        elements(body)


@pytest.mark.parametrize("one", [b"{}", b"1", b'{"id":"a"}'])
@pytest.mark.parametrize("first", [b"0", b"NaN"])
@pytest.mark.parametrize("count", [ELEMENTS_LIMIT, 5_000_000])
def test_more_elements_than_any_list_has_are_refused_before_they_fill_the_memory(
    first: bytes, one: bytes, count: int
) -> None:
    body = b"[" + first + (b"," + one) * count + b"]"
    tracemalloc.start()
    with pytest.raises(TooMany, match=r"^more than \d+,000,?\d* (records|values)$"):
        elements(body)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most < 32 << 20


def test_a_list_of_as_many_as_there_may_be_is_cut() -> None:
    assert len(elements(b"[0" + b",{}" * (ELEMENTS_LIMIT - 1) + b"]")) == ELEMENTS_LIMIT
    assert len(elements(b"[NaN" + b",{}" * (ELEMENTS_LIMIT - 1) + b"]")) == ELEMENTS_LIMIT
