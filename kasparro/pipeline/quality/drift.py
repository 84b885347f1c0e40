"""Finds drift: changes in the fields that a source sends, compared with what it used to send."""

from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from typing import Annotated, Literal

import msgspec

from kasparro.model.profile import MIN_OBJECTS, Field, Kind, Profile, limit_fields

Change = Literal["appeared", "vanished", "type", "null"]

# A field has changed if at least MOST records agreed before and at most FEW of them still do. Runs fetch
# different parts of a list, and what is missing differs with the part, so smaller differences prove nothing.
MOST, FEW = 0.9, 0.1
# Nulls gather in the tail of a list. So a field has turned null only if every batch of the run shows it, and
# only if no page was lost and the run has about the usual size, within this factor.
SIZE = 2.0
# The weight of a run relative to the next one. The last ten runs make up two thirds of the baseline.
WEIGHT = 0.9
# A change is accepted as normal after this many usable runs.
ACCEPTED_AFTER = 10
# The confidence that a suggested nearest field needs, and the number of changes that a run reports.
LEAST_CONFIDENCE = 0.5
CHANGES_REPORTED = 50


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """One field that has changed: it appeared, vanished, changed its type or turned null."""

    field: Annotated[str, msgspec.Meta(description="Its path, such as quotes.USD.price.")]
    change: Change
    records: Annotated[int, msgspec.Meta(description="Records of this run that show the change.")]
    of: Annotated[int, msgspec.Meta(description="Records of this run that could show it.")]
    before: Annotated[str, msgspec.Meta(description="What the field was before, in words.")]
    after: Annotated[str, msgspec.Meta(description="What the field is now, in words.")]
    samples: Annotated[
        list[str],
        msgspec.Meta(description="Sample values as JSON; of a vanished field, the last known values."),
    ]
    nearest: Annotated[
        str | None,
        msgspec.Meta(description="The most similar field: probably the new name, or the old one."),
    ]
    confidence: Annotated[
        float | None,
        msgspec.Meta(description="Confidence in `nearest`, 0 to 1, from the name, the type and the values."),
    ]
    since_run: Annotated[int, msgspec.Meta(description="The run that found the change first.")]

    @property
    def summary(self) -> str:
        """The change in one line, for logs and terminals."""
        nearest = f"; nearest is {self.nearest} (confidence {self.confidence})" if self.nearest else ""
        verb = {"type": "changed its type", "null": "turned null"}.get(self.change, self.change)
        return f"{self.field} {verb}: {self.after}, before: {self.before}{nearest}"


class OpenChange(msgspec.Struct, frozen=True):
    """A known change that has neither ended nor been accepted."""

    field: str
    change: Change
    parent: str
    since_run: int
    runs: int
    """Number of usable runs that showed it."""


class DriftBaseline(msgspec.Struct, frozen=True, kw_only=True):
    """What a source used to send: the weighted profile of its earlier runs.

    `runs` is the sum of their weights. `complete`: at least one of them lost no page. A field with an open
    change keeps its old profile until the change ends or is accepted.
    """

    profile: Profile
    runs: float
    complete: bool
    open: list[OpenChange] = []


class DriftReport(msgspec.Struct, frozen=True, kw_only=True):
    """The changes that a run shows, and the baseline after it.

    `drift` has all changes, `new` those that no earlier run showed. `ended` and `accepted` are known changes.
    """

    baseline: DriftBaseline | None
    drift: list[Drift] = []
    new: list[Drift] = []
    ended: list[OpenChange] = []
    accepted: list[OpenChange] = []


def find_drift(
    baseline: DriftBaseline | None, profile: Profile, run_id: int, *, usable: bool, complete: bool
) -> DriftReport:
    """Compare the profile of one run with the baseline of its source.

    `usable`: most records of the run were accepted. Other runs are compared too, but do not change the
    baseline. `complete`: the run fetched all that it planned.
    """
    if not profile.records:
        return DriftReport(baseline=baseline)
    if baseline is None:
        first = DriftBaseline(profile=profile, runs=1.0, complete=complete)
        return DriftReport(baseline=first if usable else None)
    nulls = complete and _comparable(baseline, profile)
    known = {(change.change, change.field): change for change in baseline.open}
    report = DriftReport(baseline=None)
    still_open: list[OpenChange] = []
    for drift in _changes(baseline, profile, run_id, nulls=nulls):
        change = known.pop((drift.change, drift.field), None)
        if change is None:
            parent = _parent(baseline, profile, drift.field)
            change = OpenChange(drift.field, drift.change, parent, run_id, 0)
            report.new.append(drift)
        report.drift.append(msgspec.structs.replace(drift, since_run=change.since_run))
        change = msgspec.structs.replace(change, runs=change.runs + usable)
        (report.accepted if change.runs >= ACCEPTED_AFTER else still_open).append(change)
    for change in known.values():
        (report.ended if _has_ended(change, profile, nulls=nulls) else still_open).append(change)
    after = baseline
    if usable:
        held = {change.field for change in still_open}
        accepted = {change.field for change in report.accepted}
        after = _updated(baseline, profile, complete, held, accepted)
    return msgspec.structs.replace(
        report,
        baseline=msgspec.structs.replace(after, open=still_open),
        drift=report.drift[:CHANGES_REPORTED],
    )


