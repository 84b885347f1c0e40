"""The command `etl`. Most of what it needs is imported while the processes of its sources start."""

import asyncio
from typing import TYPE_CHECKING

import click

from kasparro.cli.common import as_json_option, exit_on_error, load_settings
from kasparro.importing import importing
from kasparro.sources import registry
from kasparro.sources.base import processes_started

if TYPE_CHECKING:
    from kasparro.web.schemas import RunReport


@click.command()
@click.option(
    "--source",
    "names",
    type=click.Choice(registry.names()),
    multiple=True,
    help="Run this source; repeatable.",
)
@as_json_option
def etl(names: tuple[str, ...], as_json: bool) -> None:
    """Run the sources once.

    Exit codes: 0 if every source succeeded, 1 if one did not, 2 for wrong usage or settings, 3 if another
    run is in progress.
    """
    settings = load_settings()
    sources = registry.build(settings, dict.fromkeys(names) or settings.sources)

    async def run() -> "RunReport":
        async with processes_started(sources):
            with importing():
                from kasparro.cli.foreground_run import run_sources  # noqa: PLC0415 - see above
            return await run_sources(settings, sources, progress=not as_json)

    finished = exit_on_error(lambda: asyncio.run(run()))

    from kasparro.cli.report_output import exit_with_report  # noqa: PLC0415 - imported by then

    exit_with_report(finished, as_json=as_json)
