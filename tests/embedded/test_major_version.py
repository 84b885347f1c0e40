"""Data of an older major version of PostgreSQL move to the one that Kasparro has, as docs/operations.md says.

PostgreSQL of the machine stands for an older one that Kasparro had.
"""

from pathlib import Path

import pytest

from kasparro.embedded import programs
from kasparro.embedded.server import EmbeddedPostgres, Programs, find_programs
from kasparro.store.migrations import migrate
from kasparro.store.pool import Database
from tests.support.batches import load_batches, make_batch, make_record
from tests.support.commands import run_command
from tests.support.embedded_server import execute, start_error
from tests.support.runs import table_contents

pytestmark = pytest.mark.slow


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Programs of the machine of an older major version than those of the wheel."""
    newest = find_programs().major
    found = [each for each in programs._all_programs() if each.major < newest]
    if not found:
        pytest.skip("no older PostgreSQL on this machine")
    return found[0]


@pytest.fixture
async def old_home(home: Path, older: Programs, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose data an older PostgreSQL has created."""
    with monkeypatch.context() as patch:
        patch.setattr("kasparro.embedded.server.find_programs", lambda data: older)
        async with EmbeddedPostgres(home) as postgres, Database(postgres.dsn) as database:
            await migrate(database)
            await load_batches(database, make_batch(make_record("a"), make_record("b")))
    return home


async def test_data_run_with_the_programs_of_their_version(old_home: Path, older: Programs) -> None:
    async with EmbeddedPostgres(old_home) as postgres:
        assert int(await execute(postgres.dsn, "SHOW server_version_num")) // 10_000 == older.major


async def test_export_and_import_move_data_to_the_newest_version(old_home: Path, tmp_path: Path) -> None:
    async with EmbeddedPostgres(old_home) as postgres:
        before = await table_contents(postgres.dsn)
    export = str(tmp_path / "export")

    exported = await run_command("export", export, KASPARRO_HOME=str(old_home), DATABASE_URL="")
    (old_home / "data").rename(old_home / "old")
    imported = await run_command("import", export, KASPARRO_HOME=str(old_home), DATABASE_URL="")

    assert (exported[0], imported[0]) == (0, 0), exported[2] + imported[2]
    async with EmbeddedPostgres(old_home) as postgres:
        assert await table_contents(postgres.dsn) == before
        version = int(await execute(postgres.dsn, "SHOW server_version_num")) // 10_000
    assert version == find_programs().major


async def test_without_programs_of_their_version_data_are_not_touched(
    old_home: Path, older: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(programs, "MACHINE_FOLDERS", ())
    assert f"were created by PostgreSQL {older.major}" in await start_error(old_home)
