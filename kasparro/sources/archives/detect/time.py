"""Decides which columns give the time of a row, and how those times are written."""

import re
from datetime import UTC, tzinfo
from zoneinfo import ZoneInfo

import msgspec

from kasparro.model.record import CLOCK_TOLERANCE, EARLIEST, RejectedValue
from kasparro.printable import one_line
from kasparro.sources.archives.detect.columns import Candidates, Inputs
from kasparro.sources.archives.detect.header import column_name
from kasparro.sources.archives.errors import FileRejected, Guess
from kasparro.sources.archives.findings import Finding
from kasparro.sources.archives.times import (
    ORDER_NAMES,
    Order,
    Stamp,
    day_order,
    epoch_unit,
    looks_like_time,
    read_time,
)
from kasparro.sources.archives.vocabulary import FIELD_OF

_DAY_NUMBER = re.compile(r"[34]\d{4}(?:\.\d+)?", re.ASCII)
_CLOCK = re.compile(r"\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?: ?[AaPp][Mm])?|\d{6}", re.ASCII)
# Parts of names of columns that hold the times of other events.
_OTHER_EVENTS = ("ath", "atl", "added", "genesis", "launch", "listed", "cycle", "created", "birth", "expir")
_CLOCK_HEADINGS = frozenset({"time", "clock", "hour"})


class TimeFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of time (`time`, `closed_at`, `clock`) and how they are written.

    `moment` is the time of all rows of a file without such a column. `stamps` are the times in the sample,
    and `closings` those of the column `closed_at`. `zone_from` says what settles the zone of times that do
    not show it: `overrides`, `header`, or None if it is only assumed. `epoch_unit` is for people.
    """

    columns: dict[str, int]
    zone: str
    zone_from: str | None
    order: Order | None
    stamps: list[Stamp]
    closings: list[Stamp]
    moment: Stamp | None
    epoch_unit: str | None
    notes: tuple[str, ...]
    finding: Finding

    @property
    def column(self) -> int | None:
        """The column that gives a row's time; a `clock` column may complete it."""
        return self.columns.get("closed_at", self.columns.get("time"))

    @property
    def zone_known(self) -> bool:
        """Whether the file or its overrides show the zone of its times."""
        return self.zone_from is not None or not any(stamp.zone_assumed for stamp in self.stamps)


def find_times(inputs: Inputs, candidates: Candidates) -> TimeFormat:
    """Find the times of a file. Raises FileRejected if it has none, or if they have several meanings."""
    overrides = inputs.overrides
    columns = _time_columns(inputs, candidates)
    zone, zone_from = _zone(inputs, columns)
    column = columns.get("time", columns.get("closed_at"))
    if column is None:
        return _one_moment(inputs, zone)
    order = overrides.order or day_order(inputs.cells(column), inputs.now)
    tz: tzinfo = UTC if zone == "UTC" else ZoneInfo(zone)
    stamps = _stamps(inputs, column, columns.get("clock"), order, tz)
    closings: list[Stamp] = []
    if "time" in columns and "closed_at" in columns:
        closings = _stamps(inputs, columns["closed_at"], None, order, tz)
    _require_epoch_fits(inputs, column)
    unit = _epoch_units(inputs, column)
    assumed = any(stamp.zone_assumed for stamp in stamps)
    unclear = next(filter(None, (inputs.headings[c].unclear_zone for c in columns.values())), None)
    if (inputs.layout.local or unclear) and zone_from is None and assumed:
        reason = (
            f"its header {one_line(inputs.sample.header[column])[:40]!r} does not show one zone"
            if unclear
            else f"the times of a {inputs.layout.name} are in a zone that the file does not show"
        )
        raise FileRejected(
            reason,
            Guess({"timezone": unclear or inputs.layout.zone}, "a likely zone: check it"),
            question="time",
        )
    notes: tuple[str, ...] = ()
    if zone != "UTC":
        notes = (f"its times are in the zone {zone}",)
    elif zone_from is None and any(stamp.zone_assumed and not stamp.date_only for stamp in stamps):
        notes = ("its times have no zone, so they are read as UTC",)
    written = unit or (f"{ORDER_NAMES[order]} dates" if order else "dates that show their order")
    return TimeFormat(
        columns=columns,
        zone=zone,
        zone_from=zone_from,
        order=order,
        stamps=stamps,
        closings=closings,
        moment=None,
        epoch_unit=unit,
        notes=notes,
        finding=Finding(
            question="time",
            answer=f"{written}, zone {zone}",
            evidence=(
                "columns " + ", ".join(one_line(inputs.sample.header[c])[:40] for c in columns.values()),
                f"zone: by its {zone_from}"
                if zone_from
                else "zone: in its cells"
                if not assumed
                else "zone: not given, so read as UTC",
            ),
        ),
    )


