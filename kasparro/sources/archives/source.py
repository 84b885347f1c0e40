"""The source `csv`: loads each archive once, with the archive worker."""

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from itertools import chain
from typing import Annotated, NamedTuple

import msgspec

from kasparro.concurrency import cancel_all
from kasparro.errors import SourceError
from kasparro.model.batch import Batch, BatchBuilder, BatchMerger
from kasparro.model.record import Reject
from kasparro.settings import SourceSettings, Variable, parse_text
from kasparro.sources.archives.file_names import phrases
from kasparro.sources.archives.found import Archive
from kasparro.sources.archives.known_coins import KnownCoin, KnownCoins
from kasparro.sources.archives.placement import Placement, place
from kasparro.sources.archives.portions import Portion, Problem, file_problem
from kasparro.sources.archives.worker_client import Worker, WorkerEnded, WorkerSilent
from kasparro.sources.base import SourceContext, SourceDefinition

# Rejected files in one batch. With one transaction each, 10,000 of them would take a minute.
REJECTED_FILES_PER_BATCH = 500
# PostgreSQL loads a batch in about half the time in which a worker makes it from small files, so two workers
# keep it busy. One core is left to it. Measured on 2 cores with 250 files of 2,400 rows: 23.4 and 27.7 s with
# one worker, 19.7 and 23.6 s with two; with 4 files of 200,000 rows there was no clear difference.
WORKERS_LIMIT = 2
# After this many files that blocked a worker for minutes, the fault is the file system's.
SILENT_LIMIT = 3


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
    """The archives that a setting names, in the order of their paths."""

    name = "csv"

    def __init__(self, setting: str | None, workers: int | None = None) -> None:
        self._setting = setting
        self._workers = workers or min(WORKERS_LIMIT, max(1, _cores() - 1))
        self._waiting: Worker | None = None

    @asynccontextmanager
    async def process_started(self) -> AsyncGenerator[None, None]:
        """Start the first worker of the next run, as in `SourceWithProcess`."""
        async with AsyncExitStack() as stack:
            # If it cannot start, the run tries again, and reports why.
            with suppress(OSError):
                self._waiting = await stack.enter_async_context(Worker())
            try:
                yield
            finally:
                self._waiting = None

    async def extract(self, context: SourceContext) -> AsyncGenerator[Batch, None]:
        """The batches of all files that no earlier run has loaded to their end, file after file."""
        # By the digest of the content: a copy of the file may load, because its name may answer what is left
        # open.
        rejects: dict[str | None, list[Reject]] = {}
        loaded: set[str] = set()
        stalled = None
        async with AsyncExitStack() as stack:

            async def start_worker() -> Worker:
                return await stack.enter_async_context(Worker())

            first, self._waiting = self._waiting, None
            if first is not None and first.alive:
                stack.push_async_exit(first)
            else:
                first = await start_worker()
            found = await first.find(self._setting)
            rejects[None] = [file_problem(folder.name, folder.reason).reject for folder in found.unsearched]
            coins = KnownCoins([KnownCoin(*coin) for coin in await context.known_coins()], {})
            queue = _FileQueue(found.archives, coins)
            total, done, silent = queue.bytes, 0, 0
            context.progress(done, total)
            transfers = self._transfers(queue, context, first, start_worker)
            async for transfer in await stack.enter_async_context(aclosing(transfers)):
                problem, merger = None, BatchMerger()
                try:
                    async for message in transfer.messages:
                        if isinstance(message, Portion):
                            context.progress(done + min(message.position, transfer.size), total)
                            merger.add(transfer.placed(message.batch))
                            if merger.full and (batch := merger.take()) is not None:
                                yield batch
                        else:
                            problem = message
                except WorkerEnded as error:
                    # The end of the process costs this file only.
                    problem = file_problem(transfer.name, str(error).removeprefix(f"{transfer.name}: "))
                    silent += isinstance(error, WorkerSilent)
                if (batch := merger.take()) is not None:
                    yield batch
                if problem is not None:
                    rejects.setdefault(transfer.content or problem.content, []).append(problem.reject)
                    queue.add_copy(transfer.key)
                elif transfer.loads and transfer.content is not None:
                    loaded.add(transfer.content)
                done += transfer.size
                context.progress(done, total)
                if silent == SILENT_LIMIT:
                    stalled = (
                        f"archives {self._setting}: {silent} files did not answer; check their file system"
                    )
                    break
        lost = (found for content, found in rejects.items() if content not in loaded)
        for batch in _reject_batches([*chain.from_iterable(lost)]):
            yield batch
        if stalled is not None:
            raise SourceError(stalled)

    async def _transfers(
        self,
        queue: "_FileQueue",
        context: SourceContext,
        first: Worker,
        start_worker: Callable[[], Awaitable[Worker]],
    ) -> AsyncGenerator["_Transfer", None]:
        # The transfer of each file, in order. While the caller consumes it, the other workers start the next
        # ones, and read ahead as far as their pipes allow.
        free, workers = [first], 1
        started = deque[tuple[Worker, asyncio.Task[_Transfer]]]()
        before: asyncio.Task[_Transfer] | None = None
        try:
            while True:
                while queue and (free or workers < self._workers):
                    if not free:
                        worker, workers = await start_worker(), workers + 1
                    elif not (worker := free.pop()).alive:
                        await worker.end()
                        worker = await start_worker()
                    before = asyncio.create_task(self._start(queue.next(), worker, context, queue, before))
                    started.append((worker, before))
                if not started:
                    return
                worker, starting = started[0]
                transfer = await starting
                started.popleft()
                async with aclosing(transfer.messages):
                    yield transfer
                free.append(worker)
        finally:
            await cancel_all({starting for _, starting in started})

    async def _start(
        self,
        file: tuple[Archive, int],
        worker: Worker,
        context: SourceContext,
        queue: "_FileQueue",
        before: "asyncio.Task[_Transfer] | None",
    ) -> "_Transfer":
        # Starts to read a file, unless it cannot be read, is already loaded or was forgotten. The workers
        # identify files at the same time, which takes most of the time of a small file. What to do with each
        # is decided in their order: `before` is the start of the file before.
        archive, size = file
        earlier = await context.file_named(archive.name)
        try:
            identity = await worker.identify(archive, earlier, context.clock(), queue.coins_of(archive))
        except WorkerEnded as error:
            return _Transfer(archive.name, size, None, _messages(error))
        if isinstance(identity, Problem):
            return _Transfer(archive.name, size, None, _messages(identity))
        if before is not None:
            await asyncio.wait({before})
        known = await context.known_files(archive.name, identity.content)
        placement = place(archive.name, identity, known, queue.names)
        context.summary.loaded_before |= placement.loaded_before
        message: Portion | Problem | None = None
        if placement.problem is not None:
            message = file_problem(archive.name, placement.problem)
        elif placement.renamed is not None:
            message = Portion(BatchBuilder().take(placement.renamed), 0)
        elif placement.must_read and queue.is_first(identity.key, archive):
            worker.start_reading(placement.position)
            messages = worker.messages(archive.name)
            return _Transfer(archive.name, size, identity.key, messages, placement, identity.content)
        worker.skip()
        return _Transfer(archive.name, size, None, _messages(message), placement, identity.content)


