"""Times as archives write them, and the rule for the moment that a period's close belongs to."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from itertools import pairwise
from typing import Literal

import msgspec

from kasparro.model.record import CLOCK_TOLERANCE, EARLIEST, RejectedValue
from kasparro.sources.archives.numbers import Ambiguous

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
# As programs print a big whole number; with fewer digits, as spreadsheets show it, it is rounded.
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
    """A time as a cell tells it. `bare` says that only the day was told, `local` that no zone was."""

    at: datetime
    bare: bool = False
    local: bool = True


def read_time(
    text: str,
    order: Order | None,
    field: str = "observed_at",
    zone: tzinfo = UTC,
    epoch: Epoch | None = None,
) -> Stamp:
    """The time that a cell tells, aware; one without a zone is in `zone`.

    `order` is the file's, and only all-numeric days need it; `epoch` is the unit of epoch times where it was
    told, else their length tells it. Raises RejectedValue for what is no time, and for
    local times that a zone's change of clocks repeats or leaves out.
    """
    text = text.strip()
    if _PLAIN_ISO.fullmatch(text) and zone is UTC:
        try:
            return Stamp(datetime.fromisoformat(text).replace(tzinfo=UTC), bare=len(text) == 10)
        except ValueError:
            raise _no_time(text, field) from None
    if match := _EPOCH_POWER.fullmatch(text):
        text = _unrolled(match, text, field)
    if epoch is not None and (match := _TICKS.fullmatch(text)):
        return _since_epoch(match, epoch, text, field)
    if match := _EPOCH_TEXT.fullmatch(text):
        ticks = int(match[1])
        unit = _EPOCH_UNITS[len(match[1])]
        microseconds = ticks * 10**6 // unit
        if match[2] and unit == 1:
            microseconds += int(match[2][:6].ljust(6, "0"))
        return Stamp(_EPOCH + timedelta(microseconds=microseconds), local=False)
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


def _unrolled(match: re.Match[str], text: str, field: str) -> str:
    # 1.5147648e+12 as 1514764800000.
    zeros = int(match[3]) - len(match[2])
    if not 0 <= zeros <= 18:
        raise _no_time(text, field)
    if len(match[2]) + 1 < EXACT_DIGITS:
        raise RejectedValue(field, f"an epoch time rounded to {len(match[2]) + 1} digits: {text!r}")
    return f"{match[1]}{match[2]}{'0' * zeros}"


def epoch_unit(text: str) -> str | None:
    """The unit of an epoch time by its length; None where it is none."""
    if power := _EPOCH_POWER.fullmatch(text):
        try:
            text = _unrolled(power, text, "observed_at")
        except RejectedValue:
            return None
    match = _EPOCH_TEXT.fullmatch(text)
    return {10: "s", 13: "ms", 16: "us", 19: "ns"}[len(match[1])] if match else None


def _since_epoch(match: re.Match[str], epoch: Epoch, text: str, field: str) -> Stamp:
    fraction = int((match[2] or "0")[:9].ljust(9, "0"))
    nanoseconds = (int(match[1]) * 10**9 + fraction) // (1 if epoch == "s" else 1_000)
    try:
        return Stamp(_EPOCH + timedelta(microseconds=nanoseconds // 1_000), local=False)
    except OverflowError:
        raise _no_time(text, field) from None


def _year(text: str) -> int:
    # No market is older than 2009, so two digits leave no doubt about the century.
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
    bare = match["hour"] is None
    hour, half = int(match["hour"] or 0), match["half"]
    if not bare and match["minute"] is None and not half:
        # `2018-01-05 11` is no notation of a time; `2018-01-05 11-AM` is.
        raise _no_time(text, field)
    if half:
        if not 1 <= hour <= 12:
            raise _no_time(text, field)
        hour = hour % 12 + (12 if half in "pP" else 0)
    microsecond = int((match["fraction"] or "0")[:6].ljust(6, "0"))
    at = datetime(  # noqa: DTZ001 - its zone follows
        day.year, day.month, day.day, hour, int(match["minute"] or 0), int(match["second"] or 0), microsecond
    )
    told = match["zone"]
    if told:
        return Stamp(at.replace(tzinfo=_zone(told)).astimezone(UTC), bare=bare, local=False)
    aware = at.replace(tzinfo=zone)
    if zone is not UTC:
        if aware.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != at:
            raise RejectedValue(field, f"left out when the clocks changed: {text!r}")
        if aware.replace(fold=1).utcoffset() != aware.utcoffset():
            raise RejectedValue(field, f"told twice when the clocks changed: {text!r}")
    return Stamp(aware.astimezone(UTC), bare=bare)


def _zone(text: str) -> tzinfo:
    text = text.removeprefix("UTC").removeprefix("GMT")
    if not text or text == "Z":
        return UTC
    sign = -1 if text[0] == "-" else 1
    return timezone(sign * timedelta(hours=int(text[1:3]), minutes=int(text[3:].removeprefix(":") or "0")))


def _no_time(text: str, field: str) -> RejectedValue:
    shown = repr(text if len(text) <= 60 else f"{text[:60]}…")
    return RejectedValue(field, f"not a date: {shown}")


def day_order(texts: Iterable[str], now: datetime) -> Order | None:
    """The order of day, month and year in a file's all-numeric days; None where it has none.

    Every order is tried on all the cells given: one under which they are days that exist, not before 2009 and
    not to come, is the file's. Raises Ambiguous where more than one fits, or none does.
    """
    numeric = [text.strip() for text in texts if _NUMERIC.fullmatch(text.strip())]
    if not numeric:
        return None
    failures = sorted((_failures(numeric, order, now), order) for order in ORDERS)
    (fewest, best), (second, other) = failures[0], failures[1]
    if fewest * 2 > len(numeric):
        raise Ambiguous(
            f"its days, such as {numeric[0]!r}, fit no order of day, month and year",
            'day_order = "day-first", or another one,',
        )
    if second == fewest or fewest * 10 > second:
        example = numeric[0]
        raise Ambiguous(
            f"its rows do not tell the day from the month: {example!r} and all the others can be read as "
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


# Lengths that candles come in, by the words that file names use for them.
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
    """The length of a file's candles, by the commonest step between rows; None where they do not tell."""
    steps = Counter(
        abs(later.at - earlier.at) for earlier, later in pairwise(stamps) if later.at != earlier.at
    )
    if steps:
        step = steps.most_common(1)[0][0]
        if timedelta(days=28) <= step <= timedelta(days=31):
            return MONTH
        if step in _LENGTHS:
            return step
    return _DAY if stamps and all(stamp.bare for stamp in stamps) else None


def period_end(stamp: Stamp, length: timedelta) -> datetime:
    """The last second of the period that a candle's time names: the moment its close belongs to.

    A time that begins a period (a bare day, 00:01:00 of a minute) stands for all of it, so the close is of
    its last second; any other, such as 2018-12-15 23:59:59, is the source's own word for the end and stays.
    The last second, and not the first of the next period, because that is how CoinMarketCap and the exchanges
    write it: the same close told by a bare day and by a stated end is then one record, and it falls into the
    day, week and month that it closes.
    """
    at = stamp.at
    if length == MONTH:
        if at.day != 1 or at.time() != datetime.min.time():
            return at
        return (at + timedelta(days=32)).replace(day=1) - _SECOND
    # Weeks begin on the weekday that the source likes, so midnight is all that can be asked of them.
    if (at - _EPOCH) % min(length, _DAY):
        return at
    return at + length - _SECOND


def day_end(stamp: Stamp) -> datetime:
    """The moment of a quote: as told, and the day's last second where only a day was, as with candles."""
    return stamp.at + _DAY - _SECOND if stamp.bare else stamp.at
