"""Keeps one PostgreSQL server running for exactly as long as some process uses it.

Run as a program by `kasparro.embedded.server`, never imported by it: it starts isolated, with the standard
library alone, so that it is up in a few milliseconds and depends on nobody's environment.

    supervisor.py HOME BIN MAJOR LOCK

LOCK is an open file descriptor that holds `HOME/server.lock` exclusively. This process keeps it and hands
it down to the server, so the lock is free exactly when no process of that server is left, and whoever gets
the lock may clear away what a dead server left behind. Every user of the server holds `HOME/users.lock`
shared; the kernel lets go of it however a user ends. When this process gets that lock exclusively, nobody is
left, and it stops the server. Until then signals meant for a user (Ctrl-C, a service manager's SIGTERM) do
not end it.

Should this process be killed, Linux interrupts the server by its parent-death signal, which shuts it down
fast. macOS has no such signal: there the server runs on, and users still join it.

PostgreSQL refuses to run as root. For root it runs as the account that owns the data, at first a user id that
nobody has, so no other daemon shares it. That account need not reach the home at all (root's default one lies
under /root): root opens the data folder and hands it down, and the server knows it as /proc/self/fd/N. This
serves wherever root puts a home, and opens nothing to anybody. Only initdb insists on an account with a name;
it runs as `nobody`, and the new data change hands afterwards.

What stops the server from starting is written to standard output in one line.
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

# The log starts anew at this size; the one before is kept beside it.
LOG_LIMIT = 4 * 1024 * 1024

# How long each way of stopping may take: fast (a checkpoint of all dirty buffers), immediate, the kernel's.
STOPS = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, None))

# Free of owners on Debian, Red Hat and in systemd's table of user ids, and within a container's 65536.
FIRST_UNUSED_UID = 60_706

PR_SET_PDEATHSIG = 1
OPEN_FILES = Path("/proc/self/fd")

# Appended to postgresql.conf once: a person may change them there or by ALTER SYSTEM.
TUNING = """
# Kasparro's choices for a small server beside its application.
max_connections = 50
shared_buffers = 128MB
work_mem = 8MB
maintenance_work_mem = 64MB
max_wal_size = 512MB
wal_level = minimal             # no replicas of an embedded server
max_wal_senders = 0
checkpoint_timeout = 15min
jit = off                       # costs more than it gives on short statements
log_checkpoints = off
log_line_prefix = '%m [%p] '
log_timezone = 'UTC'
timezone = 'UTC'
cluster_name = 'kasparro'
"""


class StartError(Exception):
    """The server cannot start; the text says why in one line."""


class Account(NamedTuple):
    """Whom a program runs as."""

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
    """A log file of bounded size."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = self._open()

    def write(self, line: bytes) -> None:
        """Append a line; a full disk costs the line, not the server."""
        with contextlib.suppress(OSError):
            if os.fstat(self._fd).st_size > LOG_LIMIT:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                os.close(self._fd)
                self._fd = self._open()
            os.write(self._fd, line)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)


def main(home: Path, programs: Path, major: int, lock: int) -> None:
    """Run the server of a home until nobody uses it any more."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
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
        place = f" ({os.fsdecode(error.filename)})" if error.filename else ""
        report(f"PostgreSQL cannot run in {home}: {error.strerror}{place}")
        return
    threading.Thread(target=stop_when_unused, args=(users, server), daemon=True).start()
    assert server.stderr is not None  # noqa: S101 - asked for in start()
    cause = b""
    last = collections.deque[bytes](maxlen=3)
    for line in server.stderr:
        log.write(line)
        last.append(line.strip())
        cause = cause or fatal(line)
    if server.wait() != 0:
        words = (cause or b" ".join(last)).decode(errors="replace")
        report(f"PostgreSQL in {home} did not start: {words}; see {home / 'postgres.log'}")


def start(home: Path, programs: Path, major: int, lock: int, log: Log) -> "subprocess.Popen[bytes]":
    """Make the data if there are none, clear what a killed server left, run the server."""
    data = home / "data"
    account = account_of(data)
    if not data.exists() or not any(data.iterdir()):
        initialise(data, programs, major, account, log)
    check_data(data, programs, major, account)
    folder = socket_folder(home, data, account)
    write_access(data, account)
    # The lock says that no server of ours lives; a process that has its number by now would look like one.
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
    """Wait until no user is left, then stop the server, keeping newcomers waiting meanwhile."""
    fcntl.flock(users, fcntl.LOCK_EX)
    for number, patience in STOPS:
        server.send_signal(number)
        try:
            server.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        return


def account_of(data: Path) -> Account:
    """Who runs the server: oneself; for root the owner of the data, or an account that nobody else has."""
    if os.geteuid() != 0:
        account = Account(os.geteuid(), os.getegid())
        if not account.has_name:
            raise StartError(
                f"PostgreSQL needs a named account, and user id {account.uid} has none on this machine; run"
                " Kasparro as a user of /etc/passwd, or set DATABASE_URL"
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
        # Restored by root from a backup.
        hand_over(data, account)
    return account


def initialise(data: Path, programs: Path, major: int, account: Account, log: Log) -> None:
    """Make new data beside their place and rename them into it: a kill leaves no half of them there."""
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
    maker = account if account.has_name else Account(*pwd.getpwnam("nobody")[2:4])
    hand_over(new, maker)
    command = [str(programs / "initdb"), f"--username={USER}", "--auth=peer", "--encoding=UTF8"]
    command += ["--data-checksums", "--no-instructions", *locale_options(major)]
    initdb = spawn(command, new, maker, signal.SIGKILL)
    _, output = initdb.communicate()
    log.write(output)
    if initdb.returncode != 0:
        lines = output.splitlines() or [b"initdb ended without a word"]
        cause = next(filter(None, map(fatal, lines)), lines[-1]).decode(errors="replace")
        raise StartError(f"PostgreSQL's data cannot be made in {new.parent}: {cause}")


def locale_options(major: int) -> list[str]:
    """Text sorts by code point and knows Unicode's letters, alike on every machine as far as possible."""
    if major >= 17:
        return ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    try:
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
    except locale.Error:
        return ["--locale=C"]
    return ["--locale=C.UTF-8"]


