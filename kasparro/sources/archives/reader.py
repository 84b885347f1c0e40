"""Reads one archive into batches, each with a checkpoint; the worker does this for every file."""

import csv
import io
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from kasparro.model.batch import BatchBuilder, Checkpoint
from kasparro.model.record import InvalidValue, Reject, RejectedValue
from kasparro.model.rival_prices import RivalPrices
from kasparro.printable import one_line
from kasparro.sources.archives.convert import Converter
from kasparro.sources.archives.detect import Detection
from kasparro.sources.archives.detect.attempt import detect_file
from kasparro.sources.archives.detect.sample import Sample
from kasparro.sources.archives.errors import FileRejected
from kasparro.sources.archives.files import ArchiveFile
from kasparro.sources.archives.identity import Head, Key
from kasparro.sources.archives.known_coins import LEADING_COINS, KnownCoins
from kasparro.sources.archives.overrides import NO_OVERRIDES, Overrides
from kasparro.sources.archives.portions import REASON_LIMIT, Portion, Problem, file_problem
from kasparro.sources.archives.text import (
    ArchiveText,
    Damaged,
    columns_of,
    filled_rows,
    is_filled,
    open_content,
    rows_of,
)

# Characters of a rejected row that are stored.
RAW_LIMIT = 2_000
# All rows of a large file are counted if the share of rejects in the sample is between these. If half of a
# file is rejected, it is at least a quarter of the sample, so both limits are far from the border.
UNCERTAIN_SHARES = (0.05, 0.95)

# Rows that are converted together: few enough to stay in the processor's cache. Measured with a file of 14
# columns and 200,000 rows: one by one 108,000 rows/s, 250 together 144,000, 500: 137,000, 2,000: 111,000.
TOGETHER = 250
# Rows in a batch of the worker: few, because a message is held several times while it is sent and received.
# The service merges batches before it commits them.
BATCH_ROWS = 5_000
# Rows are also converted, and make a batch, when their text exceeds these limits. They are far above the text
# of 250 and of 5,000 ordinary rows.
TOGETHER_CHARACTERS = 1024 * 1024
BATCH_CHARACTERS = 4 * 1024 * 1024


# The errors that reject a file.
READ_ERRORS = (FileRejected, Damaged, csv.Error, OSError)


class Detected(msgspec.Struct, frozen=True):
    """The beginning of a file, and the format that was detected from it."""

    sample: Sample
    detection: Detection


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """How to read one file.

    `name` is for people, `key` is the checkpoint's key. The first `position` rows, or `head`, are already
    loaded. `now` is the run's clock. `half_rule` says that a file is rejected if over half of its rows are.
    `detected` is the format, if it is known already. `known_coins` are the coins that its name may have.
    """

    name: str
    key: str
    position: int
    now: datetime
    overrides: Overrides = NO_OVERRIDES
    head: Head | None = None
    half_rule: bool = True
    detected: Detected | None = None
    known_coins: KnownCoins = LEADING_COINS


