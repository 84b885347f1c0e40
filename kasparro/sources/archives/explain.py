"""Checks one archive for `kasparro check`: what it would load and how it was understood. Writes nothing."""

import csv
from collections import Counter
from datetime import datetime

import msgspec

from kasparro.model.record import Reject, RejectedValue
from kasparro.sources.archives.checked import STORED_COLUMNS, Cell, Checked, Column, Reason, Recognition
from kasparro.sources.archives.convert import Converter
from kasparro.sources.archives.detect import SHOWN_CELLS, Detection
from kasparro.sources.archives.detect.attempt import attempt
from kasparro.sources.archives.detect.sample import Sample
from kasparro.sources.archives.files import ArchiveFile
from kasparro.sources.archives.overrides import Overrides
from kasparro.sources.archives.portions import Portion
from kasparro.sources.archives.reader import Job, RejectCount, general_reason, read_archive

# Rejects of each reason that are shown.
EXAMPLES = 3
# The table's columns for the fields of archives, if their names differ.
_COLUMN_OF_FIELD = {
    "id": "source_id",
    "time": "observed_at",
    "closed_at": "observed_at",
    "clock": "observed_at",
}


class _Reasons:
    # Counts rejects by field and reason, with the first rejects of each.
    def __init__(self) -> None:
        self._rejects: dict[tuple[str | None, str], tuple[int, list[Reject]]] = {}

    def add(self, reject: Reject) -> None:
        key = reject.field, general_reason(reject.reason)
        count, first = self._rejects.get(key, (0, []))
        if len(first) < EXAMPLES:
            first.append(reject)
        self._rejects[key] = count + 1, first

    def count(self, rows: int, damaged: Counter[str]) -> RejectCount:
        """The rejects among `rows` rows, and the damaged rows."""
        reasons = damaged + Counter(
            {
                f"{field}: {reason}" if field else reason: count
                for (field, reason), (count, _) in self._rejects.items()
            }
        )
        return RejectCount(rows=rows, rejected=reasons.total(), reasons=dict(reasons), whole=True)

    def most_frequent_first(self) -> tuple[Reason, ...]:
        ordered = sorted(self._rejects.items(), key=lambda item: -item[1][0])
        return tuple(
            Reason(field=field, reason=reason, rows=count, first=tuple(first))
            for (field, reason), (count, first) in ordered
        )


async def check(file: ArchiveFile, name: str, overrides: Overrides, now: datetime) -> Checked:
    """Read a file to its end as a run would, without a database."""
    rows = rejected = 0
    problem: str | None = None
    setting: str | None = None
    reasons, damaged, invalid = _Reasons(), Counter[str](), Counter[str]()
    job = Job(name=name, key="", position=0, now=now, overrides=overrides, half_rule=False)
    async for message in read_archive(file, job):
        if isinstance(message, Portion):
            rows += message.batch.rows
            rejected += len(message.batch.rejects)
            for reject in message.batch.rejects:
                reasons.add(reject)
            damaged.update(message.damaged)
            invalid.update(value.field for value in message.batch.invalid)
        else:
            problem, setting = message.reject.summary, message.reject.setting
    if (reason := reasons.count(rows + rejected, damaged).file_reason) is not None:
        rows, problem, setting = 0, f"{name}: {reason}", None
    return Checked(
        name=name,
        rows=rows,
        rejected=rejected,
        problem=problem,
        setting=setting,
        reasons=reasons.most_frequent_first(),
        invalid=dict(sorted(invalid.items())),
        recognition=await _recognition(file, job),
    )


async def _recognition(file: ArchiveFile, job: Job) -> Recognition | None:
    try:
        attempted = await attempt(file, job.name, job.now, job.overrides)
    except (csv.Error, OSError):
        return None
    sample, detection = attempted.sample, attempted.detection
    if sample is None or detection is None:
        return None
    still_open = {rejected.question: str(rejected) for rejected in attempted.open}
    return Recognition(
        layout=detection.layout.name,
        encoding=detection.encoding.codec,
        delimiter=detection.delimiter,
        header_line=sample.header_line,
        decimal=detection.decimal,
        findings=tuple(
            msgspec.structs.replace(finding, open=True, evidence=(still_open[finding.question],))
            if finding.question in still_open
            else finding
            for finding in detection.findings
        ),
        columns=_columns(sample, detection, job),
        notes=detection.notes,
    )


def _columns(sample: Sample, detection: Detection, job: Job) -> tuple[Column, ...]:
    # With the first rows that load, to show the stored value of each cell.
    convert = Converter(detection, job.now).convert
    stored: list[tuple[list[str], dict[str, str]]] = []
    for row in sample.rows:
        try:
            key, content = convert(row.copy())
        except RejectedValue:
            continue
        stored.append((row, dict(zip(STORED_COLUMNS, [*key.split("\t"), *content.split("\t")], strict=True))))
        if len(stored) == SHOWN_CELLS:
            break
    columns = []
    for index, column in enumerate(detection.columns):
        field = _COLUMN_OF_FIELD.get(column.field, column.field) if column.field else None
        if field in STORED_COLUMNS:
            cells = tuple(Cell(_valid(row[index]), _value(values[field])) for row, values in stored)
        else:
            cells = tuple(Cell(_valid(raw), None) for raw in column.cells)
        columns.append(Column(header=column.header, field=field, note=column.note, cells=cells))
    return tuple(columns)


def _value(cell: str) -> str | None:
    return None if cell == "\\N" else cell


def _valid(cell: str) -> str:
    # Messages cannot hold the surrogates that represent bytes outside the encoding.
    return cell.encode("utf-8", "replace").decode()
