"""Runs psql on the database of the settings, without its password among the arguments."""

import asyncio
import os
import signal
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from kasparro.embedded.programs import find_client
from kasparro.errors import SettingsError


async def run_psql(url: str, arguments: Sequence[str]) -> int:
    """Run psql until it ends; returns its exit code. Raises EmbeddedPostgresError if it is not installed."""
    bare, password = without_password(url)
    environment = {**os.environ, **({"PGPASSWORD": password} if password is not None else {})}
    process = await asyncio.create_subprocess_exec(find_client("psql"), bare, *arguments, env=environment)
    # psql handles Ctrl-C, which the terminal sends to both processes.
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
    return await process.wait()


def without_password(url: str) -> tuple[str, str | None]:
    """A URL without its password, and the password: the list of processes shows arguments to everybody.

    Raises SettingsError if the URL has a password that psql only takes as an argument.
    """
    parts = urlsplit(url)
    # libpq decodes only %-escapes, so the rest of the query stays as it is.
    query = [(pair.partition("=")[0], pair) for pair in parts.query.split("&") if pair]
    if any(name == "sslpassword" for name, _ in query):
        raise SettingsError(
            "DATABASE_URL has sslpassword, which the list of processes would show: use a key without one"
        )
    login, at, hosts = parts.netloc.rpartition("@")
    user, colon, password = login.partition(":")
    given = [pair.partition("=")[2] for name, pair in query if name == "password"]
    rest = "&".join(pair for name, pair in query if name != "password")
    bare = f"{parts.scheme}://{user}{at}{hosts}{parts.path}{'?' if rest else ''}{rest}"
    if given:
        password = given[-1]
    return bare, unquote(password) if given or colon else None
