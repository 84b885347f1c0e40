"""Decides which columns give the time of a row, how those times are written, and how long candles are."""

import re
from datetime import timedelta

import msgspec

from kasparro.model.record import RejectedValue
from kasparro.sources.archives.detect.columns import Candidates, Evidence
from kasparro.sources.archives.errors import FileRejected
from kasparro.sources.archives.header_names import CLOCKS
from kasparro.sources.archives.times import PERIODS, Order, Stamp, day_order, epoch_unit, period, read_time

_DAY_NUMBER = re.compile(r"[34]\d{4}(?:\.\d+)?", re.ASCII)


class TimeFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of time (`time`, `closed_at`, `clock`) and how they are written.

    `moment` is the time of all rows of a file without such a column. `stamps` are the times in the sample.
    `epoch_unit` is for people.
    """

    columns: dict[str, int]
    zone: str
    order: Order | None
    stamps: list[Stamp]
    moment: Stamp | None
    epoch_unit: str | None
    notes: tuple[str, ...]

    @property
    def column(self) -> int | None:
        """The column that gives a row's time; a `clock` column may complete it."""
        return self.columns.get("closed_at", self.columns.get("time"))


def find_times(evidence: Evidence, candidates: Candidates) -> TimeFormat:
    """Find the times of a file. Raises FileRejected if it has none, or if they have several meanings."""
    overrides = evidence.overrides
    columns, zone = _time_columns(evidence, candidates)
    column = columns.get("closed_at", columns.get("time"))
    if column is None:
        moment = overrides.moment or evidence.hints.day
        if moment is None:
            raise FileRejected(
                "neither a column nor the file name gives the time of its figures",
                "observed_at = 2018-01-31T12:00:00Z, or the right time",
            )
        given_by = "overrides give" if overrides.moment else "name gives"
        return TimeFormat(
            columns={},
            zone=zone,
            order=None,
            stamps=[],
            moment=moment,
            epoch_unit=overrides.epoch,
            notes=(f"its {given_by} the time of its figures",),
        )
    order = overrides.order or day_order(evidence.cells(column), evidence.now)
    stamps = _stamps(evidence, column, order)
    notes: tuple[str, ...] = ()
    if zone != "UTC":
        notes = (f"its times are in the zone {zone}",)
    elif any(stamp.zone_assumed and not stamp.date_only for stamp in stamps):
        notes = ("its times have no zone, so they are read as UTC",)
    example = next((cell.strip() for cell in evidence.cells(column) if cell.strip()), "")
    return TimeFormat(
        columns=columns,
        zone=zone,
        order=order,
        stamps=stamps,
        moment=None,
        epoch_unit=overrides.epoch or epoch_unit(example),
        notes=notes,
    )


def find_period(evidence: Evidence, times: TimeFormat) -> timedelta | None:
    """The length of a file's candles; None if it has none. Raises FileRejected if it is unknown."""
    layout = evidence.layout
    if layout.kind != "candles":
        return None
    length = (
        evidence.overrides.length
        or evidence.hints.period
        or period(times.stamps)
        or (PERIODS["1d"] if layout.daily else None)
    )
    if length is None and "closed_at" not in times.columns and times.stamps:
        raise FileRejected("neither its rows nor its name give the length of its candles", 'period = "1d"')
    return length


def _time_columns(evidence: Evidence, candidates: Candidates) -> tuple[dict[str, int], str]:
    # The columns of time, and their zone.
    headings, overrides = evidence.headings, evidence.overrides
    columns: dict[str, int] = {}
    for column in candidates.first("closed_at"):
        columns["closed_at"] = column
    zone = overrides.timezone or "UTC"
    times = candidates.of("time")
    if not times:
        return columns, zone
    first = columns["time"] = times[0]
    clocks = [
        column
        for column, heading in enumerate(headings)
        if heading.full in CLOCKS and column != first and evidence.most(column, _is_clock)
    ]
    may_be_day = "time" not in headings[first].base or len(times) == 1
    if clocks and may_be_day and evidence.most(first, _is_day):
        columns["clock"] = clocks[0]
        zone = overrides.timezone or CLOCKS[headings[clocks[0]].full]
    return columns, zone


def _stamps(evidence: Evidence, column: int, order: Order | None) -> list[Stamp]:
    # The times in a column. Raises FileRejected if no cell is one.
    stamps: list[Stamp] = []
    reasons: list[str] = []
    for cell in evidence.cells(column):
        try:
            stamps.append(read_time(cell, order, epoch=evidence.overrides.epoch))
        except RejectedValue as rejected:
            reasons.append(rejected.reason)
    if stamps or not evidence.sample.rows:
        return stamps
    header = evidence.sample.header[column].strip()
    example = next(evidence.cells(column), "")
    if evidence.most(column, lambda cell: _DAY_NUMBER.fullmatch(cell.strip()) is not None):
        raise FileRejected(
            f"its column {header!r} holds the day numbers of a spreadsheet ({example[:60]!r}), "
            "which count from 1900 or from 1904: write them as dates"
        )
    reason = reasons[0].removeprefix("not a date: ") if reasons else repr(example)
    raise FileRejected(f"its column {header!r} holds no times ({reason})", 'columns."HEADER" = "observed_at"')


def _is_clock(cell: str) -> bool:
    return len(cell.strip()) <= 15 and ":" in cell.strip()[:3] and cell.strip()[0].isdigit()


def _is_day(cell: str) -> bool:
    return ":" not in cell
