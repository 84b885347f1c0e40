"""The supervisor creates and checks the data, chooses the account and the socket, and runs the server."""

# ruff: noqa: ASYNC221 - the loop of a test has nothing else to do

import asyncio
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kasparro.embedded import programs, server, supervisor
from kasparro.embedded.server import EmbeddedPostgres, find_programs
from tests.support.embedded_server import (
    as_root,
    execute,
    linux,
    server_is_gone,
    server_pid,
    start_and_leave,
    start_error,
    user,
)

pytestmark = pytest.mark.slow


async def test_incomplete_data_folder_is_replaced(home: Path) -> None:
    home.mkdir()
    for name in (".data-killed", "data"):
        (home / name).mkdir()
    (home / ".data-killed" / "PG_VERSION").write_text("18\n")
    await start_and_leave(home)
    assert not list(home.glob(".data-*"))


async def test_foreign_data_are_not_touched(home: Path) -> None:
    (home / "data").mkdir(parents=True)
    (home / "data" / "diary.txt").write_text("dear diary")
    assert "contains no PostgreSQL data; move it away" in await start_error(home)
    assert (home / "data" / "diary.txt").read_text() == "dear diary"


async def test_data_of_another_major_version_are_rejected(home: Path) -> None:
    await start_and_leave(home)
    (home / "data" / "PG_VERSION").write_text("14\n")
    line = await start_error(home)
    assert "were created by PostgreSQL 14" in line
    assert f"are PostgreSQL {find_programs().major}" in line
    assert "install PostgreSQL 14 on this machine, or the version of Kasparro that has it" in line
    assert (home / "data" / "PG_VERSION").read_text() == "14\n"


async def test_error_of_damaged_data_quotes_the_server(home: Path) -> None:
    await start_and_leave(home)
    (home / "data" / "global" / "pg_control").unlink()
    line = await start_error(home)
    assert 'global/pg_control": No such file' in line
    assert str(home / "postgres.log") in line


@pytest.mark.parametrize(
    "name", ["with space", "Ünï ☂ 数据", "a,comma", "per%cent+plus", 'quo"te', "d/" * 60 + "deep"]
)
async def test_any_path_works_as_home(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    for _ in range(2):
        async with EmbeddedPostgres(home) as postgres:
            assert await execute(postgres.dsn, "SELECT 1") == 1
            folder = Path((home / "socket").read_text())
    if folder != home / "data":
        folder.rmdir()


async def test_socket_folder_open_to_others_is_not_used(tmp_path: Path) -> None:
    home = tmp_path / ("deep/" * 30)
    await start_and_leave(home)
    taken = Path((home / "socket").read_text())
    taken.chmod(0o777)
    async with EmbeddedPostgres(home) as postgres:
        folder = Path((home / "socket").read_text())
        assert folder != taken
        assert await execute(postgres.dsn, "SELECT 1") == 1
    taken.rmdir()
    folder.rmdir()


@as_root
@linux
async def test_full_disk_is_reported(home: Path) -> None:
    home.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", home], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        assert "No space left on device" in await start_error(home)
        assert not list(home.glob(".data-*"))
    finally:
        subprocess.run(["umount", home], check=True)


def test_log_has_limited_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOG_LIMIT", 1000)
    log = supervisor.Log(tmp_path / "log")
    for _ in range(100):
        log.write(b"x" * 99 + b"\n")
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2 * 1100


async def test_stale_pid_of_another_process_is_ignored(home: Path) -> None:
    await start_and_leave(home)
    pid_file = home / "data" / "postmaster.pid"
    pid_file.write_text(f"{os.getpid()}\n{home / 'data'}\n1\n5432\n{home / 'data'}\n\n1 1\nready\n")
    os.chown(pid_file, (home / "data").stat().st_uid, -1)
    await start_and_leave(home)


@as_root
async def test_server_runs_as_an_unused_user_id(home: Path) -> None:
    async with EmbeddedPostgres(home):
        uid = Path(f"/proc/{server_pid(home)}").stat().st_uid
        assert uid == (home / "data").stat().st_uid
        with pytest.raises(KeyError):
            pwd.getpwuid(uid)


@as_root
async def test_home_that_only_root_can_reach() -> None:
    with tempfile.TemporaryDirectory(dir="/root") as folder:
        Path(folder).chmod(0o700)
        async with EmbeddedPostgres(Path(folder) / "home") as postgres:
            assert await execute(postgres.dsn, "SELECT 1") == 1


@as_root
async def test_other_accounts_cannot_connect(home: Path) -> None:
    if programs.unprivileged_programs(find_programs()) != find_programs():
        pytest.skip("the checkout is closed to other accounts, so none can run its psql")
    async with EmbeddedPostgres(home):
        # Even an account that could enter the folder is rejected, by the socket's mode and by the server.
        socket = home / "data" / ".s.PGSQL.5432"
        assert "Permission denied" in await try_psql_as_nobody(home)
        socket.chmod(0o777)
        assert "Peer authentication failed" in await try_psql_as_nobody(home)


async def try_psql_as_nobody(home: Path) -> str:
    data = home / "data"
    mode = data.stat().st_mode
    data.chmod(0o711)
    try:
        psql = await asyncio.create_subprocess_exec(
            find_programs().path("psql"),
            "postgresql:///kasparro?host=/proc/self/cwd&user=kasparro",
            cwd=data,
            user=pwd.getpwnam("nobody").pw_uid,
            stderr=asyncio.subprocess.PIPE,
        )
        _, answer = await psql.communicate()
    finally:
        data.chmod(mode)
    assert psql.returncode != 0
    return answer.decode()


@as_root
async def test_data_restored_by_root_get_their_owner(home: Path) -> None:
    await start_and_leave(home)
    subprocess.run(["chown", "-R", "0:0", home], check=True)
    await start_and_leave(home)


@pytest.fixture
def stranger_home() -> Iterator[tuple[Path, int]]:
    uid = pwd.getpwnam("nobody").pw_uid
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, uid, -1)
        yield Path(folder) / "home", uid


@as_root
async def test_ordinary_user_has_its_own_server(stranger_home: tuple[Path, int]) -> None:
    home, uid = stranger_home
    paths = os.pathsep.join([str(Path(server.__file__).parents[2]), *filter(None, sys.path)])
    python = python_for(uid, paths)
    options: dict[str, Any] = {
        "user": uid,
        "group": uid,
        "extra_groups": [],
        "cwd": "/",
        "env": {"HOME": str(home.parent), "PATH": os.defpath, "PYTHONPATH": paths},
    }
    for count in (1, 2):
        async with user(home, python, **options) as ordinary:
            await ordinary.entered()
            assert Path(f"/proc/{server_pid(home)}").stat().st_uid == uid
            # Root may join. The server keeps its account.
            async with EmbeddedPostgres(home) as postgres:
                assert await execute(postgres.dsn, "SELECT count(*) FROM visit") == count
            await ordinary.leave()
        assert server_is_gone(home)
    async with EmbeddedPostgres(home):
        assert Path(f"/proc/{server_pid(home)}").stat().st_uid == uid


def python_for(uid: int, paths: str) -> str:
    """A Python of this version that the user can run. The one of this process may lie in root's home."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/python{version}"):
        try:
            subprocess.run(
                [python, "-c", "import kasparro.embedded.server"],
                user=uid,
                cwd="/",
                env={"PYTHONPATH": paths},
                check=True,
                capture_output=True,
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip(f"no Python {version} with this checkout that an ordinary user can run")
