"""Where the time of a load goes: the reading process by a profiler, the loader by statement."""

import asyncio
import cProfile
import pstats
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kasparro.pipeline.run import Run
from kasparro.sources.archives.files import ArchiveFile
from kasparro.sources.archives.reader import Job, read_archive
from kasparro.sources.archives.source import Archives
from kasparro.sources.archives.worker_messages import packed
from kasparro.store.migrations import migrate
from kasparro.store.pool import Database
from kasparro.store.sql import statements as named_statements
from tests.bench import measure

# What the worker does, by the functions that do it: the file they stand in, their name.
STEPS = {
    "recognise": ("reader.py", "_admitted"),
    "read and decode": ("text.py", "_gathered"),
    "convert": ("convert.py", "convert_all"),
    "hash and write": ("record.py", "copy_lines"),
    "pack": ("wire.py", "packed"),
}


async def show(server_url: str, path: Path, again: Path, rows: int) -> None:
    """Print what each step of a load costs, of rows that are all new and, `again`, all known."""
    print(f"where the time goes, in µs a row ({rows:,} rows)")
    for step, seconds in (await worker(path)).items():
        print(f"  worker      {step:20} {seconds / rows * 1e6:6.2f}")
    url = await measure.fresh(server_url, "bench_breakdown")
    async with Database(url) as database:
        await migrate(database)
    new, known = await statements(url, path), await statements(url, again)
    print(f"                                    {'new':>6} {'known':>6}")
    for step in new:
        print(f"  {step:32}  {new[step] / rows * 1e6:6.2f} {known[step] / rows * 1e6:6.2f}")


async def worker(path: Path) -> dict[str, float]:
    """Seconds that each step of reading a file takes, with the profiler's own share in them."""
    job = Job(name=path.name, key="", position=0, now=datetime.now(UTC))
    profiler = cProfile.Profile()
    with profiler, ArchiveFile.at(path) as archive:
        async for message in read_archive(archive, job):
            packed(message)
    stats = pstats.Stats(profiler)
    by_function: dict[tuple[str, int, str], Any] = stats.stats  # type: ignore[attr-defined]
    spent = dict.fromkeys(STEPS, 0.0)
    total = 0.0
    for (file, _, function), (_, _, own, cumulative, _) in by_function.items():
        total += own
        for step, place in STEPS.items():
            if (Path(file).name, function) == place:
                spent[step] += cumulative
    return {**spent, "split and the rest": total - sum(spent.values())}


async def statements(url: str, path: Path) -> dict[str, float]:
    """Seconds that a load waits for each statement, and the processor that its own process takes."""
    began, processor = time.perf_counter(), time.process_time()
    async with Timed(url) as database, Run(database, [Archives(str(path))], "etl") as run:
        await run.work(asyncio.Event())
        spent = database.spent
    whole = time.perf_counter() - began
    shown = {f"PostgreSQL  {name}": spent[name] for name in SHOWN}
    rest = sum(spent.values()) - sum(shown.values())
    return {
        **shown,
        "PostgreSQL  all others": rest,
        "etl         waiting for the worker": whole - sum(spent.values()),
        "etl         its own processor": time.process_time() - processor,
        "all": whole,
    }


SHOWN = ("staged_keys", "staged_contents", "compare", "partitions", "append", "newest", "commit")
_NAMES = {
    text: name
    for name, text in (named_statements("load/batch.sql") | named_statements("load/progress.sql")).items()
}


class Timed(Database):
    """A database that keeps what was waited for each statement of its writers."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.spent: defaultdict[str, float] = defaultdict(float)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Any]:
        """A connection to the primary, watched."""
        async with super().writing() as connection:
            yield _Watched(connection, self.spent)


class _Watched:
    # A connection whose statements are timed.
    def __init__(self, connection: Any, spent: defaultdict[str, float]) -> None:
        self._connection = connection
        self._spent = spent

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._connection, name)
        return (
            self._timed(method)
            if name in {"execute", "fetch", "fetchrow", "fetchval", "copy_to_table"}
            else method
        )

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def timed(told: str, *arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return await method(told, *arguments, **options)
            finally:
                self._spent[_NAMES.get(told, told)] += time.perf_counter() - began

        return timed

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        transaction = self._connection.transaction()
        await transaction.start()
        try:
            yield
        except BaseException:
            await transaction.rollback()
            raise
        began = time.perf_counter()
        await transaction.commit()
        self._spent["commit"] += time.perf_counter() - began
