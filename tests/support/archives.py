"""Reads archives in tests, in this process or with a worker, and collects rows, rejects and problems."""

import asyncio
import os
import re
import select
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from kasparro.model.batch import Batch, KnownFile
from kasparro.model.record import CONTENT_COLUMNS, KEY_COLUMNS, InvalidValue, Reject
from kasparro.sources.archives.files import ArchiveFile, open_all
from kasparro.sources.archives.found import Archive
from kasparro.sources.archives.identity import Head
from kasparro.sources.archives.overrides import FOLDER_FILE, NO_OVERRIDES, SUFFIX, Overrides, read_overrides
from kasparro.sources.archives.portions import Portion, Problem
from kasparro.sources.archives.reader import Job, read_archive
from kasparro.sources.archives.source import Archives
from kasparro.sources.archives.worker_client import Worker
from kasparro.sources.base import SourceContext

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
# A limit that only a hang reaches.
HANG_S = 120
# Null in COPY text.
NULL = r"\N"

HEADER = "id,symbol,name,price_usd,last_updated\n"


class Outcome(msgspec.Struct):
    """What reading one file gave: rows by field, rejected rows, problems of the file, the last checkpoint."""

    rows: list[dict[str, str]] = msgspec.field(default_factory=list)
    rejects: list[Reject] = msgspec.field(default_factory=list)
    invalid: list[InvalidValue] = msgspec.field(default_factory=list)
    problems: list[str] = msgspec.field(default_factory=list)
    position: int = 0
    complete: bool = False

    @property
    def problem(self) -> str:
        """The only problem of the file."""
        (problem,) = self.problems
        return problem

    def values(self, *fields: str) -> list[tuple[str, ...]]:
        """These fields of each row, times without their zone. Fails if the file had problems."""
        assert self.problems == []
        return [tuple(row[field].removesuffix("+00:00") for field in fields) for row in self.rows]


Read = Callable[..., Awaitable[Outcome]]


def table(header: str, *rows: str, end: str = "\n") -> str:
    """A file of these lines."""
    return end.join((header, *rows, ""))


def dump(path: Path, rows: int, first: int = 0) -> Path:
    """Write a ticker dump with this many coins, numbered from `first`."""
    path.write_text(
        HEADER + "".join(f"coin-{n},C{n},Coin {n},{n}.5,1515230661\n" for n in range(first, first + rows))
    )
    return path


def job_for(
    path: Path,
    *,
    position: int = 0,
    now: datetime = NOW,
    overrides: Overrides = NO_OVERRIDES,
    head: Head | None = None,
) -> Job:
    """A job to read a file, as the worker makes it."""
    return Job(name=path.name, key="a-key", position=position, now=now, overrides=overrides, head=head)


async def read(
    path: Path, *, position: int = 0, now: datetime = NOW, overrides: Overrides = NO_OVERRIDES
) -> Outcome:
    """Read a file to its end in this process."""
    with ArchiveFile.at(path) as file:
        return await collect(
            read_archive(file, job_for(path, position=position, now=now, overrides=overrides))
        )


def overrides_for(path: Path) -> Overrides:
    """The overrides for the archive at a path, from its folder."""
    files = open_all(path, None, (path.name + SUFFIX, FOLDER_FILE))
    try:
        return read_overrides(files, path.name)
    finally:
        files.close()


async def read_by(worker: Worker, file: Path | Archive) -> AsyncGenerator[Portion | Problem, None]:
    """The messages that a worker sends about a file."""
    archive = Archive(file, file.name) if isinstance(file, Path) else file
    key = await worker.identify(archive, None, NOW)
    if isinstance(key, Problem):
        yield key
        return
    worker.start_reading(None)
    async with aclosing(worker.messages(archive.name)) as messages:
        async for message in messages:
            yield message


async def collect(messages: AsyncIterable[Portion | Problem]) -> Outcome:
    """Collect the messages about one file."""
    outcome = Outcome()
    async for message in messages:
        if isinstance(message, Problem):
            outcome.problems.append(message.reject.summary)
            continue
        batch = message.batch
        keys, contents = (
            [dict(zip(columns, line.split("\t"), strict=True)) for line in text.decode().split("\n")[:-1]]
            for columns, text in ((KEY_COLUMNS, batch.lines.keys), (CONTENT_COLUMNS, batch.lines.contents))
        )
        outcome.rows += [{**key, **content} for key, content in zip(keys, contents, strict=True)]
        assert [key["position"] for key in keys] == [content["position"] for content in contents]
        outcome.rejects += batch.rejects
        outcome.invalid += batch.invalid
        assert batch.fetched == batch.rows + len(batch.rejects)
        assert batch.checkpoint is not None
        outcome.position, outcome.complete = batch.checkpoint.position, batch.checkpoint.complete
    return outcome


def rejected_files(batch: Batch) -> list[str]:
    """The files that a batch rejects, each with its reason in one line."""
    return [reject.summary for reject in batch.rejects if reject.is_file]


def ended(pid: int) -> bool:
    """Whether a process ends within ten seconds."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 10)[0])
    finally:
        os.close(handle)


def with_children(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def proc_status(pid: int, field: str) -> list[str]:
    """The words of a field in /proc/PID/status."""
    (line,) = re.findall(rf"^{field}:[ \t]*(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return str(line).split()


class Checkpoints:
    """The files that a database would know between runs."""

    def __init__(self) -> None:
        self.files: dict[int, KnownFile] = {}

    async def file_named(self, name: str) -> KnownFile | None:
        return next((file for file in reversed(self.files.values()) if file.name == name), None)

    async def known_files(self, name: str, content: str) -> list[KnownFile]:
        return [file for file in self.files.values() if file.name == name or file.content == content]

    def commit(self, batch: Batch) -> None:
        """Keep what the checkpoint of a batch says about its file."""
        checkpoint = batch.checkpoint
        if checkpoint is None:
            assert batch.rows == 0
            return
        same = (number for number, file in self.files.items() if file.key == checkpoint.key)
        number = next(same, checkpoint.continues or max(self.files, default=0) + 1)
        given = {
            field: getattr(checkpoint, field)
            for field in KnownFile.__struct_fields__
            if hasattr(checkpoint, field)
        }
        self.files[number] = KnownFile(id=number, **given)
        if checkpoint.complete:
            for replaced in checkpoint.replaces:
                self.files.pop(replaced, None)

    def context(self) -> SourceContext:
        """The context of a run that knows these files."""
        return SourceContext(clock=lambda: NOW, file_named=self.file_named, known_files=self.known_files)


async def run_source(
    path: Path | str | None, checkpoints: Checkpoints | None = None, context: SourceContext | None = None
) -> tuple[int, list[str]]:
    """Run the source csv once. Returns the rows of its batches, and the rejected files with their reasons."""
    checkpoints = checkpoints or Checkpoints()
    context = context or checkpoints.context()
    rows, rejected = 0, list[str]()
    async with asyncio.timeout(HANG_S):
        async for batch in Archives(None if path is None else str(path)).extract(context):
            checkpoints.commit(batch)
            rows += batch.rows
            rejected += rejected_files(batch)
    assert context.summary.problems == []
    return rows, sorted(rejected)
