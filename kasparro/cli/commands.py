"""The commands."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, NoReturn, TypeVar

import asyncpg
import click
import msgspec
import structlog
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from kasparro import __version__, logs
from kasparro.cli import check_output
from kasparro.cli.terminal import err, out, write_json
from kasparro.errors import KasparroError, LeaseLost, RunInProgress, SettingsError, SourceError
from kasparro.model.record import FILE_REJECTED, Reject
from kasparro.pipeline import report
from kasparro.pipeline.quality.drift import Drift
from kasparro.pipeline.quality.freshness import format_duration
from kasparro.pipeline.replay import prepare_replay
from kasparro.pipeline.run import STOP_GRACE_S, Run, ignore_progress
from kasparro.settings import Settings
from kasparro.signals import stop_signals
from kasparro.sources import registry
from kasparro.sources.archives.checks import check_all
from kasparro.sources.base import Source
from kasparro.store.bootstrap import database_url, pools, prepare
from kasparro.store.instance import WrongDatabase
from kasparro.store.migrations import migrate as apply_migrations
from kasparro.store.migrations import pending
from kasparro.store.pool import Database
from kasparro.store.runs import last_start
from kasparro.supervision import Supervisor

log = structlog.get_logger()
T = TypeVar("T")

FAILED, USAGE, BUSY = 1, 2, 3


def _settings_help() -> str:
    lines = ["\b", "Settings come from the environment:"]
    lines += [
        f"{variable.name}\n    {variable.meaning} (default: {variable.default})"
        for variable in registry.variables()
    ]
    return "\n".join(lines)


@click.group(epilog=_settings_help(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kasparro")
def main() -> None:
    """One self-hosted API for crypto market data: CoinPaprika, CoinGecko and CSV archives, settled into one
    exact PostgreSQL table and served over HTTP."""


_host = click.option("--host", help="Listen address (KASPARRO_HOST).")
_port = click.option("--port", type=click.IntRange(0, 65_535), help="Listen port (PORT).")


@main.command()
@_host
@_port
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Server processes.")
def serve(host: str | None, port: int | None, workers: int) -> None:
    """Serve the API, and run the sources at start and then every interval."""
    from kasparro.web import server  # noqa: PLC0415 - what only a server needs takes half a second

    told = _load(host, port)
    _guarded(lambda: server.serve(told, workers=workers))


@main.command()
@_host
@_port
@click.option("--seed", type=int, default=1, show_default=True, help="Which market to invent.")
def demo(host: str | None, port: int | None, seed: int) -> None:
    """Serve with simulated upstreams: no network, no keys.

    The figures are invented, so they live in an embedded database of their own, beside the one that `serve`
    uses; where DATABASE_URL is set it has to name an empty one.
    """
    from kasparro.web import server  # noqa: PLC0415 - what only a server needs takes half a second

    told = _load(host, port)
    _guarded(lambda: server.serve(told, demo_seed=seed))


_as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print the run's report, the object of /runs/{id}, alone."
)


@main.command()
@click.option(
    "--source", "names", type=click.Choice(registry.names()), multiple=True, help="Only this one; repeatable."
)
@_as_json
def etl(names: tuple[str, ...], as_json: bool) -> None:
    """Run the sources once.

    Exits with 0 where every source succeeded, 1 where one did not, 2 for wrong usage or settings, 3 where
    another run is at work.
    """
    told = _load()
    chosen = tuple(dict.fromkeys(names)) or told.sources

    async def plan(database: Database) -> Plan:
        del database
        sources = registry.build(told, chosen)
        run = partial(
            Run,
            sources=sources,
            trigger="etl",
            budget=partial(registry.monthly_calls, told),
            interval=told.interval,
            retention=told.retention,
        )
        return sources, run

    _run_once(told, plan, as_json=as_json)


@main.command()
@click.argument("run_id", metavar="RUN", type=click.IntRange(1, 2**63 - 1))
@_as_json
def replay(run_id: int, as_json: bool) -> None:
    """Read the kept payloads of a run again, with no call upstream.

    After a fix of how they are read, the tables are put right; what was told since RUN stands. A run of its
    own, that reports and exits as that of `etl`; 1 also where there is no RUN or nothing is kept of it.
    """
    told = _load()

    async def plan(database: Database) -> Plan:
        again = await prepare_replay(database, run_id)
        return again.sources, partial(
            Run, sources=again.sources, trigger="replay", fetched_at=again.fetched_at
        )

    _run_once(told, plan, as_json=as_json)


@main.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--explain", is_flag=True, help="Show how each file was understood, field by field.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one object.")
def check(files: tuple[str, ...], explain: bool, as_json: bool) -> None:
    """Say what archives would load, and what of them would be refused; writes nothing, needs no database.

    FILE is a file, a folder or a glob. Exits with 0 where all would be loaded whole, 1 where a file or a row
    would be refused, 2 for wrong usage.
    """
    try:
        checked = asyncio.run(check_all(files, datetime.now(UTC)))
    except SourceError as error:
        _fail(str(error), USAGE)
    if as_json:
        write_json(json.dumps({"files": msgspec.to_builtins(checked)}).encode())
    else:
        check_output.show(out, checked, explain=explain)
    sys.exit(0 if all(one.whole for one in checked) else FAILED)


@main.command()
def migrate() -> None:
    """Bring the database's schema up to date."""
    told = _load()
    applied = _guarded(lambda: asyncio.run(_with_database(told, apply_migrations)))
    for name in applied:
        out.print(f"applied {name}")
    if not applied:
        out.print("the schema is up to date")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the object of /stats.")
