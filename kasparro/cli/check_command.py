"""The command `check`."""

import asyncio
import json
import sys
from datetime import UTC, datetime

import click
import msgspec

from kasparro.cli import check_output
from kasparro.cli.common import FAILED, USAGE, fail
from kasparro.cli.terminal import out, write_json
from kasparro.errors import SourceError
from kasparro.sources.archives.checks import check_all


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--explain", is_flag=True, help="Show how each file was understood, column by column.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def check(files: tuple[str, ...], explain: bool, as_json: bool) -> None:
    """Show what archives would load and what would be rejected. Needs no database and writes nothing.

    FILE is a file, a folder or a glob. Exit codes: 0 if everything would be loaded, 1 if a file or a row
    would be rejected, 2 for wrong usage.
    """
    try:
        checked = asyncio.run(check_all(files, datetime.now(UTC)))
    except SourceError as error:
        fail(str(error), USAGE)
    if as_json:
        write_json(json.dumps({"files": msgspec.to_builtins(checked)}).encode())
    else:
        check_output.show(out, checked, explain=explain)
    sys.exit(0 if all(file.whole for file in checked) else FAILED)