def _reject_batches(rejects: Sequence[Reject]) -> Iterator[Batch]:
    # Batches of rejected files only.
    for start in range(0, len(rejects), REJECTED_FILES_PER_BATCH):
        builder = BatchBuilder()
        for reject in rejects[start : start + REJECTED_FILES_PER_BATCH]:
            builder.reject(reject)
        yield builder.take()


class _Transfer(NamedTuple):
    # The messages about a file. `key` is None if the file is not read, and `placement` and `content` are None
    # if it cannot be.
    name: str
    size: int
    key: str | None
    messages: AsyncGenerator[Portion | Problem, None]
    placement: Placement | None = None
    content: str | None = None

    @property
    def loads(self) -> bool:
        """Whether the file's records are in the database at its end, unless it is rejected."""
        return self.key is not None or (self.placement is not None and self.placement.loaded_before)

    def placed(self, batch: Batch) -> Batch:
        """The batch, with what its file continues or replaces."""
        if self.placement is None or batch.checkpoint is None:
            return batch
        return msgspec.structs.replace(batch, checkpoint=self.placement.placed(batch.checkpoint))


class _FileQueue:
    # The files that are not read yet. Of files with the same key, which give the same records, the first is
    # read. If it is rejected, its copies are read one after the other, so that each is named.
    def __init__(self, files: Sequence[Archive], coins: KnownCoins) -> None:
        self._coins = coins
        self._files = deque((file, file.size) for file in files)
        self._copies: dict[str, deque[Archive]] = {}
        self._untried: dict[str, deque[Archive]] = {}
        self.bytes = sum(file.size for file in files)
        self.names = frozenset(file.name for file in files)

    def __len__(self) -> int:
        return len(self._files)

    def next(self) -> tuple[Archive, int]:
        """The next file, and its size for the progress."""
        return self._files.popleft()

    def coins_of(self, archive: Archive) -> list[KnownCoin]:
        """The coins of other sources that a file's name may mean."""
        found = map(self._coins.by_phrase, sorted(phrases(archive.name)))
        return [coin for coin in found if coin is not None]

    def is_first(self, key: str, archive: Archive) -> bool:
        """Whether this is the file to read of those with the same key; if not, remember it as a copy."""
        if key in self._copies:
            self._copies[key].append(archive)
            return False
        self._copies[key] = self._untried.pop(key, deque())
        return True

    def add_copy(self, key: str | None) -> None:
        """After the file with this key was rejected, put its next copy at the front."""
        copies = self._copies.pop(key, None) if key is not None else None
        if key is not None and copies:
            # The progress already includes the copy's size.
            self._files.appendleft((copies.popleft(), 0))
            self._untried[key] = copies


async def _messages(
    message: Portion | Problem | WorkerEnded | None,
) -> AsyncGenerator[Portion | Problem, None]:
    # The messages about a file that no worker reads.
    if isinstance(message, WorkerEnded):
        raise message
    if message is not None:
        yield message


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
