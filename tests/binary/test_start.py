"""The binary unpacks its programs once for each version, whatever happens meanwhile, and runs them."""

import os
import resource
import runpy
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.documents import ROOT
from tests.support.embedded_server import as_root

pack: Callable[[Path, str], bytes] = runpy.run_path(str(ROOT / ".ci" / "binary" / "build.py"))["pack"]

# Stands for Python: says how it was started. With the argument `wait`, it runs until its input ends.
PYTHON = """#!/bin/sh
echo "$0"
echo "$@"
echo "${PYTHONHOME-unset} $SSL_CERT_FILE"
if [ "$2" = wait ]; then read -r line; fi
"""


class Binary:
    """A binary whose Python is a script, and the folders that it may use."""

    def __init__(self, folder: Path, release: str = "1.0", mode: int = 0o755) -> None:
        runtime = folder / f"runtime-{release}"
        (runtime / "bin").mkdir(parents=True)
        python = runtime / "bin" / "python3"
        python.write_text(PYTHON)
        python.chmod(mode)
        # It stays larger than a pipe when it is compressed.
        (runtime / "data").write_bytes(os.urandom(300_000))
        self.file = folder / f"kasparro-{release}"
        self.file.write_bytes(pack(runtime, release))
        self.file.chmod(0o755)
        self.home, self.temporary = folder / "a home", folder / "temporary"
        self.temporary.mkdir(exist_ok=True)
        self.environment = {
            "PATH": os.environ["PATH"],
            "KASPARRO_HOME": str(self.home),
            "TMPDIR": str(self.temporary),
        }

    def start(self, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [self.file, *arguments],
            env=self.environment,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            start_new_session=True,
            **options,
        )

    def run(self, *arguments: str, **options: Any) -> list[str]:
        """The lines that its Python printed."""
        code, output, errors = self.result(*arguments, **options)
        assert (code, errors) == (0, "")
        return output.splitlines()

    def result(self, *arguments: str, **options: Any) -> tuple[int, str, str]:
        with self.start(*arguments, **options) as process:
            output, errors = process.communicate()
        return process.returncode, output, errors

    def versions(self, folder: Path | None = None) -> list[str]:
        return sorted(path.name for path in (folder or self.home).glob("runtime/*") if path.name != "lock")


@pytest.fixture
def binary(tmp_path: Path) -> Binary:
    return Binary(tmp_path)


@pytest.fixture
def other(tmp_path: Path, binary: Binary) -> Binary:
    return Binary(tmp_path, "2.0")


def test_arguments_reach_the_service(binary: Binary) -> None:
    binary.environment |= {"PYTHONHOME": "/other", "SSL_CERT_FILE": "/my.pem"}
    program, arguments, environment = binary.run("check", "a b.csv", "*")
    [version] = binary.versions()
    assert program == str(binary.home / "runtime" / version / "bin" / "python3")
    assert arguments == f"{binary.home}/runtime/{version}/bin/kasparro check a b.csv *"
    assert environment == "unset /my.pem"


def test_relative_home(binary: Binary, tmp_path: Path) -> None:
    binary.environment["KASPARRO_HOME"] = binary.home.name
    [program, *_] = binary.run(cwd=tmp_path)
    assert program.startswith(f"{binary.home}/runtime/1.0-")


def test_home_is_where_the_service_has_its_data(binary: Binary, tmp_path: Path) -> None:
    binary.environment |= {"KASPARRO_HOME": "", "HOME": str(tmp_path)}
    binary.run()
    assert binary.versions(tmp_path / ".local" / "share" / "kasparro")
    binary.environment["XDG_DATA_HOME"] = str(tmp_path / "data")
    binary.run()
    assert binary.versions(tmp_path / "data" / "kasparro")


def test_a_version_is_unpacked_once(binary: Binary) -> None:
    [program, *_] = binary.run()
    before = Path(program).stat()
    binary.run()
    assert Path(program).stat() == before


def test_starts_at_the_same_time(binary: Binary) -> None:
    processes = [binary.start("demo") for _ in range(6)]
    results = {process.communicate() for process in processes}
    [version] = binary.versions()
    program = f"{binary.home}/runtime/{version}/bin/python3"
    [(output, errors)] = results
    assert output.startswith(program)
    assert errors == ""


