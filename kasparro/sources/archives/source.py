"""The source `csv`: files known by their content, each read once, through the worker."""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing

from kasparro.batch import Batch
from kasparro.sources.archives.discover import Archive, archives
from kasparro.sources.archives.process import Worker
from kasparro.sources.archives.reader import Job, Portion
from kasparro.sources.base import Pass

# Part of every key: a program that reads files in another way reads them again when this moves.
READING = "1"


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
        try:
            key, size, changed = await asyncio.to_thread(_known_by, archive)
        except OSError as error:
            passing.problem(f"{archive.name}: cannot be read ({error.strerror or error})")
            return None
        if key in seen:
            return None
        seen.add(key)
        earlier = await passing.checkpoint(key)
        if earlier is not None and earlier.complete:
            return None
        return Job(
            path=os.fsencode(archive.path.absolute()),
            name=archive.name,
            key=key,
            size=size,
            changed_ns=changed,
            position=earlier.position if earlier is not None else 0,
            now=passing.clock(),
        )


def _size(archive: Archive) -> int:
    try:
        return archive.path.stat().st_size
    except OSError:
        return 0


def _known_by(archive: Archive) -> tuple[str, int, int]:
    # The digest of a file's content, and its size and time of change when that was taken.
    with archive.path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        state = archive.path.stat()
    return f"{READING}:{digest}", state.st_size, state.st_mtime_ns
