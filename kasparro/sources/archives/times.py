"""Reads times as archives write them, and decides to which moment the close price of a period belongs."""

import re
from calendar import monthrange
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from itertools import pairwise
from typing import Literal

import msgspec

from kasparro.model.record import CLOCK_TOLERANCE, EARLIEST, RejectedValue
from kasparro.sources.archives.errors import FileRejected, Guess

Order = Literal["dmy", "mdy", "ymd"]
Epoch = Literal["s", "ms", "us", "ns"]
ORDERS: tuple[Order, ...] = ("dmy", "mdy", "ymd")
ORDER_NAMES: dict[Order, str] = {"dmy": "day-first", "mdy": "month-first", "ymd": "year-first"}

_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Digits of an epoch time since 2009 in seconds, milliseconds, microseconds and nanoseconds.
_EPOCH_UNITS = {10: 1, 13: 10**3, 16: 10**6, 19: 10**9}
_TICKS_PER_SECOND: dict[Epoch, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
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
# Days as Chinese, Japanese and Korean write them, also `2024- 01- 05`.
_EAST_ASIAN = re.compile(r"(\d{4})(?:[年년]|- ) ?(\d{1,2})(?:[月월]|- ) ?(\d{1,2})[日일]?(?= |$)", re.ASCII)
# A clock time without colons, next to a day: `20250102 010000`.
_COMPACT_CLOCK = re.compile(r"(\S{6,10})[ T](\d{2})(\d{2})(\d{2})(Z?)", re.ASCII)
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
    written = _EAST_ASIAN.sub(r"\1-\2-\3", text)
    written = _COMPACT_CLOCK.sub(r"\1 \2:\3:\4\5", written)
    match = _ISO.fullmatch(written) or _COMPACT.fullmatch(written)
    try:
        if match is not None:
            day = date(int(match["year"]), int(match["month"]), int(match["day"]))
        elif (match := _NAMED.fullmatch(written)) is not None:
            month = _MONTHS[(match["first"] or match["middle"]).lower()]
            day = date(_year(match["year"] or match["last"]), month, int(match["day"] or match["later"]))
        elif (match := _NUMERIC.fullmatch(written)) is not None:
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
    nanoseconds = (int(match[1]) * 10**9 + fraction) // _TICKS_PER_SECOND[epoch]
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


def looks_like_time(text: str) -> bool:
    """Whether a cell can be read as a time in some order of day, month and year."""
    for order in ORDERS:
        try:
            at = read_time(text, order).at
        except RejectedValue:
            continue
        if at >= EARLIEST:
            return True
    return False


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
            f"its days, such as {numeric[0]!r}, fit no order of day, month and year; the key day_order in "
            "its overrides gives one",
            None,
            question="time",
        )
    if second == fewest or fewest * 10 > second:
        example = numeric[0]
        raise FileRejected(
            f"its rows do not show which number is the day: {example!r} and all others can be read as "
            f"{' and as '.join(ORDER_NAMES[order] for order in sorted((best, other)))}",
            Guess(
                {"day_order": ORDER_NAMES[likely := _more_regular(numeric, sorted((best, other)))]},
                f'a guess: it may also be "{ORDER_NAMES[other if likely == best else best]}"',
            ),
            question="time",
        )
    return best


def _more_regular(texts: Sequence[str], orders: Sequence[Order]) -> Order:
    # The order in which most steps between days are equal; with points between the numbers, the day is first.
    if all("." in text for text in texts) and "dmy" in orders:
        return "dmy"

    def regularity(order: Order) -> float:
        days = sorted({read_time(text, order).at for text in texts if _reads(text, order)})
        steps = Counter(later - earlier for earlier, later in pairwise(days))
        return max(steps.values(), default=0) / max(len(days), 1)

    return max(orders, key=regularity)


def _reads(text: str, order: Order) -> bool:
    try:
        read_time(text, order)
    except RejectedValue:
        return False
    return True


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


# A month, as a length: its candles begin on the first day of each month.
MONTH = timedelta(days=31)
_MINUTE = timedelta(minutes=1)
_HOUR = timedelta(hours=1)
_MINUTE_LENGTHS = frozenset(timedelta(minutes=count) for count in (1, 2, 3, 5, 10, 15, 30))
_LENGTH_WORDS = {
    "minute": _MINUTE_LENGTHS,
    "hourly": frozenset({_HOUR}),
    "h": frozenset({_HOUR}),
    "daily": frozenset({_DAY}),
    "d": frozenset({_DAY}),
    "weekly": frozenset({7 * _DAY}),
    "w": frozenset({7 * _DAY}),
    "monthly": frozenset({MONTH}),
}
_LENGTH_UNITS = {
    **dict.fromkeys(("s", "sec"), _SECOND),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), _MINUTE),
    **dict.fromkeys(("h", "hr", "hour", "hours"), _HOUR),
    **dict.fromkeys(("d", "day"), _DAY),
    **dict.fromkeys(("w", "wk", "week"), 7 * _DAY),
    **dict.fromkeys(("mo", "mon", "month", "mn"), MONTH),
}
_LENGTH = re.compile(r"(\d{1,4})([a-z]{1,7})|(mn|[mhdw])(\d{1,3})", re.ASCII | re.IGNORECASE)
# Names of the units in `length_name`, longest first.
_UNIT_NAMES = (("w", 7 * _DAY), ("d", _DAY), ("h", _HOUR), ("m", _MINUTE), ("s", _SECOND))


