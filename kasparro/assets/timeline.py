"""Makes one line of history from the points or candles of an asset's sources."""

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Context, Decimal
from statistics import median_low

import msgspec

# A value is outlying if it differs from the others by more than this share, as in sql/assets/consensus.sql.
OUTLYING = Decimal("0.2")
# Of two values the outlying one is far from the median of the prices of this time before.
REFERENCE = timedelta(days=1)
# For candles: from the median of the closes of this many intervals before.
REFERENCE_INTERVALS = 24
# A median of so few prices is no reference.
REFERENCE_PRICES = 3

# Enough digits for the mean of any two values that the database can hold.
_EXACT = Context(prec=200_000, Emax=999_999, Emin=-999_999)
_HALF = Decimal("0.5")
_PRICES = ("open", "high", "low", "close")


class SourcePoint(msgspec.Struct, frozen=True):
    """A record with a price, of one source."""

    source: str
    observed_at: datetime
    price_usd: Decimal
    market_cap_usd: Decimal | None
    volume_24h_usd: Decimal | None


class Point(msgspec.Struct, frozen=True):
    """What the asset's sources reported at one moment; `sources` are those that count."""

    observed_at: datetime
    price_usd: Decimal
    market_cap_usd: Decimal | None
    volume_24h_usd: Decimal | None
    sources: tuple[str, ...]


class SourceCandle(msgspec.Struct, frozen=True):
    """The prices of one source in an interval."""

    source: str
    time: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    count: int


class Candle(msgspec.Struct, frozen=True):
    """The prices of an asset in an interval; `sources` are those that count."""

    time: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    count: int
    sources: tuple[str, ...]


def median(values: Sequence[Decimal]) -> Decimal:
    """The exact median: of two middle values the mean."""
    ordered = sorted(values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    if len(ordered) % 2:
        return low
    return _EXACT.multiply(_EXACT.add(low, high), _HALF).normalize(_EXACT)


def outlying(values: Sequence[Decimal], reference: Decimal | None) -> list[bool]:
    """For each of some values of one thing, whether it is outlying.

    Of three or more values, those that are far from their median. Of two values that are far from each other,
    the one that is far from the reference, if the other is not.
    """
    if len(values) > 2:
        middle = median(values)
        return [_far(value, middle) for value in values]
    if len(values) == 2 and reference is not None:
        low, high = min(values), max(values)
        if high > (1 + OUTLYING) * low:
            far = [_far(value, reference) for value in values]
            return far if not all(far) else [False, False]
    return [False] * len(values)


class Points:
    """Makes one point of what the sources report at a moment, without prices that are outlying.

    A record is judged with the newest ones of the other sources that are at most `max_lag` older. So the
    records of `max_lag` and REFERENCE before the first wanted point must be added, too.
    """

    def __init__(self, max_lag: timedelta) -> None:
        self._max_lag = max_lag
        self._newest: dict[str, SourcePoint] = {}
        self._past: deque[SourcePoint] = deque()

    def add(self, reported: Sequence[SourcePoint]) -> Point | None:
        """Add the records of the next moment; None if all of them are outlying."""
        moment = reported[0].observed_at
        self._newest |= {record.source: record for record in reported}
        fresh = [record for record in self._newest.values() if record.observed_at >= moment - self._max_lag]
        began_at = min(record.observed_at for record in fresh)
        while self._past and self._past[0].observed_at < began_at - REFERENCE:
            self._past.popleft()
        excluded = _outlying_records(fresh, self._past, began_at)
        self._past.extend(reported)
        counted = [record for record in reported if record.source not in excluded]
        if not counted:
            return None
        return Point(
            moment,
            median([record.price_usd for record in counted]),
            _median_of_known(record.market_cap_usd for record in counted),
            _median_of_known(record.volume_24h_usd for record in counted),
            tuple(record.source for record in counted),
        )


class Candles:
    """Makes one candle of those of the sources: each price is the median of those of the sources that count.

    A source does not count in an interval in which one of its prices is outlying. Its prices are judged with
    those of the others in this interval, and with the closes of sources that have none but had one at most
    `max_lag` before. Of two sources the outlying one is far from the price that most prices of the interval
    are near, or from the median of the closes of REFERENCE_INTERVALS intervals before. So the candles of
    `max_lag` and REFERENCE_INTERVALS before the first wanted one must be added, too.
    """

    def __init__(self, length: timedelta, max_lag: timedelta) -> None:
        self._length = length
        self._max_lag = max_lag
        self._newest: dict[str, SourceCandle] = {}
        self._past: deque[SourceCandle] = deque()

    def add(self, given: Sequence[SourceCandle]) -> Candle | None:
        """Add the candles of the next interval; None if all of them are outlying."""
        time = given[0].time
        self._newest |= {candle.source: candle for candle in given}
        earlier = [candle for candle in self._newest.values() if time - self._max_lag <= candle.time < time]
        began_at = min((candle.time for candle in earlier), default=time)
        while self._past and self._past[0].time < began_at - REFERENCE_INTERVALS * self._length:
            self._past.popleft()
        closes = [candle.close for candle in earlier]
        reference = self._reference(given, began_at) if len(given) + len(earlier) == 2 else None
        excluded = {
            candle.source
            for price in _PRICES
            for candle, is_outlying in zip(
                given,
                outlying([*(getattr(candle, price) for candle in given), *closes], reference),
                strict=False,
            )
            if is_outlying
        }
        self._past.extend(given)
        counted = [candle for candle in given if candle.source not in excluded]
        if not counted:
            return None
        return Candle(
            time=time,
            open=median([candle.open for candle in counted]),
            high=median([candle.high for candle in counted]),
            low=median([candle.low for candle in counted]),
            close=median([candle.close for candle in counted]),
            count=sum(candle.count for candle in counted),
            sources=tuple(candle.source for candle in counted),
        )

    def _reference(self, given: Sequence[SourceCandle], began_at: datetime) -> Decimal | None:
        if len(given) > 1:
            prices: list[Decimal] = [getattr(candle, price) for candle in given for price in _PRICES]
            middle = median_low(prices)
            if 2 * sum(not _far(price, middle) for price in prices) > len(prices):
                return middle
        closes = [candle.close for candle in self._past if candle.time < began_at]
        return median_low(closes) if len(closes) >= REFERENCE_PRICES else None


def _outlying_records(
    fresh: Sequence[SourcePoint], past: Iterable[SourcePoint], began_at: datetime
) -> set[str]:
    prices = [record.price_usd for record in fresh]
    reference = None
    if len(prices) == 2 and max(prices) > (1 + OUTLYING) * min(prices):
        before = [record.price_usd for record in past if record.observed_at < began_at]
        reference = median_low(before) if len(before) >= REFERENCE_PRICES else None
    return {
        record.source
        for record, is_outlying in zip(fresh, outlying(prices, reference), strict=True)
        if is_outlying
    }


def _far(value: Decimal, middle: Decimal) -> bool:
    return abs(value - middle) > OUTLYING * middle


def _median_of_known(values: Iterable[Decimal | None]) -> Decimal | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
