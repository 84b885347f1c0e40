"""Decides how long the candles of a file are, and whether its times begin or end them.

All times of the file together answer: the most frequent step between them is the length, and nearly all are
at the same place in a candle. What the name and the overrides say has to agree.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import groupby, pairwise
from typing import TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from kasparro.model.record import RejectedValue
from kasparro.sources.archives.detect.columns import Inputs
from kasparro.sources.archives.detect.time import TimeFormat
from kasparro.sources.archives.errors import FileRejected, Guess
from kasparro.sources.archives.findings import Finding
from kasparro.sources.archives.times import (
    MONTH,
    Grid,
    Stamp,
    is_end,
    is_length,
    length_name,
    past_beginning,
    wall_time,
)

_Time = TypeVar("_Time", Stamp, datetime)
# The share of a file's times that have to be at the same place in a candle.
_NEARLY_ALL = 0.95
_DAY = timedelta(days=1)
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONDAY, _FRIDAY, _SUNDAY = 0, 4, 6
_HOUR = timedelta(hours=1)
_MINUTE = timedelta(minutes=1)
# With fewer steps between times, the name or the overrides may say more than the rows.
_FEW_STEPS = 3
# Zones with different rules for summer time, or offsets, in which times are tried.
_ZONES = (
    *("UTC", "America/New_York", "America/Los_Angeles", "America/Chicago", "America/Denver"),
    *("America/Halifax", "America/Sao_Paulo", "Europe/London", "Europe/Berlin", "Europe/Athens"),
    *("Europe/Istanbul", "Europe/Moscow", "Asia/Dubai", "Asia/Karachi", "Asia/Kolkata", "Asia/Dhaka"),
    *("Asia/Bangkok", "Asia/Singapore", "Asia/Tokyo", "Australia/Sydney", "Pacific/Auckland"),
    *("Asia/Jerusalem", "Asia/Tehran", "Asia/Kathmandu", "America/Argentina/Buenos_Aires"),
)
# Times from which shares are computed, and that are tried in each zone.
_TRIED_TIMES = 3_000
# Days begin at midnight, and for banks and brokers at 17:00 in New York.
_BEGINNINGS = (timedelta(), timedelta(hours=17))


class Candles(msgspec.Struct, frozen=True, kw_only=True):
    """The grid of a file's candles; None if it is no file of candles. `field` is the column of the times."""

    grid: Grid | None
    field: str
    findings: tuple[Finding, ...]


class _Fit(msgspec.Struct, frozen=True):
    # How times stand in candles of a length: the most frequent offset, the share of times there, and the
    # share with times an hour from it.
    offset: timedelta
    share: float
    share_with_summer_time: float


def find_grid(inputs: Inputs, times: TimeFormat) -> Candles:
    """Find the grid of a file's candles. Raises FileRejected if rows, name and overrides do not agree."""
    field = "closed_at" if "closed_at" in times.columns else "time"
    if not times.stamps:
        return Candles(grid=None, field=field, findings=())
    if inputs.layout.kind != "candles":
        _require_no_averages(inputs, times)
        _require_no_summer_time(times)
        return Candles(grid=None, field=field, findings=())
    stamps = times.stamps
    begins: bool | None = None
    if field == "closed_at":
        begins = False
        if times.closings:
            # A column of beginnings says more than one of ends, whose days may be the last or the following.
            exact = [stamp for stamp in times.closings if not stamp.date_only]
            if exact:
                stamps = exact
            else:
                field, begins = "time", True
    if inputs.layout.ends:
        begins = False
    overrides = inputs.overrides
    if overrides.candle_times is not None:
        begins = overrides.candle_times == "begin"
    length, evidence = _length(inputs, times, stamps)
    if length is None:
        if field == "closed_at":
            return Candles(grid=None, field=field, findings=())
        raise FileRejected(
            "neither its rows nor its name give the length of its candles",
            _guessed_period(inputs, stamps),
            question="period",
        )
    _require_beginning_of_weeks(inputs, stamps, length, begins)
    grid, answer = _grid(stamps, length, times, begins)
    agreeing = "its times end candles" if not grid.begins else "its times begin candles"
    return Candles(
        grid=grid,
        field=field,
        findings=(
            Finding(
                question="period",
                answer=f"{length_name(length)}, {agreeing}",
                evidence=(*evidence, answer),
            ),
        ),
    )


