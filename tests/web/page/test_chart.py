"""What charts show of a history."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

from kasparro.assets.timeline import SourcePoint
from kasparro.web.page.chart import MOST_CANDLES, MOST_POINTS, Bar, Moments, encoded, merged, summary

START = datetime(2024, 6, 3, tzinfo=UTC)
HOUR = timedelta(hours=1)


def bar(hours: int, price: int, count: int = 1) -> Bar:
    digits = Decimal(price)
    return Bar(START + hours * HOUR, digits, digits + 1, digits - 1, digits, count)


def test_few_bars_stay_as_they_are() -> None:
    bars = [bar(hours, hours) for hours in range(100)]
    assert merged(bars, candles=False) == bars
    assert merged([], candles=True) == []


def test_many_bars_are_merged_into_equal_lengths() -> None:
    bars = [bar(hours, hours) for hours in range(1_000)]

    line = merged(bars, candles=False)
    assert MOST_POINTS // 4 < len(line) <= MOST_POINTS + 1
    assert {after.time - before.time for before, after in pairwise(line)} == {4 * HOUR}
    assert line[0] == Bar(START, Decimal(0), Decimal(4), Decimal(-1), Decimal(3), 4)
    assert line[-1].close == bars[-1].close

    assert len(merged(bars, candles=True)) <= MOST_CANDLES + 1


def test_candles_have_several_prices() -> None:
    bars = [bar(hours, hours) for hours in range(30)]
    assert len(merged(bars, candles=True)) <= 11
    assert len(merged([bar(hours, hours, count=60) for hours in range(30)], candles=True)) == 30


def test_moment_has_the_median_of_the_fresh_quotes() -> None:
    moments = Moments(max_lag=HOUR)

    def price_at(hours: float, **prices: int) -> Decimal:
        at = START + hours * HOUR
        points = [SourcePoint(source, at, Decimal(price), None, None) for source, price in prices.items()]
        return moments.add(points).close

    assert price_at(0, a=100) == 100
    assert price_at(0.5, b=102) == 101
    assert price_at(1, a=104) == 103
    # The other source is too old by now.
    assert price_at(2.5, a=110) == 110
    assert price_at(2.6, b=108, c=300) == 109


def test_summary() -> None:
    found = summary([bar(0, 100), bar(1, 90), bar(2, 125)])
    assert found is not None
    assert (found.first, found.last) == (Decimal(100), Decimal(125))
    assert (found.low, found.high) == (Decimal(89), Decimal(126))
    assert found.change_percent == 25
    assert summary([]) is None
    zero = summary([bar(0, 0)])
    assert zero is not None
    assert zero.change_percent is None


def test_encoded_digits_are_exact() -> None:
    digits = Decimal("0.000000000000000000123")
    bars = [Bar(START, digits, digits, digits, digits, 3)]
    text = "0.000000000000000000123"
    seconds = int(START.timestamp())
    assert encoded(bars, candles=False) == f'[[{seconds},"{text}"]]'
    assert encoded(bars, candles=True) == f'[[{seconds},"{text}","{text}","{text}","{text}",3]]'