def _changes(baseline: DriftBaseline, profile: Profile, run_id: int, *, nulls: bool) -> Iterator[Drift]:
    known, current = baseline.profile.fields, profile.fields
    vanished = {path: known[path] for path in sorted(known) if _vanished(known[path], path, profile)}
    appeared = {
        path: current[path] for path in sorted(current) if _appeared(baseline.profile, path, current[path])
    }
    compared = 0

    def drift(path: str, change: Change, records: float, before: str, after: str) -> Drift:
        old, new = known.get(path), current.get(path)
        field = old if old and change in {"vanished", "null"} else new or Field(parent="")
        nonlocal compared
        nearest = None
        if change != "type" and compared < CHANGES_REPORTED:
            # If a map with hundreds of keys came or went, comparing all of them would take minutes.
            compared += 1
            nearest = _nearest(path, field, vanished if change == "appeared" else appeared, known)
        of = new.filled if new and change == "type" else profile.objects[field.parent]
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

    for path, old in vanished.items():
        missing = profile.objects[old.parent] - _present(profile, path)
        yield drift(path, "vanished", missing, f"in {_percent(old.present, old.parent_count)}", "missing")
    for path, new in appeared.items():
        yield drift(path, "appeared", new.present, "not there", _main_kind(new))
    for path in sorted(known.keys() & current.keys() - vanished.keys() - appeared.keys()):
        old, new = known[path], current[path]
        if old.parent_count < MIN_OBJECTS or new.parent_count < MIN_OBJECTS:
            continue
        if (
            nulls
            and old.filled >= MOST * old.parent_count
            and max(new.max_fill_share, new.filled / new.parent_count) <= FEW
        ):
            yield drift(
                path,
                "null",
                new.parent_count - new.filled,
                f"filled in {_percent(old.filled, old.parent_count)}",
                "null",
            )
        elif min(old.filled, new.filled) >= MIN_OBJECTS:
            kind = _main_kind(new)
            count = new.kinds.get(kind, 0.0)
            if count >= MOST * new.filled and old.kinds.get(kind, 0.0) <= FEW * old.filled:
                yield drift(path, "type", count, _main_kind(old), kind)


def _vanished(old: Field, path: str, profile: Profile) -> bool:
    of = profile.objects.get(old.parent, 0.0)
    enough = min(old.parent_count, of) >= MIN_OBJECTS
    return enough and old.present >= MOST * old.parent_count and _present(profile, path) <= FEW * of


def _appeared(known: Profile, path: str, new: Field) -> bool:
    of = known.objects.get(new.parent, 0.0)
    return (
        min(of, new.parent_count) >= MIN_OBJECTS
        and new.present >= MOST * new.parent_count
        and _present(known, path) <= FEW * of
    )


def _present(profile: Profile, path: str) -> float:
    field = profile.fields.get(path)
    return field.present if field else 0.0


def _parent(baseline: DriftBaseline, profile: Profile, path: str) -> str:
    return (baseline.profile.fields.get(path) or profile.fields[path]).parent


def _comparable(baseline: DriftBaseline, profile: Profile) -> bool:
    usual = baseline.profile.records / baseline.runs
    return baseline.complete and usual / SIZE <= profile.records <= usual * SIZE


def _has_ended(change: OpenChange, profile: Profile, *, nulls: bool) -> bool:
    """Whether a run that does not show the change proves that it has ended."""
    if change.change == "type":
        field = profile.fields.get(change.field)
        return field is not None and field.filled >= MIN_OBJECTS
    enough = profile.objects.get(change.parent, 0.0) >= MIN_OBJECTS
    return enough and (change.change != "null" or nulls)


