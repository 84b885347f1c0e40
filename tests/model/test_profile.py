"""What the records of an API held, field by field."""

import itertools
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.model.profile import FIELDS_KEPT, SAMPLES, Profile, Profiler, merge_profiles


def profiled(*records: Any) -> Profile:
    profiler = Profiler()
    for record in records:
        profiler.note(json.dumps(record).encode())
    return profiler.take() or Profile()


values: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([None, True, 0, 7, 10**40, 1e-9, "", "x", []]),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=4,
)
records = st.lists(st.dictionaries(st.sampled_from("abcd"), values, max_size=4), max_size=20)


def test_fields_are_counted_by_the_kind_of_their_values() -> None:
    found = profiled(
        {"id": "a", "price": 1, "rank": None, "roi": {"times": 2.5}, "tags": [1], "new": True},
        {"id": "b", "price": 1e-9, "rank": "", "roi": None, "tags": [], "new": False},
    )

    assert {path: field.kinds for path, field in found.fields.items()} == {
        "id": {"string": 2},
        "price": {"number": 2},
        "rank": {"null": 2},
        "roi": {"object": 1, "null": 1},
        "roi.times": {"number": 1},
        "tags": {"array": 2},
        "new": {"boolean": 2},
    }
    assert (found.fields["price"].parents, found.fields["roi.times"].parents, found.records) == (2, 1, 2)


def test_samples_are_of_the_first_records() -> None:
    found = profiled(*({"n": number, "quotes": {"USD": {"price": number}}} for number in range(20)))

    assert found.fields["n"].samples == found.fields["quotes.USD.price"].samples
    assert [float(sample) for sample in found.fields["n"].samples] == list(range(SAMPLES))


@given(told=records)
def test_every_field_of_a_record_is_counted_once(told: list[dict[str, Any]]) -> None:
    found = profiled(*told)

    assert found.records == len(told)
    for name in "abcd":
        present = found.fields[name].present if name in found.fields else 0
        assert present == sum(name in record for record in told)
    for field in found.fields.values():
        assert field.filled <= field.present <= field.parents == found.objects[field.parent]


@given(told=records, cuts=st.sets(st.integers(1, 19)))
def test_profiles_of_the_parts_make_the_profile_of_the_whole(
    told: list[dict[str, Any]], cuts: set[int]
) -> None:
    borders = [0, *sorted(cut for cut in cuts if cut < len(told)), len(told)]
    parts = merge_profiles(profiled(*told[a:b]) for a, b in itertools.pairwise(borders))

    whole = profiled(*told)

    assert parts.objects == whole.objects
    assert {path: (one.parents, one.kinds) for path, one in parts.fields.items()} == {
        path: (one.parents, one.kinds) for path, one in whole.fields.items()
    }


def test_what_is_no_record_of_any_use_is_not_counted() -> None:
    assert profiled([], "x", 1, None, {"price": 10**400}) == Profile()


@given(
    body=st.binary(max_size=60)
    | st.binary(max_size=90).map(lambda name: json.dumps({name.decode("latin-1"): str(name)}).encode())
)
def test_whatever_an_upstream_sends_ends_in_a_bounded_printable_profile(body: bytes) -> None:
    profiler = Profiler()
    profiler.note(body)
    found = profiler.take() or Profile()

    for path, field in found.fields.items():
        assert path.isprintable()
        assert all(sample.isprintable() for sample in field.samples)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Profile) == found


def test_an_upstream_that_makes_up_names_does_not_fill_the_memory() -> None:
    found = profiled(*({f"x{number}": 1, "id": "a", "long" * 90: 1} for number in range(1_000)))

    assert len(found.fields) == FIELDS_KEPT
    assert found.fields["id"].present == 1_000
    assert max(map(len, found.fields)) < 200


def ever_new_names(record: int) -> dict[str, Any]:
    return {f"{record}x{number}": 1 for number in range(250)}


def ever_new_objects(record: int) -> dict[str, Any]:
    return {f"{record}x": {f"{number}y": {} for number in range(50)}}


def at_last_half_a_million_names(record: int) -> dict[str, Any]:
    return {f"x{number}": 1 for number in range(500_000)} if record == 600 else {}


@pytest.mark.parametrize("made_up", [ever_new_names, ever_new_objects, at_last_half_a_million_names])
def test_made_up_names_are_bounded_while_they_come_in(made_up: Callable[[int], dict[str, Any]]) -> None:
    records = [json.dumps({"id": "a", **made_up(record)}).encode() for record in range(601)]
    profiler = Profiler()
    tracemalloc.start()
    for record in records:
        profiler.note(record)
    found = profiler.take() or Profile()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most < 16 << 20
    assert found.fields["id"].present >= 600
    assert len(found.fields) <= FIELDS_KEPT
    assert len(found.objects) <= FIELDS_KEPT + 1
