"""Merges the points and candles of a history into as few candles as a chart has room for."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal

import msgspec

from kasparro.assets.timeline import Candle, SourcePoint, median, outlying

# More points of a line, or candles, would be thinner than what people can see.
MOST_POINTS = 300
MOST_CANDLES = 90
# A candle of fewer prices says little more than a line.
PRICES_OF_A_CANDLE = 3

_LENGTHS = [
    *(timedelta(seconds=n) for n in (10, 30)),
    *(timedelta(minutes=n) for n in (1, 5, 15, 30)),
    *(timedelta(hours=n) for n in (1, 2, 4, 12)),
    *(timedelta(days=n) for n in (1, 2, 7, 14, 28, 91, 182, 364, 1820, 18200)),
]
# Weeks begin on Monday, as those of the history do.
_MONDAY = datetime(2001, 1, 1, tzinfo=UTC)
_PERCENT = Context(prec=30)


class Bar(msgspec.Struct, frozen=True):
    """The prices from the moment `time` until the next bar begins."""

    time: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    count: int


class Summary(msgspec.Struct, frozen=True):
    """What a chart shows, in words: its first and last price, and the lowest and highest one."""

    since: datetime
    until: datetime
    first: Decimal
    last: Decimal
    low: Decimal
    high: Decimal
    change_percent: Decimal | None


class Moments:
    """Makes a bar of each moment at which a source reported: the median of the quotes that are fresh then.

    The points of a history have the sources of their moment alone. Sources differ a little, and report at
    different moments, so that a line through their points would jump between them.
    """

    def __init__(self, max_lag: timedelta) -> None:
        self._max_lag = max_lag
        self._newest: dict[str, SourcePoint] = {}

    def add(self, reported: Sequence[SourcePoint]) -> Bar:
        """Add the records of the next moment."""
        moment = reported[0].observed_at
        self._newest |= {record.source: record for record in reported}
        prices = [
            record.price_usd
            for record in self._newest.values()
            if record.observed_at >= moment - self._max_lag
        ]
        near = [price for price, far in zip(prices, outlying(prices, None), strict=True) if not far]
        price = median(near or prices)
        return Bar(moment, price, price, price, price, 1)


def bars(candles: Iterable[Candle]) -> list[Bar]:
    """The bars of candles."""
    return [Bar(one.time, one.open, one.high, one.low, one.close, one.count) for one in candles]


def merged(found: Sequence[Bar], *, candles: bool) -> list[Bar]:
    """The bars of a line or of candles, merged if there are too many, into equal lengths of time."""
    most = MOST_POINTS
    if candles:
        prices = sum(bar.count for bar in found)
        most = max(min(MOST_CANDLES, prices // PRICES_OF_A_CANDLE), 1)
    if not found:
        return []
    # Sources that report in the same moment differ by seconds.
    span = found[-1].time - found[0].time if len(found) > most else timedelta()
    length = next((length for length in _LENGTHS if length * most >= span), _LENGTHS[-1])
    shown: list[Bar] = []
    for bar in found:
        began_at = bar.time - (bar.time - _MONDAY) % length
        if shown and shown[-1].time == began_at:
            last = shown[-1]
            shown[-1] = Bar(
                began_at,
                last.open,
                max(last.high, bar.high),
                min(last.low, bar.low),
                bar.close,
                last.count + bar.count,
            )
        else:
            shown.append(msgspec.structs.replace(bar, time=began_at))
    return shown


def summary(found: Sequence[Bar]) -> Summary | None:
    """The chart in words; None without prices."""
    if not found:
        return None
    first, last = found[0].open, found[-1].close
    change = None
    if first:
        change = _PERCENT.multiply(_PERCENT.divide(last, first) - 1, Decimal(100))
    return Summary(
        found[0].time,
        found[-1].time,
        first,
        last,
        min(bar.low for bar in found),
        max(bar.high for bar in found),
        change,
    )


def encoded(found: Sequence[Bar], *, candles: bool) -> str:
    """The bars for the script that draws them: their moments in seconds, and exact digits as text.

    A line has its closes, a candle its open, high, low, close and count.
    """
    rows = [
        [
            int(bar.time.timestamp()),
            *(f"{price:f}" for price in ((bar.open, bar.high, bar.low) if candles else ())),
            f"{bar.close:f}",
            *((bar.count,) if candles else ()),
        ]
        for bar in found
    ]
    return msgspec.json.encode(rows).decode()
