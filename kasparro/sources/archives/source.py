"""The source `csv`: files known by their content, each read once, through the worker."""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import IO

import msgspec

from kasparro.batch import Batch, Checkpoint
from kasparro.sources.archives.described import Description, DescriptionRefused, describe
from kasparro.sources.archives.discover import Archive, archives
from kasparro.sources.archives.process import Worker
from kasparro.sources.archives.reader import Head, Job, Portion
from kasparro.sources.base import Pass

# Part of every key: a program that reads files in another way reads them again when this moves.
READING = "2"
READ_BYTES = 1024 * 1024


class Archives:
    """Every archive that `where` names, in the order of their paths."""

    name = "csv"

    def __init__(self, where: str | None) -> None:
        self._where = where

    async def extract(self, passing: Pass) -> AsyncGenerator[Batch, None]:
        """The batches of all files that no earlier pass has loaded to their end."""
        found = await asyncio.to_thread(archives, self._where)
        sizes = [await asyncio.to_thread(_size, archive) for archive in found]
        total, done = sum(sizes), 0
        seen: set[str] = set()
        async with Worker() as worker:
            for archive, size in zip(found, sizes, strict=True):
                passing.progress(done, total)
                job = await self._job(archive, passing, seen)
                if job is not None:
                    async with aclosing(worker.read(job)) as told:
                        async for message in told:
                            if isinstance(message, Portion):
                                passing.progress(done + min(message.position, size), total)
                                yield message.batch
                            else:
                                passing.problem(message.text)
                done += size
        passing.progress(total, total)

    async def _job(self, archive: Archive, passing: Pass, seen: set[str]) -> Job | None:
        # What there is to read of a file; None where that is nothing.
        earlier = await passing.known_as(archive.name)
        try:
            said = await asyncio.to_thread(describe, archive.path)
            known = await asyncio.to_thread(_known_by, archive, said, earlier)
        except DescriptionRefused as refused:
            passing.problem(f"{archive.name}: not loaded, for {refused}")
            return None
        except OSError as error:
            passing.problem(f"{archive.name}: cannot be read ({error.strerror or error})")
            return None
        if known.key in seen:
            return None
        seen.add(known.key)
        same = await passing.checkpoint(known.key)
        if same is not None and same.complete:
            return None
        return Job(
            path=os.fsencode(archive.path.absolute()),
            name=archive.name,
            key=known.key,
            size=known.size,
            changed_ns=known.changed_ns,
            position=same.position if same is not None else 0,
            now=passing.clock(),
            said=said,
            head=known.head if same is None else None,
        )


def _size(archive: Archive) -> int:
    try:
        return archive.path.stat().st_size
    except OSError:
        return 0


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    # What a file's content says of it: its key, its size and time of change when that was taken, and how much
    # of it was loaded before it grew.
    key: str
    size: int
    changed_ns: int
    head: Head | None


def _known_by(archive: Archive, said: Description, earlier: Checkpoint | None) -> _Known:
    # Reads the file once, and takes the digest of its beginning on the way where that was all of it earlier.
    suffix = f":{said.digest}" if said.digest else ""
    digest = hashlib.sha256()
    head = None
    with archive.path.open("rb") as content:
        if earlier is not None and earlier.complete and earlier.bytes is not None:
            lines, last = _digested(content, digest, earlier.bytes)
            if f"{READING}:{digest.hexdigest()}{suffix}" == earlier.key:
                head = _head(earlier, earlier.bytes, lines, last, content)
        _digested(content, digest, None)
        state = os.fstat(content.fileno())
    key = f"{READING}:{digest.hexdigest()}{suffix}"
    return _Known(key=key, size=state.st_size, changed_ns=state.st_mtime_ns, head=head)


def _digested(content: IO[bytes], digest: "hashlib._Hash", size: int | None) -> tuple[int, bytes]:
    # So many bytes, or all that is left. Gives the line ends in them, if it was so many, and the last byte.
    lines, last = 0, b""
    left = size
    while chunk := content.read(READ_BYTES if left is None else min(left, READ_BYTES)):
        digest.update(chunk)
        if left is not None:
            left -= len(chunk)
            lines += chunk.count(b"\n")
            last = chunk[-1:]
    return lines, last


def _head(earlier: Checkpoint, size: int, lines: int, last: bytes, content: IO[bytes]) -> Head | None:
    # Where the rows that were appended begin; None where the last line of the earlier content goes on.
    if earlier.reading is None:
        return None
    following = content.read(2)
    content.seek(size)
    if last != b"\n":
        ending = b"\r\n" if following == b"\r\n" else b"\n"
        if not following.startswith(ending):
            return None
        size, lines = size + len(ending), lines + 1
    return Head(position=earlier.position, bytes=size, line=lines + 1, reading=earlier.reading)
