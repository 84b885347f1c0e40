"""Users of an embedded PostgreSQL server, in this process and in others."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from kasparro.embedded.server import EmbeddedPostgres, EmbeddedPostgresError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux ends a server whose supervisor was killed")

# Uses the server until it reads a line, or is killed.
_USER_PROGRAM = """
import asyncio, sys
from pathlib import Path
import asyncpg
from kasparro.embedded.server import EmbeddedPostgres

async def main():
    async with EmbeddedPostgres(Path(sys.argv[1])) as postgres:
        connection = await asyncpg.connect(postgres.dsn)
        # Two concurrent CREATE TABLE IF NOT EXISTS can fail.
        await connection.execute("SELECT pg_advisory_lock(1)")
        await connection.execute("CREATE TABLE IF NOT EXISTS visit (id bigint GENERATED ALWAYS AS IDENTITY)")
        await connection.execute("INSERT INTO visit DEFAULT VALUES")
        await connection.close()
        print(postgres.dsn, flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


class User:
    """A process that uses the server of a home."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.dsn = ""

    async def entered(self) -> None:
        """Wait until the process uses the server."""
        assert self.process.stdout is not None
        self.dsn = (await self.process.stdout.readline()).decode().strip()
        assert self.dsn, "the process ended before it used the server"

    async def leave(self) -> None:
        """Make the process leave the server and exit."""
        await self.process.communicate(b"\n")
        assert self.process.returncode == 0


@asynccontextmanager
async def user(home: Path, python: str = sys.executable, **options: Any) -> AsyncIterator[User]:
    """A process that uses the server of a home; killed at the end of the block if it has not left."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        python, "-c", _USER_PROGRAM, str(home), stdin=pipe, stdout=pipe, **options
    )
    try:
        yield User(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def execute(dsn: str, statement: str) -> Any:
    """Run one statement in a connection of its own; returns its first value."""
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def server_pid(home: Path) -> int:
    """The process id of the server."""
    return int((home / "data" / "postmaster.pid").read_text().split()[0])


def supervisor_pid(home: Path) -> int:
    """The process id of the supervisor, which is the parent of the server."""
    return int(Path(f"/proc/{server_pid(home)}/stat").read_text().rpartition(")")[2].split()[1])


@asynccontextmanager
async def waiting_for_exit(pid: int) -> AsyncIterator[None]:
    """At the end of the block, wait until the process that has this id at its beginning is gone."""
    ended = asyncio.Event()
    handle = os.pidfd_open(pid)
    loop = asyncio.get_running_loop()
    loop.add_reader(handle, ended.set)
    try:
        yield
        async with asyncio.timeout(30):
            await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def server_is_gone(home: Path) -> bool:
    """Whether no process of the server is left."""
    return not EmbeddedPostgres(home)._server_runs()


async def start_and_leave(home: Path) -> None:
    """Start the server of a home, and stop it again."""
    async with EmbeddedPostgres(home):
        pass


async def start_error(home: Path) -> str:
    """The text of the error with which the server of a home does not start: one line."""
    with pytest.raises(EmbeddedPostgresError) as caught:
        await start_and_leave(home)
    text = str(caught.value)
    assert "\n" not in text
    return text
