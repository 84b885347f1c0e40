"""The program `kasparro`: its commands by name, each imported when it is used."""

from importlib import import_module

import click

from kasparro import __version__, commit
from kasparro.importing import importing
from kasparro.sources import registry

# Most commands need few of the modules, and to import them all takes longer than most commands.
_COMMANDS = {
    "archives": "database_commands:archives",
    "assets": "database_commands:assets",
    "check": "check_command:check",
    "demo": "server_commands:demo",
    "etl": "etl_command:etl",
    "export": "database_commands:export_",
    "import": "database_commands:import_",
    "migrate": "database_commands:migrate",
    "psql": "database_commands:psql",
    "replay": "database_commands:replay",
    "serve": "server_commands:serve",
    "status": "database_commands:status",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if (place := _COMMANDS.get(cmd_name)) is None:
            return None
        module, _, name = place.partition(":")
        with importing():
            command: click.Command = getattr(import_module(f"kasparro.cli.{module}"), name)
        return command


def _settings_help() -> str:
    lines = ["\b", "Settings are environment variables:"]
    lines += [
        f"{variable.name}\n    {variable.meaning} (default: {variable.default})"
        for variable in registry.variables()
    ]
    return "\n".join(lines)


@click.group(cls=_Commands, epilog=_settings_help(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(
    __version__,
    prog_name="kasparro",
    message=f"%(prog)s %(version)s{f' (commit {commit()})' if commit() else ''}",
)
def main() -> None:
    """One self-hosted API for crypto market data: CoinPaprika, CoinGecko and CSV archives in one exact
    PostgreSQL table, served over HTTP."""
