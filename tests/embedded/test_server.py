"""Processes start, join, leave and lose an embedded PostgreSQL server."""

# ruff: noqa: ASYNC221 - the loop of a test has nothing else to do

import asyncio
import os
import signal
import stat
import subprocess
from pathlib import Path

import asyncpg
import pytest

from kasparro.embedded import server
from kasparro.embedded.server import EmbeddedPostgres, find_programs
from tests.support.embedded_server import (
    execute,
    linux,
    server_is_gone,
    server_pid,
    start_and_leave,
    start_error,
    supervisor_pid,
    user,
    waiting_for_exit,
)

pytestmark = pytest.mark.slow


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def test_data_survive_a_restart(home: Path) -> None:
    async with EmbeddedPostgres(home) as postgres:
        await execute(postgres.dsn, "CREATE TABLE saved AS SELECT 42 AS answer")
    assert server_is_gone(home)
    async with EmbeddedPostgres(home) as postgres:
        assert await execute(postgres.dsn, "SELECT answer FROM saved") == 42


async def test_stop_is_clean(home: Path) -> None:
    await start_and_leave(home)
    control = subprocess.run(
        [find_programs().path("pg_controldata"), home / "data"], capture_output=True, text=True, check=True
    )
    assert "shut down" in control.stdout.split("cluster state:")[1].splitlines()[0]
    assert not (home / "data" / "postmaster.pid").exists()


async def test_settings_of_the_server(home: Path) -> None:
    async with EmbeddedPostgres(home) as postgres:
        for statement, value in {
            "SELECT current_database()": "kasparro",
            "SHOW server_encoding": "UTF8",
            "SHOW timezone": "UTC",
            "SHOW fsync": "on",
            "SHOW jit": "off",
            "SHOW listen_addresses": "",
            "SHOW data_checksums": "on",
            "SELECT lower('ÄΩ')": "äω",
            "SELECT rolcreatedb FROM pg_roles WHERE rolname = current_user": True,
        }.items():
            assert await execute(postgres.dsn, statement) == value


async def test_url_works_with_libpq(home: Path) -> None:
    async with EmbeddedPostgres(home) as postgres:
        psql = await asyncio.create_subprocess_exec(
            find_programs().path("psql"), postgres.dsn, "-Atc", "SELECT 1", stdout=asyncio.subprocess.PIPE
        )
        answer, _ = await psql.communicate()
        assert answer == b"1\n"


@linux
async def test_server_does_not_listen_on_tcp(home: Path) -> None:
    async with EmbeddedPostgres(home):
        links = [link for link in Path(f"/proc/{server_pid(home)}/fd").iterdir() if link.is_symlink()]
        held = {str(link.readlink()).removeprefix("socket:[").rstrip("]") for link in links}
        tables = [Path("/proc/net") / name for name in ("tcp", "tcp6")]
        lines = [
            line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]
        ]
        assert not [line for line in lines if line[9] in held]


async def test_folders_and_files_are_private(home: Path) -> None:
    async with EmbeddedPostgres(home):
        for path in (home, *home.iterdir(), *(home / "data").iterdir()):
            assert not stat.S_IMODE(path.lstat().st_mode) & 0o077, path


