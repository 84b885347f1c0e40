"""Points and candles of several sources are one line, equal to a plain computation in Python."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import groupby
from statistics import median as plain_median
from statistics import median_low
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kasparro.assets.timeline import (
    REFERENCE,
    REFERENCE_INTERVALS,
    Candle,
    Candles,
    Point,
    Points,
    SourceCandle,
    SourcePoint,
    median,
)

T0 = datetime(2026, 1, 31, 23, 0, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
PRICES = ("open", "high", "low", "close")

numbers = st.decimals(
    min_value=0, max_value=Decimal("1e30"), allow_nan=False, allow_infinity=False
) | st.integers(0, 10**60).map(lambda digits: Decimal(digits).scaleb(-45))
# About one price, with long digits; some prices are astray.
prices = st.builds(
    lambda factor, digits: factor * (1000 + Decimal(digits).scaleb(-38)),
    st.sampled_from([1, 1, 1, 1, Decimal("1.1"), Decimal("1.25"), 3, Decimal("0.01")]),
    st.integers(0, 10**40),
)
SOURCES = ("coingecko", "coinpaprika", "csv")
records = st.lists(
    st.builds(
        SourcePoint,
        source=st.sampled_from(SOURCES),
        observed_at=st.integers(0, 300).map(lambda minutes: T0 + 10 * minutes * MINUTE),
        price_usd=prices,
        market_cap_usd=st.none() | prices,
        volume_24h_usd=st.none() | prices,
    ),
    max_size=40,
    unique_by=lambda record: (record.source, record.observed_at),
).map(lambda found: sorted(found, key=lambda record: (record.observed_at, record.source)))


@st.composite
def candles_of_sources(draw: st.DrawFn) -> list[SourceCandle]:
    """Candles of up to three sources in the order of time, not every one in each interval."""
    keys = draw(st.sets(st.tuples(st.integers(0, 60), st.sampled_from(SOURCES)), max_size=40))
    found = []
    for interval, source in sorted(keys):
        first, last, *others = draw(st.lists(prices, min_size=2, max_size=4))
        every = [first, last, *others]
        found.append(
            SourceCandle(source, T0 + interval * HOUR, first, max(every), min(every), last, len(every))
        )
    return found


def exact_median(values: Sequence[Decimal]) -> Fraction:
    """The median as a fraction."""
    return plain_median(map(Fraction, values))


def is_far(value: Decimal, middle: Fraction | Decimal) -> bool:
    """Whether a value differs by more than a fifth."""
    return abs(Fraction(value) - Fraction(middle)) > Fraction(middle) / 5


def plain_outlying(values: Sequence[Decimal], reference: Decimal | None) -> list[bool]:
    """Which values are outlying, as docs/api.md says it."""
    if len(values) > 2:
        return [is_far(value, exact_median(values)) for value in values]
    if len(values) == 2 and Fraction(max(values)) > Fraction(6, 5) * Fraction(min(values)) and reference:
        found = [is_far(value, reference) for value in values]
        return [False, False] if all(found) else found
    return [False] * len(values)


def plain_points(found: Sequence[SourcePoint], max_lag: timedelta) -> list[tuple[Any, ...]]:
    """The points of these records, each computed from all of them."""
    points = []
    for moment in sorted({record.observed_at for record in found}):
        known = [record for record in found if record.observed_at <= moment]
        newest = {record.source: record for record in known}
        fresh = [record for record in newest.values() if record.observed_at >= moment - max_lag]
        began_at = min(record.observed_at for record in fresh)
        day = [record.price_usd for record in known if began_at - REFERENCE <= record.observed_at < began_at]
        outlying = plain_outlying(
            [record.price_usd for record in fresh], median_low(day) if len(day) > 2 else None
        )
        counted = [
            record
            for record, is_outlying in zip(fresh, outlying, strict=True)
            if record.observed_at == moment and not is_outlying
        ]
        if counted:
            caps = [record.market_cap_usd for record in counted if record.market_cap_usd is not None]
            points.append(
                (
                    moment,
                    exact_median([record.price_usd for record in counted]),
                    exact_median(caps) if caps else None,
                    {record.source for record in counted},
                )
            )
    return points


def points(found: Sequence[SourcePoint], max_lag: timedelta) -> list[Point]:
    """The points of these records."""
    line = Points(max_lag)
    made = [line.add(list(group)) for _, group in groupby(found, key=lambda record: record.observed_at)]
    return [point for point in made if point is not None]


def candles(found: Sequence[SourceCandle], max_lag: timedelta) -> list[Candle]:
    """The candles of these candles of the sources."""
    line = Candles(HOUR, max_lag)
    made = [line.add(list(group)) for _, group in groupby(found, key=lambda candle: candle.time)]
    return [candle for candle in made if candle is not None]


def plain_candles(found: Sequence[SourceCandle], max_lag: timedelta) -> list[tuple[Any, ...]]:
    """The same, each computed from all candles of the sources."""
    made = []
    for time in sorted({candle.time for candle in found}):
        here = [candle for candle in found if candle.time == time]
        newest = {candle.source: candle for candle in found if candle.time <= time}
        others = [each for each in newest.values() if time - max_lag <= each.time < time]
        began_at = min((each.time for each in others), default=time)
        past = [each.close for each in found if began_at - REFERENCE_INTERVALS * HOUR <= each.time < began_at]
        reference = median_low(past) if len(past) > 2 else None
        everything = [getattr(candle, price) for candle in here for price in PRICES]
        middle = median_low(everything)
        if len(here) == 2 and sum(not is_far(price, middle) for price in everything) > 4:
            reference = middle
        excluded = set()
        for price in PRICES:
            values = [getattr(candle, price) for candle in here] + [each.close for each in others]
            outlying = plain_outlying(values, reference)
            excluded |= {candle.source for candle, is_out in zip(here, outlying, strict=False) if is_out}
        counted = [candle for candle in here if candle.source not in excluded]
        if counted:
            made.append(
                (
                    time,
                    *(exact_median([getattr(candle, price) for candle in counted]) for price in PRICES),
                    sum(candle.count for candle in counted),
                    {candle.source for candle in counted},
                )
            )
    return made


@given(st.lists(numbers, min_size=1, max_size=9))
def test_median_is_exact(values: list[Decimal]) -> None:
    assert Fraction(median(values)) == exact_median(values)


@settings(max_examples=300)
@given(records, st.sampled_from([timedelta(), HOUR, 30 * HOUR]))
def test_points_are_those_of_a_plain_computation(found: list[SourcePoint], max_lag: timedelta) -> None:
    assert [
        (
            point.observed_at,
            Fraction(point.price_usd),
            None if point.market_cap_usd is None else Fraction(point.market_cap_usd),
            set(point.sources),
        )
        for point in points(found, max_lag)
    ] == plain_points(found, max_lag)


@settings(max_examples=300)
@given(candles_of_sources(), st.sampled_from([timedelta(), HOUR, 5 * HOUR]))
def test_candles_are_those_of_a_plain_computation(found: list[SourceCandle], max_lag: timedelta) -> None:
    assert [
        (
            candle.time,
            *(Fraction(getattr(candle, price)) for price in PRICES),
            candle.count,
            set(candle.sources),
        )
        for candle in candles(found, max_lag)
    ] == plain_candles(found, max_lag)


@settings(max_examples=200)
@given(records, st.integers(0, 300), st.sampled_from([HOUR, 10 * HOUR]))
def test_points_do_not_depend_on_where_reading_begins(
    found: list[SourcePoint], begin: int, max_lag: timedelta
) -> None:
    since = T0 + 10 * begin * MINUTE
    read = [record for record in found if record.observed_at >= since - REFERENCE - max_lag]
    assert [point for point in points(read, max_lag) if point.observed_at >= since] == [
        point for point in points(found, max_lag) if point.observed_at >= since
    ]


@settings(max_examples=200)
@given(candles_of_sources(), st.integers(0, 60), st.sampled_from([timedelta(), HOUR, 5 * HOUR]))
def test_candles_do_not_depend_on_where_reading_begins(
    found: list[SourceCandle], begin: int, max_lag: timedelta
) -> None:
    since = T0 + begin * HOUR
    read = [candle for candle in found if candle.time >= since - REFERENCE_INTERVALS * HOUR - max_lag]
    assert [candle for candle in candles(read, max_lag) if candle.time >= since] == [
        candle for candle in candles(found, max_lag) if candle.time >= since
    ]


def flat(source: str, hour: int, price: str, high: str | None = None) -> SourceCandle:
    """A candle of one price, or of one that rose for a while."""
    value = Decimal(price)
    return SourceCandle(source, T0 + hour * HOUR, value, Decimal(high or price), value, value, 4)


def test_source_that_is_astray_for_a_part_of_the_first_interval_does_not_count() -> None:
    (candle,) = candles([flat("coingecko", 0, "100", "300"), flat("coinpaprika", 0, "101")], HOUR)
    assert (candle.high, candle.sources) == (Decimal(101), ("coinpaprika",))


def test_lone_source_that_is_astray_is_judged_with_the_last_closes_of_the_others() -> None:
    past = [flat(source, hour, "100") for hour in range(4) for source in SOURCES[:2]]
    assert [candle.time for candle in candles([*past, flat("coingecko", 4, "300")], HOUR)] == [
        T0 + hour * HOUR for hour in range(4)
    ]
    # When the others have been silent for longer, it is all that is known.
    assert candles([*past, flat("coingecko", 5, "300")], HOUR)[-1].close == 300


def test_two_sources_that_agree_count_whatever_the_past_was() -> None:
    past = [flat(source, hour, "100") for hour in range(4) for source in SOURCES[:2]]
    (*_, last) = candles([*past, flat("coingecko", 4, "200"), flat("coinpaprika", 4, "201")], HOUR)
    assert last.close == Decimal("200.5")