def _require_beginning_of_weeks(
    inputs: Inputs, stamps: Sequence[Stamp], length: timedelta, begins: bool | None
) -> None:
    # A bare day of a week may be its first or its last. Weeks begin on Monday; at Investing.com on Sunday.
    if length != 7 * _DAY or begins is not None or not all(stamp.date_only for stamp in stamps):
        return
    days = Counter(
        stamp.at.astimezone(_zone(inputs.overrides.timezone or "UTC")).weekday() for stamp in stamps
    )
    day = days.most_common(1)[0][0]
    guess, other = ("end", "begin") if day >= _FRIDAY else ("begin", "end")
    if day != _MONDAY and not (day == _SUNDAY and inputs.layout.name.startswith("Investing.com")):
        raise FileRejected(
            f"its weeks are dated by a {_WEEKDAYS[day]}, which may be their first day or their last",
            Guess({"candle_times": guess}, f'a guess: it may also be "{other}"'),
            question="period",
        )


def _guessed_period(inputs: Inputs, stamps: Sequence[Stamp]) -> Guess | None:
    # A length that the name or most rows suggest; none for candles of a quarter or a year.
    steps = Counter(later - earlier for earlier, later in pairwise(_walls(stamps, UTC)))
    step = steps.most_common(1)[0][0] if steps else None
    if named := sorted(inputs.file_name.periods):
        return Guess({"period": length_name(named[0])})
    if step is not None and step > MONTH:
        return None
    return Guess({"period": length_name(step) if step is not None and is_length(step) else "1d"})


def _length(
    inputs: Inputs, times: TimeFormat, stamps: Sequence[Stamp]
) -> tuple[timedelta | None, tuple[str, ...]]:
    # The length of the candles, and what speaks for it. Raises FileRejected for a contradiction.
    given, named = inputs.overrides.length, inputs.file_name.periods
    walls = _walls(stamps, _zone(times.zone))
    steps = Counter(later - earlier for earlier, later in pairwise(walls))
    count = steps.total()
    _require_one_length(walls)
    by_rows = _length_by_rows(walls, steps)
    in_words = f"most of its times are {length_name(by_rows)} apart" if by_rows else None
    for lengths, by, who in (
        (frozenset({given}) if given else frozenset(), "by its overrides", "its overrides say"),
        (named, "by its name", "its name says"),
    ):
        if not lengths:
            continue
        names = " or ".join(length_name(length) for length in sorted(lengths))
        if by_rows in lengths:
            return by_rows, tuple(filter(None, (in_words, f"{names} {by}")))
        fitting = [length for length in sorted(lengths) if _agrees(walls, steps, length)]
        if (by_rows is None or count < _FEW_STEPS) and len(fitting) == 1:
            return fitting[0], (f"{length_name(fitting[0])} {by}",)
        if by_rows is not None and (count >= _FEW_STEPS or not fitting):
            raise FileRejected(
                f"{who} that its candles are {names} long, but {in_words}",
                Guess({"period": length_name(by_rows)}, "as its rows are") if not given else None,
                question="period",
            )
        if by_rows is None and count:
            raise FileRejected(
                f"{who} that its candles are {names} long, but its times do not fit that",
                None,
                question="period",
            )
    if by_rows is not None:
        return by_rows, tuple(filter(None, (in_words,)))
    if count:
        return None, ()
    if all(stamp.date_only for stamp in stamps) or inputs.layout.daily:
        return _DAY, ("a day, because its times are days",)
    return None, ()


def _require_one_length(walls: Sequence[datetime]) -> None:
    # Gaps between candles do not repeat. A longer step that comes several times in a row is another length.
    steps = [later - earlier for earlier, later in pairwise(walls)]
    if not steps:
        return
    main = Counter(steps).most_common(1)[0][0]
    for step, run in groupby(steps, key=lambda step: MONTH if _DAY * 28 <= step <= MONTH else step):
        count = sum(1 for _ in run)
        longer = step > main and not _DAY * 28 <= main <= MONTH and is_length(step)
        if longer and count >= (3 if step >= _DAY else 6) and step >= (2 if step >= _DAY else 6) * main:
            raise FileRejected(
                f"some of its candles are {length_name(main)} long and others {length_name(step)}: write a "
                "file for each length",
                question="period",
            )


def _length_by_rows(walls: Sequence[datetime], steps: Counter[timedelta]) -> timedelta | None:
    # The length that the rows show: the most frequent step, if nearly all times fit it.
    if not steps:
        return None
    months = sum(count for step, count in steps.items() if timedelta(days=28) <= step <= MONTH)
    if months >= max(1, _all_but_few(steps.total())):
        return MONTH
    step = steps.most_common(1)[0][0]
    if not is_length(step) or step == MONTH:
        return None
    fit = _fit(walls, step)
    return step if max(fit.share, fit.share_with_summer_time) >= _NEARLY_ALL else None


