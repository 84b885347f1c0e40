"""Profiles of JSON records: for each field, how many records had it, with which JSON types, and samples."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any, Literal

import msgspec

Kind = Literal["number", "string", "boolean", "array", "object", "null"]

# An upstream may invent any number of field names. Real records stay far below these limits. MAX_FIELDS
# limits the fields of an object and of a finished profile. MAX_COUNTED_FIELDS and MAX_SHAPES limit what a
# profiler counts until then. Records longer than MAX_RECORD_BYTES are not profiled.
MAX_FIELDS = 300
MAX_NAME_LENGTH = 120
MAX_RECORD_BYTES = 256 << 10
MAX_COUNTED_FIELDS = 10 * MAX_FIELDS
MAX_SHAPES = 500
# With fewer objects than this, a share of them says too little.
MIN_OBJECTS = 10
# Samples come from the first records of a batch, which are the same coins in every run.
SAMPLES = 5
MAX_SAMPLE_LENGTH = 60

_KINDS: Mapping[type, Kind] = {
    float: "number",
    str: "string",
    bool: "boolean",
    list: "array",
    dict: "object",
    NoneType: "null",
}

# Numbers become floats here, because only their type and samples matter. Objects are decoded as deeply as the
# APIs nest their values.
_Deep = dict[str, bool | float | str | list[msgspec.Raw] | dict[str, msgspec.Raw] | None]
_Nested = dict[str, bool | float | str | list[msgspec.Raw] | _Deep | None]
_DECODE = msgspec.json.Decoder(dict[str, bool | float | str | list[msgspec.Raw] | _Nested | None]).decode


class Field(msgspec.Struct, kw_only=True):
    """One field: how many objects could have it (`parent_count`), and its values counted by type (`kinds`).

    CoinPaprika writes an empty string for a missing value, so it counts as null. In a profile of many runs,
    older runs have less weight, so counts may be fractions. `max_fill_share` is the share of objects with a
    value, in the batch where that share was largest.
    """

    parent: str
    parent_count: float = 0.0
    kinds: dict[Kind, float] = {}
    samples: list[str] = []
    max_fill_share: float = 0.0

    @property
    def present(self) -> float:
        """How many objects had the field, with or without a value."""
        return sum(self.kinds.values())

    @property
    def filled(self) -> float:
        """How many objects had a value in the field."""
        return self.present - self.kinds.get("null", 0.0)


class Profile(msgspec.Struct, kw_only=True):
    """The fields of some records by path, such as `quotes.USD.price`.

    `objects` is the number of objects under each path. The empty path stands for the records themselves.
    """

    objects: dict[str, float] = {}
    fields: dict[str, Field] = {}

    @property
    def records(self) -> float:
        """The number of records."""
        return self.objects.get("", 0.0)


class Profiler:
    """Builds a profile of records, at a cost of a few microseconds for each."""

    def __init__(self) -> None:
        self._start_over()

    def _start_over(self) -> None:
        self._shapes: Counter[tuple[str, tuple[str, ...], tuple[type, ...]]] = Counter()
        self._found = Profile()
        self._samples: dict[str, list[str]] = {}
        self._sampled = 0

    def add(self, item: bytes | msgspec.Raw) -> None:
        """Add a record, given as JSON.

        The record is ignored if it is not an object, is too long or too deeply nested, or has a number that
        is too large for a float.
        """
        if len(memoryview(item)) > MAX_RECORD_BYTES:
            return
        try:
            record = _DECODE(item)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        self._add_object("", record)
        if self._sampled < SAMPLES:
            self._sampled += 1
            self._sample("", record)

    def _add_object(self, path: str, found: Mapping[str, Any]) -> None:
        # Most records have one of a few shapes. Counting shapes is faster than counting each field.
        found = _first_fields(found)
        kinds = tuple([type(value) if value != "" else NoneType for value in found.values()])
        self._shapes[path, tuple(found), kinds] += 1
        if len(self._shapes) > MAX_SHAPES:
            self._count()
        if dict in kinds:
            for name, value in found.items():
                if type(value) is dict and path.count(".") < 1:
                    self._add_object(_joined(path, name), value)

    def _sample(self, path: str, found: Mapping[str, Any]) -> None:
        for name, value in _first_fields(found).items():
            if type(value) is dict and path.count(".") < 1:
                self._sample(_joined(path, name), value)
            elif (
                type(value) in {float, str, bool} and value != "" and len(self._samples) < MAX_COUNTED_FIELDS
            ):
                text = msgspec.json.encode(value).decode()
                self._samples.setdefault(_joined(path, name), []).append(_plain(text, MAX_SAMPLE_LENGTH))

    def _count(self) -> None:
        """Count the fields of the shapes so far, and forget the shapes."""
        objects, fields = self._found.objects, self._found.fields
        for (parent, names, kinds), count in self._shapes.items():
            if parent and parent not in fields:
                continue
            objects[parent] = objects.get(parent, 0.0) + count
            for name, kind in zip(names, kinds, strict=True):
                path = _joined(parent, name)
                field = fields.get(path)
                if field is None:
                    if len(fields) == MAX_COUNTED_FIELDS:
                        continue
                    field = fields[path] = Field(parent=parent)
                json_kind = _KINDS[kind]
                field.kinds[json_kind] = field.kinds.get(json_kind, 0.0) + count
        self._shapes.clear()

    def take(self) -> Profile | None:
        """Return the profile of the records added since the last call, or None if there are none."""
        self._count()
        found = self._found
        if not found.objects:
            return None
        for path, field in found.fields.items():
            field.parent_count = found.objects[field.parent]
            field.samples = self._samples.get(path, [])
            field.max_fill_share = (
                field.filled / field.parent_count if field.parent_count >= MIN_OBJECTS else 0.0
            )
        self._start_over()
        return limit_fields(found)


def merge_profiles(profiles: Iterable[Profile]) -> Profile:
    """One profile for the records of all these profiles."""
    whole = Profile()
    for profile in profiles:
        for path, count in profile.objects.items():
            whole.objects[path] = whole.objects.get(path, 0.0) + count
        for path, field in profile.fields.items():
            known = whole.fields.setdefault(path, Field(parent=field.parent))
            for kind, count in field.kinds.items():
                known.kinds[kind] = known.kinds.get(kind, 0.0) + count
            known.samples = [*known.samples, *field.samples][:SAMPLES]
            known.max_fill_share = max(known.max_fill_share, field.max_fill_share)
    for field in whole.fields.values():
        field.parent_count = whole.objects[field.parent]
    return limit_fields(whole)


def limit_fields(profile: Profile) -> Profile:
    """If there are too many fields, keep those that most objects had. Changes and returns the profile."""
    if len(profile.fields) > MAX_FIELDS:
        ordered = sorted(profile.fields.items(), key=lambda item: (-item[1].present, item[0]))
        profile.fields = dict(itertools.islice(ordered, MAX_FIELDS))
        paths = {"", *(field.parent for field in profile.fields.values())}
        profile.objects = {path: count for path, count in profile.objects.items() if path in paths}
    return profile


def _first_fields(found: Mapping[str, Any]) -> Mapping[str, Any]:
    return found if len(found) <= MAX_FIELDS else dict(itertools.islice(found.items(), MAX_FIELDS))


def _joined(path: str, name: str) -> str:
    name = _plain(name, MAX_NAME_LENGTH)
    return f"{path}.{name}" if path else name


def _plain(text: str, limit: int) -> str:
    # Names and samples appear in logs, on terminals and in PostgreSQL, which cannot store NUL.
    shown = text if len(text) <= limit else f"{text[:limit]}…"
    return shown if shown.isprintable() else shown.encode("unicode_escape").decode()
