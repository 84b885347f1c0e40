"""The commands that work with the database, apart from `etl`."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NoReturn

import click
import msgspec

from kasparro.assets.explain import Explanation
from kasparro.assets.rules import load_rules, read_rules
from kasparro.cli import archives_output, assets_output
from kasparro.cli.common import as_json_option, exit_on_error, load_settings
from kasparro.cli.foreground_run import RunPlan, run_once, with_database
from kasparro.cli.psql import run_psql
from kasparro.cli.report_output import exit_with_report
from kasparro.cli.status_output import Status, leading_coins, print_status
from kasparro.cli.terminal import out, write_json
from kasparro.errors import KasparroError
from kasparro.pipeline.identity import explain_rows, options_of
from kasparro.pipeline.replay import prepare_replay
from kasparro.pipeline.run import Run
from kasparro.settings import Settings
from kasparro.sources import registry
from kasparro.sources.archives.folder_state import file_states
from kasparro.sources.archives.forget import ForgottenArchive
from kasparro.sources.archives.source import Archives
from kasparro.store.archive_files import find_name, listed_files, listed_names
from kasparro.store.bootstrap import database_url
from kasparro.store.citus import distribute
from kasparro.store.instance import end_cursors, is_demo
from kasparro.store.locks import has_leader
from kasparro.store.migrations import migrate as apply_migrations
from kasparro.store.migrations import pending
from kasparro.store.pool import Database
from kasparro.store.runs import last_start
from kasparro.store.transfer.exporting import export
from kasparro.store.transfer.importing import import_export
from kasparro.store.transfer.manifest import Manifest, Progress
from kasparro.supervision import Supervisor
from kasparro.web import reports


@click.command()
@click.argument("run_id", metavar="RUN", type=click.IntRange(1, 2**63 - 1))
@as_json_option
def replay(run_id: int, as_json: bool) -> None:
    """Load the stored payloads of a run again, without upstream calls.

    Use it after a fix of the code that reads payloads: it corrects the tables, except where newer records
    have replaced those of RUN. The replay is itself a run, with the report and the exit codes of `etl`. The
    exit code is also 1 if there is no run RUN or none of its payloads is stored.
    """
    settings = load_settings()

    async def plan(database: Database) -> RunPlan:
        prepared = await prepare_replay(database, run_id)
        return prepared.sources, partial(
            Run,
            sources=prepared.sources,
            trigger="replay",
            fetched_at=prepared.fetched_at,
            assets=options_of(settings),
        )

    _run_and_exit(settings, plan, as_json=as_json)


@click.command()
@click.option(
    "--restored",
    is_flag=True,
    help="The database was restored from a backup: reject the cursors that clients have from before.",
)
@click.option("--citus", "distributes", is_flag=True, help="Distribute the tables over the nodes of Citus.")
def migrate(restored: bool, distributes: bool) -> None:
    """Apply pending migrations to the database."""
    settings = load_settings()

    async def work(database: Database) -> None:
        applied = await apply_migrations(database)
        for name in applied:
            out.print(f"applied {name}")
        if not applied:
            out.print("the schema is up to date")
        if restored:
            await end_cursors(database)
            out.print("clients must start again without a cursor")
        if distributes:
            distributed = await distribute(database)
            for name in distributed:
                out.print(f"distributed {name}")
            if not distributed:
                out.print("the tables are distributed already")

    exit_on_error(lambda: asyncio.run(with_database(settings, work)))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the object that /stats returns.")
def status(as_json: bool) -> None:
    """Show the leading coins, how fresh each source is, how the last run went, and when the next is due."""
    settings = load_settings()

    async def read(database: Database) -> Status:
        await _require_schema(database, settings)
        shown = settings
        if await is_demo(database):
            shown = msgspec.structs.replace(settings, interval=settings.demo_interval)
        led = await has_leader(database)
        last = await last_start(database)
        due = last + shown.interval if led and last and shown.interval else None
        async with database.reading() as connection:
            return Status(
                stats=await reports.stats(connection, shown, due),
                health=await reports.health(connection, shown.sources, shown.interval),
                leading=await leading_coins(connection),
                led=led,
            )

    found = exit_on_error(lambda: asyncio.run(with_database(settings, read)))
    if as_json:
        write_json(reports.encode(found.stats))
    else:
        print_status(found)


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.pass_context
def archives(context: click.Context, as_json: bool) -> None:
    """Show which archives are loaded, or take one back.

    The list shows each file, when it was loaded, how many records the database holds of it, of which coin and
    time, and whether the file has changed since or is gone.
    """
    if context.invoked_subcommand is not None:
        return
    settings = load_settings()

    async def read(database: Database) -> list[archives_output.ArchiveReport]:
        await _require_schema(database, settings)
        async with database.writing() as connection:
            files = await listed_files(connection, Archives.name)
        setting = registry.settings_of(settings, Archives.name).archives
        states = await file_states(setting, [file.known for file in files], datetime.now(UTC))
        return [archives_output.report(file, state) for file, state in zip(files, states, strict=True)]

    found = exit_on_error(lambda: asyncio.run(with_database(settings, read)))
    if as_json:
        write_json(reports.encode({"archives": found}))
    else:
        archives_output.print_archives(found)


@archives.command()
@click.argument("file", metavar="FILE")
@as_json_option
def forget(file: str, as_json: bool) -> None:
    """Take the records of an archive back.

    FILE is a name as `kasparro archives` shows it. Records that other files give as well stay, and where FILE
    hid the value of another file, that value returns. FILE is not loaded again until its content, its name or
    its overrides change. This is a run, with the report and the exit codes of `etl`. The exit code is also 1
    if no such file is loaded.
    """
    settings = load_settings()

    async def plan(database: Database) -> RunPlan:
        async with database.writing() as connection:
            name = find_name(await listed_names(connection, Archives.name), file)
        sources = [ForgottenArchive(name)]
        return sources, partial(Run, sources=sources, trigger="forget", assets=options_of(settings))

    _run_and_exit(settings, plan, as_json=as_json)


@click.command()
@click.option(
    "--explain",
    "meant",
    metavar="ID",
    required=True,
    help="An asset, an id of a source, or SOURCE/ID.",
)
@click.option(
    "--rules",
    "rules_file",
    type=click.Path(path_type=Path),
    help="Try this file in place of KASPARRO_ASSET_RULES.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def assets(meant: str, rules_file: Path | None, as_json: bool) -> None:
    """Show why rows are linked to an asset or not.

    For each row that ID means: its link, what the next run would change, and all evidence for and against
    each row of another source that resembles it. Nothing is written, so a file of rules can be tried.
    """
    settings = load_settings()

    async def read(database: Database) -> list[Explanation]:
        await _require_schema(database, settings)
        rules = load_rules(settings) if rules_file is None else read_rules(rules_file, registry.names())
        found = await explain_rows(database, meant, rules)
        if not found:
            raise KasparroError(f"no row has the asset or the id {meant}; /data?q=NAME finds rows by name")
        return found

    found = exit_on_error(lambda: asyncio.run(with_database(settings, read)))
    if as_json:
        write_json(reports.encode({"rows": found}))
    else:
        assets_output.show(out, found)


@click.command(name="export")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
def export_(folder: Path) -> None:
    """Export all state of the database into the folder DIR, as it is at one moment.

    The service may run meanwhile. If DIR has an export already, files whose rows have not changed are kept;
    if an export was interrupted, the next one continues it. Exit codes: 0, 1 if it failed, 2 for wrong
    settings.
    """
    settings = load_settings()
    work = partial(export, folder=folder, on_part=_print_part)
    manifest = exit_on_error(lambda: asyncio.run(with_database(settings, work)))
    _print_parts("exported", manifest, f"to {folder}")


@click.command(name="import")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
def import_(folder: Path) -> None:
    """Import an export from the folder DIR into an empty database.

    Each file is verified before and after it is loaded. If an import was interrupted, the next one continues
    it; until it is complete, the database cannot be used. Exit codes: 0, 1 if it failed, 2 for wrong
    settings, 3 if another import is in progress.
    """
    settings = load_settings()
    manifest = exit_on_error(
        lambda: asyncio.run(
            with_database(settings, partial(import_export, folder=folder, on_part=_print_part))
        )
    )
    _print_parts("imported", manifest, f"from {folder}")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", metavar="[OPTIONS OF PSQL]...", nargs=-1, type=click.UNPROCESSED)
def psql(arguments: tuple[str, ...]) -> None:
    """Open the database in psql, the terminal of PostgreSQL. The embedded server runs meanwhile.

    psql is that of the embedded PostgreSQL, or the one of this machine. Its exit code is that of psql.
    """
    settings = load_settings()

    async def run() -> int:
        async with database_url(settings, Supervisor()) as url:
            return await run_psql(url, arguments)

    sys.exit(exit_on_error(lambda: asyncio.run(run())))


def _print_part(done: Progress) -> None:
    kept = ", kept" if done.kept else ""
    out.print(f"{done.number}/{done.of} {done.part.file}: rows {done.part.rows:,}{kept}", soft_wrap=True)


def _print_parts(verb: str, manifest: Manifest, where: str) -> None:
    rows, size = sum(part.rows for part in manifest.parts), sum(part.bytes for part in manifest.parts)
    out.print(f"{verb} {rows:,} rows ({size:,} bytes) {where}", soft_wrap=True)


async def _require_schema(database: Database, settings: Settings) -> None:
    """Raise KasparroError if the schema is not up to date."""
    if missing := await pending(database):
        demo = settings.demo_home
        hint = ""
        if settings.database_url is None and demo.is_dir():
            hint = f"; the demo has a database of its own: set KASPARRO_HOME to {demo} for it"
        raise KasparroError(
            f"the database is not ready: {', '.join(missing)} not applied; run kasparro migrate{hint}"
        )


def _run_and_exit(
    settings: Settings, plan: Callable[[Database], Awaitable[RunPlan]], *, as_json: bool
) -> NoReturn:
    """Run once, print the report on stdout, and exit."""
    finished = exit_on_error(lambda: asyncio.run(run_once(settings, plan, progress=not as_json)))
    exit_with_report(finished, as_json=as_json)