def _all_but_few(count: int) -> int:
    # How many of some months have to be regular: the last one may not be over.
    return count - max(1, count // 10)


def _agrees(walls: Sequence[datetime], steps: Counter[timedelta], length: timedelta) -> bool:
    # Whether times may be those of candles of a length, some of which may be missing.
    count = steps.total()
    if (
        count >= _FEW_STEPS
        and sum(n for step, n in steps.items() if step < length + min(length, 2 * _HOUR)) < count / 20
    ):
        return False
    if length == MONTH:
        return all(step >= timedelta(days=28) for step in steps)
    fit = _fit(walls, length)
    return max(fit.share, fit.share_with_summer_time) >= _NEARLY_ALL and all(
        step >= length - _HOUR for step in steps
    )


def _grid(
    stamps: Sequence[Stamp], length: timedelta, times: TimeFormat, begins: bool | None
) -> tuple[Grid, str]:
    # The grid of candles of a length, and in words where its times stand.
    if all(stamp.date_only for stamp in stamps):
        return _grid_of_days(stamps, length, times, begins)
    tried = {times.zone: _walls(stamps, _zone(times.zone))}
    if times.zone != "UTC":
        tried["UTC"] = _walls(stamps, UTC)
    if begins is not True:
        for name, walls in tried.items():
            if _share_of_ends(walls, length) >= _NEARLY_ALL:
                return (
                    Grid(length=length, begins=False, zone=name),
                    f"its times are the ends of candles in {name}",
                )
    fits = {name: _fit(walls, length) for name, walls in tried.items()}
    for name, fit in fits.items():
        # Candles begin at whole minutes.
        if fit.share < _NEARLY_ALL or (length >= _MINUTE and fit.offset % _MINUTE):
            continue
        where = f"nearly all times are {_clock(fit.offset, length)} into a candle in {name}"
        if begins is False:
            return Grid(length=length, begins=False, zone=name, offset=fit.offset), where
        if not _within_day(fit.offset, length) and not (length == MONTH and fit.offset):
            if not times.zone_known and length <= _HOUR:
                _require_no_changed_hours(stamps)
            return Grid(length=length, begins=True, zone=name, offset=fit.offset), where
        if length <= _HOUR and (times.zone_known or begins):
            return Grid(length=length, begins=True, zone=name, offset=fit.offset), where
        if not times.zone_known and not begins:
            raise _off_midnight(stamps, length, times, fit.offset)
        break
    if (
        times.zone_known
        and begins is not False
        and (grid := _grid_of_zones(stamps, length, fits)) is not None
    ):
        clock = _clock(grid.offset or timedelta(), length)
        return grid, f"nearly all times are {clock} into a candle in {grid.zone}"
    if begins is not None:
        offset = next((fit.offset for fit in fits.values() if fit.share >= _NEARLY_ALL), None)
        return (
            Grid(length=length, begins=begins, zone=times.zone, offset=offset),
            f"its overrides say that times {'begin' if begins else 'end'} candles",
        )
    if times.zone_known and (zone := _zone_of_ends(stamps, length)) is not None:
        return Grid(length=length, begins=False, zone=zone), f"its times are the ends of candles in {zone}"
    raise _no_place(
        length,
        times,
        begins,
        _zones_of_writer(stamps, length),
        _grid_of_zones(stamps, length, {}) is not None,
    )


def _grid_of_days(
    stamps: Sequence[Stamp], length: timedelta, times: TimeFormat, begins: bool | None
) -> tuple[Grid, str]:
    walls = _walls(stamps, _zone(times.zone))
    last_days = sum((wall + _DAY).day == 1 for wall in walls)
    if length == MONTH and begins is not True and last_days >= max(1, _all_but_few(len(walls))):
        return Grid(length=length, begins=False, zone=times.zone), "each time is the last day of a month"
    fit = _fit(walls, length)
    if length > _DAY and (fit.share < _NEARLY_ALL or (length == MONTH and fit.offset and begins is None)):
        raise _no_place(length, times, begins)
    return (
        Grid(length=length, begins=begins is not False, zone=times.zone, offset=fit.offset),
        "a day without a clock time begins a candle in its zone",
    )


def _grid_of_zones(stamps: Sequence[Stamp], length: timedelta, preferred: Iterable[str]) -> Grid | None:
    # The grid of the zone in which most times are at one clock time. If several zones fit equally, those
    # times are unclear whose candles end at different moments.
    found: list[tuple[float, Grid]] = []
    for name, zone in _tried_zones():
        fit = _fit(_walls(_some(stamps), zone), length)
        if fit.share >= _NEARLY_ALL and not fit.offset % _MINUTE:
            found.append((fit.share, Grid(length=length, begins=True, zone=name, offset=fit.offset)))
    if not found:
        return None
    best = max(share for share, _ in found)
    grids = [grid for share, grid in found if share == best]
    midnights = [grid for grid in grids if _within_day(grid.offset, length) in _BEGINNINGS]
    if not midnights:
        # A beginning in an hour that clocks skip is at another clock time, and does not decide between zones.
        grids += [grid for share, grid in found if best > share > best - 1.5 / len(stamps)]
    first = next((grid for grid in grids if grid.zone in preferred), (midnights or grids)[0])
    zones = {grid.zone: _zone(grid.zone) for grid in grids}
    unclear = {
        stamp.at
        for stamp in stamps
        if len({close for grid in grids for close in _closes(grid, stamp, zones[grid.zone])}) > 1
    }
    return msgspec.structs.replace(first, unclear=frozenset(unclear))


def _closes(grid: Grid, stamp: Stamp, zone: tzinfo) -> set[datetime]:
    # The moments at which a candle may end: two if clocks change then, none if it does not fit the grid.
    try:
        return {grid.close(stamp, zone, fold) for fold in (0, 1)}
    except RejectedValue:
        return set()


def _zone_of_ends(stamps: Sequence[Stamp], length: timedelta) -> str | None:
    # The zone in which the times end days.
    for name, zone in _tried_zones():
        if _share_of_ends(_walls(_some(stamps), zone), length) >= _NEARLY_ALL:
            return name
    return None


def _share_of_ends(walls: Sequence[datetime], length: timedelta) -> float:
    walls = _some(walls)
    return sum(is_end(wall, length if length == MONTH else min(length, _DAY)) for wall in walls) / len(walls)


def _off_midnight(
    stamps: Sequence[Stamp], length: timedelta, times: TimeFormat, offset: timedelta
) -> FileRejected:
    zones = _zones_of_writer(stamps, length)
    where = f"{_clock(offset, length)} into a candle of {length_name(length)} in UTC"
    if zones:
        others = f"; so do {', '.join(zones[1:4])}" if zones[1:] else ""
        return FileRejected(
            f"its times do not show their zone, and all are {where}",
            Guess({"timezone": zones[0]}, f"fits its rows{others}: check it"),
            question="time",
        )
    return FileRejected(
        f"its times do not show their zone, and all are {where}; the key timezone in its overrides gives it",
        Guess({"candle_times": "begin"}, "if its times are in UTC and begin candles"),
        question="time",
    )


def _no_place(
    length: timedelta,
    times: TimeFormat,
    begins: bool | None,
    zones: Sequence[str] = (),
    utc_fits: bool = False,
) -> FileRejected:
    if utc_fits and not zones:
        return FileRejected(
            "its times do not show their zone, and they are days of a zone with summer time, written in UTC",
            Guess({"timezone": "UTC"}, "fits its rows: check it"),
            question="time",
        )
    if zones:
        return FileRejected(
            "its times do not show their zone, and they move by an hour where clocks change",
            Guess({"timezone": zones[0]}, "fits its rows: check it"),
            question="time",
        )
    return FileRejected(
        f"its times are at different places in candles of {length_name(length)}, so it is unclear which "
        "candle each belongs to",
        Guess({"candle_times": "begin"}, 'or "end": what its times are') if begins is None else None,
        question="time",
    )


def _require_no_averages(inputs: Inputs, times: TimeFormat) -> None:
    # FRED's series of prices are daily. At other frequencies their values are averages.
    if inputs.sample.ticker is None or len(walls := _walls(times.stamps, UTC)) < 2:
        return
    step, count = Counter(later - earlier for earlier, later in pairwise(walls)).most_common(1)[0]
    if step >= 7 * _DAY and count >= _FEW_STEPS:
        raise FileRejected(
            f"its values are {step // _DAY} days apart, so they are averages, no prices: use the daily series"
        )


def _require_no_summer_time(times: TimeFormat) -> None:
    # Quotes once a day or more rarely, whose times move by an hour where clocks change, are in local time.
    if times.zone_known or all(stamp.date_only for stamp in times.stamps):
        return
    walls = _walls(times.stamps, UTC)
    steps = Counter(later - earlier for earlier, later in pairwise(walls))
    if not steps:
        return
    if (step := steps.most_common(1)[0][0]) <= _HOUR:
        _require_no_changed_hours(times.stamps)
    if step < _DAY - _HOUR:
        return
    fit = _fit(walls, _DAY)
    if fit.share >= _NEARLY_ALL or fit.share_with_summer_time < _NEARLY_ALL:
        return
    zones = _zones_of_writer(times.stamps, _DAY)
    if zones:
        raise FileRejected(
            "its times do not show their zone, and they move by an hour where clocks change",
            Guess({"timezone": zones[0]}, "fits its rows: check it"),
            question="time",
        )


def _require_no_changed_hours(stamps: Sequence[Stamp]) -> None:
    # Rows of an hour or less are in local time if they lack just the hour that clocks skip in spring, or have
    # just the hour twice that clocks repeat in autumn.
    rows = Counter(wall_time(stamp.at, UTC).replace(minute=0, second=0, microsecond=0) for stamp in stamps)
    first, last = min(rows), max(rows)
    zones = []
    for name, zone in _tried_zones():
        signs = []
        for hour, skipped in _changed_hours(first, last, zone):
            before, at, after = rows[hour - _HOUR], rows[hour], rows[hour + _HOUR]
            if before and after:
                signs.append(not at if skipped else at >= 1.5 * max(before, after))
        if signs and all(signs):
            zones.append(name)
    if zones:
        others = f"; so do {', '.join(zones[1:4])}" if zones[1:] else ""
        raise FileRejected(
            "its times do not show their zone, and they lack or repeat just the hours that clocks change",
            Guess({"timezone": zones[0]}, f"fits its rows{others}: check it"),
            question="time",
        )


def _changed_hours(first: datetime, last: datetime, zone: tzinfo) -> Iterator[tuple[datetime, bool]]:
    # The wall-clock hours that a zone skips (True) or repeats between two times.
    day = first.replace(hour=0)
    while day <= last:
        after = day + _DAY
        if after.replace(tzinfo=zone).utcoffset() != day.replace(tzinfo=zone).utcoffset():
            for hour in (day + n * _HOUR for n in range(24)):
                there = hour.replace(tzinfo=zone)
                if there.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != hour:
                    yield hour, True
                elif there.replace(fold=1).utcoffset() != there.utcoffset():
                    yield hour, False
        day = after


def _fit(walls: Sequence[datetime], length: timedelta) -> _Fit:
    walls = _some(walls)
    if length == MONTH:
        places = Counter(past_beginning(wall, MONTH) for wall in walls)
        offset, count = places.most_common(1)[0]
        return _Fit(offset, count / len(walls), count / len(walls))
    places = Counter(past_beginning(wall, length) for wall in walls)
    offset, count = places.most_common(1)[0]
    beside = (
        max(places[(offset + _HOUR) % length], places[(offset - _HOUR) % length]) if length > _HOUR else 0
    )
    return _Fit(offset, count / len(walls), (count + beside) / len(walls))


def _within_day(offset: timedelta | None, length: timedelta) -> timedelta:
    # The part of an offset that is within a day, or within a candle that is shorter.
    return (offset or timedelta()) % min(length, _DAY)


def _zones_of_writer(stamps: Sequence[Stamp], length: timedelta) -> list[str]:
    # The zones in which the wall-clock times may be written: read so, all begin or end a candle of UTC or of
    # the zone.
    found = []
    some = _some(stamps)
    for zone, tz in _tried_zones():
        if tz is UTC:
            continue
        moved = [stamp.at.replace(tzinfo=tz).astimezone(UTC).replace(tzinfo=None) for stamp in some]
        fit = _fit(moved, length)
        begins = fit.share >= _NEARLY_ALL and not _within_day(fit.offset, length)
        if begins or _share_of_ends(moved, length) >= _NEARLY_ALL:
            found.append(zone)
    return found


def _walls(stamps: Sequence[Stamp], zone: tzinfo) -> list[datetime]:
    return sorted({wall_time(stamp.at, zone) for stamp in stamps})


def _some(times: Sequence[_Time]) -> Sequence[_Time]:
    # A part at even distances that is enough to tell shares.
    return times[:: len(times) // _TRIED_TIMES + 1]


def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)


def _tried_zones() -> Iterator[tuple[str, tzinfo]]:
    # A machine may lack the data of some zones.
    for name in _ZONES:
        with suppress(ZoneInfoNotFoundError):
            yield name, _zone(name)


def _clock(offset: timedelta, length: timedelta) -> str:
    return str(_within_day(offset, length)) if length != MONTH else str(offset)
