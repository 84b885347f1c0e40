"""What the records of an API held, field by field: how many had it, as which kinds of JSON, with samples."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any, Literal

import msgspec

Kind = Literal["number", "string", "boolean", "array", "object", "null"]

# Bounds for an upstream that makes up names: far above what real records hold. Of an object and of a profile
# so many fields are kept; a longer record is looked at no further; and while records come in, so many fields
# and shapes of objects are told apart.
FIELDS_KEPT = 300
NAME_KEPT = 120
RECORD_LIMIT = 256 << 10
FIELDS_NOTED = 10 * FIELDS_KEPT
SHAPES_NOTED = 500
# A share of fewer objects says nothing.
MIN_OBJECTS = 10
# Of the first records of a pass, which are the same coins every time.
SAMPLES = 5
SAMPLE_KEPT = 60

_KINDS: Mapping[type, Kind] = {
    float: "number",
    str: "string",
    bool: "boolean",
    list: "array",
    dict: "object",
    NoneType: "null",
}

# Numbers all become floats here: this is about their kind, the records keep their digits. Objects are looked
# into as deep as any API nests its figures.
_Deep = dict[str, bool | float | str | list[msgspec.Raw] | dict[str, msgspec.Raw] | None]
_Nested = dict[str, bool | float | str | list[msgspec.Raw] | _Deep | None]
_DECODE = msgspec.json.Decoder(dict[str, bool | float | str | list[msgspec.Raw] | _Nested | None]).decode


class Field(msgspec.Struct, kw_only=True):
    """One field: `of` counts the objects that it could have stood in, `kinds` the values by their kind.

    CoinPaprika writes the empty string for a missing value, so that it counts as null. The counts of one
    pass are whole; those of many passes, in which the older weigh less, need not be. `max_fill_share` is the
    largest share that had a value in it in any one batch.
    """

    parent: str
    parents: float = 0.0
    kinds: dict[Kind, float] = {}
    samples: list[str] = []
    max_fill_share: float = 0.0

    @property
    def present(self) -> float:
        """How many had the field, be it as null."""
        return sum(self.kinds.values())

    @property
    def filled(self) -> float:
        """How many had a value in it."""
        return self.present - self.kinds.get("null", 0.0)


class Profile(msgspec.Struct, kw_only=True):
    """The fields of some records by their paths, such as `quotes.USD.price`; `objects` counts the objects
    that were met under each path, the records themselves under the empty one."""

    objects: dict[str, float] = {}
    fields: dict[str, Field] = {}

    @property
    def records(self) -> float:
        """How many records it is of."""
        return self.objects.get("", 0.0)


class Profiler:
    """Builds the profile of the records that it is shown, for a few microseconds each."""

    def __init__(self) -> None:
        self._start_over()

    def _start_over(self) -> None:
        self._shapes: Counter[tuple[str, tuple[str, ...], tuple[type, ...]]] = Counter()
        self._found = Profile()
        self._samples: dict[str, list[str]] = {}
        self._sampled = 0

    def note(self, item: bytes | msgspec.Raw) -> None:
        """Take a record as its JSON. What is no object, holds a number of hundreds of digits, is nested
        without end or longer than any record is none.
        """
        if len(memoryview(item)) > RECORD_LIMIT:
            return
        try:
            told = _DECODE(item)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        self._note("", told)
        if self._sampled < SAMPLES:
            self._sampled += 1
            self._sample("", told)

    def _note(self, path: str, told: Mapping[str, Any]) -> None:
        # Most records are of few shapes, so that counting shapes spares counting field by field.
        told = _cut(told)
        kinds = tuple([type(value) if value != "" else NoneType for value in told.values()])
        self._shapes[path, tuple(told), kinds] += 1
        if len(self._shapes) > SHAPES_NOTED:
            self._count()
        if dict in kinds:
            for name, value in told.items():
                if type(value) is dict and path.count(".") < 1:
                    self._note(_joined(path, name), value)

    def _sample(self, path: str, told: Mapping[str, Any]) -> None:
        for name, value in _cut(told).items():
            if type(value) is dict and path.count(".") < 1:
                self._sample(_joined(path, name), value)
            elif type(value) in {float, str, bool} and value != "" and len(self._samples) < FIELDS_NOTED:
                text = msgspec.json.encode(value).decode()
                self._samples.setdefault(_joined(path, name), []).append(_plain(text, SAMPLE_KEPT))

    def _count(self) -> None:
        """Count the fields of the shapes that were noted, and forget these."""
        objects, fields = self._found.objects, self._found.fields
        for (parent, names, kinds), count in self._shapes.items():
            if parent and parent not in fields:
                continue
            objects[parent] = objects.get(parent, 0.0) + count
            for name, kind in zip(names, kinds, strict=True):
                path = _joined(parent, name)
                field = fields.get(path)
                if field is None:
                    if len(fields) == FIELDS_NOTED:
                        continue
                    field = fields[path] = Field(parent=parent)
                told = _KINDS[kind]
                field.kinds[told] = field.kinds.get(told, 0.0) + count
        self._shapes.clear()

    def take(self) -> Profile | None:
        """The profile of what was noted, None where that is nothing; the profiler starts over."""
        self._count()
        found = self._found
        if not found.objects:
            return None
        for path, field in found.fields.items():
            field.parents = found.objects[field.parent]
            field.samples = self._samples.get(path, [])
            field.max_fill_share = field.filled / field.parents if field.parents >= MIN_OBJECTS else 0.0
        self._start_over()
        return limit_fields(found)


def merge_profiles(profiles: Iterable[Profile]) -> Profile:
    """The profile of all their records."""
    whole = Profile()
    for one in profiles:
        for path, count in one.objects.items():
            whole.objects[path] = whole.objects.get(path, 0.0) + count
        for path, field in one.fields.items():
            known = whole.fields.setdefault(path, Field(parent=field.parent))
            for kind, count in field.kinds.items():
                known.kinds[kind] = known.kinds.get(kind, 0.0) + count
            known.samples = [*known.samples, *field.samples][:SAMPLES]
            known.max_fill_share = max(known.max_fill_share, field.max_fill_share)
    for field in whole.fields.values():
        field.parents = whole.objects[field.parent]
    return limit_fields(whole)


def limit_fields(profile: Profile) -> Profile:
    """The profile with the fields that most objects had, where there are too many."""
    if len(profile.fields) > FIELDS_KEPT:
        ordered = sorted(profile.fields.items(), key=lambda item: (-item[1].present, item[0]))
        profile.fields = dict(itertools.islice(ordered, FIELDS_KEPT))
        parents = {"", *(field.parent for field in profile.fields.values())}
        profile.objects = {path: count for path, count in profile.objects.items() if path in parents}
    return profile


def _cut(told: Mapping[str, Any]) -> Mapping[str, Any]:
    return told if len(told) <= FIELDS_KEPT else dict(itertools.islice(told.items(), FIELDS_KEPT))


def _joined(path: str, name: str) -> str:
    name = _plain(name, NAME_KEPT)
    return f"{path}.{name}" if path else name


def _plain(text: str, limit: int) -> str:
    # What comes from outside ends in logs, terminals and a database that holds no NUL.
    cut = text if len(text) <= limit else f"{text[:limit]}…"
    return cut if cut.isprintable() else cut.encode("unicode_escape").decode()
