"""PostgreSQL servers that tests may kill, pause, fill up and fail over; Linux only."""

import asyncio
import os
import pwd
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from kasparro.embedded.programs import Programs, find_programs, unprivileged_programs
from tests.support.memory import server_folder

OWNER = "postgres"
USER = "kasparro"
# `fsync = off` is safe here: only processes crash, never the machine.
CONFIGURATION = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
fsync = off
max_connections = 40
shared_buffers = 32MB
max_wal_senders = 4
wal_level = replica
hot_standby = on
autovacuum_naptime = 5s
log_line_prefix = '%m [%p] %u %a '
timezone = 'UTC'
log_timezone = 'UTC'
"""


def free_port() -> int:
    """A port on which no process listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Server:
    """A server on its own port, with the superuser `postgres` and the ordinary role `kasparro`."""

    def __init__(self, folder: Path, programs: Programs) -> None:
        self.folder = folder
        self.port = free_port()
        self._programs = programs
        self._process: asyncio.subprocess.Process | None = None

    def url(self, database: str = USER, user: str = USER, port: int | None = None) -> str:
        """The URL of a database. `port` is that of a proxy, if there is one."""
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/{database}"

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    async def create(self) -> None:
        """Create the data directory."""
        await self._run("initdb", f"--username={OWNER}", "--auth=trust", "--encoding=UTF8", "--locale=C")
        self._configure()

    async def copy(self, primary: "Server") -> None:
        """Create the data directory of a standby, from a running primary."""
        # `unprivileged_programs` does not copy client programs.
        command = (
            find_programs().path("pg_basebackup"),
            "-D",
            self.folder,
            "-d",
            primary.url("postgres", OWNER),
        )
        await _run_command(*map(str, command), "--write-recovery-conf", "--checkpoint=fast")
        _own(self.folder)
        self._configure()

    def _configure(self) -> None:
        with (self.folder / "postgresql.conf").open("a") as file:
            file.write(f"{CONFIGURATION}port = {self.port}\n")

    async def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(str(self._programs.path("postgres")), "-D", str(self.folder)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **unprivileged_account(),
            )
        async with asyncio.timeout(60):
            while not await self._answers():
                if self._process.returncode is not None:
                    raise RuntimeError(f"PostgreSQL did not start: {self.log.read_text()[-2_000:]}")
                await asyncio.sleep(0.02)

    async def _answers(self) -> bool:
        try:
            async with self.admin("postgres") as connection:
                await connection.execute("SELECT 1")
        except (OSError, asyncpg.PostgresError):
            return False
        return True

    async def end(self, number: signal.Signals = signal.SIGINT) -> None:
        """End the server: SIGINT is a fast shutdown, SIGQUIT one without a checkpoint, SIGKILL a crash."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        children = _children(process.pid)
        process.send_signal(number)
        await process.wait()
        # The children of a killed server exit a little later. Only then can the server start again.
        while any(_alive(child) for child in children):  # noqa: ASYNC110 - not ours to wait for
            await asyncio.sleep(0.01)

    def freeze(self) -> None:
        """Pause all of its processes with SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue all of its processes."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            for pid in (self._process.pid, *_children(self._process.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    @asynccontextmanager
    async def admin(self, database: str = USER) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
        """A connection as superuser."""
        connection = await asyncpg.connect(
            self.url(database, OWNER), timeout=10, server_settings={"application_name": "test"}
        )
        try:
            yield connection
        finally:
            await connection.close(timeout=5)

    async def move_to(self, disk: "Disk") -> None:
        """Move the role's database to this disk. The database must have no connections."""
        async with self.admin("postgres") as connection:
            await connection.execute(f"CREATE TABLESPACE small LOCATION '{disk.folder / 'space'}'")
            await connection.execute(f"ALTER DATABASE {USER} SET TABLESPACE small")

    async def _run(self, program: str, *arguments: str) -> None:
        self.folder.mkdir()
        _own(self.folder)
        await _run_command(
            str(self._programs.path(program)),
            "-D",
            str(self.folder),
            *arguments,
            "--no-sync",
            **unprivileged_account(),
        )


@asynccontextmanager
async def servers(programs: Programs | None = None) -> AsyncIterator["Servers"]:
    """Servers that end with the block, by default of the embedded PostgreSQL's programs."""
    # Not a folder of pytest, which an unprivileged account cannot enter.
    folder = server_folder()
    folder.chmod(0o755)
    started = Servers(folder, programs or find_programs())
    try:
        yield started
    finally:
        for server in started.all:
            server.thaw()
            await server.end(signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)


class Servers:
    """The servers of one test."""

    def __init__(self, folder: Path, found: Programs) -> None:
        self.folder = folder
        self.all: list[Server] = []
        self._made = 0
        self._programs = unprivileged_programs(found) if os.geteuid() == 0 else found

    async def primary(self) -> Server:
        """A new running server with an empty database that the role owns."""
        server = self._next()
        await server.create()
        await server.start()
        async with server.admin("postgres") as connection:
            await connection.execute(f"CREATE ROLE {USER} LOGIN")
            await connection.execute(f"CREATE DATABASE {USER} OWNER {USER}")
        return server

    async def standby(self, primary: Server, port: int | None = None) -> Server:
        """A new running hot standby; on this port, in place of another server."""
        server = self._next()
        server.port = port or server.port
        await server.copy(primary)
        await server.start()
        return server

    def _next(self) -> Server:
        self._made += 1
        server = Server(self.folder / f"server-{self._made}", self._programs)
        self.all.append(server)
        return server


class Disk(NamedTuple):
    """A small disk for a database, without the server's log. `missing` says why there is none."""

    folder: Path
    missing: str | None

    def fill(self) -> None:
        """Fill the disk completely."""
        with suppress(OSError), (self.folder / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(1 << 20))

    def clear(self) -> None:
        """Free the space again."""
        (self.folder / "filler").unlink(missing_ok=True)


@asynccontextmanager
async def small_disk(megabytes: int) -> AsyncIterator[Disk]:
    """A small disk in memory, if this account may mount one. Its servers must end before the block ends."""
    # A folder that the account of a server can enter.
    folder = Path(tempfile.mkdtemp(prefix="kasparro-disk-", dir="/tmp"))
    missing: str | None = "only root may mount a small disk"
    if os.geteuid() == 0:
        try:
            await _run_command("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder))
            missing = None
        except RuntimeError as error:
            missing = str(error)
    try:
        if missing is None:
            (folder / "space").mkdir()
            _own(folder / "space")
            folder.chmod(0o755)
        yield Disk(folder, missing)
    finally:
        if missing is None:
            await _run_command("umount", str(folder))
        folder.rmdir()


def _own(folder: Path) -> None:
    """Make the account that runs the servers the owner of a folder."""
    if account := unprivileged_account():
        for path in (folder, *folder.rglob("*")):
            os.chown(path, account["user"], account["group"], follow_symlinks=False)
    folder.chmod(0o700)


def unprivileged_account() -> dict[str, Any]:
    # PostgreSQL never runs as root.
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


async def _run_command(*command: str, **options: Any) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd="/", **options
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed: {output.decode()}")


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return found


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
