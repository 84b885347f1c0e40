"""Which changes of a source's fields are drift."""

from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from kasparro.model.profile import MIN_OBJECTS, Profile, Profiler, merge_profiles
from kasparro.pipeline.quality.drift import ACCEPTED_AFTER, DriftBaseline, DriftReport, find_drift

Record = dict[str, Any]
PAGE = 25
slow_examples = settings(max_examples=40)


def profiled(records: list[Record]) -> Profile:
    """The profile of records that a crawl fetches page by page."""
    pages = [records[start : start + PAGE] for start in range(0, len(records), PAGE)]
    found = []
    for page in pages:
        profiler = Profiler()
        for record in page:
            profiler.add(msgspec.json.encode(record))
        found.append(profiler.take() or Profile())
    return merge_profiles(found)


def reports(
    *runs: list[Record], baseline: DriftBaseline | None = None, complete: bool = True
) -> Iterator[DriftReport]:
    """The report of each of these consecutive runs."""
    for number, records in enumerate(runs, start=1):
        report = find_drift(baseline, profiled(records), number, usable=True, complete=complete)
        baseline = report.baseline
        yield report


def last_report(
    *runs: list[Record], baseline: DriftBaseline | None = None, complete: bool = True
) -> DriftReport:
    """The report of the last of these consecutive runs."""
    return [*reports(*runs, baseline=baseline, complete=complete)][-1]


def changes(report: DriftReport) -> list[tuple[str, str]]:
    return [(drift.change, drift.field) for drift in report.drift]


def coins(count: int, **values: Any) -> list[Record]:
    return [
        {"id": f"c-{n}", "price": n + 0.5, "rank": n, "quotes": {"cap": n * 7}} | values for n in range(count)
    ]


# A list as market APIs send it. Every record has every key. Some fields are filled only for the first coins,
# some for every n-th coin, and some records have a nested object.
LISTED = 12 * PAGE


@st.composite
def feeds(draw: st.DrawFn) -> list[Record]:
    ends = draw(st.lists(st.integers(0, LISTED), min_size=1, max_size=4))
    every = draw(st.lists(st.integers(1, 40), max_size=3))
    objects = draw(st.integers(1, 60))
    return [
        {"id": f"c-{n}"}
        | {f"head{i}": n if n < end else None for i, end in enumerate(ends)}
        | {f"some{i}": "x" if n % step == 0 else None for i, step in enumerate(every)}
        | {"roi": {"times": 1.5} if n % objects == 0 else None}
        for n in range(LISTED)
    ]


@slow_examples
@given(feed=feeds(), runs=st.integers(2, 4), size=st.integers(1, LISTED))
def test_unchanged_list_has_no_drift(feed: list[Record], runs: int, size: int) -> None:
    assert all(report.drift == [] for report in reports(*[feed[:size]] * runs))


@slow_examples
@given(feed=feeds(), tail=st.integers(1, 10), starts=st.lists(st.integers(1, 11), min_size=2, max_size=9))
def test_rotated_pages_have_no_drift(feed: list[Record], tail: int, starts: list[int]) -> None:
    """Every run fetches the first page and a changing part of the others."""
    pages = [feed[start : start + PAGE] for start in range(0, LISTED, PAGE)]
    runs = [
        sum((pages[1 + (start + n) % (len(pages) - 1)] for n in range(tail)), pages[0]) for start in starts
    ]

    assert all(report.drift == [] for report in reports(*runs))


@slow_examples
@given(feed=feeds(), died=st.integers(1, LISTED - 1))
def test_resumed_crawl_has_no_drift(feed: list[Record], died: int) -> None:
    first = last_report(feed[:died], complete=False)
    second = last_report(feed[died:], baseline=first.baseline)

    assert second.drift == last_report(feed, baseline=second.baseline).drift == []


@slow_examples
@given(
    feed=feeds(),
    change=st.sampled_from(["vanished", "null", "type", "appeared"]),
    since=st.integers(1, 4),
    lasting=st.integers(1, ACCEPTED_AFTER - 1),
)
def test_change_is_found_lasts_and_ends(
    feed: list[Record], change: Literal["vanished", "null", "type", "appeared"], since: int, lasting: int
) -> None:
    changed = [record | {"id": {"null": None, "type": 7}.get(change)} for record in feed]
    if change == "vanished":
        changed = [{name: record[name] for name in record if name != "id"} for record in feed]
    elif change == "appeared":
        changed = [record | {"fresh": 1} for record in feed]
    field = "fresh" if change == "appeared" else "id"

    report = last_report(*[feed] * since)
    for number in range(1, lasting + 1):
        report = find_drift(report.baseline, profiled(changed), since + number, usable=True, complete=True)
        assert changes(report) == [(change, field)]
        assert report.drift[0].since_run == since + 1
        assert (report.drift[0].records, report.drift[0].of) == (LISTED, LISTED)
        assert [drift.field for drift in report.new] == ([field] if number == 1 else [])
        assert report.ended == []
    healed = find_drift(report.baseline, profiled(feed), 99, usable=True, complete=True)
    assert healed.drift == []
    assert [(change.change, change.field) for change in healed.ended] == [(change, field)]
    assert find_drift(healed.baseline, profiled(feed), 100, usable=True, complete=True).ended == []