class RejectCount(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows would be rejected, and why. `whole` says that all rows were counted, not a sample."""

    rows: int
    rejected: int
    reasons: dict[str, int]
    whole: bool

    @property
    def file_reason(self) -> str | None:
        """Why the file is rejected; None if at most half of its rows would be rejected."""
        if self.rejected * 2 <= self.rows:
            return None
        most_frequent = max(self.reasons.items(), key=lambda item: item[1])[0]
        rows = "rows" if self.whole else "rows in a sample"
        return (
            f"not loaded: {self.rejected:,} of {self.rows:,} {rows} would be rejected, "
            f"most often: {most_frequent}"
        )


async def read_archive(file: ArchiveFile, job: Job) -> AsyncIterator[Portion | Problem]:
    """Read one file into batches. If it is not read to its end, the last message is a Problem."""
    try:
        prepared = await _prepare(file, job)
        async for message in _read(file, job, prepared):
            yield message
    except READ_ERRORS as error:
        yield problem_of(job.name, error)


def problem_of(name: str, error: Exception) -> Problem:
    """The Problem of a file that one of READ_ERRORS rejects."""
    match error:
        case FileRejected():
            return file_problem(name, str(error), error.setting)
        case OSError():
            return file_problem(name, f"cannot be read ({error.strerror or error})")
        case csv.Error():
            return file_problem(name, f"not loaded: it is no table ({error})")
    return file_problem(name, f"not loaded: {error}")


async def detect_format(
    file: ArchiveFile, name: str, now: datetime, overrides: Overrides, known_coins: KnownCoins
) -> Detected:
    """Detect the format of a file. Raises one of READ_ERRORS if something stays open."""
    return Detected(*await detect_file(file, name, now, overrides, known_coins))


class _Prepared(NamedTuple):
    # The format of a file, a converter for it, and whether the rule about half of its rows is settled.
    detection: Detection
    converter: Converter
    half_rule_checked: bool


async def _prepare(file: ArchiveFile, job: Job) -> _Prepared:
    # Raises FileRejected if over half of the rows would be rejected. A file that makes a single batch is
    # checked with that batch.
    detected = job.detected or await detect_format(file, job.name, job.now, job.overrides, job.known_coins)
    sample, detection = detected.sample, detected.detection
    converter = Converter(detection, job.now)
    if not job.half_rule:
        return _Prepared(detection, converter, half_rule_checked=True)
    if sample.whole and len(sample.rows) < BATCH_ROWS and not job.position and job.head is None:
        return _Prepared(detection, converter, half_rule_checked=False)
    count = _count_sample(sample, converter)
    low, high = (share * count.rows for share in UNCERTAIN_SHARES)
    if not count.whole and low <= count.rejected <= high:
        count = await _count_all(file, detection, job.now)
    if (reason := count.file_reason) is not None:
        raise FileRejected(reason)
    # Nobody needs these rows any more, and they take as much memory as reading the file.
    sample.rows.clear()
    if converter.quoted_in != {"USD"}:
        # The rows of the sample may name currencies that the file has only later.
        converter = Converter(detection, job.now)
    return _Prepared(detection, converter, half_rule_checked=True)


def _count_sample(sample: Sample, converter: Converter) -> RejectCount:
    reasons: Counter[str] = Counter()
    for start in range(0, len(sample.rows), TOGETHER):
        reasons.update(_reasons(converter, sample.rows[start : start + TOGETHER]))
    return RejectCount(
        rows=len(sample.rows), rejected=reasons.total(), reasons=dict(reasons), whole=sample.whole
    )


async def _count_all(file: ArchiveFile, detection: Detection, now: datetime) -> RejectCount:
    converter = Converter(detection, now)
    reasons: Counter[str] = Counter()
    pending: list[list[str]] = []
    # Becomes 0 at the header.
    rows = -(detection.header_row + 1)
    try:
        with open_content(file) as (content, raw):
            text = ArchiveText(content, raw, detection.encoding, detection.delimiter)
            async for row in filled_rows(text, detection.delimiter):
                rows += 1
                if rows > 0:
                    pending.append(row)
                if len(pending) == TOGETHER:
                    reasons.update(_reasons(converter, pending))
                    pending.clear()
    except (Damaged, csv.Error):
        # The load will find and report the same. The rows before the damage decide.
        pass
    reasons.update(_reasons(converter, pending))
    return RejectCount(rows=max(rows, 0), rejected=reasons.total(), reasons=dict(reasons), whole=True)


def _reasons(converter: Converter, rows: Sequence[list[str]]) -> Iterator[str]:
    # The reasons of the rows that would be rejected, or are damaged: a file with many of them is not loaded.
    if rows and converter.convert_all(rows) is None:
        for row in rows:
            try:
                converter.convert(row.copy())
                if converter.damaged:
                    yield _damage(converter)
            except RejectedValue as rejected:
                yield _field_and_reason(rejected.field, rejected.reason)


def general_reason(reason: str) -> str:
    """A reason without the cell that it quotes, to count equal reasons together."""
    return reason.partition(": ")[0]


def _damage(converter: Converter) -> str:
    (error, *_) = converter.invalid
    return _field_and_reason(error.field, error.reason)


def _field_and_reason(field: str | None, reason: str) -> str:
    return f"{field}: {general_reason(reason)}" if field else general_reason(reason)


async def _read(file: ArchiveFile, job: Job, prepared: _Prepared) -> AsyncIterator[Portion | Problem]:
    detection, converter = prepared.detection, prepared.converter
    builder = BatchBuilder(detection.lacks)
    # The database compares the prices of later batches with those of the first.
    rivals = RivalPrices() if not job.position and job.head is None else None
    coin = None if detection.coin is None else detection.coin.source_id
    # Rows that are not converted yet, and the lines on which they begin.
    pending: list[list[str]] = []
    pending_lines: list[int] = []
    # The number of rows below the header, with blank ones, so that a run that resumes counts in the same way.
    position = 0
    # Filled rows up to the header and with it; lines that were skipped; rows since the last batch.
    header_rows, skipped_lines, count = detection.header_row + 1, 0, 0
    # The text that had been read when rows were last converted, and when the last batch was made.
    converted = batched = 0
    row: list[str] = []
    damaged: Counter[str] = Counter()

    def add(keys: Sequence[str], contents: Sequence[str]) -> None:
        builder.add_lines(keys, contents)
        if rivals is not None:
            rivals.add(keys, contents)

    def convert() -> None:
        if not pending:
            return
        if (converted := converter.convert_all(pending)) is not None:
            add(*converted)
        else:
            convert_singly()
        pending.clear()
        pending_lines.clear()

    def convert_singly() -> None:
        for first_line, cells in zip(pending_lines, pending, strict=True):
            try:
                key, content = converter.convert(cells)
                add([key], [content])
                builder.add_invalid(_invalid_values(converter, job.name, first_line))
                if converter.damaged:
                    damaged[_damage(converter)] += 1
            except (RejectedValue, UnicodeEncodeError) as error:
                builder.reject(_reject(error, cells[: detection.width], detection, job.name, first_line))

    def convert_plain(lines: str) -> int:
        # Converts lines without quotes by column, and returns how many. 0 if a row needs more attention.
        columns = columns_of(lines, detection.delimiter, detection.width)
        plain = None if columns is None else converter.convert_columns(columns)
        if plain is None:
            return 0
        convert()
        add(*plain)
        return len(plain[0])

    def add_row(cells: list[str], first_line: int) -> None:
        # Adds a row, unless it is blank, belongs to the header or is already loaded.
        nonlocal row, header_rows, position, count, converted
        row = cells
        if header_rows:
            header_rows -= is_filled(row)
            return
        position += 1
        if position <= job.position or not is_filled(row):
            return
        pending.append(row)
        pending_lines.append(first_line)
        if len(pending) == TOGETHER or text.characters - converted > TOGETHER_CHARACTERS:
            convert()
            converted = text.characters
        count += 1

    def take_batch(complete: bool) -> Portion:
        nonlocal rivals
        convert()
        if rivals is not None and (conflict := rivals.conflict) is not None:
            raise FileRejected(conflict)
        rivals = None
        checkpoint = Checkpoint(
            key=job.key,
            name=job.name,
            position=max(position, job.position),
            complete=complete,
            bytes=file.size if complete and can_be_continued() else None,
            interpretation=detection.interpretation,
            content=Key.parse(job.key).content,
            coin=coin,
            quoted_in=tuple(sorted(converter.quoted_in)),
        )
        batch, reasons = builder.take(checkpoint), damaged.copy()
        damaged.clear()
        if not prepared.half_rule_checked and (batch.rejects or reasons):
            rejected = Counter(_field_and_reason(reject.field, reject.reason) for reject in batch.rejects)
            all_reasons = rejected + reasons
            rejects = RejectCount(
                rows=batch.fetched, rejected=all_reasons.total(), reasons=dict(all_reasons), whole=True
            )
            if (reason := rejects.file_reason) is not None:
                raise FileRejected(reason)
        return Portion(batch, text.position, dict(reasons))

    def can_be_continued() -> bool:
        # Whether rows that are appended to the file later can be read alone: none if a quoted cell is open.
        ends_quoted = text.quoted or bool(row and row[-1].endswith(("\n", "\r")))
        return content is raw and detection.encoding.unit == 1 and not ends_quoted

    with open_content(file) as (content, raw):
        if (
            (head := job.head) is not None
            and content is raw
            and head.interpretation == detection.interpretation
        ):
            content.seek(head.bytes)
            position, skipped_lines, header_rows = head.position, head.line - 1, 0
        text = ArchiveText(content, raw, detection.encoding, detection.delimiter)
        line = skipped_lines + 1
        try:
            for lines in text.plain_texts():
                begun = not header_rows and position >= job.position
                if begun and (plain_rows := convert_plain(lines)):
                    position += plain_rows
                    count += plain_rows
                    line += plain_rows
                    converted = text.characters
                else:
                    for text_line in lines.split("\n")[:-1]:
                        add_row(text_line.split(detection.delimiter) if text_line else [], line)
                        line += 1
                if count >= BATCH_ROWS or text.characters - batched > BATCH_CHARACTERS:
                    yield take_batch(complete=False)
                    count, batched = 0, text.characters
            skipped_lines = line - 1
            rows = rows_of(text, detection.delimiter)
            async for cells in rows:
                add_row(cells, line)
                line = skipped_lines + rows.line_num + 1
                if count >= BATCH_ROWS or text.characters - batched > BATCH_CHARACTERS:
                    yield take_batch(complete=False)
                    count, batched = 0, text.characters
        except (Damaged, csv.Error) as damage:
            yield take_batch(complete=False)
            yield file_problem(job.name, f"read up to row {position:,} and no further: {damage}")
            return
        if file.changed:
            yield take_batch(complete=False)
            yield file_problem(job.name, "changed while it was read; the next run reads it again")
            return
        yield take_batch(complete=True)


def _invalid_values(converter: Converter, name: str, line: int) -> list[InvalidValue]:
    # What the converter made null in the row that it converted last.
    return [
        InvalidValue(
            field=error.field or "",
            reason=one_line(error.reason)[:REASON_LIMIT],
            place=f"line {line}",
            location=name,
        )
        for error in converter.invalid
    ]


def _reject(
    error: RejectedValue | UnicodeEncodeError, row: list[str], detection: Detection, name: str, line: int
) -> Reject:
    text = io.StringIO()
    csv.writer(text, delimiter=detection.delimiter, lineterminator="").writerow(row)
    # PostgreSQL's text cannot hold NUL or surrogates. Line ends stay.
    raw = text.getvalue()[:RAW_LIMIT].encode("utf-8", "replace").decode().replace("\x00", "�")
    if isinstance(error, RejectedValue):
        return Reject(
            reason=one_line(error.reason)[:REASON_LIMIT],
            field=error.field or None,
            raw=raw,
            location=name,
            line=line,
        )
    return Reject(reason="holds bytes that are not of the file's encoding", raw=raw, location=name, line=line)
