"""Where the time of a load goes: the archive worker by profiler, PostgreSQL by statement.

The figures of PostgreSQL are processor time of the process that serves the loader, from Linux's schedstat.
They hardly depend on what else the machine does.
"""

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
from kasparro.sources.archives.worker_messages import encode
from kasparro.store.migrations import migrate
from kasparro.store.pool import Database
from kasparro.store.sql import statements as named_statements
from tests.bench import measure

# The steps of the archive worker, each by the module and the function that does it. Detection converts sample
# rows, so "detect" and "convert" overlap in short files.
STEPS = {
    "detect": ("reader.py", "_prepare"),
    "read and decode": ("text.py", "_read"),
    "split into cells": ("text.py", "columns_of"),
    "convert": ("convert.py", "convert_columns"),
    "hash and write COPY lines": ("record.py", "copy_lines"),
    "encode messages": ("worker_messages.py", "encode"),
}
# Statements that are shown on lines of their own: those that take longest.
LONGEST = 8
_STATEMENT_NAMES = {
    text: name
    for path in (
        "load/batch.sql",
        "load/compare.sql",
        "load/progress.sql",
        "load/archives.sql",
        "load/settle.sql",
    )
    for name, text in named_statements(path).items()
}


async def show(server_url: str, path: Path, rows: int) -> None:
    """Print the time of each step: for a file of new rows, then for the same rows in a changed file."""
    print(f"time by step, in µs per row ({rows:,} rows)")
    for step, seconds in (await _worker_seconds(path)).items():
        print(f"  archive worker  {step:26} {seconds / rows * 1e6:6.2f}")
    url = await measure.new_database(server_url, "bench_breakdown")
    async with Database(url) as database:
        await migrate(database)
    new = await _load_seconds(url, path)
    # A blank line before the rows changes the content, but no row.
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\r\n\r\n", 1))
    unchanged = await _load_seconds(url, path)
    own = ("waiting for PostgreSQL", "waiting for the worker", "processor time of etl", "total")
    # Some steps are of only one of the two loads.
    steps = (new.keys() | unchanged.keys()) - set(own)
    longest = sorted(steps, key=lambda step: max(new.get(step, 0.0), unchanged.get(step, 0.0)), reverse=True)
    print(f"  {'':42} {'new':>6} {'unchanged':>9}")

    def line(step: str, *columns: float) -> None:
        cells = (f"{seconds / rows * 1e6:{width}.2f}" for seconds, width in zip(columns, (6, 9), strict=True))
        print(f"  {step:42} {' '.join(cells)}")

    for step in longest[:LONGEST]:
        line(f"PostgreSQL      {step}", new.get(step, 0.0), unchanged.get(step, 0.0))
    others = [sum(taken.get(step, 0.0) for step in longest[LONGEST:]) for taken in (new, unchanged)]
    line("PostgreSQL      all others", *others)
    for step in own:
        line(f"etl             {step}", new[step], unchanged[step])


async def _worker_seconds(path: Path) -> dict[str, float]:
    # With the profiler's overhead, which spreads over all steps.
    job = Job(name=path.name, key="", position=0, now=datetime.now(UTC))
    profiler = cProfile.Profile()
    with profiler, ArchiveFile.at(path) as archive:
        async for message in read_archive(archive, job):
            encode(message)
    stats = pstats.Stats(profiler)
    by_function: dict[tuple[str, int, str], Any] = stats.stats  # type: ignore[attr-defined]
    spent = dict.fromkeys(STEPS, 0.0)
    total = 0.0
    for (file, _, function), (_, _, own, cumulative, _) in by_function.items():
        total += own
        for step, location in STEPS.items():
            if (Path(file).name, function) == location:
                spent[step] += cumulative
    if absent := [step for step, seconds in spent.items() if not seconds]:
        raise RuntimeError(f"STEPS names functions that were not called: {', '.join(absent)}")
    return {**spent, "the rest": total - sum(spent.values())}


async def _load_seconds(url: str, path: Path) -> dict[str, float]:
    # The wait for each statement, the wait for the worker, and the processor time of this process.
    began, processor = time.perf_counter(), time.process_time()
    async with _TimedDatabase(url) as database, Run(database, [Archives(str(path))], "etl") as run:
        await run.work(asyncio.Event())
        spent, waited = dict(database.spent), database.waited
    total = time.perf_counter() - began
    return {
        **spent,
        "waiting for PostgreSQL": waited,
        "waiting for the worker": total - waited,
        "processor time of etl": time.process_time() - processor,
        "total": total,
    }


class _TimedDatabase(Database):
    """A database that adds up the processor seconds of each statement of its writers, and their waits."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.waited = 0.0

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Any]:
        async with super().writing() as connection:
            yield _TimedConnection(connection, self)

    @asynccontextmanager
    async def timed(self, name: str, process: int) -> AsyncIterator[None]:
        began, processor = time.perf_counter(), _processor_seconds(process)
        try:
            yield
        finally:
            self.waited += time.perf_counter() - began
            self.spent[name] += _processor_seconds(process) - processor


class _TimedConnection:
    def __init__(self, connection: Any, database: _TimedDatabase) -> None:
        self._connection = connection
        self._database = database

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._connection, name)
        return (
            self._timed(method)
            if name in {"execute", "fetch", "fetchrow", "fetchval", "copy_to_table"}
            else method
        )

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def timed(statement_or_table: str, *arguments: Any, **options: Any) -> Any:
            name = _STATEMENT_NAMES.get(statement_or_table, statement_or_table)
            async with self._database.timed(name, self._connection.get_server_pid()):
                return await method(statement_or_table, *arguments, **options)

        return timed

    @asynccontextmanager
    async def transaction(self, **options: Any) -> AsyncIterator[None]:
        transaction = self._connection.transaction(**options)
        await transaction.start()
        try:
            yield
        except BaseException:
            await transaction.rollback()
            raise
        async with self._database.timed("commit", self._connection.get_server_pid()):
            await transaction.commit()


def _processor_seconds(process: int) -> float:
    # The first figure is in nanoseconds.
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9
