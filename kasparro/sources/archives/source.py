"""The source `csv`: files known by their content, each read once, through the worker."""

import asyncio
import hashlib
import os
import sys
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from itertools import chain
from typing import IO, NamedTuple

import msgspec

from kasparro.batch import Batch, BatchBuilder, Checkpoint
from kasparro.errors import SourceError
from kasparro.record import Reject
from kasparro.sources.archives.described import Description, DescriptionRefused, describe
from kasparro.sources.archives.discover import Archive, archives
from kasparro.sources.archives.process import Worker
from kasparro.sources.archives.reader import Head, Job, Portion, Problem, refusal
from kasparro.sources.base import Pass

# Part of every key: a program that reads files in another way reads them again when this moves.
READING = "4"
READ_BYTES = 1024 * 1024
# Refused files in one batch: a transaction for each would take a minute for 10,000 of them.
REFUSED_AT_ONCE = 500
# PostgreSQL takes a batch in about half the time that a worker takes to make it of small files, so two keep
# it busy; one core is left to it. 250 files of 2,400 rows, on 2 cores: 23.4 and 27.7 s with one, 19.7 and
# 23.6 s with two; 4 files of 200,000 rows: no difference beyond the spread.
MOST_WORKERS = 2


class Archives:
    """Every archive that `where` names, in the order of their paths."""

    name = "csv"

    def __init__(self, where: str | None, workers: int | None = None) -> None:
        self._where = where
        self._workers = workers or min(MOST_WORKERS, max(1, _cores() - 1))

    async def extract(self, passing: Pass) -> AsyncGenerator[Batch, None]:
        """The batches of all files that no earlier pass has loaded to their end, file after file."""
        found = await asyncio.to_thread(archives, self._where)
        waiting = _Waiting([(archive, await asyncio.to_thread(_size, archive)) for archive in found])
        total, done = waiting.bytes, 0
        # By the key of the content, until it is known that no other name of the same content settles it.
        refused: dict[str | None, list[Reject]] = {}
        passing.progress(done, total)
        async with AsyncExitStack() as stack:

            async def hire() -> Worker:
                return await stack.enter_async_context(Worker())

            readings = await stack.enter_async_context(aclosing(self._begun(waiting, passing, hire)))
            async for reading in readings:
                problem = None
                try:
                    async for message in reading.messages:
                        if isinstance(message, Portion):
                            passing.progress(done + min(message.position, reading.size), total)
                            yield message.batch
                        else:
                            problem = message
                except SourceError as error:
                    # Whatever ended the process that read this file, the others are read all the same.
                    problem = refusal(reading.name, str(error).removeprefix(f"{reading.name}: "))
                if problem is not None:
                    refused.setdefault(reading.key, []).append(problem.reject)
                    waiting.refused(reading.key)
                elif reading.key is not None:
                    refused.pop(reading.key, None)
                done += reading.size
                passing.progress(done, total)
        for batch in _rejected([*chain.from_iterable(refused.values())]):
            yield batch

    async def _begun(
        self, waiting: "_Waiting", passing: Pass, hire: Callable[[], Awaitable[Worker]]
    ) -> AsyncGenerator["_Reading", None]:
        # What is read of each file, in their order. While one is given, the next are begun by the other
        # workers, which read ahead as far as their pipes hold and wait.
        free = deque([await hire() for _ in range(min(self._workers, len(waiting)))])
        begun = deque[tuple[Archive, int, tuple[Job, Worker] | Problem | None]]()
        while True:
            while free and waiting:
                archive, size = waiting.next()
                work = await self._job(archive, passing, waiting)
                if isinstance(work, Job):
                    worker = free.popleft()
                    worker.begin(work)
                    begun.append((archive, size, (work, worker)))
                else:
                    begun.append((archive, size, work))
            if not begun:
                return
            archive, size, reading = begun.popleft()
            if not isinstance(reading, tuple):
                yield _Reading(archive.name, size, None, _messages(reading))
                continue
            job, worker = reading
            async with aclosing(worker.told(job)) as messages:
                yield _Reading(archive.name, size, job.key, messages)
            free.append(worker if worker.alive else await hire())

    async def _job(self, archive: Archive, passing: Pass, waiting: "_Waiting") -> Job | Problem | None:
        # What there is to read of a file; None where that is nothing.
        earlier = await passing.known_as(archive.name)
        try:
            said = await asyncio.to_thread(describe, archive.path)
            given_up = threading.Event()
            try:
                known = await asyncio.to_thread(_known_by, archive, said, earlier, given_up)
            finally:
                # A thread cannot be cancelled, and the program would wait for it at its end.
                given_up.set()
        except DescriptionRefused as refused:
            return refusal(archive.name, f"not loaded, for {refused}")
        except OSError as error:
            return refusal(archive.name, f"cannot be read ({error.strerror or error})")
        if not waiting.first(known.key, archive):
            return None
        same = await passing.checkpoint(known.key)
        if same is not None and (same.complete or same.position):
            passing.loaded = True
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