def check_data(data: Path, programs: Path, major: int, account: Account) -> None:
    """Refuse data that these programs cannot serve, before PostgreSQL says it in more words."""
    owner = data.stat().st_uid
    if owner != account.uid:
        raise StartError(
            f"{data} belongs to user id {owner}; run Kasparro as that user, or choose another KASPARRO_HOME"
        )
    try:
        made_by = (data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        raise StartError(
            f"{data} holds no PostgreSQL data; move it away, or choose another KASPARRO_HOME"
        ) from None
    if made_by != str(major):
        raise StartError(
            f"the data in {data} were made by PostgreSQL {made_by}, but the programs in {programs} are"
            f" PostgreSQL {major}: serve them by PostgreSQL {made_by}, dump them with pg_dump and load them"
            " into a new KASPARRO_HOME"
        )


def socket_folder(home: Path, data: Path, account: Account) -> Path:
    """Where the socket is, told to users in `HOME/socket`: the data folder, or a short private one.

    The data folder is private, outlives logouts and cleaners of /tmp, and is the same for every process. But
    a socket's path holds about a hundred bytes, a comma parts hosts in a URL, and some file systems have no
    sockets.
    """
    record = home / "socket"
    folder = data
    if "," in str(data) or not holds_sockets(data):
        folder = Path(os.fsdecode(record.read_bytes())) if record.exists() else data
        if folder == data or not is_private(folder, account):
            # A name that cannot be foreseen, so nobody can sit on it. TMPDIR may lie as deep as the home.
            folder = Path(tempfile.mkdtemp(prefix="kasparro-", dir="/tmp"))
            hand_over(folder, account)
    new = home / "socket.new"
    new.write_bytes(os.fsencode(folder))
    new.replace(record)
    return folder


def holds_sockets(folder: Path) -> bool:
    """Whether a socket with a name as long as the server's can be bound there."""
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
    """Whether a folder is the account's own, and closed to others."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == account.uid and not status.st_mode & 0o077


def write_access(data: Path, account: Account) -> None:
    """Let in, by the kernel's word, the account of the data, the one that starts the server, and root."""
    names = {
        pwd.getpwuid(uid).pw_name for uid in {0, os.geteuid(), account.uid} if Account(uid, uid).has_name
    }
    files = {
        "pg_hba.conf": "local all all peer map=kasparro\n",
        "pg_ident.conf": "".join(f'kasparro "{name}" {USER}\n' for name in sorted(names)),
    }
    for name, text in files.items():
        # Made new and renamed: the folder is the server's, and root follows no link that lies in it.
        new = data / f"{name}.new"
        new.unlink(missing_ok=True)
        with new.open("x") as file:
            file.write(text)
            os.fchown(file.fileno(), *account)
        new.replace(data / name)


def hand_over(folder: Path, account: Account) -> None:
    """Give a folder and what is in it to an account; links are not followed."""
    if account.uid == os.geteuid():
        return
    try:
        os.chown(folder, *account, follow_symlinks=False)
        for parent, folders, files in os.walk(folder):
            for name in (*folders, *files):
                os.chown(Path(parent, name), *account, follow_symlinks=False)
    except OSError as error:
        raise StartError(
            f"PostgreSQL never runs as root, and this root may not use another account ({error.strerror});"
            " run Kasparro as an ordinary user, or set DATABASE_URL"
        ) from error


def spawn(
    command: list[str], data: Path, account: Account, at_death: signal.Signals, keep: tuple[int, ...] = ()
) -> "subprocess.Popen[bytes]":
    """Run a server program on a folder as an account, signalled by the kernel when this process is gone."""
    other: dict[str, Any] = {}
    place = str(data)
    opened = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
    if account.uid != os.geteuid():
        other = {"user": account.uid, "group": account.gid, "extra_groups": []}
        place = str(OPEN_FILES / str(opened))
        keep = (*keep, opened)
    # The signal is asked for after the change of account, which would clear it again. It is the death of the
    # forking thread that counts: both programs are forked by the main thread, before there is any other.
    try:
        return subprocess.Popen(  # noqa: S603 - PostgreSQL's own programs
            [*command, "-D", place],
            cwd="/",  # PostgreSQL 15 leaves its folder at the start, and must be able to return
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=keep,
            preexec_fn=end_with_parent(at_death),  # noqa: PLW1509 - no other thread runs yet
            **other,
        )
    finally:
        os.close(opened)


def end_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """What a child calls to get a signal when its parent dies."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def arm() -> None:
        prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:
            # It died before the kernel was asked.
            os._exit(1)

    return arm


def fatal(line: bytes) -> bytes:
    """The text of a line that says why a program ends; empty for every other line."""
    told = re.search(rb"(?:FATAL|PANIC|initdb: error): +(.*)", line)
    # What the server answers to those who knock too early is no cause.
    return b"" if told is None or told[1].startswith(b"the database system is ") else told[1]


def report(text: str) -> None:
    """Tell the starter, who may have left."""
    with contextlib.suppress(OSError):
        os.write(1, text.replace("\n", " ").encode(errors="replace"))


if __name__ == "__main__":
    # The starter waits for the first process alone, and need not reap the one that stays.
    if os.fork():
        os._exit(0)
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
