"""What an archive would load and how it was understood, for `kasparro check`; nothing is written."""

import csv
from datetime import datetime

import msgspec

from kasparro.model.record import CONTENT_COLUMNS, KEY_COLUMNS, Reject, RejectedValue
from kasparro.sources.archives.convert import Converter
from kasparro.sources.archives.files import ArchiveFile
from kasparro.sources.archives.overrides import Overrides
from kasparro.sources.archives.reader import Job, Portion, Tally, generic, read_archive
from kasparro.sources.archives.recognise import (
    SAMPLES,
    FileRejected,
    Recognised,
    Sample,
    recognise,
    sampled,
)
from kasparro.sources.archives.times import ORDER_NAMES

# How many rejects are shown of each reason.
EXAMPLES = 3
# Which column of the table each field of an archive ends in, where the names differ.
_READ = (*KEY_COLUMNS[3:], *CONTENT_COLUMNS[1:])
_STORED = {"id": "source_id", "time": "observed_at", "closed_at": "observed_at", "clock": "observed_at"}


class Cell(msgspec.Struct, frozen=True):
    """A cell as the file has it, and what is stored of it."""

    raw: str
    stored: str | None


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One column: the field it goes to, or why to none, with some of its cells."""

    header: str
    field: str | None
    note: str | None
    cells: tuple[Cell, ...]

    @property
    def stored(self) -> bool:
        """Whether its cells end in a column of the table."""
        return self.field in _READ


class Recognition(msgspec.Struct, frozen=True, kw_only=True):
    """How a file was understood."""

    layout: str
    encoding: str
    delimiter: str
    header_line: int | None
    coin: str
    currency: str
    decimal: str
    day_order: str | None
    epoch: str | None
    zone: str
    candles_s: int | None
    columns: tuple[Column, ...]
    notes: tuple[str, ...]


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Why rows were refused: how many, and the first of them."""

    field: str | None
    reason: str
    rows: int
    first: tuple[Reject, ...]


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """What a file would load; `problem` says why it would not be loaded, or not to its end."""

    name: str
    rows: int
    rejected: int
    problem: str | None
    reasons: tuple[Reason, ...]
    recognition: Recognition | None

    @property
    def whole(self) -> bool:
        """Whether every row of it would be loaded."""
        return self.problem is None and not self.rejected


class _Reasons:
    # Rejects by reason, the first ones of each kept.
    def __init__(self) -> None:
        self._told: dict[tuple[str | None, str], tuple[int, list[Reject]]] = {}

    def add(self, reject: Reject) -> None:
        key = reject.field, generic(reject.reason)
        count, first = self._told.get(key, (0, []))
        if len(first) < EXAMPLES:
            first.append(reject)
        self._told[key] = count + 1, first

    def verdict(self, rows: int) -> str | None:
        """Why a file with so many rows is not loaded at all; None where at most half of them were refused."""
        counts = {
            f"{field}: {reason}" if field else reason: count
            for (field, reason), (count, _) in self._told.items()
        }
        refused = sum(counts.values())
        return Tally(rows=rows, refused=refused, reasons=counts, whole=True).verdict

    def most_first(self) -> tuple[Reason, ...]:
        ordered = sorted(self._told.items(), key=lambda item: -item[1][0])
        return tuple(
            Reason(field=field, reason=reason, rows=count, first=tuple(first))
            for (field, reason), (count, first) in ordered
        )


def refused(name: str, problem: str) -> Checked:
    """What a file comes to of which nothing can be read; `problem` is the whole line."""
    return Checked(name=name, rows=0, rejected=0, problem=problem, reasons=(), recognition=None)


async def check(file: ArchiveFile, name: str, said: Overrides, now: datetime) -> Checked:
    """Read a file to its end as a run would, with no database."""
    rows = rejected = 0
    problem: str | None = None
    reasons = _Reasons()
    job = Job(name=name, key="", position=0, now=now, said=said, judged=False)
    async for message in read_archive(file, job):
        if isinstance(message, Portion):
            rows += message.batch.rows
            rejected += len(message.batch.rejects)
            for reject in message.batch.rejects:
                reasons.add(reject)
        else:
            problem = message.reject.summary
    if (verdict := reasons.verdict(rows + rejected)) is not None:
        rows, problem = 0, f"{name}: {verdict}"
    return Checked(
        name=name,
        rows=rows,
        rejected=rejected,
        problem=problem,
        reasons=reasons.most_first(),
        recognition=await _recognition(file, job),
    )


async def _recognition(file: ArchiveFile, job: Job) -> Recognition | None:
    try:
        sample = await sampled(file, job.said)
        found = recognise(sample, job.name, job.now, job.said)
    except (FileRejected, csv.Error, OSError):
        return None
    period = found.period
    return Recognition(
        layout=found.layout.name,
        encoding=found.encoding.codec,
        delimiter=found.delimiter,
        header_line=sample.header_line,
        coin=found.coin_by,
        currency=f"USD {found.currency_by}",
        decimal=found.decimal,
        day_order=ORDER_NAMES[found.order] if found.order else None,
        epoch=found.epoch_unit,
        zone=found.zone,
        candles_s=int(period.total_seconds()) if period else None,
        columns=_columns(sample, found, job),
        notes=found.notes,
    )


def _columns(sample: Sample, found: Recognised, job: Job) -> tuple[Column, ...]:
    # The first rows that load tell what becomes of each cell.
    convert = Converter(found, job.now).convert
    stored: list[tuple[list[str], dict[str, str]]] = []
    for row in sample.rows:
        try:
            key, content = convert(row.copy())
        except RejectedValue:
            continue
        stored.append((row, dict(zip(_READ, [*key.split("\t"), *content.split("\t")], strict=True))))
        if len(stored) == SAMPLES:
            break
    columns = []
    for place, column in enumerate(found.columns):
        field = _STORED.get(column.field, column.field) if column.field else None
        if field in _READ:
            cells = tuple(Cell(_whole(row[place]), _plain(values[field])) for row, values in stored)
        else:
            cells = tuple(Cell(_whole(raw), None) for raw in column.samples)
        columns.append(Column(header=column.header, field=field, note=column.note, cells=cells))
    return tuple(columns)


def _plain(cell: str) -> str | None:
    return None if cell == "\\N" else cell


def _whole(cell: str) -> str:
    # Halves of characters, which stand for bytes that are not of the encoding, do not pass between processes.
    return cell.encode("utf-8", "replace").decode()