def period_words(word: str) -> frozenset[timedelta]:
    """The lengths of candles that a word may mean, such as `1d`, `H4`, `hourly`; `1M` may be a month too."""
    if (lengths := _LENGTH_WORDS.get(word.lower())) is not None:
        return lengths
    if (match := _LENGTH.fullmatch(word)) is None:
        return frozenset()
    count, unit = int(match[1] or match[4]), match[2] or match[3]
    if (length := _LENGTH_UNITS.get(unit.lower())) is None:
        return frozenset()
    meant = {count * length} if length != MONTH else {MONTH} if count == 1 else set()
    if unit == "M" and count == 1 and match[1]:
        meant.add(MONTH)
    return frozenset(length for length in meant if is_length(length))


def is_length(length: timedelta) -> bool:
    """Whether candles may have this length: a day or a part of it, some whole days, or a month."""
    if length < _SECOND:
        return False
    return _DAY % length == timedelta() if length <= _DAY else not length % _DAY and length <= MONTH


def length_name(length: timedelta) -> str:
    """A length as overrides write it, such as `1d`."""
    if length == MONTH:
        return "1mo"
    name, unit = next((name, unit) for name, unit in _UNIT_NAMES if not length % unit)
    return f"{length // unit}{name}"


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """When the candles of a file begin, and whether its times are their beginnings or their ends.

    Candles begin whenever the wall-clock time of `zone` since 1970, or since the first of a month, is
    `offset` past a multiple of `length`. Without an offset, any time may be one. `unclear` has times of
    candles whose end depends on a change of clocks in a zone that the file does not show.
    """

    length: timedelta
    begins: bool
    zone: str = "UTC"
    offset: timedelta | None = timedelta()
    unclear: frozenset[datetime] = frozenset()

    def close(self, stamp: Stamp, zone: tzinfo, fold: int = 0) -> datetime:
        """The moment of the close price of a candle with this time: the last second of its period.

        The end is the last second, not the first second of the next period, because CoinMarketCap and the
        exchanges write it so. The same close is then one record whether a file gives the beginning or the
        end, and it belongs to the day, week and month that it closes. `zone` is that of `self.zone`. `fold`
        chooses between two moments if clocks change at the end. Raises RejectedValue for a time at which no
        candle begins or ends.
        """
        if (
            zone is UTC
            and self.begins
            and self.offset is not None
            and self.length <= _DAY
            and not self.unclear
        ):
            # The short way of most files, for each of a million times.
            if (stamp.at - _EPOCH - self.offset) % self.length:
                raise RejectedValue(
                    "observed_at", f"not the beginning of a candle of {length_name(self.length)}"
                )
            return stamp.at + self.length - _SECOND
        if stamp.at in self.unclear:
            raise RejectedValue(
                "observed_at", "a candle of unclear length, because clocks change near its end"
            )
        wall = wall_time(stamp.at, zone)
        past = None if self.offset is None else past_beginning(wall, self.length, self.offset)
        if not self.begins:
            if stamp.date_only:
                if self.length == MONTH and (wall + _DAY).day != 1:
                    raise RejectedValue("observed_at", "not the end of a candle of 1mo")
                return day_end(stamp, zone)
            if past == timedelta():
                return stamp.at - _SECOND
            if past is not None and not is_end(wall, self.length, self.offset or timedelta()):
                raise RejectedValue("observed_at", f"not the end of a candle of {length_name(self.length)}")
            return stamp.at
        if past:
            raise RejectedValue("observed_at", f"not the beginning of a candle of {length_name(self.length)}")
        if self.length <= _HOUR:
            return stamp.at + self.length - _SECOND
        offset = self.offset or timedelta()
        following = _next_month(wall - offset) + offset if self.length == MONTH else wall + self.length
        return following.replace(tzinfo=zone, fold=fold).astimezone(UTC) - _SECOND


def wall_time(at: datetime, zone: tzinfo) -> datetime:
    """The time that a clock in a zone shows, without a zone."""
    return at.replace(tzinfo=None) if zone is UTC else at.astimezone(zone).replace(tzinfo=None)


def past_beginning(wall: datetime, length: timedelta, offset: timedelta = timedelta()) -> timedelta:
    """How far a wall-clock time is past the beginning of the candle that contains it."""
    if length == MONTH:
        shifted = wall - offset
        return shifted - datetime(shifted.year, shifted.month, 1)  # noqa: DTZ001 - a wall-clock time
    return (wall - _WALL_EPOCH - offset) % length


_WALL_EPOCH = _EPOCH.replace(tzinfo=None)


def is_end(wall: datetime, length: timedelta, offset: timedelta = timedelta()) -> bool:
    """Whether a wall-clock time is in the last second of a candle.

    From one hour on the last minute counts, and from one day on the last ten minutes: sources write the end
    of a candle as `23:59:59`, `23:59:59.999`, `23:59` or `23:58:00`.
    """
    last = _SECOND if length < _HOUR else _MINUTE if length < _DAY else 10 * _MINUTE
    return length > last and past_beginning(wall + last, length, offset) < last


def _next_month(wall: datetime) -> datetime:
    # The same day and clock time in the next month, or its last day if it is shorter.
    year, month = wall.year + wall.month // 12, wall.month % 12 + 1
    return wall.replace(year=year, month=month, day=min(wall.day, monthrange(year, month)[1]))


def day_end(stamp: Stamp, zone: tzinfo = UTC) -> datetime:
    """The moment of a quote: its time, or the last second of its day in a zone if it has no clock time."""
    if not stamp.date_only:
        return stamp.at
    following = wall_time(stamp.at, zone) + _DAY
    return following.replace(tzinfo=zone).astimezone(UTC) - _SECOND
