"""PgBouncer in front of a PostgreSQL of the tests."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import asyncpg
import pytest

from tests.support.postgres import USER, Server, free_port, unprivileged_account

# Debian installs it where only root's path leads.
PROGRAM = os.environ.get("KASPARRO_TEST_PGBOUNCER") or shutil.which(
    "pgbouncer", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
)
needs_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason="PgBouncer (Debian: pgbouncer) is not installed")

Mode = Literal["session", "transaction", "statement"]


class PgBouncer:
    """A running PgBouncer with one pool for the database of a server."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.port = free_port()
        self._server = server
        self._file = folder / f"pgbouncer-{self.port}.ini"
        self._log = self._file.with_suffix(".log")
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """The URL of the server's database through PgBouncer."""
        return self._server.url(port=self.port)

    def configure(self, mode: Mode, **settings: object) -> None:
        """Write the configuration file."""
        given = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": mode,
            "admin_users": USER,
            **settings,
        }
        lines = [f"{name} = {value}" for name, value in given.items()]
        target = f"host=127.0.0.1 port={self._server.port} dbname={USER} user={USER}"
        self._file.write_text("\n".join(["[databases]", f"{USER} = {target}", "[pgbouncer]", *lines, ""]))

    async def start(self) -> None:
        """Start it and wait until it accepts connections."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(str(PROGRAM), str(self._file)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **unprivileged_account(),
            )
        async with asyncio.timeout(20):
            while True:
                try:
                    connection = await asyncpg.connect(self.url, statement_cache_size=0)
                except (OSError, asyncpg.PostgresError):
                    if self._process.returncode is not None:
                        raise RuntimeError(f"PgBouncer did not start: {self._log.read_text()}") from None
                    await asyncio.sleep(0.02)
                else:
                    await connection.close()
                    return

    async def reload(self) -> None:
        """Read the configuration file again."""
        console = await asyncpg.connect(self._server.url("pgbouncer", port=self.port), statement_cache_size=0)
        await console.execute("RELOAD")
        console.terminate()

    async def end(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()


@asynccontextmanager
async def pgbouncer(server: Server, mode: Mode, **settings: object) -> AsyncIterator[PgBouncer]:
    """A PgBouncer in front of a server while the block runs."""
    pooler = PgBouncer(server.folder.parent, server)
    pooler.configure(mode, **settings)
    try:
        await pooler.start()
        yield pooler
    finally:
        await pooler.end()