@slow_examples
@given(feed=feeds())
def test_baseline_survives_json(feed: list[Record]) -> None:
    baseline = last_report(feed, [record | {"new": 1} for record in feed]).baseline

    assert msgspec.json.decode(msgspec.json.encode(baseline), type=DriftBaseline) == baseline


def test_run_without_records_changes_nothing() -> None:
    baseline = last_report(coins(50), coins(50, price="1")).baseline
    report = find_drift(baseline, Profile(), 3, usable=True, complete=True)

    assert (report.baseline, report.ended) == (baseline, [])


def test_first_run_and_few_records_prove_nothing() -> None:
    assert last_report(coins(500)).drift == []
    few = coins(MIN_OBJECTS - 1)
    assert last_report(few, [{"other": 1} for _ in few]).drift == []
    assert changes(last_report(coins(MIN_OBJECTS), [{"other": 1}] * MIN_OBJECTS)) == [
        ("vanished", "id"),
        ("vanished", "price"),
        ("vanished", "quotes"),
        ("vanished", "rank"),
        ("appeared", "other"),
    ]


def test_fields_of_a_vanished_object_are_not_reported() -> None:
    assert changes(last_report(coins(50), coins(50, quotes=None))) == [("null", "quotes")]
    assert changes(last_report(coins(50), coins(50, quotes={"cap": "a"}))) == [("type", "quotes.cap")]
    assert changes(last_report(coins(50), coins(50, quotes={"market_cap": 3}))) == [
        ("vanished", "quotes.cap"),
        ("appeared", "quotes.market_cap"),
    ]


def test_nulls_need_a_complete_run_of_usual_size() -> None:
    full = coins(200)
    tail = coins(80, rank=None)

    assert last_report(full, tail).drift == []
    assert last_report(coins(200, rank=None), baseline=last_report(full).baseline, complete=False).drift == []
    assert changes(last_report(full, coins(120, rank=None))) == [("null", "rank")]


def test_rejected_run_is_compared_but_not_learnt() -> None:
    report = last_report(coins(50))
    for number in range(2 * ACCEPTED_AFTER):
        report = find_drift(
            report.baseline, profiled([{"id": "a"}] * 50), 2 + number, usable=False, complete=True
        )
        assert ("vanished", "price") in changes(report)
        assert all(found.since_run == 2 for found in report.drift)
        assert bool(report.new) == (number == 0)
    assert report.baseline is not None
    assert report.baseline.profile == profiled(coins(50))
    assert find_drift(report.baseline, profiled(coins(50)), 99, usable=True, complete=True).drift == []
    assert find_drift(None, profiled(coins(50)), 1, usable=False, complete=True).baseline is None


def test_lasting_change_is_accepted_once() -> None:
    report, accepted = last_report(coins(50)), []
    for number in range(2, ACCEPTED_AFTER + 4):
        report = find_drift(
            report.baseline, profiled(coins(50, price="1")), number, usable=True, complete=True
        )
        accepted += [number for _ in report.accepted]
    assert accepted == [ACCEPTED_AFTER + 1]
    assert report.drift == []
    assert changes(find_drift(report.baseline, profiled(coins(50)), 99, usable=True, complete=True)) == [
        ("type", "price")
    ]


def test_renamed_field_names_the_nearest_field() -> None:
    was = coins(50)
    now = [{"last": record["price"] * 1.01} | record for record in was]
    for record in now:
        del record["price"]
    vanished, appeared = last_report(was, now).drift

    assert (vanished.field, vanished.nearest, appeared.field, appeared.nearest) == (
        "price",
        "last",
        "last",
        "price",
    )
    assert vanished.confidence == appeared.confidence
    assert vanished.confidence is not None
    assert 0.5 <= vanished.confidence <= 1
    assert "nearest is last" in vanished.summary

    (similar,) = last_report(was, [record | {"price_2": "?"} for record in was]).drift
    assert (similar.nearest, similar.confidence is not None and similar.confidence < 0.5) == ("price", True)
    (strange,) = last_report(was, [record | {"zzz": True} for record in was]).drift
    assert (strange.nearest, strange.confidence) == (None, None)


@given(share=st.integers(0, 80))
def test_bad_records_are_no_drift(share: int) -> None:
    good = coins(100)
    mixed = [{"id": None, "price": "x"} if n < share else record for n, record in enumerate(good)]

    assert last_report(good, mixed).drift == []