def _one_moment(inputs: Inputs, zone: str) -> TimeFormat:
    # The time of a file without a column for it.
    overrides = inputs.overrides
    moment = overrides.moment or inputs.file_name.day
    if (column := _unnamed_times(inputs)) is not None:
        name = column_name(inputs.sample.header[column])
        raise FileRejected(
            f"none of its columns is known to hold a time, but {one_line(name)[:60]!r} looks like one",
            Guess({"columns": {name: "observed_at"}}),
            question="time",
        )
    if moment is None:
        raise FileRejected(
            "neither a column nor the file name gives the time of its figures",
            Guess({"observed_at": "2018-01-31T12:00:00Z"}, "replace it by the time", placeholder=True),
            question="time",
        )
    given_by = "overrides give" if overrides.moment else "name gives"
    return TimeFormat(
        columns={},
        zone=zone,
        zone_from="overrides" if overrides.timezone else None,
        order=None,
        stamps=[],
        closings=[],
        moment=moment,
        epoch_unit=overrides.epoch,
        notes=(f"its {given_by} the time of its figures",),
        finding=Finding(
            question="time",
            answer=moment.at.isoformat(),
            evidence=(f"its {given_by} the time of its figures",),
        ),
    )


def _unnamed_times(inputs: Inputs) -> int | None:
    # A column of different times whose name is not known.
    for column, heading in enumerate(inputs.headings):
        other_event = any(word in heading.full for word in _OTHER_EVENTS)
        if FIELD_OF.get(heading.base) is None and not heading.explicit and heading.full and not other_event:
            cells = inputs.distinct([column])
            if len(cells) > 1 and inputs.most(column, looks_like_time):
                return column
    return None


def _time_columns(inputs: Inputs, candidates: Candidates) -> dict[str, int]:
    columns: dict[str, int] = {}
    for column in candidates.first("closed_at"):
        columns["closed_at"] = column
    times = candidates.of("time")
    if not times:
        return columns
    first = columns["time"] = times[0]
    clocks = [
        column
        for column, heading in enumerate(inputs.headings)
        if heading.base in _CLOCK_HEADINGS and column != first and inputs.most(column, _is_clock)
    ]
    if not clocks and inputs.headings[first].base in _CLOCK_HEADINGS and inputs.most(first, _is_clock):
        # The columns of day and clock time have the same rank of names.
        days = [column for column in times[1:] if inputs.most(column, _is_day)]
        if days:
            columns["time"], columns["clock"] = days[0], first
            return columns
    if clocks and inputs.most(first, _is_day):
        columns["clock"] = clocks[0]
    return columns


def _zone(inputs: Inputs, columns: dict[str, int]) -> tuple[str, str | None]:
    # The zone of times that do not show it, and what settles it.
    if inputs.overrides.timezone:
        return inputs.overrides.timezone, "overrides"
    for field in ("clock", "time", "closed_at"):
        if field in columns and (zone := inputs.headings[columns[field]].zone) is not None:
            return zone, "header"
    return "UTC", None


def _stamps(inputs: Inputs, column: int, clock: int | None, order: Order | None, zone: tzinfo) -> list[Stamp]:
    # The times in a column. Raises FileRejected if no cell is one.
    stamps: list[Stamp] = []
    reasons: list[str] = []
    # Rows of many coins have few moments.
    known: dict[str, Stamp] = {}
    width = max(column, clock or 0)
    for row in inputs.sample.rows:
        if len(row) <= width:
            continue
        text = row[column] if clock is None else f"{row[column].strip()} {row[clock].strip()}"
        try:
            if text not in known:
                known[text] = read_time(text, order, zone=zone, epoch=inputs.overrides.epoch)
            stamps.append(known[text])
        except RejectedValue as rejected:
            reasons.append(rejected.reason)
    if stamps or not inputs.sample.rows:
        return stamps
    header = one_line(inputs.sample.header[column])
    example = next(iter(inputs.cells(column)), "")
    if inputs.most(column, lambda cell: _DAY_NUMBER.fullmatch(cell.strip()) is not None):
        raise FileRejected(
            f"its column {header!r} holds the day numbers of a spreadsheet ({example[:60]!r}), "
            "which count from 1900 or from 1904: write them as dates"
        )
    reason = reasons[0].removeprefix("not a date: ") if reasons else repr(example)
    raise FileRejected(
        f"its column {header!r} holds no times ({reason}); if another column does, name it in its overrides: "
        'columns."HEADER" = "observed_at"',
        None,
        question="time",
    )


def _epoch_units(inputs: Inputs, column: int) -> str | None:
    # The units of epoch times in a column.
    if inputs.overrides.epoch:
        return inputs.overrides.epoch
    units = {unit for cell in inputs.distinct([column]) if (unit := epoch_unit(cell)) is not None}
    return " and ".join(sorted(units)) or None


def _require_epoch_fits(inputs: Inputs, column: int) -> None:
    # A unit that the overrides give has to fit the times that show their unit by their length.
    given = inputs.overrides.epoch
    if given is None:
        return
    cells = [cell.strip() for cell in inputs.cells(column)]
    latest = inputs.now + CLOCK_TOLERANCE
    for cell in cells:
        shown = epoch_unit(cell)
        if shown is None or shown == given:
            continue
        try:
            fits = EARLIEST <= read_time(cell, None, epoch=given).at <= latest
        except RejectedValue:
            fits = False
        if not fits:
            raise FileRejected(
                f"its overrides say epoch = {given!r}, but {cell[:30]!r} is a time in {shown!r} by its "
                "length; remove the key epoch, and each time is read by its length",
                None,
                question="time",
            )


def _is_clock(cell: str) -> bool:
    return _CLOCK.fullmatch(cell.strip()) is not None


def _is_day(cell: str) -> bool:
    return ":" not in cell