def _updated(
    baseline: DriftBaseline, profile: Profile, complete: bool, held: set[str], accepted: set[str]
) -> DriftBaseline:
    """Add a run to the baseline. Fields in `held` keep their old profile, `accepted` ones get the new one."""
    old = baseline.profile
    objects = {
        path: count
        for path in old.objects.keys() | profile.objects.keys()
        if (count := old.objects.get(path, 0.0) * WEIGHT + profile.objects.get(path, 0.0)) >= 1
    }
    fields = {}
    for path in sorted(old.fields.keys() | profile.fields.keys()):
        before, new = old.fields.get(path), profile.fields.get(path)
        if path in held:
            blended = before
        elif path in accepted or before is None:
            blended = new
        else:
            blended = _blended(before, new, profile.objects.get(before.parent, 0.0))
        # A field whose weighted count is below one object is dropped.
        if blended is not None and blended.present >= 1:
            fields[path] = blended
    return DriftBaseline(
        profile=limit_fields(Profile(objects=objects, fields=fields)),
        runs=baseline.runs * WEIGHT + 1.0,
        complete=baseline.complete or complete,
    )


def _blended(old: Field, new: Field | None, of: float) -> Field:
    kinds = {kind: count * WEIGHT for kind, count in old.kinds.items()}
    for kind, count in (new.kinds if new else {}).items():
        kinds[kind] = kinds.get(kind, 0.0) + count
    return Field(
        parent=old.parent,
        parent_count=old.parent_count * WEIGHT + of,
        kinds=kinds,
        samples=new.samples if new and new.samples else old.samples,
    )


def _nearest(
    path: str, field: Field, others: Mapping[str, Field], known: Mapping[str, Field]
) -> tuple[str, float] | None:
    """Return the most similar field and the confidence in it, or None if no field is similar enough.

    The candidates are `others`, the fields that came or went at the same time. If none of them fits, all
    known fields are compared by name alone. Their confidence is halved, since both fields are present.
    """
    confidences = {other: _similarity(path, field, other, others[other]) for other in others if other != path}
    if not any(confidence >= LEAST_CONFIDENCE for confidence in confidences.values()):
        names = {
            other: _name_similarity(path, other, LEAST_CONFIDENCE / 0.8)
            for other in known
            if other != path and other not in others
        }
        confidences = {other: 0.5 * name for other, name in names.items() if 0.8 * name >= LEAST_CONFIDENCE}
    if not confidences:
        return None
    best = max(confidences, key=lambda other: (confidences[other], other))
    return (best, round(confidences[best], 2)) if confidences[best] >= LEAST_CONFIDENCE / 2 else None


def _similarity(path: str, field: Field, other_path: str, other: Field) -> float:
    name = _name_similarity(path, other_path)
    kind = float(_main_kind(field) == _main_kind(other))
    values = _overlap(field.samples, other.samples)
    return 0.8 * name + 0.2 * kind if values is None else 0.4 * name + 0.1 * kind + 0.5 * values


def _name_similarity(path: str, other: str, least: float = 0.0) -> float:
    # Returns 0 below `least`: the quick ratios are upper bounds, and much faster.
    matcher = SequenceMatcher(None, path, other, autojunk=False)
    if matcher.real_quick_ratio() < least or matcher.quick_ratio() < least:
        return 0.0
    return matcher.ratio()


def _overlap(samples: list[str], others: list[str]) -> float | None:
    """Return the share of samples that the other field has too, None if there are too few.

    The samples are of the same few coins in every run. Numbers match within a tenth, since a market moves.
    """
    distinct = set(samples)
    if len(distinct) < 2 or len(set(others)) < 2:
        return None
    return sum(any(_alike(sample, other) for other in others) for sample in distinct) / len(distinct)


def _alike(sample: str, other: str) -> bool:
    if sample.startswith('"') or other.startswith('"'):
        return sample == other
    try:
        a, b = float(sample), float(other)
    except ValueError:
        return sample == other
    return a * b > 0 and abs(a - b) <= 0.1 * max(abs(a), abs(b))


def _main_kind(field: Field) -> Kind:
    """Return the kind of most values, null if there are none."""
    return max(field.kinds, key=lambda kind: (kind != "null", field.kinds[kind], kind), default="null")


def _percent(part: float, whole: float) -> str:
    return "all records" if part >= whole else f"{part / whole:.1%} of records"
