"""Runs one PostgreSQL server for as long as any process uses it.

`kasparro.embedded.server` starts this file as a program. It uses only the standard library and runs isolated
(`python -I -S`), so that it starts in a few milliseconds and does not depend on the environment.

    supervisor.py HOME BIN MAJOR LOCK

LOCK is a file descriptor that holds an exclusive lock on `HOME/server.lock`. This process and the server
inherit it, so the lock is free only when no process of the server is left. The process that then takes the
lock may remove the files of a dead server. Every user of the server holds a shared lock on `HOME/users.lock`,
which the kernel releases however the user ends. When this process gets an exclusive lock on that file, no
user is left, and it stops the server. Until then it ignores signals that are meant for a user, such as Ctrl-C
or the SIGTERM of a service manager.

If this process is killed, Linux sends the server its parent-death signal, SIGINT, which is a fast shutdown.
macOS has no such signal: the server keeps running, and users can still join it.

PostgreSQL never runs as root. If Kasparro does, the server runs as the account that owns the data: at first a
user id without an account, so that no other daemon shares it. That account may be unable to reach the home
(the default home of root is below /root). Therefore root opens the data folder, the server inherits it, and
uses it as /proc/self/fd/N. This works for any home and gives no other account access. Only initdb needs an
account with a name: it runs as `nobody`, and the owner of the new data is changed afterwards.

If the server does not start, one line on standard output says why.
"""

import collections
import contextlib
import ctypes
import fcntl
import locale
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

USER = "kasparro"
PORT = 5432

# At this size the log is renamed to `postgres.log.1` and a new one started.
LOG_LIMIT = 4 * 1024 * 1024

# The signals that stop the server, and the seconds that each may take: fast shutdown (with a checkpoint),
# immediate shutdown, kill.
STOPS = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, None))

# Unused on Debian, on Red Hat and in the user ids of systemd, and below the 65,536 ids of a container.
FIRST_UNUSED_UID = 60_706

# Meant for a user of the server, not for this process.
IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

PR_SET_PDEATHSIG = 1
OPEN_FILES = Path("/proc/self/fd")

# Appended to postgresql.conf when the data are created. Operators may change it there or with ALTER SYSTEM.
TUNING = """
# Kasparro's settings for a small server on the machine of its application.
max_connections = 50
shared_buffers = 128MB
work_mem = 8MB
maintenance_work_mem = 64MB
max_wal_size = 512MB
wal_level = minimal             # an embedded server has no replicas
max_wal_senders = 0
checkpoint_timeout = 15min
jit = off                       # short statements are slower with it
log_checkpoints = off
log_line_prefix = '%m [%p] '
log_timezone = 'UTC'
timezone = 'UTC'
cluster_name = 'kasparro'
"""


class StartError(Exception):
    """The server cannot start. The text says why in one line."""


class Account(NamedTuple):
    """The user and group that a program runs as."""

    uid: int
    gid: int

    @property
    def has_name(self) -> bool:
        try:
            pwd.getpwuid(self.uid)
        except KeyError:
            return False
        return True


class Log:
    """A log file of limited size."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = self._open()

    def write(self, line: bytes) -> None:
        """Append a line. If the disk is full, the line is lost."""
        with contextlib.suppress(OSError):
            if os.fstat(self._fd).st_size > LOG_LIMIT:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                os.close(self._fd)
                self._fd = self._open()
            os.write(self._fd, line)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)


def main(home: Path, programs: Path, major: int, lock: int) -> None:
    """Run the server of a home until it has no users."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    try:
        log = Log(home / "postgres.log")
        users = (home / "users.lock").open("rb+")
        server = start(home, programs, major, lock, log)
    except StartError as failure:
        report(str(failure))
        return
    except OSError as error:
        file = f" ({os.fsdecode(error.filename)})" if error.filename else ""
        report(f"PostgreSQL cannot run in {home}: {error.strerror}{file}")
        return
    threading.Thread(target=stop_when_unused, args=(users, server), daemon=True).start()
    assert server.stderr is not None  # noqa: S101 - start() makes it a pipe
    cause = b""
    last = collections.deque[bytes](maxlen=3)
    for line in server.stderr:
        log.write(line)
        last.append(line.strip())
        cause = cause or fatal(line)
    if server.wait() != 0:
        reason = (cause or b" ".join(last)).decode(errors="replace")
        report(f"PostgreSQL in {home} did not start: {reason}; see {home / 'postgres.log'}")


def start(home: Path, programs: Path, major: int, lock: int, log: Log) -> "subprocess.Popen[bytes]":
    """Create the data if there are none, remove the files of a killed server, start the server."""
    data = home / "data"
    account = account_of(data)
    if not data.exists() or not any(data.iterdir()):
        initialise(data, programs, major, account, log)
    check_data(data, programs, major, account)
    folder = socket_folder(home, data, account)
    write_access(data, account)
    # server.lock proves that no server runs. Another process may have the process id of the killed one.
    for leftover in (data / "postmaster.pid", folder / f".s.PGSQL.{PORT}.lock", folder / f".s.PGSQL.{PORT}"):
        leftover.unlink(missing_ok=True)
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": "." if folder == data else str(folder),
        "unix_socket_permissions": "0700",
        "port": str(PORT),
        "logging_collector": "off",
        "log_destination": "stderr",
        "lc_messages": "C",
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    return spawn([str(programs / "postgres"), *options], data, account, signal.SIGINT, keep=(lock,))


