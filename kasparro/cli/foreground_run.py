"""Runs the sources once in the foreground, with progress bars, until done or stopped by a signal."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from kasparro.cli.terminal import err
from kasparro.errors import LeaseLost
from kasparro.pipeline.run import STOP_GRACE_S, Run, ignore_progress
from kasparro.settings import Settings
from kasparro.signals import stop_signals
from kasparro.sources.base import Source
from kasparro.store.bootstrap import database_url, pools, prepare
from kasparro.store.pool import Database
from kasparro.supervision import Supervisor
from kasparro.web import reports, schemas

T = TypeVar("T")

# The sources of a run, and a function that creates the run from its database and `on_progress`.
RunPlan = tuple[Sequence[Source], Callable[..., Run]]


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

    def cancel() -> None:
        for database in opened:
            database.terminate()
        if task is not None:
            task.cancel()

    def on_signal() -> None:
        loop.call_later(0 if stop.is_set() else STOP_GRACE_S, cancel)
        stop.set()

    for number in stop_signals():
        loop.add_signal_handler(number, on_signal)

    async def work(database: Database) -> schemas.RunReport:
        opened.append(database)
        await prepare(database)
        sources, create_run = await plan(database)
        names = [source.name for source in sources]
        with _bars(names, shown=progress and err.is_terminal) as on_progress:
            async with create_run(database, on_progress=on_progress) as run:
                await run.work(stop)
        async with database.writing() as connection:
            finished = await reports.run_report(connection, run.id)
        if finished is None:
            raise LeaseLost(f"run {run.id} is no longer in the database")
        return finished

    return await with_database(settings, work)


async def with_database(settings: Settings, work: Callable[[Database], Coroutine[Any, Any, T]]) -> T:
    """Do this work with the database of the settings."""
    async with database_url(settings, Supervisor()) as url, pools(settings, url) as database:
        return await work(database)


@contextmanager
def _bars(names: Sequence[str], *, shown: bool) -> Iterator[Callable[[str, float, float | None], None]]:
    """A function that updates the progress bars of the sources on stderr, or does nothing if not `shown`."""
    if not shown:
        yield ignore_progress
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        bars = {name: progress.add_task(name, total=None) for name in names}
        yield lambda name, done, total: progress.update(bars[name], completed=done, total=total)
