"""Schema drift: what changed in the fields that a source sends, against what it used to send."""

from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from typing import Annotated, Literal

import msgspec

from kasparro.model.profile import ENOUGH, Field, Kind, Profile, bounded

Change = Literal["appeared", "vanished", "type", "null"]

# A field is judged where nearly all records agreed before and nearly all agree otherwise now: which part of a
# list a walk brings differs from run to run, and what is missing there differs with it.
MOST, FEW = 0.9, 0.1
# Nulls gather in a list's tail, so that a field is null only where it is so in every part of a pass, and only
# between passes of about one size that lost none of theirs.
SIZE = 2.0
# An older pass weighs so much less than the one after it: the last ten make up two thirds of the memory.
WEIGHT = 0.9
# A change that lasted for so many sound passes is the new normal.
ACCEPTED_AFTER = 10
# What a suggestion has to come to, and how many findings of a pass are told.
WORTH_TELLING = 0.5
FINDINGS_TOLD = 50


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """One field that is not what it was: it appeared, vanished, changed its type or turned null."""

    field: Annotated[str, msgspec.Meta(description="Its path, such as quotes.USD.price.")]
    change: Change
    records: Annotated[int, msgspec.Meta(description="Records of this pass that show the change.")]
    of: Annotated[int, msgspec.Meta(description="Records of this pass that could have shown it.")]
    before: Annotated[str, msgspec.Meta(description="What it was, in words.")]
    after: Annotated[str, msgspec.Meta(description="What it is, in words.")]
    samples: Annotated[
        list[str], msgspec.Meta(description="Values as JSON: of one that vanished the last known ones.")
    ]
    nearest: Annotated[
        str | None, msgspec.Meta(description="The field that may have taken its place, or whose it took.")
    ]
    confidence: Annotated[
        float | None,
        msgspec.Meta(description="In the nearest field, 0 to 1: by name, by kind and by the values."),
    ]
    since_run: Annotated[int, msgspec.Meta(description="The run that found it first.")]

    @property
    def summary(self) -> str:
        """All of it in one line, for logs and terminals."""
        nearest = f"; nearest is {self.nearest} (confidence {self.confidence})" if self.nearest else ""
        verb = {"type": "changed its type", "null": "turned null"}.get(self.change, self.change)
        return f"{self.field} {verb}: {self.after}, before: {self.before}{nearest}"


class Open(msgspec.Struct, frozen=True):
    """A change that is known of and lasts."""

    field: str
    change: Change
    parent: str
    since_run: int
    passes: int
    """For how many sound passes."""


class DriftBaseline(msgspec.Struct, frozen=True, kw_only=True):
    """What a source used to send: the profiles of its passes, `passes` of them by weight and one at least
    `whole`, in which a field that changed stays what it was until the change is accepted or over."""

    profile: Profile
    passes: float
    whole: bool
    open: list[Open] = []


class DriftReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a pass shows against the memory, and the memory after it."""

    memory: DriftBaseline | None
    drift: list[Drift] = []
    begun: list[Drift] = []
    over: list[Open] = []
    accepted: list[Open] = []


def assess(
    memory: DriftBaseline | None, seen: Profile, run_id: int, *, sound: bool, whole: bool
) -> DriftReport:
    """Compare the profile of one pass with what is remembered of its source.

    A pass is `sound` where most of its records were accepted; others are judged, but nothing is learnt from
    them: what the source used to send stays what it sent when it could be used. It is `whole` where it lost
    no part of what it set out to bring.
    """
    if not seen.records:
        return DriftReport(memory=memory)
    if memory is None:
        return DriftReport(memory=DriftBaseline(profile=seen, passes=1.0, whole=whole) if sound else None)
    nulls = whole and _comparable(memory, seen)
    known = {(one.change, one.field): one for one in memory.open}
    drift: list[Drift] = []
    begun: list[Drift] = []
    lasting: list[Open] = []
    accepted: list[Open] = []
    over: list[Open] = []
    for found in _found(memory, seen, run_id, nulls=nulls):
        opened = known.pop((found.change, found.field), None)
        if opened is None:
            opened = Open(found.field, found.change, _parent(memory, seen, found.field), run_id, 0)
            begun.append(found)
        drift.append(msgspec.structs.replace(found, since_run=opened.since_run))
        lasts = msgspec.structs.replace(opened, passes=opened.passes + sound)
        (accepted if lasts.passes >= ACCEPTED_AFTER else lasting).append(lasts)
    for opened in known.values():
        (over if _can_tell(opened, seen, nulls=nulls) else lasting).append(opened)
    after = memory
    if sound:
        after = _learnt(memory, seen, whole, {one.field for one in lasting}, {one.field for one in accepted})
    return DriftReport(
        memory=msgspec.structs.replace(after, open=lasting),
        drift=drift[:FINDINGS_TOLD],
        begun=begun,
        over=over,
        accepted=accepted,
    )


def _found(memory: DriftBaseline, seen: Profile, run_id: int, *, nulls: bool) -> Iterator[Drift]:
    known, now = memory.profile.fields, seen.fields
    vanished = {path: known[path] for path in sorted(known) if _vanished(known[path], path, seen)}
    appeared = {path: now[path] for path in sorted(now) if _appeared(memory.profile, path, now[path])}
    looked_for = 0

    def drift(path: str, change: Change, records: float, before: str, after: str) -> Drift:
        was, new = known.get(path), now.get(path)
        field = was if was and change in {"vanished", "null"} else new or Field(parent="")
        nonlocal looked_for
        nearest = None
        if change != "type" and looked_for < FINDINGS_TOLD:
            # Looking for all would take minutes, were a map with hundreds of keys to come or go.
            looked_for += 1
            nearest = _nearest(path, field, vanished if change == "appeared" else appeared, known)
        of = new.filled if new and change == "type" else seen.objects[field.parent]
        return Drift(
            field=path,
            change=change,
            records=round(records),
            of=round(of),
            before=before,
            after=f"{after} in {round(records):,} of {round(of):,} records",
            samples=field.samples,
            nearest=nearest[0] if nearest else None,
            confidence=nearest[1] if nearest else None,
            since_run=run_id,
        )

    for path, was in vanished.items():
        missing = seen.objects[was.parent] - _present(seen, path)
        yield drift(path, "vanished", missing, f"in {_percent(was.present, was.of)}", "missing")
    for path, new in appeared.items():
        yield drift(path, "appeared", new.present, "not there", _main_kind(new))
    for path in sorted(known.keys() & now.keys() - vanished.keys() - appeared.keys()):
        was, new = known[path], now[path]
        if was.of < ENOUGH or new.of < ENOUGH:
            continue
        if nulls and was.filled >= MOST * was.of and max(new.fullest, new.filled / new.of) <= FEW:
            yield drift(
                path, "null", new.of - new.filled, f"filled in {_percent(was.filled, was.of)}", "null"
            )
        elif min(was.filled, new.filled) >= ENOUGH:
            kind = _main_kind(new)
            told = new.kinds.get(kind, 0.0)
            if told >= MOST * new.filled and was.kinds.get(kind, 0.0) <= FEW * was.filled:
                yield drift(path, "type", told, _main_kind(was), kind)


def _vanished(was: Field, path: str, seen: Profile) -> bool:
    of = seen.objects.get(was.parent, 0.0)
    return min(was.of, of) >= ENOUGH and was.present >= MOST * was.of and _present(seen, path) <= FEW * of


def _appeared(known: Profile, path: str, new: Field) -> bool:
    of = known.objects.get(new.parent, 0.0)
    return min(of, new.of) >= ENOUGH and new.present >= MOST * new.of and _present(known, path) <= FEW * of


def _present(profile: Profile, path: str) -> float:
    field = profile.fields.get(path)
    return field.present if field else 0.0


def _parent(memory: DriftBaseline, seen: Profile, path: str) -> str:
    return (memory.profile.fields.get(path) or seen.fields[path]).parent


def _comparable(memory: DriftBaseline, seen: Profile) -> bool:
    usual = memory.profile.records / memory.passes
    return memory.whole and usual / SIZE <= seen.records <= usual * SIZE


def _can_tell(one: Open, seen: Profile, *, nulls: bool) -> bool:
    """Whether a pass that does not show the change shows that it is over."""
    if one.change == "type":
        field = seen.fields.get(one.field)
        return field is not None and field.filled >= ENOUGH
    enough = seen.objects.get(one.parent, 0.0) >= ENOUGH
    return enough and (one.change != "null" or nulls)


def _learnt(
    memory: DriftBaseline, seen: Profile, whole: bool, held: set[str], accepted: set[str]
) -> DriftBaseline:
    """The memory with a pass more, in which fields `held` stay as they are and `accepted` become new."""
    old = memory.profile
    objects = {
        path: count
        for path in old.objects.keys() | seen.objects.keys()
        if (count := old.objects.get(path, 0.0) * WEIGHT + seen.objects.get(path, 0.0)) >= 1
    }
    fields = {}
    for path in sorted(old.fields.keys() | seen.fields.keys()):
        was, new = old.fields.get(path), seen.fields.get(path)
        if path in held:
            blended = was
        elif path in accepted or was is None:
            blended = new
        else:
            blended = _blended(was, new, seen.objects.get(was.parent, 0.0))
        # What stood in less than one object of the passes that still count is forgotten.
        if blended is not None and blended.present >= 1:
            fields[path] = blended
    return DriftBaseline(
        profile=bounded(Profile(objects=objects, fields=fields)),
        passes=memory.passes * WEIGHT + 1.0,
        whole=memory.whole or whole,
    )


def _blended(was: Field, new: Field | None, of: float) -> Field:
    kinds = {kind: count * WEIGHT for kind, count in was.kinds.items()}
    for kind, count in (new.kinds if new else {}).items():
        kinds[kind] = kinds.get(kind, 0.0) + count
    return Field(
        parent=was.parent,
        of=was.of * WEIGHT + of,
        kinds=kinds,
        samples=new.samples if new and new.samples else was.samples,
    )


def _nearest(
    path: str, field: Field, others: Mapping[str, Field], known: Mapping[str, Field]
) -> tuple[str, float] | None:
    """The field that is likest: of those that came or went at the same time, else of all known ones, where
    the name alone speaks for it, and half as loud, since both are there side by side."""
    likeness = {other: _likeness(path, field, other, others[other]) for other in others if other != path}
    if not any(one >= WORTH_TELLING for one in likeness.values()):
        names = {
            other: _name_likeness(path, other, WORTH_TELLING / 0.8)
            for other in known
            if other != path and other not in others
        }
        likeness = {other: 0.5 * name for other, name in names.items() if 0.8 * name >= WORTH_TELLING}
    if not likeness:
        return None
    best = max(likeness, key=lambda other: (likeness[other], other))
    return (best, round(likeness[best], 2)) if likeness[best] >= WORTH_TELLING / 2 else None


def _likeness(path: str, field: Field, other_path: str, other: Field) -> float:
    name = _name_likeness(path, other_path)
    kind = float(_main_kind(field) == _main_kind(other))
    values = _overlap(field.samples, other.samples)
    return 0.8 * name + 0.2 * kind if values is None else 0.4 * name + 0.1 * kind + 0.5 * values


def _name_likeness(path: str, other: str, least: float = 0.0) -> float:
    # 0 where it is less than `least`, which is sooner found than how much less.
    matcher = SequenceMatcher(None, path, other, autojunk=False)
    if matcher.real_quick_ratio() < least or matcher.quick_ratio() < least:
        return 0.0
    return matcher.ratio()


def _overlap(samples: list[str], others: list[str]) -> float | None:
    """The share of values that the other field has too, numbers within a tenth since a market moves; None
    where there is too little to compare. Samples are of the same few coins in every pass."""
    distinct = set(samples)
    if len(distinct) < 2 or len(set(others)) < 2:
        return None
    return sum(any(_alike(one, other) for other in others) for one in distinct) / len(distinct)


def _alike(one: str, other: str) -> bool:
    if one.startswith('"') or other.startswith('"'):
        return one == other
    try:
        a, b = float(one), float(other)
    except ValueError:
        return one == other
    return a * b > 0 and abs(a - b) <= 0.1 * max(abs(a), abs(b))


def _main_kind(field: Field) -> Kind:
    """The kind of most of its values; null where it has none."""
    return max(field.kinds, key=lambda kind: (kind != "null", field.kinds[kind], kind), default="null")


def _percent(part: float, whole: float) -> str:
    return "all records" if part >= whole else f"{part / whole:.1%} of records"
