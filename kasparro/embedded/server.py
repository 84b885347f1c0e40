"""Starts, joins and leaves the embedded PostgreSQL server of a home folder.

    async with EmbeddedPostgres(home) as postgres:
        pool = await asyncpg.create_pool(postgres.dsn)

The processes that use a server are its users. The first user starts the server, others with the same home
join it, and the last user that leaves stops it. No user owns the server: a supervisor process
(`supervisor.py`) runs it while any user holds `users.lock`. Therefore a user may leave, crash or be killed at
any time without harm to the others. `ensure()` restarts a server that died.

The server listens on a Unix socket in a private folder, never on TCP. It uses peer authentication: the
account that owns the server, the account that started it, and root may connect, as the superuser `kasparro`.

The home contains `data` (the data directory), `postgres.log`, `socket` (a file with the path of the socket's
folder) and three locks: `start.lock` (one process at a time starts or leaves), `users.lock` (shared by all
users) and `server.lock` (held by the processes of the server).
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

# Longer than any healthy start. Time in crash recovery, which the server reports, does not count.
START_TIMEOUT_S = 60.0

# Longer than all the steps in which the supervisor stops the server.
STOP_TIMEOUT_S = 80.0

# Pauses between attempts to connect. A start takes 50 ms with warm caches and 600 ms without.
FIRST_PAUSE_S = 0.005
LONGEST_PAUSE_S = 0.1

ServerState = Literal["alive", "stalled", "restarted"]


class EmbeddedPostgres:
    """A context manager in which the PostgreSQL server of a home runs. It starts or joins the server."""

    def __init__(self, home: Path) -> None:
        self._home = home.absolute()
        self._users_lock: int | None = None
        self._recovering = False
        self._known_server: tuple[str, str] | None = None

    async def __aenter__(self) -> "EmbeddedPostgres":
        # Not in a thread: a cancelled caller would leave while the thread still has files open.
        _create_home(self._home)
        async with _locked(self._home / "start.lock", fcntl.LOCK_EX):
            try:
                # The lock is free unless a supervisor is stopping a server without users.
                async with (
                    timeout(STOP_TIMEOUT_S),
                    _locked(self._home / "users.lock", fcntl.LOCK_SH) as users,
                ):
                    self._users_lock = os.dup(users)
            except TimeoutError:
                raise EmbeddedPostgresError(
                    f"the PostgreSQL server in {self._home} is stopping and does not end; see {self.log}"
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
        """Leave. The last user waits until the server has stopped, so that its process may exit at once."""
        try:
            async with timeout(STOP_TIMEOUT_S), _locked(self._home / "start.lock", fcntl.LOCK_EX):
                self._release()
                pause = FIRST_PAUSE_S
                while self._server_runs() and not self._has_other_users():
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE_S)
        except TimeoutError:
            # The supervisor continues to stop the server. Committed data are safe in any case.
            pass
        finally:
            self._release()

    @property
    def dsn(self) -> str:
        """A URL for asyncpg and libpq. It may change when `ensure()` restarts the server."""
        folder = self._socket_folder()
        if folder is None:
            raise EmbeddedPostgresError(f"the PostgreSQL server in {self._home} is not running")
        port, user = supervisor.PORT, supervisor.USER
        return f"postgresql://{user}@/{DATABASE}?host={quote(str(folder))}&port={port}"

    @property
    def log(self) -> Path:
        """The server's log. A large log is renamed to `postgres.log.1` and a new one started."""
        return self._home / "postgres.log"

    async def ensure(self) -> ServerState:
        """Return when the server accepts connections.

        `alive`: it accepted one at once. `stalled`: it did so after a while. `restarted`: it had ended and
        was started again.
        """
        if self._users_lock is None:
            raise RuntimeError("ensure() was called outside the context")
        if await self._answers():
            self._known_server = self._server_identity()
            return "alive"
        async with _locked(self._home / "start.lock", fcntl.LOCK_EX):
            await self._bring_up()
        before, self._known_server = self._known_server, self._server_identity()
        return "stalled" if before is not None and before == self._known_server else "restarted"

    def _server_identity(self) -> tuple[str, str] | None:
        # The process id and the start time of the server, from postmaster.pid
        # (https://www.postgresql.org/docs/current/storage-file-layout.html).
        try:
            lines = (self._home / "data" / "postmaster.pid").read_text().splitlines()
            return lines[0], lines[2]
        except (OSError, IndexError):
            return None

    async def _bring_up(self) -> None:
        """Start the server if none runs, and wait until it accepts connections. Called under `start.lock`."""
        now = asyncio.get_running_loop().time
        deadline = now() + START_TIMEOUT_S
        pause = FIRST_PAUSE_S
        launched: _SupervisorOutput | None = None
        try:
            while not await self._answers():
                if launched is None:
                    launched = await self._launch_in_thread()
                elif (failure := launched.failure()) is not None:
                    raise EmbeddedPostgresError(
                        failure or f"PostgreSQL was killed during its start; see {self.log}"
                    )
                if self._recovering:
                    deadline = now() + START_TIMEOUT_S
                if now() > deadline:
                    raise EmbeddedPostgresError(
                        f"the PostgreSQL server in {self._home} runs but does not answer; if another machine"
                        f" or container uses the same KASPARRO_HOME, give each its own; see {self.log}"
                    )
                await asyncio.sleep(pause)
                pause = min(1.5 * pause, LONGEST_PAUSE_S)
        finally:
            if launched is not None:
                launched.close()

    async def _launch_in_thread(self) -> "_SupervisorOutput | None":
        launch = asyncio.ensure_future(asyncio.to_thread(self._launch))
        try:
            return await asyncio.shield(launch)
        except asyncio.CancelledError:
            # A thread cannot be cancelled. Close the pipe that it opens.
            if (launched := await launch) is not None:
                launched.close()
            raise

    def _launch(self) -> "_SupervisorOutput | None":
        """Start a supervisor, which takes over `server.lock`. Returns None if a server holds the lock."""
        lock = _open(self._home / "server.lock")
        try:
            if not _try_lock(lock, fcntl.LOCK_EX):
                return None
            programs = find_programs(self._home / "data")
            if os.geteuid() == 0:
                programs = unprivileged_programs(programs)
            output, input_end = os.pipe()
            command = [sys.executable, "-I", "-S", supervisor.__file__]
            command += [str(self._home), str(programs.bin), str(programs.major), str(lock)]
            try:
                # Returns after about 20 ms, when the supervisor has forked.
                subprocess.run(  # noqa: S603 - this Python, our own file
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=input_end,
                    stderr=input_end,
                    pass_fds=(lock,),
                    start_new_session=True,
                    cwd="/",
                    check=False,  # its output has the reason of a failure
                )
            except BaseException:
                os.close(output)
                raise
            finally:
                os.close(input_end)
            return _SupervisorOutput(output)
        finally:
            os.close(lock)

    async def _answers(self) -> bool:
        """Whether the server accepts a connection to the database, which is created if missing."""
        self._recovering = False
        folder = self._socket_folder()
        if folder is None:
            return False
        try:
            try:
                await self._connect_once(folder, DATABASE)
            except asyncpg.InvalidCatalogNameError:
                # The only statement outside sql/: all others run in the database that it creates.
                with contextlib.suppress(asyncpg.DuplicateDatabaseError):
                    await self._connect_once(folder, "postgres", f"CREATE DATABASE {DATABASE}")
        except asyncpg.OperatorInterventionError:
            self._recovering = True
            return False
        except (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError):
            return False
        except asyncpg.TooManyConnectionsError:
            return True
        except asyncpg.PostgresError as error:
            raise EmbeddedPostgresError(
                f"PostgreSQL in {self._home} rejects the connection: {error}; see {self.log}"
            ) from error
        return True

    @staticmethod
    async def _connect_once(folder: Path, database: str, statement: str | None = None) -> None:
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
        # After a restart of the machine, any account may have created this folder in /tmp.
        private = stat.S_ISDIR(status.st_mode) and status.st_uid in owners and not status.st_mode & 0o077
        return folder if private else None

    def _server_runs(self) -> bool:
        lock = _open(self._home / "server.lock")
        try:
            return not _try_lock(lock, fcntl.LOCK_SH)
        finally:
            os.close(lock)

    def _has_other_users(self) -> bool:
        users = _open(self._home / "users.lock")
        try:
            # If an exclusive lock succeeds, there is no user. If a shared one fails, the supervisor holds the
            # lock and is stopping the server.
            return not _try_lock(users, fcntl.LOCK_EX) and _try_lock(users, fcntl.LOCK_SH)
        finally:
            os.close(users)

    def _release(self) -> None:
        if self._users_lock is not None:
            # Closed, not unlocked: a forked child of this process that still runs keeps the lock.
            os.close(self._users_lock)
            self._users_lock = None


class _SupervisorOutput:
    """The output of the supervisor, read without waiting."""

    def __init__(self, pipe: int) -> None:
        os.set_blocking(pipe, False)
        self._pipe = pipe
        self._output = b""

    def failure(self) -> str | None:
        """The last line of the output of a supervisor that has ended; None while it runs."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._pipe, 65_536):
                self._output += chunk
            return self._output.decode(errors="replace").strip().rpartition("\n")[2]
        return None

    def close(self) -> None:
        os.close(self._pipe)


def _create_home(home: Path) -> None:
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("start.lock", "users.lock", "server.lock"):
            os.close(_open(home / name))
    except OSError as error:
        raise EmbeddedPostgresError(
            f"KASPARRO_HOME {home} cannot hold a database: {error.strerror}; choose a folder that this user"
            " can write to, or set DATABASE_URL"
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
    """Hold a lock between processes. It is polled, because no event loop can wait for it."""
    file = _open(path)
    try:
        pause = FIRST_PAUSE_S
        while True:
            if _try_lock(file, kind):
                break
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        yield file
    finally:
        os.close(file)
