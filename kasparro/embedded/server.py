"""Gives Kasparro a PostgreSQL of its own where DATABASE_URL names none.

    async with EmbeddedPostgres(home) as postgres:
        pool = await asyncpg.create_pool(postgres.dsn)

The first process to enter starts the server, others on the same home join it, and the last to leave stops
it, whichever that is. No process owns the server: a supervisor (`supervisor.py`, which tells how)
runs it while any user holds `users.lock`. So a user may leave, crash or be killed at any time without harm to
the others. A server that died is brought back by `ensure()`, from whatever it left behind.

The server listens on a Unix socket in a folder closed to other accounts, never on TCP. It asks the kernel who
connects and lets in the account that owns it and root, as the superuser `kasparro`.

In the home: `data` (PostgreSQL's), `postgres.log`, `socket` (the folder of the socket), and three locks:
`start.lock` (one process at a time starts or leaves), `users.lock` (shared by users), `server.lock` (held by
the processes of the server).
"""

import asyncio
import contextlib
import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Literal
from urllib.parse import quote

import asyncpg

from kasparro.concurrency import timeout
from kasparro.embedded import supervisor
from kasparro.embedded.programs import EmbeddedPostgresError, Programs, find_programs, unprivileged_programs

__all__ = ["DATABASE", "EmbeddedPostgres", "EmbeddedPostgresError", "Programs", "find_programs"]

DATABASE = "kasparro"

# Longer than any sound start. Crash recovery, which the server answers for, does not count.
START_PATIENCE = 60.0

# Longer than the supervisor's whole way of stopping.
STOP_PATIENCE = 80.0

# The server is waited for at these intervals: a warm one is up in 50 ms, a cold one in 600.
FIRST_PAUSE = 0.005
LONGEST_PAUSE = 0.1

ServerState = Literal["alive", "stalled", "restarted"]