def _rejected(rejects: Sequence[Reject]) -> Iterator[Batch]:
    # Refused files as batches that hold nothing else.
    for start in range(0, len(rejects), REFUSED_AT_ONCE):
        builder = BatchBuilder()
        for reject in rejects[start : start + REFUSED_AT_ONCE]:
            builder.refuse(reject)
        yield builder.take()


class _Reading(NamedTuple):
    # What is read of one file. The key is that of its content, None where nothing of it is read by a worker.
    name: str
    size: int
    key: str | None
    messages: AsyncIterable[Portion | Problem]


class _Waiting:
    # The files that are still to be read, each content once. Where the first file of a content is refused,
    # its copies are read one after the other: a name says something of what a file holds.
    def __init__(self, files: Sequence[tuple[Archive, int]]) -> None:
        self._files = deque(files)
        self._copies: dict[str, deque[Archive]] = {}
        self._tried: dict[str, deque[Archive]] = {}
        self.bytes = sum(size for _, size in files)

    def __len__(self) -> int:
        return len(self._files)

    def next(self) -> tuple[Archive, int]:
        """The next file, and its size as far as it counts."""
        return self._files.popleft()

    def first(self, key: str, archive: Archive) -> bool:
        """Whether this file stands for its content; else it is kept as a copy."""
        if key in self._copies:
            self._copies[key].append(archive)
            return False
        self._copies[key] = self._tried.pop(key, deque())
        return True

    def refused(self, key: str | None) -> None:
        """The file that stood for its content was refused: the next copy is read."""
        copies = self._copies.pop(key, None) if key is not None else None
        if key is not None and copies:
            # Its size was counted when it was passed over.
            self._files.appendleft((copies.popleft(), 0))
            self._tried[key] = copies


async def _messages(only: Problem | None) -> AsyncGenerator[Portion | Problem, None]:
    # Of a file that no worker reads.
    if only is not None:
        yield only


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


def _known_by(
    archive: Archive, said: Description, earlier: Checkpoint | None, given_up: threading.Event
) -> _Known:
    # Reads the file once, and takes the digest of its beginning on the way where that was all of it earlier.
    suffix = f":{said.digest}" if said.digest else ""
    digest = hashlib.sha256()
    head = None
    with archive.path.open("rb") as content:
        if earlier is not None and earlier.complete and earlier.bytes is not None:
            lines, last = _digested(content, digest, earlier.bytes, given_up)
            if f"{READING}:{digest.hexdigest()}{suffix}" == earlier.key:
                head = _head(earlier, earlier.bytes, lines, last, content)
        _digested(content, digest, None, given_up)
        state = os.fstat(content.fileno())
    key = f"{READING}:{digest.hexdigest()}{suffix}"
    return _Known(key=key, size=state.st_size, changed_ns=state.st_mtime_ns, head=head)


def _digested(
    content: IO[bytes], digest: "hashlib._Hash", size: int | None, given_up: threading.Event
) -> tuple[int, bytes]:
    # So many bytes, or all that is left. Gives the line ends in them, if it was so many, and the last byte.
    lines, last = 0, b""
    left = size
    while not given_up.is_set() and (
        chunk := content.read(READ_BYTES if left is None else min(left, READ_BYTES))
    ):
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
