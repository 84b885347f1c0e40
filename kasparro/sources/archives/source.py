"""The source `csv`: files known by their content, each read once, through the worker."""

import os
import sys
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from itertools import chain
from typing import Annotated, NamedTuple

from kasparro.errors import SourceError
from kasparro.model.batch import Batch, BatchBuilder
from kasparro.model.record import Reject
from kasparro.settings import SourceSettings, Variable, parse_text
from kasparro.sources.archives.discover import Archive
from kasparro.sources.archives.reader import Portion, Problem, refusal
from kasparro.sources.archives.worker_client import Worker, WorkerEnded, WorkerSilent
from kasparro.sources.base import SourceContext, SourceDefinition

# Refused files in one batch: a transaction for each would take a minute for 10,000 of them.
REFUSED_AT_ONCE = 500
# PostgreSQL takes a batch in about half the time that a worker takes to make it of small files, so two keep
# it busy; one core is left to it. 250 files of 2,400 rows, on 2 cores: 23.4 and 27.7 s with one, 19.7 and
# 23.6 s with two; 4 files of 200,000 rows: no difference beyond the spread.
MOST_WORKERS = 2
# After this many files that held a worker for minutes, the file system is at fault, and no file.
MOST_SILENT = 3


class ArchiveSettings(SourceSettings, frozen=True, kw_only=True):
    """The settings of the source `csv`."""

    archives: Annotated[
        str | None,
        Variable(
            "KASPARRO_ARCHIVES",
            "a file, folder or glob of CSV (plain, .gz, .zst)",
            "the sample archive in the package",
            parse_text,
        ),
    ] = None


class Archives:
    """Every archive that `where` names, in the order of their paths."""

    name = "csv"

    def __init__(self, where: str | None, workers: int | None = None) -> None:
        self._where = where
        self._workers = workers or min(MOST_WORKERS, max(1, _cores() - 1))

    async def extract(self, context: SourceContext) -> AsyncGenerator[Batch, None]:
        """The batches of all files that no earlier pass has loaded to their end, file after file."""
        # By the key of the content, until it is known that no other name of the same content settles it.
        refused: dict[str | None, list[Reject]] = {}
        stalled = None
        async with AsyncExitStack() as stack:

            async def start_worker() -> Worker:
                return await stack.enter_async_context(Worker())

            first = await start_worker()
            found = await first.find(self._where)
            refused[None] = [refusal(folder.name, folder.reason).reject for folder in found.unsearched]
            waiting = _Waiting(found.archives)
            total, done, silent = waiting.bytes, 0, 0
            context.progress(done, total)
            begun = self._begun(waiting, context, first, start_worker)
            async for reading in await stack.enter_async_context(aclosing(begun)):
                problem = None
                try:
                    async for message in reading.messages:
                        if isinstance(message, Portion):
                            context.progress(done + min(message.position, reading.size), total)
                            yield message.batch
                        else:
                            problem = message
                except WorkerEnded as error:
                    # Whatever ended the process that read this file, the others are read all the same.
                    problem = refusal(reading.name, str(error).removeprefix(f"{reading.name}: "))
                    silent += isinstance(error, WorkerSilent)
                if problem is not None:
                    refused.setdefault(reading.key, []).append(problem.reject)
                    waiting.refused(reading.key)
                elif reading.key is not None:
                    refused.pop(reading.key, None)
                done += reading.size
                context.progress(done, total)
                if silent == MOST_SILENT:
                    stalled = (
                        f"archives {self._where}: {silent} files did not answer; check their file system"
                    )
                    break
        for batch in _rejected([*chain.from_iterable(refused.values())]):
            yield batch
        if stalled is not None:
            raise SourceError(f"archives {self._where}: {stalled}")

    async def _begun(
        self,
        waiting: "_Waiting",
        context: SourceContext,
        first: Worker,
        start_worker: Callable[[], Awaitable[Worker]],
    ) -> AsyncGenerator["_Reading", None]:
        # What is read of each file, in their order. While one is given, the next are begun by the other
        # workers, which read ahead as far as their pipes hold and wait.
        free, workers, begun = [first], 1, deque[_Reading]()

        async def replaced(worker: Worker) -> Worker:
            if worker.alive:
                return worker
            await worker.end()
            return await start_worker()

        while True:
            while waiting and (free or workers < self._workers):
                if free:
                    worker = free.pop()
                else:
                    worker, workers = await start_worker(), workers + 1
                reading = await self._begin(*waiting.next(), worker, context, waiting)
                if reading.worker is None:
                    free.append(await replaced(worker))
                begun.append(reading)
            if not begun:
                return
            reading = begun.popleft()
            async with aclosing(reading.messages):
                yield reading
            if reading.worker is not None:
                free.append(await replaced(reading.worker))

    async def _begin(
        self, archive: Archive, size: int, worker: Worker, context: SourceContext, waiting: "_Waiting"
    ) -> "_Reading":
        # What is read of a file: nothing if it cannot be read, or was loaded to its end.
        earlier = await context.checkpoint_named(archive.name)
        try:
            key = await worker.identify(archive, earlier, context.clock())
        except WorkerEnded as error:
            return _Reading(archive.name, size, None, _messages(error))
        if isinstance(key, Problem):
            return _Reading(archive.name, size, None, _messages(key))
        if waiting.first(key, archive):
            same = await context.checkpoint(key)
            if same is not None and (same.complete or same.position):
                context.summary.loaded_before = True
            if same is None or not same.complete:
                worker.begin(same.position if same is not None else None)
                return _Reading(archive.name, size, key, worker.messages(archive.name), worker)
        worker.skip()
        return _Reading(archive.name, size, None, _messages(None))


def _rejected(rejects: Sequence[Reject]) -> Iterator[Batch]:
    # Refused files as batches that hold nothing else.
    for start in range(0, len(rejects), REFUSED_AT_ONCE):
        builder = BatchBuilder()
        for reject in rejects[start : start + REFUSED_AT_ONCE]:
            builder.reject(reject)
        yield builder.take()


class _Reading(NamedTuple):
    # What is read of one file, and the worker that is busy with it until then. The key is that of its
    # content, None where nothing of it is read.
    name: str
    size: int
    key: str | None
    messages: AsyncGenerator[Portion | Problem, None]
    worker: Worker | None = None


class _Waiting:
    # The files that are still to be read, each content once. Where the first file of a content is refused,
    # its copies are read one after the other: a name says something of what a file holds.
    def __init__(self, files: Sequence[Archive]) -> None:
        self._files = deque((file, file.size) for file in files)
        self._copies: dict[str, deque[Archive]] = {}
        self._tried: dict[str, deque[Archive]] = {}
        self.bytes = sum(file.size for file in files)

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


async def _messages(only: Problem | WorkerEnded | None) -> AsyncGenerator[Portion | Problem, None]:
    # Of a file that no worker reads.
    if isinstance(only, WorkerEnded):
        raise only
    if only is not None:
        yield only


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


SOURCE = SourceDefinition(
    name=Archives.name,
    settings=ArchiveSettings,
    build=lambda settings: Archives(settings.archives),
    is_api=False,
)
