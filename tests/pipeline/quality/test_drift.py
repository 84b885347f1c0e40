"""Which changes of a source's fields are drift, and which are not."""

from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from kasparro.model.profile import ENOUGH, Profile, Profiler, merged
from kasparro.pipeline.quality.drift import ACCEPTED_AFTER, DriftBaseline, DriftReport, assess

Record = dict[str, Any]
PAGE = 25
unhurried = settings(deadline=None, max_examples=40)


def profiled(records: list[Record]) -> Profile:
    """The profile of records that come in pages, as a walk brings them."""
    pages = [records[start : start + PAGE] for start in range(0, len(records), PAGE)]
    found = []
    for page in pages:
        profiler = Profiler()
        for record in page:
            profiler.note(msgspec.json.encode(record))
        found.append(profiler.take() or Profile())
    return merged(found)


def in_turn(
    *passes: list[Record], memory: DriftBaseline | None = None, whole: bool = True
) -> Iterator[DriftReport]:
    """What is found of passes, one after the other."""
    for number, records in enumerate(passes, start=1):
        result = assess(memory, profiled(records), number, sound=True, whole=whole)
        memory = result.memory
        yield result


def outcome_of(*passes: list[Record], memory: DriftBaseline | None = None, whole: bool = True) -> DriftReport:
    """What is found of the last of some passes."""
    return [*in_turn(*passes, memory=memory, whole=whole)][-1]


def told(result: DriftReport) -> list[tuple[str, str]]:
    return [(found.change, found.field) for found in result.drift]


def coins(count: int, **changes: Any) -> list[Record]:
    return [
        {"id": f"c-{n}", "price": n + 0.5, "rank": n, "quotes": {"cap": n * 7}} | changes
        for n in range(count)
    ]


# A list as market APIs have them: every record with every key, some fields filled for the first so many coins
# only, some for a share of the coins wherever they stand, objects that are there for some.
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


@unhurried
@given(feed=feeds(), passes=st.integers(2, 4), size=st.integers(1, LISTED))
def test_a_list_that_stays_as_it_is_shows_none(feed: list[Record], passes: int, size: int) -> None:
    assert all(result.drift == [] for result in in_turn(*[feed[:size]] * passes))


@unhurried
@given(feed=feeds(), tail=st.integers(1, 10), starts=st.lists(st.integers(1, 11), min_size=2, max_size=9))
def test_a_head_with_a_tail_in_rotation_shows_none(feed: list[Record], tail: int, starts: list[int]) -> None:
    pages = [feed[start : start + PAGE] for start in range(0, LISTED, PAGE)]
    passes = [
        sum((pages[1 + (start + n) % (len(pages) - 1)] for n in range(tail)), pages[0]) for start in starts
    ]

    assert all(result.drift == [] for result in in_turn(*passes))


@unhurried
@given(feed=feeds(), died=st.integers(1, LISTED - 1))
def test_a_walk_that_died_and_went_on_elsewhere_shows_none(feed: list[Record], died: int) -> None:
    first = outcome_of(feed[:died], whole=False)
    second = outcome_of(feed[died:], memory=first.memory)

    assert second.drift == outcome_of(feed, memory=second.memory).drift == []


@unhurried
@given(
    feed=feeds(),
    change=st.sampled_from(["vanished", "null", "type", "appeared"]),
    since=st.integers(1, 4),
    lasting=st.integers(1, ACCEPTED_AFTER - 1),
)
def test_a_change_of_a_whole_source_is_found_lasts_and_is_over(
    feed: list[Record], change: Literal["vanished", "null", "type", "appeared"], since: int, lasting: int
) -> None:
    changed = [record | {"id": {"null": None, "type": 7}.get(change)} for record in feed]
    if change == "vanished":
        changed = [{name: record[name] for name in record if name != "id"} for record in feed]
    elif change == "appeared":
        changed = [record | {"fresh": 1} for record in feed]
    field = "fresh" if change == "appeared" else "id"

    result = outcome_of(*[feed] * since)
    for number in range(1, lasting + 1):
        result = assess(result.memory, profiled(changed), since + number, sound=True, whole=True)
        assert told(result) == [(change, field)]
        assert result.drift[0].since_run == since + 1
        assert (result.drift[0].records, result.drift[0].of) == (LISTED, LISTED)
        assert [one.field for one in result.begun] == ([field] if number == 1 else [])
        assert result.over == []
    healed = assess(result.memory, profiled(feed), 99, sound=True, whole=True)
    assert healed.drift == []
    assert [(one.change, one.field) for one in healed.over] == [(change, field)]
    assert assess(healed.memory, profiled(feed), 100, sound=True, whole=True).over == []