def status(as_json: bool) -> None:
    """Say what the database holds and how the last run went."""
    told = _load()

    async def read(database: Database) -> tuple[report.Stats, datetime | None]:
        if missing := await pending(database):
            raise KasparroError(
                f"the database is not ready: {', '.join(missing)} not applied; run kasparro migrate"
            )
        last = await last_start(database)
        due = last + told.interval if last and told.interval else None
        async with database.reading() as connection:
            return await report.stats(connection, told, due), due

    stats, due = _guarded(lambda: asyncio.run(_with_database(told, read)))
    if as_json:
        write_json(report.encode(stats))
        return
    table = Table("source", "records")
    for source, records in stats.totals.by_source.items():
        table.add_row(source, f"{records:,}")
    held, runs = _counted(stats.totals.records, "record"), _counted(stats.totals.runs, "run")
    out.print(f"{stats.status}; {held} after {runs}")
    now = datetime.now(UTC)
    for line in (*_last_run(stats.last_run, now), _next_run(told, due, now)):
        out.print(line)
    out.print(table)
    shown: set[str] = set()
    if stats.last_run is not None:
        _print_run(stats.last_run, wrapped=True)
        shown = {source.source for source in stats.last_run.sources if source.drift}
    for name, found in stats.drift.items():
        if found and name not in shown:
            out.print(f"{name}: {_drift(found)}")


def _last_run(run: report.RunReport | None, now: datetime) -> list[str]:
    if run is None:
        return ["last run: none so far"]
    began = f"began {_moment(run.started_at)}, {format_duration((now - run.started_at).total_seconds())} ago"
    return [f"last run: {run.id} by {run.trigger}, {run.status}", f"          {began}"]


def _next_run(told: Settings, due: datetime | None, now: datetime) -> str:
    if told.interval is None:
        return "next run: none by itself, for KASPARRO_INTERVAL is off"
    if due is None:
        return "next run: when kasparro serve starts"
    left = (due - now).total_seconds()
    when = (
        f"in {format_duration(left)}"
        if left > 0
        else f"{format_duration(-left)} ago; is kasparro serve running?"
    )
    return f"next run: due {_moment(due)}, {when}"


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


# The sources of a run, and the run itself, given its database and who watches it.
Plan = tuple[Sequence[Source], Callable[..., Run]]


def _run_once(told: Settings, plan: Callable[[Database], Awaitable[Plan]], *, as_json: bool) -> NoReturn:
    """One run in the foreground: its report on stdout, its outcome in the exit code."""
    done = _guarded(lambda: asyncio.run(_run(told, plan, watched=not as_json)))
    if as_json:
        write_json(report.encode(done))
    else:
        _print_run(done)
    sys.exit(0 if done.status == "succeeded" else FAILED)


async def _run(
    told: Settings, plan: Callable[[Database], Awaitable[Plan]], *, watched: bool
) -> report.RunReport:
    stop = asyncio.Event()
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    opened: list[Database] = []

    def cut_off() -> None:
        for database in opened:
            database.terminate()
        if task is not None:
            task.cancel()

    def end() -> None:
        # First at a batch border; where there is none in time, or for who asks twice, at once.
        loop.call_later(0 if stop.is_set() else STOP_GRACE_S, cut_off)
        stop.set()

    for number in stop_signals():
        loop.add_signal_handler(number, end)

    async def run(database: Database) -> report.RunReport:
        opened.append(database)
        await prepare(database)
        sources, planned = await plan(database)
        names = [source.name for source in sources]
        with _bars(names, shown=watched and err.is_terminal) as watch:
            async with planned(database, on_progress=watch) as one:
                await one.work(stop)
        async with database.writing() as connection:
            done = await report.run_report(connection, one.id)
        if done is None:
            raise LeaseLost(f"run {one.id} is not in the database any more")
        return done

    return await _with_database(told, run)