async def test_existing_home_keeps_its_mode(home: Path) -> None:
    home.mkdir()
    home.chmod(0o750)
    await start_and_leave(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o750


async def test_second_user_joins_and_last_user_stops_the_server(home: Path) -> None:
    async with user(home) as first, user(home) as second:
        await first.entered()
        await second.entered()
        server = server_pid(home)
        await first.leave()
        assert server_pid(home) == server
        assert await execute(second.dsn, "SELECT count(*) FROM visit") == 2
        await second.leave()
        assert server_is_gone(home)


async def test_concurrent_users_share_one_server(home: Path) -> None:
    async with user(home) as a, user(home) as b, user(home) as c, user(home) as d:
        users = (a, b, c, d)
        await asyncio.gather(*(process.entered() for process in users))
        assert await execute(a.dsn, "SELECT count(*) FROM visit") == 4
        await asyncio.gather(*(process.leave() for process in users))
    assert server_is_gone(home)


async def test_starts_and_stops_may_race(home: Path) -> None:
    await start_and_leave(home)

    async def visit_often() -> None:
        for _ in range(5):
            async with EmbeddedPostgres(home) as postgres:
                assert await execute(postgres.dsn, "SELECT 1") == 1

    await asyncio.gather(*(visit_often() for _ in range(4)))
    assert server_is_gone(home)


@linux
async def test_killed_user_does_not_harm_others(home: Path) -> None:
    async with user(home) as first, user(home) as second:
        await first.entered()
        await second.entered()
        server = server_pid(home)
        first.process.kill()
        await first.process.wait()
        assert await execute(second.dsn, "SELECT count(*) FROM visit") == 2
        async with waiting_for_exit(server):
            second.process.kill()
    async with EmbeddedPostgres(home) as postgres:
        assert await execute(postgres.dsn, "SELECT count(*) FROM visit") == 2


@linux
async def test_server_ends_with_a_killed_supervisor(home: Path) -> None:
    async with EmbeddedPostgres(home) as postgres:
        await execute(postgres.dsn, "CREATE TABLE saved AS SELECT 42 AS answer")
        async with waiting_for_exit(server_pid(home)):
            os.kill(supervisor_pid(home), signal.SIGKILL)
        await postgres.ensure()
        assert await execute(postgres.dsn, "SELECT answer FROM saved") == 42


@linux
async def test_recovery_after_all_processes_were_killed(home: Path) -> None:
    async with user(home) as only:
        await only.entered()
        pids = (supervisor_pid(home), server_pid(home), only.process.pid)
        async with waiting_for_exit(pids[0]), waiting_for_exit(pids[1]):
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
    assert (home / "data" / "postmaster.pid").exists()
    async with EmbeddedPostgres(home) as postgres:
        assert await execute(postgres.dsn, "SELECT count(*) FROM visit") == 1


async def test_ensure_restarts_a_killed_server_for_all_users(home: Path) -> None:
    async with EmbeddedPostgres(home) as postgres, EmbeddedPostgres(home) as other:
        await execute(postgres.dsn, "CREATE TABLE saved AS SELECT 42 AS answer")
        os.kill(server_pid(home), signal.SIGKILL)
        await asyncio.gather(postgres.ensure(), other.ensure(), postgres.ensure())
        assert await execute(other.dsn, "SELECT answer FROM saved") == 42
        server = server_pid(home)
        await postgres.ensure()
        assert server_pid(home) == server


async def test_ensure_waits_for_crash_recovery(home: Path) -> None:
    async with EmbeddedPostgres(home) as postgres:
        victim = await asyncpg.connect(postgres.dsn)
        witness = await asyncpg.connect(postgres.dsn)
        os.kill(victim.get_server_pid(), signal.SIGKILL)
        # The server has noticed when it also ends the other connections.
        with pytest.raises((asyncpg.PostgresError, OSError)):
            await witness.execute("SELECT pg_sleep(30)")
        await postgres.ensure()
        assert await execute(postgres.dsn, "SELECT 1") == 1


@pytest.mark.parametrize("delay", [0, 0.01, 0.04, 0.1, 0.3])
async def test_cancelled_start_leaves_no_server(home: Path, delay: float) -> None:
    before = open_files()
    task = asyncio.create_task(start_and_leave(home))
    await asyncio.sleep(delay)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert open_files() == before
    await start_and_leave(home)
    assert server_is_gone(home)


async def test_server_whose_only_user_left_during_its_start_stops_cleanly(home: Path) -> None:
    """The supervisor stops the server as soon as it has started it, before PostgreSQL handles signals."""
    task = asyncio.create_task(start_and_leave(home))
    while not list(home.glob(".data-*")):  # noqa: ASYNC110 - another process creates it
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(30):
        while not server_is_gone(home):  # noqa: ASYNC110 - no event to wait for
            await asyncio.sleep(0.01)
    assert "immediate shutdown" not in (home / "postgres.log").read_text()
    await start_and_leave(home)


async def test_home_that_is_a_file_is_rejected(home: Path) -> None:
    home.write_text("")
    assert "cannot hold a database: File exists" in await start_error(home)


async def test_home_inside_a_file_is_rejected(home: Path) -> None:
    home.write_text("")
    assert "cannot hold a database: Not a directory" in await start_error(home / "inside")


async def test_home_that_cannot_be_written_is_rejected() -> None:
    line = await start_error(Path("/proc/kasparro"))
    assert "cannot hold a database" in line
    assert "DATABASE_URL" in line


async def test_unreachable_server_is_not_started_twice(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another machine or container used the home: its socket cannot be reached from here."""
    async with EmbeddedPostgres(home):
        monkeypatch.setattr(server, "START_TIMEOUT_S", 0.1)
        (home / "socket").rename(home / "elsewhere")
        assert "does not answer" in await start_error(home)
        (home / "elsewhere").rename(home / "socket")