def test_start_after_one_that_was_killed(binary: Binary, tmp_path: Path) -> None:
    # This tar unpacks a part, and says so before it waits.
    programs, reached = tmp_path / "programs", tmp_path / "reached"
    programs.mkdir()
    os.mkfifo(reached)
    tar = programs / "tar"
    tar.write_text(f'#!/bin/sh\nhead -c 1000 >"$6/part"\necho >"{reached}"\nsleep 1000\n')
    tar.chmod(0o755)
    usual = binary.environment["PATH"]
    binary.environment["PATH"] = f"{programs}:{usual}"
    process = binary.start()
    reached.read_text()
    assert binary.versions() == ["new"]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    binary.environment["PATH"] = usual
    binary.run()
    [version] = binary.versions()
    assert version != "new"
    assert not (binary.home / "runtime" / version / "part").exists()


def test_full_disk(binary: Binary) -> None:
    # Both folders are on it.
    code, output, errors = binary.result(
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    )
    assert (code, output) == (1, "")
    assert errors.startswith("kasparro: no folder can hold and run its 0 MB of programs:\n")
    assert f"  {binary.home}/runtime: " in errors
    assert f"  {binary.temporary}/kasparro-{os.geteuid()}/runtime: " in errors
    assert len(errors.splitlines()) == 3
    assert binary.versions() == []
    binary.run()


def test_damaged_file(binary: Binary) -> None:
    content = binary.file.read_bytes()
    binary.file.write_bytes(content[:-1_000])
    code, _, errors = binary.result()
    assert code == 1
    assert "unexpected end of file" in errors
    binary.file.write_bytes(content[:-1_000] + bytes(1_000))
    code, _, errors = binary.result()
    assert code == 1
    assert binary.versions() == []
    binary.file.write_bytes(content)
    binary.run()


def test_file_system_that_runs_no_programs(tmp_path: Path) -> None:
    code, _, errors = Binary(tmp_path, mode=0o644).result()
    assert code == 1
    assert "Permission denied" in errors
    assert len(errors.splitlines()) == 3


def test_temporary_folder_if_the_home_cannot_be_written(binary: Binary) -> None:
    binary.home.write_text("not a folder")
    [program, *_] = binary.run()
    assert program.startswith(f"{binary.temporary}/kasparro-{os.geteuid()}/runtime/1.0-")


def test_temporary_folder_without_a_home(binary: Binary) -> None:
    del binary.environment["KASPARRO_HOME"]
    assert binary.run()[0].startswith(str(binary.temporary))


def test_link_in_the_temporary_folder_is_not_used(binary: Binary, tmp_path: Path) -> None:
    del binary.environment["KASPARRO_HOME"]
    (binary.temporary / f"kasparro-{os.geteuid()}").symlink_to(tmp_path)
    code, _, errors = binary.result()
    assert code == 1
    assert "belongs to another account" in errors


@as_root
def test_temporary_folder_of_another_account_is_not_used(binary: Binary) -> None:
    del binary.environment["KASPARRO_HOME"]
    folder = binary.temporary / f"kasparro-{os.geteuid()}"
    folder.mkdir()
    os.chown(folder, 12_345, 12_345)
    assert binary.result()[0] == 1


@as_root
def test_another_account_reaches_the_programs_of_root(binary: Binary) -> None:
    binary.run(umask=0o077)
    folders = [path for path in (binary.home, *binary.home.rglob("*")) if path.is_dir()]
    assert all(folder.stat().st_mode & 0o001 for folder in folders)


def test_old_version_is_removed(binary: Binary, other: Binary) -> None:
    binary.run()
    other.run()
    assert [version.split("-")[0] for version in other.versions()] == ["2.0"]
    binary.run()


def test_old_version_stays_while_it_runs(binary: Binary, other: Binary, tmp_path: Path) -> None:
    with binary.start("wait") as process:
        assert process.stdout is not None
        process.stdout.readline()
        other.run()
        assert [version.split("-")[0] for version in other.versions()] == ["1.0", "2.0"]
    newest = Binary(tmp_path, "3.0")
    newest.run()
    assert [version.split("-")[0] for version in newest.versions()] == ["3.0"]