async def _with_database(told: Settings, work: Callable[[Database], Coroutine[Any, Any, T]]) -> T:
    async with database_url(told, Supervisor()) as url, pools(told, url) as database:
        return await work(database)


@contextmanager
def _bars(names: Sequence[str], *, shown: bool) -> Iterator[Callable[[str, float, float | None], None]]:
    """A progress bar for each source, on stderr; or none, where nobody would see them."""
    if not shown:
        yield ignore_progress
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        bars = {name: progress.add_task(name, total=None) for name in names}
        yield lambda name, done, total: progress.update(bars[name], completed=done, total=total)


def _print_run(run: report.RunReport, *, wrapped: bool = False) -> None:
    figures = ("fetched", "valid", "rejected", "inserted", "updated", "unchanged")
    # Without a frame it fits 80 columns, which is also what a pipe gets.
    title = f"run {run.id}: {run.status}"
    table = Table("source", "status", *figures, title=title, title_justify="left", box=None, pad_edge=False)
    table.collapse_padding = True
    for column in table.columns[2:]:
        column.justify = "right"
    for source in run.sources:
        table.add_row(
            source.source, source.status, *(f"{getattr(source.records, figure):,}" for figure in figures)
        )
    out.print(table)
    if any(source.rejects for source in run.sources):
        _print_rejects(run)
    for source in run.sources:
        # The error has the only one in full already.
        if len(source.refused_files) > 1:
            _print_refused_files(source, wrapped=wrapped)
        for line in filter(None, [source.note, source.error, *_judgement(source)]):
            out.print(f"{source.source}: {line}", soft_wrap=not wrapped)


def _print_refused_files(source: report.SourceReport, *, wrapped: bool) -> None:
    """Every refused file on a line, with the line of its description that would settle it."""
    total = sum(count.rejects for count in source.rejects if count.reason == FILE_REJECTED)
    for file in source.refused_files:
        refused = Reject(reason=file.reason, location=file.file, setting=file.setting)
        out.print(f"{source.source}: {refused.summary}", soft_wrap=not wrapped)
    if (more := total - len(source.refused_files)) > 0:
        out.print(f"{source.source}: {_counted(more, 'more file')} refused")


def _judgement(source: report.SourceReport) -> list[str]:
    """The anomalies of a source and its drift, a line each."""
    lines = [f"{one.kind}: {one.detail}" for one in source.anomalies]
    return [*lines, _drift(source.drift)] if source.drift else lines


def _drift(found: Sequence[Drift]) -> str:
    more = f" (and {_counted(len(found) - 1, 'more change')})" if len(found) > 1 else ""
    return f"drift: {found[0].summary}{more}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _print_rejects(run: report.RunReport) -> None:
    table = Table("rejected", "by", "field", "reason", title="refused", title_justify="left", box=None)
    table.columns[0].justify = "right"
    for source in run.sources:
        for one in source.rejects:
            by = f"{source.source}: {one.location}" if one.location else source.source
            table.add_row(f"{one.rejects:,}", by, one.field or "", one.reason)
    out.print(table)
    out.print(f"GET /runs/{run.id}/rejects has them with their raw text")


def _load(host: str | None = None, port: int | None = None) -> Settings:
    try:
        told = registry.load_settings(os.environ)
    except SettingsError as error:
        _fail(str(error), USAGE)
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    told = msgspec.structs.replace(told, **given)
    logs.configure(told)
    for source in registry.broken():
        log.error("source_unavailable", source=source.name, package=source.package, reason=source.reason)
    for name, meant in registry.unknown_variables(os.environ).items():
        log.warning("unknown_setting", name=name, **({"did_you_mean": meant} if meant else {}))
    return told


def _guarded(work: Callable[[], T]) -> T:
    """Do it, and end the program with one line on what went wrong."""
    try:
        return work()
    except RunInProgress as error:
        _fail(str(error), BUSY)
    except (SettingsError, WrongDatabase) as error:
        _fail(str(error), USAGE)
    except KasparroError as error:
        _fail(str(error), FAILED)
    except asyncpg.PostgresError as error:
        _fail(f"PostgreSQL refused: {error}", FAILED)
    except asyncio.CancelledError:
        _fail("stopped before its end", FAILED)


def _fail(text: str, code: int) -> NoReturn:
    err.print(f"kasparro: {text}", soft_wrap=True)
    sys.exit(code)