class EmbeddedPostgres:
    """The use of the PostgreSQL server of one home; a context manager that starts or joins it."""

    def __init__(self, home: Path) -> None:
        self._home = home.absolute()
        self._users: int | None = None
        self._recovering = False
        self._known_start: tuple[str, str] | None = None

    async def __aenter__(self) -> "EmbeddedPostgres":
        await asyncio.to_thread(_prepare, self._home)
        async with _locked(self._home / "start.lock", fcntl.LOCK_EX):
            try:
                # Free but for the moments in which a supervisor stops the server that everybody left.
                async with (
                    timeout(STOP_PATIENCE),
                    _locked(self._home / "users.lock", fcntl.LOCK_SH) as users,
                ):
                    self._users = os.dup(users)
            except TimeoutError:
                raise EmbeddedPostgresError(
                    f"the PostgreSQL server in {self._home} is being stopped and does not end; see {self.log}"
                ) from None
            try:
                await self._bring_up()
            except BaseException:
                self._release()
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave; the last one out waits until the server has stopped, so that the process may end at once."""
        try:
            async with timeout(STOP_PATIENCE), _locked(self._home / "start.lock", fcntl.LOCK_EX):
                self._release()
                pause = FIRST_PAUSE
                while self._server_lives() and not self._others_use_it():
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
        except TimeoutError:
            # The supervisor goes on stopping it; what was committed is safe either way.
            pass
        finally:
            self._release()

    @property
    def dsn(self) -> str:
        """A URL for asyncpg and libpq; it may change when `ensure()` had to start the server anew."""
        folder = self._socket_folder()
        if folder is None:
            raise EmbeddedPostgresError(f"the PostgreSQL server in {self._home} is not running")
        port, user = supervisor.PORT, supervisor.USER
        return f"postgresql://{user}@/{DATABASE}?host={quote(str(folder))}&port={port}"

    @property
    def log(self) -> Path:
        """The server's log; when it grows large the one before is kept beside it."""
        return self._home / "postgres.log"

    async def ensure(self) -> ServerState:
        """Return when the server answers: at once if it does (one connection), else after waiting for it
        (`stalled`) or, if it had ended, after starting it (`restarted`).
        """
        if self._users is None:
            raise RuntimeError("ensure() is for those who entered the context")
        if await self._answers():
            self._known_start = self._start_of_server()
            return "alive"
        async with _locked(self._home / "start.lock", fcntl.LOCK_EX):
            await self._bring_up()
        before, self._known_start = self._known_start, self._start_of_server()
        return "stalled" if before is not None and before == self._known_start else "restarted"

    def _start_of_server(self) -> tuple[str, str] | None:
        # The process id and the start time of the server, from the file that it keeps
        # (https://www.postgresql.org/docs/current/storage-file-layout.html).
        try:
            lines = (self._home / "data" / "postmaster.pid").read_text().splitlines()
            return lines[0], lines[2]
        except (OSError, IndexError):
            return None

    async def _bring_up(self) -> None:
        """Wait until the server answers, starting it as soon as none is there. Called under `start.lock`."""
        now = asyncio.get_running_loop().time
        deadline = now() + START_PATIENCE
        pause = FIRST_PAUSE
        supervisor: _Report | None = None
        try:
            while not await self._answers():
                if supervisor is None:
                    supervisor = await self._launched()
                elif (failure := supervisor.failure()) is not None:
                    raise EmbeddedPostgresError(
                        failure or f"PostgreSQL was killed at its start; see {self.log}"
                    )
                if self._recovering:
                    deadline = now() + START_PATIENCE
                if now() > deadline:
                    raise EmbeddedPostgresError(
                        f"the PostgreSQL server in {self._home} runs but does not answer; if another machine"
                        f" or container uses this KASPARRO_HOME too, give each its own; see {self.log}"
                    )
                await asyncio.sleep(pause)
                pause = min(1.5 * pause, LONGEST_PAUSE)
        finally:
            if supervisor is not None:
                supervisor.close()

    async def _launched(self) -> "_Report | None":
        launch = asyncio.ensure_future(asyncio.to_thread(self._launch))
        try:
            return await asyncio.shield(launch)
        except asyncio.CancelledError:
            # A thread cannot be stopped, and what it has opened is ours to close.
            if (report := await launch) is not None:
                report.close()
            raise

    def _launch(self) -> "_Report | None":
        """Start a supervisor, which takes over the lock of the server; None when a server has it."""
        lock = _open(self._home / "server.lock")
        try:
            if not _try_lock(lock, fcntl.LOCK_EX):
                return None
            programs = find_programs()
            if os.geteuid() == 0:
                programs = unprivileged_programs(programs)
            told, teller = os.pipe()
            command = [sys.executable, "-I", "-S", supervisor.__file__]
            command += [str(self._home), str(programs.bin), str(programs.major), str(lock)]
            try:
                # Returns when the supervisor has forked itself away, after some 20 ms.
                subprocess.run(  # noqa: S603 - this Python, our own file
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=teller,
                    stderr=teller,
                    pass_fds=(lock,),
                    start_new_session=True,
                    cwd="/",
                    check=False,  # why it failed stands in the report
                )
            except BaseException:
                os.close(told)
                raise
            finally:
                os.close(teller)
            return _Report(told)
        finally:
            os.close(lock)

    async def _answers(self) -> bool:
        """Whether the server lets us into the database, which is made when missing."""
        self._recovering = False
        folder = self._socket_folder()
        if folder is None:
            return False
        try:
            try:
                await self._visit(folder, DATABASE)
            except asyncpg.InvalidCatalogNameError:
                # The only statement outside of sql/: all others run inside the database that it makes.
                with contextlib.suppress(asyncpg.DuplicateDatabaseError):
                    await self._visit(folder, "postgres", f"CREATE DATABASE {DATABASE}")
        except asyncpg.OperatorInterventionError:
            self._recovering = True
            return False
        except (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError):
            return False
        except asyncpg.TooManyConnectionsError:
            return True
        except asyncpg.PostgresError as error:
            raise EmbeddedPostgresError(
                f"PostgreSQL in {self._home} refuses us: {error}; see {self.log}"
            ) from error
        return True

    @staticmethod
    async def _visit(folder: Path, database: str, statement: str | None = None) -> None:
        connection = await asyncpg.connect(
            host=str(folder),
            port=supervisor.PORT,
            user=supervisor.USER,
            database=database,
            ssl=False,
            timeout=10,
        )
        try:
            if statement is not None:
                await connection.execute(statement)
        finally:
            await connection.close()

    def _socket_folder(self) -> Path | None:
        try:
            folder = Path(os.fsdecode((self._home / "socket").read_bytes()))
            owners = {os.geteuid(), (self._home / "data").stat().st_uid}
            status = folder.lstat()
        except OSError:
            return None
        # After a restart of the machine, a name in /tmp may be anybody's; a false server is not spoken to.
        private = stat.S_ISDIR(status.st_mode) and status.st_uid in owners and not status.st_mode & 0o077
        return folder if private else None

    def _server_lives(self) -> bool:
        lock = _open(self._home / "server.lock")
        try:
            return not _try_lock(lock, fcntl.LOCK_SH)
        finally:
            os.close(lock)

    def _others_use_it(self) -> bool:
        users = _open(self._home / "users.lock")
        try:
            # Exclusively ours: nobody is left. Not even shared: the supervisor has it, stopping the server.
            return not _try_lock(users, fcntl.LOCK_EX) and _try_lock(users, fcntl.LOCK_SH)
        finally:
            os.close(users)

    def _release(self) -> None:
        if self._users is not None:
            # Closed, not unlocked: a forked child of ours that works on keeps the server.
            os.close(self._users)
            self._users = None


class _Report:
    """What the supervisor says before it ends, read without waiting."""

    def __init__(self, pipe: int) -> None:
        os.set_blocking(pipe, False)
        self._pipe = pipe
        self._told = b""

    def failure(self) -> str | None:
        """The last line that a supervisor left (of a traceback the telling one); None while it runs."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._pipe, 65_536):
                self._told += chunk
            return self._told.decode(errors="replace").strip().rpartition("\n")[2]
        return None

    def close(self) -> None:
        os.close(self._pipe)


def _prepare(home: Path) -> None:
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("start.lock", "users.lock", "server.lock"):
            os.close(_open(home / name))
    except OSError as error:
        raise EmbeddedPostgresError(
            f"KASPARRO_HOME {home} cannot hold a database: {error.strerror}; choose a folder that this user"
            " can write, or set DATABASE_URL"
        ) from error


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _try_lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.asynccontextmanager
async def _locked(path: Path, kind: int) -> AsyncIterator[int]:
    """Hold a lock between processes. The kernel tells no event loop when it is free, so it is asked again."""
    file = _open(path)
    try:
        pause = FIRST_PAUSE
        while True:
            if _try_lock(file, kind):
                break
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        yield file
    finally:
        os.close(file)
