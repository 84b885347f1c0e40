"""What the commands share: settings, exit codes and error messages."""

import asyncio
import os
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

import click
import msgspec
import structlog

from kasparro import logs, tracing
from kasparro.assets.rules import load_rules
from kasparro.cli.terminal import err
from kasparro.errors import KasparroError, RunInProgress, SettingsError, WrongDatabase
from kasparro.settings import Settings
from kasparro.sources import registry

log = structlog.get_logger()
T = TypeVar("T")

# Exit codes.
FAILED, USAGE, BUSY = 1, 2, 3

as_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print only the report of the run, as /runs/{id} returns it."
)


def load_settings(host: str | None = None, port: int | None = None) -> Settings:
    """The settings from the environment and these options. Configures logging."""
    try:
        settings = registry.load_settings(os.environ)
        load_rules(settings)
    except SettingsError as error:
        fail(str(error), USAGE)
    options = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = msgspec.structs.replace(settings, **options)
    logs.configure(settings)
    tracing.configure()
    for source in registry.broken():
        log.error("source_unavailable", source=source.name, package=source.package, reason=source.reason)
    for name, similar in registry.unknown_variables(os.environ).items():
        log.warning("unknown_setting", name=name, **({"did_you_mean": similar} if similar else {}))
    return settings


def exit_on_error(work: Callable[[], T]) -> T:
    """Do this work. If it fails for an expected reason, print one line and exit."""
    try:
        return work()
    except RunInProgress as error:
        fail(str(error), BUSY)
    except (SettingsError, WrongDatabase) as error:
        fail(str(error), USAGE)
    except KasparroError as error:
        fail(str(error), FAILED)
    except asyncio.CancelledError:
        fail("stopped before the run was complete", FAILED)
    except Exception as error:
        # Commands without a database, and those that have not begun to use it, need not import asyncpg.
        from asyncpg import PostgresError  # noqa: PLC0415

        if isinstance(error, PostgresError):
            fail(f"PostgreSQL rejected a statement: {error}", FAILED)
        raise


def fail(text: str, code: int) -> NoReturn:
    err.print(f"kasparro: {text}", soft_wrap=True)
    sys.exit(code)
