"""Point-in-time restore, as docs/operations.md describes it, and what clients of before see after it."""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from kasparro.embedded.programs import find_programs
from kasparro.embedded.server import EmbeddedPostgres
from kasparro.store.migrations import migrate
from kasparro.store.pool import Database
from tests.support.batches import load_batches, make_batch, make_record
from tests.support.commands import run_command
from tests.support.documents import blocks, section
from tests.support.memory import server_folder
from tests.support.postgres import Server, servers, unprivileged_account
from tests.support.runs import table_contents
from tests.web.conftest import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="these servers are for Linux"),
]

DAY = datetime(2026, 3, 1, tzinfo=UTC)
# The settings in the docs, where the archive is in /backup/wal: of a server with an archive, of a restore,
# and more for the embedded server.
ARCHIVING, RESTORING, EMBEDDED = blocks(section("docs/operations.md", "Backups"), "ini")


class OwnServer:
    """A PostgreSQL server that the operator runs."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server = server
        self.folder = folder
        self.data = server.folder
        self.more_settings = ""

    @property
    def url(self) -> str:
        return self._server.url()

    @property
    def backup_options(self) -> Sequence[str]:
        return ("-d", self._server.url("postgres", "postgres"))

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.end()


class EmbeddedServer:
    """The embedded PostgreSQL of a home."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "home" / "data"
        self.more_settings = EMBEDDED
        self._server = EmbeddedPostgres(folder / "home")

    @property
    def url(self) -> str:
        return self._server.dsn

    @property
    def backup_options(self) -> Sequence[str]:
        return ("-d", self._server.dsn)

    async def start(self) -> None:
        await self._server.__aenter__()

    async def stop(self) -> None:
        await self._server.__aexit__(None, None, None)


AnyServer = OwnServer | EmbeddedServer


@asynccontextmanager
async def own_server() -> AsyncIterator[AnyServer]:
    async with servers() as installation:
        yield OwnServer(await installation.primary(), installation.folder)


@asynccontextmanager
async def embedded_server() -> AsyncIterator[AnyServer]:
    folder = server_folder()
    folder.chmod(0o755)
    server = EmbeddedServer(folder)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
        shutil.rmtree(folder)


def add_settings(server: AnyServer, settings: str, **values: str) -> None:
    """Append settings of the docs to the configuration, with the folder of this test."""
    settings = settings.replace("/backup/", f"{server.folder}/")
    for name, value in values.items():
        settings = "\n".join(
            f"{name} = '{value}'" if line.startswith(f"{name} =") else line for line in settings.splitlines()
        )
    with (server.data / "postgresql.auto.conf").open("a") as file:
        file.write(f"{settings}\n")


async def load(url: str, day: int, *names: str) -> None:
    """Load a record of each of these coins."""
    async with Database(url) as database:
        records = (make_record(name, DAY + timedelta(days=day)) for name in names)
        await load_batches(database, make_batch(*records))


async def get(client: aiohttp.ClientSession, path: str, **headers: str) -> tuple[int, Any, str]:
    """The status, the body and the entity tag of a response."""
    async with client.get(path, headers=headers) as response:
        body = await response.json() if response.status != 304 else None
        return response.status, body, response.headers.get("ETag", "")


@pytest.mark.parametrize("server_of", [own_server, embedded_server])
async def test_restored_database_is_as_it_was_and_cursors_of_the_lost_future_end(server_of: Any) -> None:
    async with server_of() as server:
        archive, base = server.folder / "wal", server.folder / "base"
        archive.mkdir(mode=0o777)
        archive.chmod(0o777)
        add_settings(server, ARCHIVING + server.more_settings)
        await server.stop()
        await server.start()
        async with Database(server.url) as database:
            await migrate(database)
        await load(server.url, 0, "a", "b")
        await base_backup(server, base)
        await load(server.url, 1, "a")
        wanted, moment = await table_contents(server.url), await now(server.url)
        await load(server.url, 2, "a", "b", "c")
        async with serving(server.url) as client:
            _, page, tag = await get(client, "/data?limit=1")
        cursor = page["pagination"]["next_cursor"]
        await archive_all(server.url, archive)

        await server.stop()
        server.data.rename(server.folder / "broken")
        shutil.copytree(base, server.data, symlinks=True)
        add_settings(server, RESTORING, recovery_target_time=moment)
        (server.data / "recovery.signal").touch()
        give_to_server(server)
        await server.start()
        await promoted(server.url)
        assert await table_contents(server.url) == wanted
        code, output, _ = await run_command("migrate", "--restored", DATABASE_URL=server.url)
        assert (code, output) == (
            0,
            "the schema is up to date\nclients must start again without a cursor\n",
        )

        # The lost data version is given again, to other data.
        await load(server.url, 3, "d")
        async with serving(server.url) as client:
            status, problem, _ = await get(client, f"/data?limit=1&cursor={cursor}")
            assert (status, problem["parameter"]) == (400, "cursor")
            status, page, new_tag = await get(client, "/data?limit=1", **{"If-None-Match": tag})
            assert status == 200
            assert page["pagination"]["total"] == 3
            assert (await get(client, "/data?limit=1", **{"If-None-Match": new_tag}))[0] == 304


async def base_backup(server: AnyServer, folder: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(str(find_programs().path("pg_basebackup")), "-D", str(folder), "--checkpoint=fast"),
        *server.backup_options,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()


async def now(url: str) -> str:
    """The present moment of the server, as text."""
    connection = await asyncpg.connect(url)
    moment: str = await connection.fetchval("SELECT clock_timestamp()::text")
    await connection.close()
    return moment


async def archive_all(url: str, archive: Path) -> None:
    """Wait until all of the write-ahead log is in the archive, as it is after `archive_timeout`."""
    superuser = url.replace("kasparro@127", "postgres@127")
    connection = await asyncpg.connect(superuser)
    last = await connection.fetchval("SELECT pg_walfile_name(pg_switch_wal())")
    await connection.close()
    async with asyncio.timeout(60):
        while not (archive / last).exists():  # noqa: ASYNC110 - another program writes it
            await asyncio.sleep(0.05)


def give_to_server(server: AnyServer) -> None:
    """Kasparro does this itself with the data of the embedded server."""
    if isinstance(server, OwnServer) and (account := unprivileged_account()):
        for path in (server.data, *server.data.rglob("*")):
            os.chown(path, account["user"], account["group"], follow_symlinks=False)


async def promoted(url: str) -> None:
    """Wait until the server has restored everything and accepts writes."""
    async with asyncio.timeout(60):
        while True:
            connection = await asyncpg.connect(url)
            recovering = await connection.fetchval("SELECT pg_is_in_recovery()")
            await connection.close()
            if not recovering:
                return
            await asyncio.sleep(0.05)
