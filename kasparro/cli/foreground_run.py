"""Runs the sources once in the foreground, with progress bars, until done or stopped by a signal."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from kasparro.cli.terminal import err
from kasparro.errors import LeaseLost
from kasparro.pipeline.identity import options_of
from kasparro.pipeline.retry import read_when_available
from kasparro.pipeline.run import STOP_GRACE_S, Run
from kasparro.settings import Settings
from kasparro.signals import stop_signals
from kasparro.sources import registry
from kasparro.sources.base import Source
from kasparro.store.bootstrap import database_url, pools, prepare
from kasparro.store.pool import Database
from kasparro.supervision import Supervisor
from kasparro.web import reports, schemas

T = TypeVar("T")

# The sources of a run, and a function that creates the run from its database and `on_progress`.
RunPlan = tuple[Sequence[Source], Callable[..., Run]]


async def run_sources(settings: Settings, sources: Sequence[Source], *, progress: bool) -> schemas.RunReport:
    """Run these sources with these settings, as `run_once` does."""
    create_run = partial(
        Run,
        sources=sources,
        trigger="etl",
        budget=partial(registry.monthly_calls, settings),
        interval=settings.interval,
        retention=settings.retention,
        assets=options_of(settings),
    )

    async def plan(database: Database) -> RunPlan:
        del database
        return sources, create_run

    return await run_once(settings, plan, progress=progress)


async def run_once(
    settings: Settings, plan: Callable[[Database], Awaitable[RunPlan]], *, progress: bool
) -> schemas.RunReport:
    """Run the planned sources and return the report. On a terminal, `progress` shows bars on stderr.

    The first stop signal ends the run at the next batch, or after a grace period. The second one ends it at
    once. Then CancelledError is raised.
    """
    stop = asyncio.Event()
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    opened: list[Database] = []
    cuts: list[asyncio.TimerHandle] = []

    def cancel() -> None:
        for database in opened:
            database.terminate()
        if task is not None:
            task.cancel()

    def on_signal() -> None:
        cuts.append(loop.call_later(0 if stop.is_set() else STOP_GRACE_S, cancel))
        stop.set()

    for number in stop_signals():
        loop.add_signal_handler(number, on_signal)

    async def work(database: Database) -> schemas.RunReport:
        opened.append(database)
        await prepare(database)
        sources, create_run = await plan(database)
        names = [source.name for source in sources]
        with _Bars(names, shown=progress and err.is_terminal) as bars:
            async with create_run(database, on_progress=bars.move, on_loaded=bars.add_records) as run:
                await run.work(stop)
        for cut in cuts:
            # The grace period was for the run, whose report follows.
            cut.cancel()

        async def report() -> schemas.RunReport | None:
            async with database.writing() as connection:
                return await reports.run_report(connection, run.id)

        # The outcome is recorded, so a database that is away for a moment must not change the exit code.
        finished = await read_when_available(report, stop)
        if finished is None:
            raise LeaseLost(f"run {run.id} is no longer in the database")
        return finished

    return await with_database(settings, work)


async def with_database(settings: Settings, work: Callable[[Database], Coroutine[Any, Any, T]]) -> T:
    """Do this work with the database of the settings."""
    async with database_url(settings, Supervisor()) as url, pools(settings, url) as database:
        return await work(database)


class _Bars:
    # The progress bars of the sources on stderr, with the records and the rate of each; nothing, if they are
    # not shown.

    def __init__(self, names: Sequence[str], *, shown: bool) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.fields[records]:>9,} records {task.fields[rate]:>7,.0f}/s"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=err, transient=True, disable=not shown)
        self._tasks = {name: self._progress.add_task(name, total=None, records=0, rate=0.0) for name in names}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def move(self, source: str, done: float, total: float | None) -> None:
        """Move the bar of a source."""
        self._progress.update(self._tasks[source], completed=done, total=total)

    def add_records(self, source: str, records: int) -> None:
        """Count the records of a batch."""
        task = self._progress.tasks[self._tasks[source]]
        loaded = task.fields["records"] + records
        # The mean since the start: batches come too rarely for a rate of the moment.
        rate = loaded / max(task.elapsed or 0.0, 0.001)
        self._progress.update(task.id, records=loaded, rate=rate)
