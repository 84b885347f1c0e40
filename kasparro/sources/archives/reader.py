"""One archive from its bytes to batches, with a checkpoint in each; what the worker does for every file."""

import csv
import io
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime

import msgspec

from kasparro.model.batch import BATCH_ROWS, Batch, BatchBuilder, Checkpoint
from kasparro.model.record import Reject, RejectedValue
from kasparro.sources.archives.convert import Converter
from kasparro.sources.archives.files import ArchiveFile
from kasparro.sources.archives.overrides import NO_OVERRIDES, Overrides
from kasparro.sources.archives.recognise import FileRejected, Recognised, Sample, recognise, sampled
from kasparro.sources.archives.text import ArchiveText, Damaged, holds, opened, rows_of, shown, told_rows

# A row's raw text is kept to show what was wrong with it; no more than that.
RAW_LIMIT = 2_000
# Between these shares of refused rows among those looked at, all of a big file's rows are, to be exact: half
# of a file in one piece makes up a quarter of what is looked at, so the border is far from both ends.
DOUBTFUL = (0.05, 0.95)

# Rows that are converted at once: few enough that they stay in the processor's cache. A 14-column file of
# 200,000 rows, one by one: 108,000 rows/s; 250 at once: 144,000, 500: 137,000, 2,000: 111,000.
TOGETHER = 250
# Rows of more text than this are converted, and make a batch, before they are as many as others. The first is
# far above 250 usual rows, the second above 20,000 of them.
TOGETHER_CHARACTERS = 1024 * 1024
BATCH_CHARACTERS = 16 * 1024 * 1024
# A reason quotes names and cells, and those may be of any length.
REASON_LIMIT = 1_000


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a grown file that was loaded before: its rows, where what follows begins (in bytes and as
    a line), and how it was read.
    """

    position: int
    bytes: int
    line: int
    interpretation: str


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """How to read one file.

    `name` is for people, `key` is its content's digest; the first `position` rows are loaded already, or
    `head` is. `said` is what its description says, `now` the pass's clock; not `judged`, a file of which over
    half is refused is read all the same.
    """

    name: str
    key: str
    position: int
    now: datetime
    said: Overrides = NO_OVERRIDES
    head: Head | None = None
    judged: bool = True


class Portion(msgspec.Struct, frozen=True, tag=True):
    """A batch, and how far in the file on disk it brings us."""

    batch: Batch
    position: int


class Problem(msgspec.Struct, frozen=True, tag=True):
    """The file, or the rest of it, is refused."""

    reject: Reject


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows that were looked at would come to: how many, how many refused, and why."""

    rows: int
    refused: int
    reasons: dict[str, int]
    whole: bool

    @property
    def verdict(self) -> str | None:
        """Why the file is not loaded at all; None where at most half of its rows would be refused."""
        if self.refused * 2 <= self.rows:
            return None
        most = max(self.reasons.items(), key=lambda item: item[1])[0]
        looked_at = "" if self.whole else " looked at"
        return (
            f"not loaded, for {self.refused:,} of {self.rows:,} rows{looked_at} would be refused, "
            f"most often: {most}"
        )


async def read_archive(file: ArchiveFile, job: Job) -> AsyncIterator[Portion | Problem]:
    """The batches of one file; a Problem is the last thing told of a file that is not read to its end."""
    try:
        recognised, judged = await _admitted(file, job)
        async for portion in _portions(file, job, recognised, judged):
            yield portion
    except FileRejected as refused:
        yield refusal(job.name, str(refused), refused.setting)
    except Damaged as damage:
        yield refusal(job.name, f"not loaded, for {damage}")
    except csv.Error as error:
        yield refusal(job.name, f"not loaded, for it is no table ({error})")
    except OSError as error:
        yield refusal(job.name, f"cannot be read ({error.strerror or error})")


def refusal(name: str, reason: str, setting: str | None = None) -> Problem:
    """The file of this name is refused; the reason completes "NAME: "."""
    return Problem(Reject(reason=shown(reason)[:REASON_LIMIT], location=name, setting=setting))


async def _admitted(file: ArchiveFile, job: Job) -> tuple[Recognised, bool]:
    # What the file is, unless over half of its rows would be refused: then it is not loaded at all. One that
    # makes a single batch is judged by that.
    sample = await sampled(file, job.said)
    recognised = recognise(sample, job.name, job.now, job.said)
    if not job.judged:
        return recognised, True
    if sample.whole and len(sample.rows) < BATCH_ROWS and not job.position and job.head is None:
        return recognised, False
    tally = _tallied(sample, recognised, job.now)
    low, high = (share * tally.rows for share in DOUBTFUL)
    if not tally.whole and low <= tally.refused <= high:
        tally = await _tallied_whole(file, recognised, job.now)
    if (verdict := tally.verdict) is not None:
        raise FileRejected(verdict)
    return recognised, True


def _tallied(sample: Sample, recognised: Recognised, now: datetime) -> Tally:
    # What becomes of the rows that were looked at.
    converter = Converter(recognised, now)
    reasons: Counter[str] = Counter()
    for start in range(0, len(sample.rows), TOGETHER):
        reasons.update(_refusals(converter, sample.rows[start : start + TOGETHER]))
    return Tally(rows=len(sample.rows), refused=reasons.total(), reasons=dict(reasons), whole=sample.whole)


