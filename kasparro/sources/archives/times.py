"""Reads times as archives write them, and decides to which moment the close price of a period belongs."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from itertools import pairwise
from typing import Literal

import msgspec

from kasparro.model.record import CLOCK_TOLERANCE, EARLIEST, RejectedValue
from kasparro.sources.archives.errors import FileRejected

Order = Literal["dmy", "mdy", "ymd"]
Epoch = Literal["s", "ms"]
ORDERS: tuple[Order, ...] = ("dmy", "mdy", "ymd")
ORDER_NAMES: dict[Order, str] = {"dmy": "day-first", "mdy": "month-first", "ymd": "year-first"}

_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Digits of an epoch time since 2009 in seconds, milliseconds, microseconds and nanoseconds.
_EPOCH_UNITS = {10: 1, 13: 10**3, 16: 10**6, 19: 10**9}
_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "jan january",
            "feb february",
            "mar march",
            "apr april",
            "may",
            "jun june",
            "jul july",
            "aug august",
            "sep sept september",
            "oct october",
            "nov november",
            "dec december",
        ),
        start=1,
    )
    for name in names.split()
}

_CLOCK = (
    r"(?:(?:T|,? +)(?P<hour>\d{1,2})"
    r"(?::(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?)?"
    r"(?:[ -]?(?P<half>[AaPp])\.?[Mm]\.?)?)?"
    r"(?: ?(?P<zone>Z|UTC|GMT|(?:(?:UTC|GMT)?[+-]\d{2}(?::?\d{2}|(?(hour)|(?!)))))(?: (?:UTC|GMT))?)?"
    r"(?: \([A-Za-z ]{1,60}\))?"
)
_EPOCH_TEXT = re.compile(r"(\d{10}|\d{13}|\d{16}|\d{19})(?:\.(\d{1,9}))?", re.ASCII)
# A large whole number as programs print it. With fewer digits, as in spreadsheets, it is rounded.
_EPOCH_POWER = re.compile(r"(\d)\.(\d{1,18})[eE]\+?(\d{1,2})", re.ASCII)
EXACT_DIGITS = 8
_ISO = re.compile(
    r"(?P<year>\d{4})(?P<sign>[-/.])(?P<month>\d{1,2})(?P=sign)(?P<day>\d{1,2})" + _CLOCK, re.ASCII
)
_COMPACT = re.compile(r"(?P<year>\d{4})(?P<month>\d{2})(?P<day>\d{2})" + _CLOCK, re.ASCII)
_NAMED = re.compile(
    r"(?:[A-Za-z]{3,9},? )?"
    r"(?:(?P<first>[A-Za-z]{3,9})\.?[ -](?P<day>\d{1,2})(?:st|nd|rd|th)?,?[ -](?P<year>\d{4})"
    r"|(?P<later>\d{1,2})[- ](?P<middle>[A-Za-z]{3,9})\.?,?[- ](?P<last>\d{4}|\d{2}))" + _CLOCK,
    re.ASCII,
)
_NUMERIC = re.compile(
    r"(?P<a>\d{1,2})(?P<sign>[-/.])(?P<b>\d{1,2})(?P=sign)(?P<c>\d{4}|\d{2})" + _CLOCK, re.ASCII
)
_TICKS = re.compile(r"(\d{1,19})(?:\.(\d{1,9}))?", re.ASCII)
_PLAIN_ISO = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}:\d{2})?", re.ASCII)


class Stamp(msgspec.Struct, frozen=True):
    """A time from a cell. `date_only`: the cell has no clock time. `zone_assumed`: it has no zone."""

    at: datetime
    date_only: bool = False
    zone_assumed: bool = True


def read_time(
    text: str,
    order: Order | None,
    field: str = "observed_at",
    zone: tzinfo = UTC,
    epoch: Epoch | None = None,
) -> Stamp:
    """The time in a cell, aware. A time without a zone is in `zone`.

    Only all-numeric days need `order`. `epoch` is the unit of epoch times; without it, their length shows the
    unit. Raises RejectedValue for a text that is no time, and for a local time that a change of the clocks
    repeats or skips.
    """
    text = text.strip()
    if _PLAIN_ISO.fullmatch(text) and zone is UTC:
        try:
            return Stamp(datetime.fromisoformat(text).replace(tzinfo=UTC), date_only=len(text) == 10)
        except ValueError:
            raise _no_time(text, field) from None
    if match := _EPOCH_POWER.fullmatch(text):
        text = _without_exponent(match, text, field)
    if epoch is not None and (match := _TICKS.fullmatch(text)):
        return _since_epoch(match, epoch, text, field)
    if match := _EPOCH_TEXT.fullmatch(text):
        ticks = int(match[1])
        unit = _EPOCH_UNITS[len(match[1])]
        microseconds = ticks * 10**6 // unit
        if match[2] and unit == 1:
            microseconds += int(match[2][:6].ljust(6, "0"))
        return Stamp(_EPOCH + timedelta(microseconds=microseconds), zone_assumed=False)
    match = _ISO.fullmatch(text) or _COMPACT.fullmatch(text)
    try:
        if match is not None:
            day = date(int(match["year"]), int(match["month"]), int(match["day"]))
        elif (match := _NAMED.fullmatch(text)) is not None:
            month = _MONTHS[(match["first"] or match["middle"]).lower()]
            day = date(_year(match["year"] or match["last"]), month, int(match["day"] or match["later"]))
        elif (match := _NUMERIC.fullmatch(text)) is not None:
            day = _numeric_day(match, order)
        else:
            raise _no_time(text, field)
        return _with_clock(day, match, text, field, zone)
    except (ValueError, KeyError, OverflowError):
        raise _no_time(text, field) from None


def _without_exponent(match: re.Match[str], text: str, field: str) -> str:
    # 1.5147648e+12 as 1514764800000.
    zeros = int(match[3]) - len(match[2])
    if not 0 <= zeros <= 18:
        raise _no_time(text, field)
    if len(match[2]) + 1 < EXACT_DIGITS:
        raise RejectedValue(field, f"an epoch time rounded to {len(match[2]) + 1} digits: {text!r}")
    return f"{match[1]}{match[2]}{'0' * zeros}"


def epoch_unit(text: str) -> str | None:
    """The unit of an epoch time by its length; None for other texts."""
    if power := _EPOCH_POWER.fullmatch(text):
        try:
            text = _without_exponent(power, text, "observed_at")
        except RejectedValue:
            return None
    match = _EPOCH_TEXT.fullmatch(text)
    return {10: "s", 13: "ms", 16: "us", 19: "ns"}[len(match[1])] if match else None


def _since_epoch(match: re.Match[str], epoch: Epoch, text: str, field: str) -> Stamp:
    fraction = int((match[2] or "0")[:9].ljust(9, "0"))
    nanoseconds = (int(match[1]) * 10**9 + fraction) // (1 if epoch == "s" else 1_000)
    try:
        return Stamp(_EPOCH + timedelta(microseconds=nanoseconds // 1_000), zone_assumed=False)
    except OverflowError:
        raise _no_time(text, field) from None


def _year(text: str) -> int:
    # No market is older than 2009, so years of two digits are of this century.
    return int(text) if len(text) == 4 else 2000 + int(text)


def _numeric_day(match: re.Match[str], order: Order | None) -> date:
    a, b, c = match["a"], match["b"], match["c"]
    if order == "dmy":
        return date(_year(c), int(b), int(a))
    if order == "mdy":
        return date(_year(c), int(a), int(b))
    if order == "ymd" and len(c) == 2:
        return date(_year(a), int(b), int(c))
    raise ValueError


def _with_clock(day: date, match: re.Match[str], text: str, field: str, zone: tzinfo) -> Stamp:
    date_only = match["hour"] is None
    hour, half = int(match["hour"] or 0), match["half"]
    if not date_only and match["minute"] is None and not half:
        # `2018-01-05 11` is not a time; `2018-01-05 11-AM` is.
        raise _no_time(text, field)
    if half:
        if not 1 <= hour <= 12:
            raise _no_time(text, field)
        hour = hour % 12 + (12 if half in "pP" else 0)
    microsecond = int((match["fraction"] or "0")[:6].ljust(6, "0"))
    at = datetime(  # noqa: DTZ001 - its zone follows
        day.year, day.month, day.day, hour, int(match["minute"] or 0), int(match["second"] or 0), microsecond
    )
    if match["zone"]:
        aware = at.replace(tzinfo=_zone(match["zone"]))
        return Stamp(aware.astimezone(UTC), date_only=date_only, zone_assumed=False)
    aware = at.replace(tzinfo=zone)
    if zone is not UTC:
        if aware.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != at:
            raise RejectedValue(field, f"skipped when the clocks changed: {text!r}")
        if aware.replace(fold=1).utcoffset() != aware.utcoffset():
            raise RejectedValue(field, f"repeated when the clocks changed: {text!r}")
    return Stamp(aware.astimezone(UTC), date_only=date_only)


def _zone(text: str) -> tzinfo:
    text = text.removeprefix("UTC").removeprefix("GMT")
    if not text or text == "Z":
        return UTC
    sign = -1 if text[0] == "-" else 1
    return timezone(sign * timedelta(hours=int(text[1:3]), minutes=int(text[3:].removeprefix(":") or "0")))


def _no_time(text: str, field: str) -> RejectedValue:
    quoted = repr(text if len(text) <= 60 else f"{text[:60]}…")
    return RejectedValue(field, f"not a date: {quoted}")


def day_order(texts: Iterable[str], now: datetime) -> Order | None:
    """The order of day, month and year in a file's all-numeric days; None if it has no such days.

    A file has the order with which all given cells are days that exist, from 2009 until now; a few broken
    cells do not matter. Raises FileRejected if several orders fit, or none.
    """
    numeric = [text.strip() for text in texts if _NUMERIC.fullmatch(text.strip())]
    if not numeric:
        return None
    failures = sorted((_failures(numeric, order, now), order) for order in ORDERS)
    (fewest, best), (second, other) = failures[0], failures[1]
    if fewest * 2 > len(numeric):
        raise FileRejected(
            f"its days, such as {numeric[0]!r}, fit no order of day, month and year",
            'day_order = "day-first", or another order',
        )
    if second == fewest or fewest * 10 > second:
        example = numeric[0]
        raise FileRejected(
            f"its rows do not show which number is the day: {example!r} and all others can be read as "
            f"{' and as '.join(sorted({best, other}))}",
            " or ".join(f'day_order = "{ORDER_NAMES[order]}"' for order in sorted((best, other))),
        )
    return best


def _failures(texts: Sequence[str], order: Order, now: datetime) -> int:
    failed = 0
    for text in texts:
        try:
            at = read_time(text, order).at
        except RejectedValue:
            failed += 1
        else:
            failed += not EARLIEST <= at <= now + CLOCK_TOLERANCE + _DAY
    return failed


# The lengths of candles, by the words that file names use.
PERIODS = {
    "1m": timedelta(minutes=1),
    "1min": timedelta(minutes=1),
    "minute": timedelta(minutes=1),
    "3m": timedelta(minutes=3),
    "5m": timedelta(minutes=5),
    "15m": timedelta(minutes=15),
    "30m": timedelta(minutes=30),
    "1h": timedelta(hours=1),
    "60m": timedelta(hours=1),
    "hourly": timedelta(hours=1),
    "2h": timedelta(hours=2),
    "4h": timedelta(hours=4),
    "6h": timedelta(hours=6),
    "8h": timedelta(hours=8),
    "12h": timedelta(hours=12),
    "1d": _DAY,
    "d1": _DAY,
    "d": _DAY,
    "daily": _DAY,
    "day": _DAY,
    "3d": 3 * _DAY,
    "1w": 7 * _DAY,
    "1wk": 7 * _DAY,
    "weekly": 7 * _DAY,
    "1mo": timedelta(days=31),
    "monthly": timedelta(days=31),
}
_LENGTHS = frozenset(PERIODS.values())
MONTH = PERIODS["monthly"]


def period(stamps: Sequence[Stamp]) -> timedelta | None:
    """The length of a file's candles, by the most frequent step between rows; None if they show none."""
    steps = Counter(
        abs(later.at - earlier.at) for earlier, later in pairwise(stamps) if later.at != earlier.at
    )
    if steps:
        step = steps.most_common(1)[0][0]
        if timedelta(days=28) <= step <= timedelta(days=31):
            return MONTH
        if step in _LENGTHS:
            return step
    return _DAY if stamps and all(stamp.date_only for stamp in stamps) else None


def period_end(stamp: Stamp, length: timedelta) -> datetime:
    """The moment of a candle's close price: the last second of its period.

    If a candle's time begins a period (a date, or 00:01:00 for a candle of one minute), the close is of the
    last second of that period. Any other time, such as 2018-12-15 23:59:59, is already the end that the
    source gives, and stays.

    The end is the last second, not the first second of the next period, because CoinMarketCap and the
    exchanges write it so. The same close is then one record whether a file gives a date or the end, and it
    belongs to the day, week and month that it closes.
    """
    at = stamp.at
    if length == MONTH:
        if at.day != 1 or at.time() != datetime.min.time():
            return at
        return (at + timedelta(days=32)).replace(day=1) - _SECOND
    # Weeks begin on different weekdays in different sources, so any midnight may begin one.
    if (at - _EPOCH) % min(length, _DAY):
        return at
    return at + length - _SECOND


def day_end(stamp: Stamp) -> datetime:
    """The moment of a quote: its time, or the last second of its day if it has no clock time."""
    return stamp.at + _DAY - _SECOND if stamp.date_only else stamp.at
