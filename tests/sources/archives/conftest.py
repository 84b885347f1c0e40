"""What tests of archives share: files made on the spot, and one file read without the worker."""

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from kasparro.model.record import CONTENT_COLUMNS, KEY_COLUMNS, Reject
from kasparro.sources.archives.discover import Archive
from kasparro.sources.archives.files import ArchiveFile, open_all
from kasparro.sources.archives.overrides import FOLDER_FILE, NO_OVERRIDES, SUFFIX, Overrides, describe
from kasparro.sources.archives.reader import Head, Job, Portion, Problem, read_archive
from kasparro.sources.archives.worker_client import Worker

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


class Outcome(msgspec.Struct):
    """All that reading one file gave: rows by field, rejects, problems, and the last checkpoint's words."""

    rows: list[dict[str, str]] = msgspec.field(default_factory=list)
    rejects: list[Reject] = msgspec.field(default_factory=list)
    problems: list[str] = msgspec.field(default_factory=list)
    position: int = 0
    complete: bool = False

    @property
    def problem(self) -> str:
        """The only problem there is."""
        (only,) = self.problems
        return only


Read = Callable[..., Awaitable[Outcome]]


def job_for(
    path: Path,
    *,
    position: int = 0,
    now: datetime = NOW,
    said: Overrides = NO_OVERRIDES,
    head: Head | None = None,
) -> Job:
    """How the worker would read a file."""
    return Job(
        name=path.name,
        key="a-key",
        position=position,
        now=now,
        said=said,
        head=head,
    )


async def read(path: Path, *, position: int = 0, now: datetime = NOW) -> Outcome:
    """Read a file to its end."""
    with ArchiveFile.at(path) as file:
        return await collected(read_archive(file, job_for(path, position=position, now=now)))


def described(path: Path) -> Overrides:
    """What is said of the archive at a path."""
    opened = open_all(path, None, (path.name + SUFFIX, FOLDER_FILE))
    try:
        return describe(opened, path.name)
    finally:
        opened.close()


async def read_by(worker: Worker, file: Path | Archive) -> AsyncGenerator[Portion | Problem, None]:
    """All that a worker tells of a file."""
    archive = Archive(file, file.name) if isinstance(file, Path) else file
    key = await worker.identify(archive, None, NOW)
    if isinstance(key, Problem):
        yield key
        return
    worker.begin(None)
    async with aclosing(worker.messages(archive.name)) as messages:
        async for message in messages:
            yield message


async def collected(reading: AsyncIterable[Portion | Problem]) -> Outcome:
    """All that a reading tells."""
    outcome = Outcome()
    async for told in reading:
        if isinstance(told, Portion):
            keys, contents = (
                [dict(zip(columns, line.split("\t"), strict=True)) for line in text.decode().split("\n")[:-1]]
                for columns, text in (
                    (KEY_COLUMNS, told.batch.lines.keys),
                    (CONTENT_COLUMNS, told.batch.lines.contents),
                )
            )
            outcome.rows += [{**key, **content} for key, content in zip(keys, contents, strict=True)]
            assert [key["position"] for key in keys] == [content["position"] for content in contents]
            outcome.rejects += told.batch.rejects
            assert told.batch.fetched == told.batch.rows + len(told.batch.rejects)
            assert told.batch.checkpoint is not None
            outcome.position, outcome.complete = (
                told.batch.checkpoint.position,
                told.batch.checkpoint.complete,
            )
        else:
            outcome.problems.append(told.reject.summary)
    return outcome


@pytest.fixture
def load(tmp_path: Path) -> Read:
    """Write a file and read it: `await load(content, "btc-usd.csv")`."""

    async def load(content: str | bytes, name: str = "bitcoin-usd.csv", **options: object) -> Outcome:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return await read(path, **options)  # type: ignore[arg-type]

    return load