async def _tallied_whole(file: ArchiveFile, recognised: Recognised, now: datetime) -> Tally:
    converter = Converter(recognised, now)
    reasons: Counter[str] = Counter()
    held: list[list[str]] = []
    # Those until the header count from below nought.
    rows = -(recognised.header_row + 1)
    try:
        with opened(file) as (content, raw):
            text = ArchiveText(content, raw, recognised.encoding, recognised.delimiter)
            async for row in told_rows(text, recognised.delimiter):
                rows += 1
                if rows > 0:
                    held.append(row)
                if len(held) == TOGETHER:
                    reasons.update(_refusals(converter, held))
                    held.clear()
    except (Damaged, csv.Error):
        # The load will find the same and tell it; what was counted until here decides.
        pass
    reasons.update(_refusals(converter, held))
    return Tally(rows=max(rows, 0), refused=reasons.total(), reasons=dict(reasons), whole=True)


def _refusals(converter: Converter, rows: Sequence[list[str]]) -> Iterator[str]:
    # Why rows would be refused, those that would be.
    if rows and converter.convert_all(rows) is None:
        for row in rows:
            try:
                converter.convert(row.copy())
            except RejectedValue as refused:
                yield _counted_as(refused.field, refused.reason)


def generic(reason: str) -> str:
    """A reason without the cell that gave it, so that the same ones count together."""
    return reason.partition(": ")[0]


def _counted_as(field: str | None, reason: str) -> str:
    return f"{field}: {generic(reason)}" if field else generic(reason)


async def _portions(
    file: ArchiveFile, job: Job, recognised: Recognised, judged: bool
) -> AsyncIterator[Portion | Problem]:
    converter = Converter(recognised, job.now)
    builder = BatchBuilder(recognised.lacks)
    # Rows on their way to the builder, and the lines they begin on.
    held: list[list[str]] = []
    begun: list[int] = []
    # Counts every row after the header, blank ones too: a resumed pass counts the same way.
    position = 0
    # Rows until the header is behind, with it; lines above where reading began; rows since the last batch.
    heading, above, count = recognised.header_row + 1, 0, 0
    # The text that was read when rows were last converted, and when a batch was last made.
    converted = batched = 0
    row: list[str] = []

    def settle() -> None:
        if not held:
            return
        told = converter.convert_all(held)
        if told is not None:
            builder.add_lines(*told)
        else:
            for began, each in zip(begun, held, strict=True):
                try:
                    key, content = converter.convert(each)
                    builder.add_lines([key], [content])
                except (RejectedValue, UnicodeEncodeError) as error:
                    builder.reject(_reject(error, each[: recognised.width], recognised, job.name, began))
        held.clear()
        begun.clear()

    def taken(complete: bool) -> Portion:
        settle()
        done = Checkpoint(
            key=job.key,
            name=job.name,
            position=max(position, job.position),
            complete=complete,
            bytes=file.size if complete and continuable() else None,
            interpretation=recognised.interpretation,
        )
        batch = builder.take(done)
        if not judged and batch.rejects:
            reasons = Counter(_counted_as(reject.field, reject.reason) for reject in batch.rejects)
            tally = Tally(rows=batch.fetched, refused=len(batch.rejects), reasons=dict(reasons), whole=True)
            if (verdict := tally.verdict) is not None:
                raise FileRejected(verdict)
        return Portion(batch, text.position)

    def continuable() -> bool:
        # Whether what is appended to the file later begins a row of its own, or none is open at least.
        ends_quoted = text.quoted or bool(row and row[-1].endswith(("\n", "\r")))
        return content is raw and recognised.encoding.unit == 1 and not ends_quoted

    with opened(file) as (content, raw):
        if (
            (head := job.head) is not None
            and content is raw
            and head.interpretation == recognised.interpretation
        ):
            content.seek(head.bytes)
            position, above, heading = head.position, head.line - 1, 0
        text = ArchiveText(content, raw, recognised.encoding, recognised.delimiter)
        rows = rows_of(text, recognised.delimiter)
        line = above + 1
        try:
            async for row in rows:
                began, line = line, above + rows.line_num + 1
                if heading:
                    heading -= holds(row)
                    continue
                position += 1
                if position <= job.position or not holds(row):
                    continue
                held.append(row)
                begun.append(began)
                if len(held) == TOGETHER or text.characters - converted > TOGETHER_CHARACTERS:
                    settle()
                    converted = text.characters
                count += 1
                if count == BATCH_ROWS or text.characters - batched > BATCH_CHARACTERS:
                    yield taken(complete=False)
                    count, batched = 0, text.characters
        except (Damaged, csv.Error) as damage:
            yield taken(complete=False)
            yield refusal(job.name, f"read up to row {position:,} and no further: {damage}")
            return
        if file.changed:
            yield taken(complete=False)
            yield refusal(job.name, "changed while it was read; the next run reads it again")
            return
        yield taken(complete=True)


def _reject(
    error: RejectedValue | UnicodeEncodeError, row: list[str], recognised: Recognised, name: str, line: int
) -> Reject:
    text = io.StringIO()
    csv.writer(text, delimiter=recognised.delimiter, lineterminator="").writerow(row)
    # PostgreSQL's text holds neither a NUL nor half of a character; lines may stay what they are here.
    raw = text.getvalue()[:RAW_LIMIT].encode("utf-8", "replace").decode().replace("\x00", "�")
    if isinstance(error, RejectedValue):
        return Reject(
            reason=shown(error.reason)[:REASON_LIMIT],
            field=error.field or None,
            raw=raw,
            location=name,
            line=line,
        )
    return Reject(reason="holds bytes that are not of the file's encoding", raw=raw, location=name, line=line)
