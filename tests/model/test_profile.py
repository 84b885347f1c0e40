"""Profiles count the fields of records, and stay small whatever an upstream sends."""

import itertools
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.model.profile import MAX_FIELDS, SAMPLES, Profile, Profiler, merge_profiles


def profile_of(*records: Any) -> Profile:
    profiler = Profiler()
    for record in records:
        profiler.add(json.dumps(record).encode())
    return profiler.take() or Profile()


values: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([None, True, 0, 7, 10**40, 1e-9, "", "x", []]),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=4,
)
records = st.lists(st.dictionaries(st.sampled_from("abcd"), values, max_size=4), max_size=20)


def test_fields_are_counted_by_json_type() -> None:
    found = profile_of(
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
    assert (found.fields["price"].parent_count, found.fields["roi.times"].parent_count, found.records) == (
        2,
        1,
        2,
    )


def test_samples_come_from_the_first_records() -> None:
    found = profile_of(*({"n": number, "quotes": {"USD": {"price": number}}} for number in range(20)))

    assert found.fields["n"].samples == found.fields["quotes.USD.price"].samples
    assert [float(sample) for sample in found.fields["n"].samples] == list(range(SAMPLES))


@given(given_records=records)
def test_every_field_of_a_record_is_counted_once(given_records: list[dict[str, Any]]) -> None:
    found = profile_of(*given_records)

    assert found.records == len(given_records)
    for name in "abcd":
        present = found.fields[name].present if name in found.fields else 0
        assert present == sum(name in record for record in given_records)
    for field in found.fields.values():
        assert field.filled <= field.present <= field.parent_count == found.objects[field.parent]


@given(given_records=records, cuts=st.sets(st.integers(1, 19)))
def test_merged_profiles_equal_the_profile_of_all_records(
    given_records: list[dict[str, Any]], cuts: set[int]
) -> None:
    count = len(given_records)
    borders = [0, *sorted(cut for cut in cuts if cut < count), count]
    parts = merge_profiles(profile_of(*given_records[a:b]) for a, b in itertools.pairwise(borders))

    whole = profile_of(*given_records)

    assert parts.objects == whole.objects
    assert {path: (field.parent_count, field.kinds) for path, field in parts.fields.items()} == {
        path: (field.parent_count, field.kinds) for path, field in whole.fields.items()
    }


def test_other_values_than_records_are_ignored() -> None:
    assert profile_of([], "x", 1, None, {"price": 10**400}) == Profile()


@given(
    body=st.binary(max_size=60)
    | st.binary(max_size=90).map(lambda name: json.dumps({name.decode("latin-1"): str(name)}).encode())
)
def test_profile_of_any_bytes_is_printable_and_survives_json(body: bytes) -> None:
    profiler = Profiler()
    profiler.add(body)
    found = profiler.take() or Profile()

    for path, field in found.fields.items():
        assert path.isprintable()
        assert all(sample.isprintable() for sample in field.samples)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Profile) == found


def test_number_and_length_of_names_are_limited() -> None:
    found = profile_of(*({f"x{number}": 1, "id": "a", "long" * 90: 1} for number in range(1_000)))

    assert len(found.fields) == MAX_FIELDS
    assert found.fields["id"].present == 1_000
    assert max(map(len, found.fields)) < 200


def new_names(record: int) -> dict[str, Any]:
    return {f"{record}x{number}": 1 for number in range(250)}


def new_objects(record: int) -> dict[str, Any]:
    return {f"{record}x": {f"{number}y": {} for number in range(50)}}


def half_a_million_names_once(record: int) -> dict[str, Any]:
    return {f"x{number}": 1 for number in range(500_000)} if record == 600 else {}


@pytest.mark.slow
@pytest.mark.parametrize("invented", [new_names, new_objects, half_a_million_names_once])
def test_invented_names_take_little_memory(invented: Callable[[int], dict[str, Any]]) -> None:
    records = [json.dumps({"id": "a", **invented(record)}).encode() for record in range(601)]
    profiler = Profiler()
    tracemalloc.start()
    for record in records:
        profiler.add(record)
    found = profiler.take() or Profile()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 16 << 20
    assert found.fields["id"].present >= 600
    assert len(found.fields) <= MAX_FIELDS
    assert len(found.objects) <= MAX_FIELDS + 1