def stop_when_unused(users: IO[bytes], server: "subprocess.Popen[bytes]") -> None:
    """Wait until no user is left, then stop the server. New users wait until it has stopped."""
    fcntl.flock(users, fcntl.LOCK_EX)
    for number, timeout_s in STOPS:
        server.send_signal(number)
        try:
            server.wait(timeout_s)
        except subprocess.TimeoutExpired:
            continue
        return


def account_of(data: Path) -> Account:
    """The account that runs the server: this one, or for root the owner of the data or an unused user id."""
    if os.geteuid() != 0:
        account = Account(os.geteuid(), os.getegid())
        if not account.has_name:
            raise StartError(
                f"PostgreSQL needs an account with a name, and user id {account.uid} has none; run Kasparro"
                " as a user in /etc/passwd, or set DATABASE_URL"
            )
        return account
    if not OPEN_FILES.exists():
        raise StartError(
            "PostgreSQL never runs as root; run Kasparro as an ordinary user, or set DATABASE_URL"
        )
    if data.exists() and (owner := data.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    uid = FIRST_UNUSED_UID
    while Account(uid, uid).has_name:
        uid += 1
    account = Account(uid, uid)
    if data.exists():
        # Root restored the data from a backup.
        hand_over(data, account)
    return account


def initialise(data: Path, programs: Path, major: int, account: Account, log: Log) -> None:
    """Create new data in a temporary folder and rename it: a killed process leaves no incomplete data."""
    home = data.parent
    for leftover in home.glob(".data-*"):
        shutil.rmtree(leftover)
    new = Path(tempfile.mkdtemp(prefix=".data-", dir=home))
    try:
        run_initdb(new, programs, major, account, log)
        with (new / "postgresql.conf").open("a") as settings:
            settings.write(TUNING)
            settings.flush()
            os.fsync(settings.fileno())
        hand_over(new, account)
        if data.exists():
            data.rmdir()
        new.rename(data)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    folder = os.open(home, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def run_initdb(new: Path, programs: Path, major: int, account: Account, log: Log) -> None:
    """Fill an empty folder with a new database cluster."""
    creator = account if account.has_name else Account(*pwd.getpwnam("nobody")[2:4])
    hand_over(new, creator)
    command = [str(programs / "initdb"), f"--username={USER}", "--auth=peer", "--encoding=UTF8"]
    command += ["--data-checksums", "--no-instructions", *locale_options(major)]
    initdb = spawn(command, new, creator, signal.SIGKILL)
    _, output = initdb.communicate()
    log.write(output)
    if initdb.returncode != 0:
        lines = output.splitlines() or [b"initdb failed without output"]
        cause = next(filter(None, map(fatal, lines)), lines[-1]).decode(errors="replace")
        raise StartError(f"the PostgreSQL data cannot be created in {new.parent}: {cause}")


def locale_options(major: int) -> list[str]:
    """Options for text that sorts by code point and knows the letters of Unicode, if possible everywhere."""
    if major >= 17:
        return ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    try:
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
    except locale.Error:
        return ["--locale=C"]
    return ["--locale=C.UTF-8"]


def check_data(data: Path, programs: Path, major: int, account: Account) -> None:
    """Raise StartError, with a clearer text than PostgreSQL's, if these programs cannot use the data."""
    owner = data.stat().st_uid
    if owner != account.uid:
        raise StartError(
            f"{data} belongs to user id {owner}; run Kasparro as that user, or choose another KASPARRO_HOME"
        )
    try:
        created_by = (data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        raise StartError(
            f"{data} contains no PostgreSQL data; move it away, or choose another KASPARRO_HOME"
        ) from None
    if created_by != str(major):
        raise StartError(
            f"the data in {data} were created by PostgreSQL {created_by}, but the programs in {programs} are"
            f" PostgreSQL {major}, which cannot use them; nothing was changed: install PostgreSQL"
            f" {created_by} on this machine, or the version of Kasparro that has it, run kasparro export, and"
            " then kasparro import with a new KASPARRO_HOME"
        )


def socket_folder(home: Path, data: Path, account: Account) -> Path:
    """The folder of the socket, which is written to `HOME/socket` for the users.

    It is the data folder if possible: it is private, the same for every process, and neither a logout nor a
    cleaner of /tmp removes it. But the path of a socket is limited to about 100 bytes, a comma separates
    hosts in a URL, and some file systems have no sockets. Then it is a private folder in /tmp.
    """
    record = home / "socket"
    folder = data
    if "," in str(data) or not holds_sockets(data):
        folder = Path(os.fsdecode(record.read_bytes())) if record.exists() else data
        if folder == data or not is_private(folder, account):
            # An unpredictable name, which no other account can create first. TMPDIR may be too long as well.
            folder = Path(tempfile.mkdtemp(prefix="kasparro-", dir="/tmp"))
            hand_over(folder, account)
    new = home / "socket.new"
    new.write_bytes(os.fsencode(folder))
    new.replace(record)
    return folder


def holds_sockets(folder: Path) -> bool:
    """Whether a socket with a name as long as the server's can be bound in this folder."""
    probe = folder / ".s.PGSQL.test"
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            probe.unlink(missing_ok=True)
            listener.bind(str(probe))
        except OSError:
            return False
    probe.unlink()
    return True


def is_private(folder: Path, account: Account) -> bool:
    """Whether the account owns the folder and no other account may enter it."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == account.uid and not status.st_mode & 0o077


def write_access(data: Path, account: Account) -> None:
    """Allow the owner of the data, this account and root to connect, by peer authentication."""
    names = {
        pwd.getpwuid(uid).pw_name for uid in {0, os.geteuid(), account.uid} if Account(uid, uid).has_name
    }
    files = {
        # The second line is for pg_basebackup.
        "pg_hba.conf": "local all all peer map=kasparro\nlocal replication all peer map=kasparro\n",
        "pg_ident.conf": "".join(f'kasparro "{name}" {USER}\n' for name in sorted(names)),
    }
    for name, text in files.items():
        # Created and renamed, because root must not follow links in a folder that the server owns.
        new = data / f"{name}.new"
        new.unlink(missing_ok=True)
        with new.open("x") as file:
            file.write(text)
            os.fchown(file.fileno(), *account)
        new.replace(data / name)


def hand_over(folder: Path, account: Account) -> None:
    """Make an account the owner of a folder and its contents. Links are not followed."""
    if account.uid == os.geteuid():
        return
    try:
        os.chown(folder, *account, follow_symlinks=False)
        for parent, folders, files in os.walk(folder):
            for name in (*folders, *files):
                os.chown(Path(parent, name), *account, follow_symlinks=False)
    except OSError as error:
        raise StartError(
            f"PostgreSQL never runs as root, and here root may not use another account ({error.strerror});"
            " run Kasparro as an ordinary user, or set DATABASE_URL"
        ) from error


def spawn(
    command: list[str], data: Path, account: Account, at_death: signal.Signals, keep: tuple[int, ...] = ()
) -> "subprocess.Popen[bytes]":
    """Run a program on a data folder as an account. It inherits the file descriptors in `keep`.

    If this process ends, the kernel of Linux sends it the signal `at_death`.
    """
    other: dict[str, Any] = {}
    path = str(data)
    opened = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
    if account.uid != os.geteuid():
        other = {"user": account.uid, "group": account.gid, "extra_groups": []}
        path = str(OPEN_FILES / str(opened))
        keep = (*keep, opened)
    # A change of account clears the parent-death signal, so preexec_fn sets it afterwards. The signal is sent
    # when the forking thread ends. That is the main thread, because no other runs yet.
    try:
        return subprocess.Popen(  # noqa: S603 - PostgreSQL's own programs
            [*command, "-D", path],
            cwd="/",  # PostgreSQL 15 changes its folder during the start and must be able to return
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=keep,
            preexec_fn=child_setup(at_death),  # noqa: PLW1509 - no other thread runs yet
            **other,
        )
    finally:
        os.close(opened)


def child_setup(at_death: signal.Signals) -> Callable[[], None]:
    """A function that a child process calls before it runs a program.

    It restores the signals that this process ignores: a program inherits them as ignored, and PostgreSQL
    would miss a signal to stop that comes before it has set its own handlers. On Linux it also arranges for
    the signal `at_death` when the parent ends.
    """
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    parent = os.getpid()

    def setup() -> None:
        for number in IGNORED:
            signal.signal(number, signal.SIG_DFL)
        if prctl is None:
            return
        prctl(PR_SET_PDEATHSIG, int(at_death), 0, 0, 0)
        if os.getppid() != parent:
            # The parent ended before prctl was called.
            os._exit(1)

    return setup


def fatal(line: bytes) -> bytes:
    """The text of a log line that says why a program ends; empty for any other line."""
    match = re.search(rb"(?:FATAL|PANIC|initdb: error): +(.*)", line)
    # "the database system is starting up" is a response to an early client, not a cause.
    return b"" if match is None or match[1].startswith(b"the database system is ") else match[1]


def report(text: str) -> None:
    """Write one line for the process that started this one, which may have ended."""
    with contextlib.suppress(OSError):
        os.write(1, text.replace("\n", " ").encode(errors="replace"))


if __name__ == "__main__":
    # The starting process waits only for the first process and need not reap the second.
    if os.fork():
        os._exit(0)
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