@unhurried
@given(feed=feeds())
def test_what_is_kept_of_a_source_survives_the_database(feed: list[Record]) -> None:
    kept = outcome_of(feed, [record | {"new": 1} for record in feed]).memory

    assert msgspec.json.decode(msgspec.json.encode(kept), type=DriftBaseline) == kept


def test_a_pass_without_a_record_says_nothing_of_fields() -> None:
    memory = outcome_of(coins(50), coins(50, price="1")).memory
    result = assess(memory, Profile(), 3, sound=True, whole=True)

    assert (result.memory, result.over) == (memory, [])


def test_a_first_pass_and_few_records_prove_nothing() -> None:
    assert outcome_of(coins(500)).drift == []
    few = coins(ENOUGH - 1)
    assert outcome_of(few, [{"other": 1} for _ in few]).drift == []
    assert told(outcome_of(coins(ENOUGH), [{"other": 1}] * ENOUGH)) == [
        ("vanished", "id"),
        ("vanished", "price"),
        ("vanished", "quotes"),
        ("vanished", "rank"),
        ("appeared", "other"),
    ]


def test_what_stands_in_a_vanished_object_is_not_told_besides() -> None:
    assert told(outcome_of(coins(50), coins(50, quotes=None))) == [("null", "quotes")]
    assert told(outcome_of(coins(50), coins(50, quotes={"cap": "a"}))) == [("type", "quotes.cap")]
    assert told(outcome_of(coins(50), coins(50, quotes={"market_cap": 3}))) == [
        ("vanished", "quotes.cap"),
        ("appeared", "quotes.market_cap"),
    ]


def test_records_of_a_lost_page_or_a_shorter_list_judge_no_nulls() -> None:
    full = coins(200)
    tail = coins(80, rank=None)

    assert outcome_of(full, tail).drift == []
    assert outcome_of(coins(200, rank=None), memory=outcome_of(full).memory, whole=False).drift == []
    assert told(outcome_of(full, coins(120, rank=None))) == [("null", "rank")]


def test_a_pass_that_was_refused_is_judged_and_teaches_nothing() -> None:
    result = outcome_of(coins(50))
    for number in range(2 * ACCEPTED_AFTER):
        result = assess(result.memory, profiled([{"id": "a"}] * 50), 2 + number, sound=False, whole=True)
        assert ("vanished", "price") in told(result)
        assert all(found.since_run == 2 for found in result.drift)
        assert bool(result.begun) == (number == 0)
    assert result.memory is not None
    assert result.memory.profile == profiled(coins(50))
    assert assess(result.memory, profiled(coins(50)), 99, sound=True, whole=True).drift == []
    assert assess(None, profiled(coins(50)), 1, sound=False, whole=True).memory is None


def test_a_change_that_lasts_is_accepted_once() -> None:
    result, accepted = outcome_of(coins(50)), []
    for number in range(2, ACCEPTED_AFTER + 4):
        result = assess(result.memory, profiled(coins(50, price="1")), number, sound=True, whole=True)
        accepted += [number for _ in result.accepted]
    assert accepted == [ACCEPTED_AFTER + 1]
    assert result.drift == []
    assert told(assess(result.memory, profiled(coins(50)), 99, sound=True, whole=True)) == [("type", "price")]


def test_a_new_field_is_told_beside_the_field_that_it_stands_for() -> None:
    was = coins(50)
    now = [{"last": record["price"] * 1.01} | record for record in was]
    for record in now:
        del record["price"]
    vanished, appeared = outcome_of(was, now).drift

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

    (beside,) = outcome_of(was, [record | {"price_2": "?"} for record in was]).drift
    assert (beside.nearest, beside.confidence is not None and beside.confidence < 0.5) == ("price", True)
    (strange,) = outcome_of(was, [record | {"zzz": True} for record in was]).drift
    assert (strange.nearest, strange.confidence) == (None, None)


@given(share=st.integers(0, 80))
def test_bad_records_among_good_ones_are_no_drift(share: int) -> None:
    good = coins(100)
    spoilt = [{"id": None, "price": "x"} if n < share else record for n, record in enumerate(good)]

    assert outcome_of(good, spoilt).drift == []
