"""An export carries all state of a database to an empty one, or says why it does not."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kasparro.errors import DatabaseUnavailable, MigrationError, RunInProgress
from kasparro.simulator import Simulator
from kasparro.sources.archives.source import Archives
from kasparro.store import migrations
from kasparro.store.bootstrap import prepare
from kasparro.store.cursors import signing_key
from kasparro.store.locks import AdvisoryLease
from kasparro.store.migrations import Migration, available
from kasparro.store.pool import Connection, Database
from kasparro.store.tables import TABLES
from kasparro.store.transfer import importing
from kasparro.store.transfer.exporting import export
from kasparro.store.transfer.importing import import_export
from kasparro.store.transfer.manifest import Progress, TransferError
from tests.conftest import copied_database
from tests.support.commands import run_command, started_command
from tests.support.postgres import small_disk
from tests.support.runs import apis, run_sources

pytestmark = pytest.mark.slow

# Characters that COPY, CSV and JSON treat specially.
HOSTILE = 'tab\there, backslash \\N, quote " and line\nend, \\., €, \U0001f680'
DAYS = "date,symbol,price_usd\n2023-12-30,BTC,42099\n2023-12-31,BTC,42265\n2024-01-01,BTC,44168\n"


@pytest.fixture
async def filled(database: Database, tmp_path: Path) -> Database:
    """A database with runs of all sources, rejects and archives of several months."""
    csv = tmp_path / "csv"
    csv.mkdir()
    (csv / "days.csv").write_text(DAYS)
    async with Simulator(seed=3, coins=300, manual=True) as simulator:
        await run_sources(database, [*apis(simulator), Archives(str(csv))])
    async with database.writing() as connection:
        await connection.execute(
            "INSERT INTO rejects (run_id, source, reason, raw) VALUES (1, 'csv', 'hostile', $1)", HOSTILE
        )
    return database


@pytest.fixture
async def target(server_url: str) -> AsyncIterator[str]:
    """The URL of a second database, which is empty."""
    async with copied_database(server_url, "template1") as url:
        yield url


def ignore(done: Progress) -> None:
    """Takes the progress of a transfer."""


def names(folder: Path) -> set[str]:
    """The names of the files in a folder."""
    return {path.name for path in folder.iterdir()}


async def contents(database: Database) -> dict[str, list[str]]:
    """All rows of all tables, as text, without the key that signs cursors."""
    async with database.reading() as connection:
        key = await connection.fetchval("SELECT cursor_key FROM instance")
        return {
            table: [
                row["text"].replace(key, "")
                for row in await connection.fetch(f"SELECT t::text AS text FROM {table} AS t ORDER BY 1")
            ]
            for table in TABLES
            if table != "schema_migrations"
        }


async def test_imported_database_has_every_row_of_every_table(
    filled: Database, target: str, tmp_path: Path
) -> None:
    exported = await export(filled, tmp_path / "export", ignore)

    async with Database(target) as other:
        imported = await import_export(other, tmp_path / "export", ignore)

        assert imported == exported
        assert await contents(other) == await contents(filled)


async def test_cursors_of_before_are_not_valid(filled: Database, target: str, tmp_path: Path) -> None:
    await export(filled, tmp_path / "export", ignore)

    async with Database(target) as other:
        await import_export(other, tmp_path / "export", ignore)

        async with filled.reading() as before, other.reading() as after:
            assert await signing_key(before) != await signing_key(after)


async def test_next_run_continues_in_the_imported_database(
    filled: Database, target: str, tmp_path: Path
) -> None:
    await export(filled, tmp_path / "export", ignore)

    async with Database(target) as other:
        await import_export(other, tmp_path / "export", ignore)
        await prepare(other)
        status = await run_sources(other, [Archives(str(tmp_path / "csv"))])

        async with other.reading() as connection:
            ids = await connection.fetch("SELECT id FROM runs ORDER BY id")
            (unchanged,) = await connection.fetch(
                "SELECT inserted, updated FROM run_sources WHERE run_id = 2"
            )
    assert (status, [row["id"] for row in ids], tuple(unchanged)) == ("succeeded", [1, 2], (0, 0))


async def test_export_shows_one_moment_while_others_write(filled: Database, tmp_path: Path) -> None:
    before = await contents(filled)
    writing: list[asyncio.Task[str]] = []

    def write_once(done: Progress) -> None:
        if not writing:
            writing.append(asyncio.ensure_future(_delete_rejects(filled)))

    exported = await export(filled, tmp_path / "export", write_once)

    await asyncio.gather(*writing)
    rejects = next(part for part in exported.parts if part.table == "rejects")
    assert rejects.rows == len(before["rejects"]) > 0


async def _delete_rejects(database: Database) -> str:
    async with database.writing() as connection:
        return await connection.execute("DELETE FROM rejects")


async def test_second_export_writes_only_what_has_changed(filled: Database, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    first = await export(filled, folder, ignore)
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    await _delete_rejects(filled)

    kept: dict[str, bool] = {}
    second = await export(filled, folder, lambda done: kept.update({done.part.table: done.kept}))

    assert [table for table, same in kept.items() if not same] == ["rejects"]
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        *(part.file for part in second.parts),
    }
    assert all(
        (folder / part.file).stat().st_mtime_ns == written[part.file]
        for part in first.parts
        if part.table != "rejects"
    )


async def test_damaged_file_of_an_earlier_export_is_written_again(filled: Database, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    first = await export(filled, folder, ignore)
    # Rows of a distributed table may come in another order.
    file = folder / next(part.file for part in first.parts if part.table == "runs")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])

    await export(filled, folder, ignore)

    assert file.read_bytes() == whole


async def test_killed_export_is_continued(filled: Database, database_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    async with started_command("export", str(folder), DATABASE_URL=database_url) as process:
        assert process.stdout is not None
        await process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        await process.wait()
    left = {path.name for path in folder.glob("*.copy.zst")}

    kept: list[str] = []
    exported = await export(filled, folder, lambda done: kept.append(done.part.file) if done.kept else None)

    assert left
    assert set(kept) == left
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        *(part.file for part in exported.parts),
    }


async def test_killed_import_is_continued(filled: Database, target: str, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    await export(filled, folder, ignore)
    async with started_command("import", str(folder), DATABASE_URL=target) as process:
        assert process.stdout is not None
        await process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        await process.wait()
    _, _, refusal = await run_command("etl", DATABASE_URL=target, KASPARRO_SOURCES="csv")

    kept: list[str] = []
    async with Database(target) as other:
        await import_export(other, folder, lambda done: kept.append(done.part.table) if done.kept else None)

        assert await contents(other) == await contents(filled)
    assert "runs" in kept
    assert "an import into this database has not ended" in refusal


@pytest.mark.parametrize("damage", ["flipped", "short", "missing", "other"])
async def test_damaged_file_is_not_stored(filled: Database, target: str, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "export"
    exported = await export(filled, folder, ignore)
    file = folder / next(part.file for part in exported.parts if part.table == "unified_data")
    whole = file.read_bytes()
    if damage == "flipped":
        file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    elif damage == "short":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "missing":
        file.unlink()
    else:
        file.write_bytes((folder / next(p.file for p in exported.parts if p.table == "runs")).read_bytes())

    async with Database(target) as other:
        with pytest.raises(TransferError, match=file.name):
            await import_export(other, folder, ignore)
        async with other.reading() as connection:
            stored = await connection.fetchval("SELECT count(*) FROM unified_data")
        file.write_bytes(whole)
        await import_export(other, folder, ignore)

        assert stored == 0
        assert await contents(other) == await contents(filled)


async def test_export_of_an_older_schema_is_migrated(
    filled: Database, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "export"
    await export(filled, folder, ignore)
    newer = [*available(), Migration(9_999, "9999_newer.sql", "CREATE TABLE newer (id integer)", "newer")]
    for module in (migrations, importing):
        monkeypatch.setattr(module, "available", lambda: newer)

    async with Database(target) as other:
        # The import is interrupted after the newer migration, and goes on.
        monkeypatch.setattr(importing, "_end", interrupted)
        with pytest.raises(TransferError, match="interrupted"):
            await import_export(other, folder, ignore)
        monkeypatch.undo()
        for module in (migrations, importing):
            monkeypatch.setattr(module, "available", lambda: newer)
        await import_export(other, folder, ignore)
        await prepare(other)

        async with other.reading() as connection:
            assert await connection.fetchval("SELECT count(*) FROM newer") == 0
        assert await contents(other) == await contents(filled)


async def interrupted(*_: object) -> None:
    raise TransferError("interrupted")


async def test_export_of_a_newer_schema_is_refused(filled: Database, target: str, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    await export(filled, folder, ignore)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["kasparro"] = "9.9"
    manifest["migrations"].append({"version": 9_999, "checksum": "new"})
    (folder / "manifest.json").write_text(json.dumps(manifest))

    async with Database(target) as other:
        with pytest.raises(TransferError, match=r"install Kasparro 9\.9 or newer"):
            await import_export(other, folder, ignore)


async def test_database_in_use_is_refused(filled: Database, tmp_path: Path) -> None:
    await export(filled, tmp_path / "export", ignore)

    with pytest.raises(TransferError, match="needs an empty one"):
        await import_export(filled, tmp_path / "export", ignore)


async def test_import_of_another_export_is_refused_while_one_has_not_ended(
    filled: Database, target: str, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    exported = await export(filled, first, ignore)
    await export(filled, second, ignore)
    (first / exported.parts[-1].file).unlink()

    async with Database(target) as other:
        with pytest.raises(TransferError, match="cannot be read"):
            await import_export(other, first, ignore)
        with pytest.raises(TransferError, match="import of another export began"):
            await import_export(other, second, ignore)
        with pytest.raises(MigrationError, match="has not ended"):
            await prepare(other)


async def test_one_import_at_a_time(filled: Database, target: str, tmp_path: Path) -> None:
    await export(filled, tmp_path / "export", ignore)

    async with Database(target) as other, AdvisoryLease(other, "run") as lease:
        assert await lease.acquire()
        with pytest.raises(RunInProgress):
            await import_export(other, tmp_path / "export", ignore)


async def test_folder_with_other_files_is_left_alone(filled: Database, tmp_path: Path) -> None:
    letter = tmp_path / "papers" / "letter.txt"
    letter.parent.mkdir()
    letter.write_text("dear")

    with pytest.raises(TransferError, match=r"letter\.txt"):
        await export(filled, letter.parent, ignore)

    assert letter.read_text() == "dear"


async def test_export_needs_the_newest_schema(empty_database_url: str, tmp_path: Path) -> None:
    async with Database(empty_database_url) as database:
        with pytest.raises(TransferError, match="run kasparro migrate first"):
            await export(database, tmp_path / "export", ignore)


async def test_damaged_file_of_an_interrupted_export_is_written_again(
    filled: Database, target: str, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    exported = await export(filled, folder, ignore)
    (folder / "manifest.json").unlink()
    file = folder / next(part.file for part in exported.parts if part.table == "runs")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])

    await export(filled, folder, ignore)

    assert file.read_bytes() == whole


async def test_settings_of_the_server_do_not_change_values(
    filled: Database, database_url: str, target: str, connection: Connection, tmp_path: Path
) -> None:
    before = await contents(filled)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {name} SET extra_float_digits = -5")
    await connection.execute(f"ALTER DATABASE {name} SET datestyle = 'SQL, DMY'")
    await connection.execute(f"ALTER DATABASE {name} SET bytea_output = 'escape'")
    async with Database(database_url) as database:
        await export(database, tmp_path / "export", ignore)

    async with Database(target) as other:
        await import_export(other, tmp_path / "export", ignore)

        assert await contents(other) == before


async def test_table_of_another_schema_is_no_part(
    filled: Database, connection: Connection, tmp_path: Path
) -> None:
    await connection.execute("CREATE SCHEMA app")
    await connection.execute("CREATE TABLE app.runs (no bigint GENERATED ALWAYS AS IDENTITY)")

    exported = await export(filled, tmp_path / "export", ignore)

    assert "no" not in {sequence.column_name for sequence in exported.sequences}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("table", "runs; DROP TABLE runs"),
        ("columns", ["id", "1) TO PROGRAM 'true'"]),
        ("file", "../runs.copy.zst"),
        ("month", "2024-01-01' OR true"),
    ],
)
async def test_manifest_brings_no_statement(
    filled: Database, target: str, tmp_path: Path, field: str, value: object
) -> None:
    folder = tmp_path / "export"
    await export(filled, folder, ignore)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["parts"][0][field] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))

    async with Database(target) as other:
        with pytest.raises(TransferError, match="damaged"):
            await import_export(other, folder, ignore)


async def test_manifest_without_a_table_is_refused(filled: Database, target: str, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    await export(filled, folder, ignore)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["parts"] = [part for part in manifest["parts"] if part["table"] != "rejects"]
    (folder / "manifest.json").write_text(json.dumps(manifest))

    async with Database(target) as other:
        with pytest.raises(TransferError, match="wrong about the tables rejects"):
            await import_export(other, folder, ignore)
        with pytest.raises(MigrationError, match="has not ended"):
            await prepare(other)


async def test_import_ends_when_its_connection_is_lost(
    filled: Database, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "export"
    await export(filled, folder, ignore)
    monkeypatch.setattr(importing, "_PIECE", 64)
    read = importing._rows

    async def rows_until_terminated(*given: Any) -> AsyncIterator[bytes]:
        async for piece in read(*given):
            yield piece
            async with other.probing() as connection:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE query LIKE 'COPY%' AND pid <> pg_backend_pid()"
                )

    async with Database(target) as other:
        monkeypatch.setattr(importing, "_rows", rows_until_terminated)
        with pytest.raises(DatabaseUnavailable):
            async with asyncio.timeout(20):
                await import_export(other, folder, ignore)
        monkeypatch.setattr(importing, "_rows", read)
        await import_export(other, folder, ignore)

        assert await contents(other) == await contents(filled)


async def test_full_disk_leaves_the_earlier_export_whole(
    filled: Database, target: str, connection: Connection
) -> None:
    async with small_disk(2) as disk:
        if disk.missing:
            pytest.skip(disk.missing)
        folder = disk.folder / "export"
        earlier = await export(filled, folder, ignore)
        await connection.execute(
            "INSERT INTO rejects (run_id, source, reason, raw) VALUES (1, 'csv', 'x', 'x')"
        )
        disk.fill()

        with pytest.raises(TransferError, match="No space left on device"):
            await export(filled, folder, ignore)
        disk.clear()

        async with Database(target) as other:
            assert await import_export(other, folder, ignore) == earlier


async def test_commands_say_what_they_did(
    filled: Database, database_url: str, target: str, tmp_path: Path
) -> None:
    folder = str(tmp_path / "export")

    exported = await run_command("export", folder, DATABASE_URL=database_url)
    imported = await run_command("import", folder, DATABASE_URL=target)
    again = await run_command("import", folder, DATABASE_URL=target)

    assert exported[0] == imported[0] == 0
    assert exported[1].splitlines()[-1].startswith("exported ")
    assert imported[1].splitlines()[-1] == exported[1].splitlines()[-1].replace(
        "exported", "imported"
    ).replace(" to ", " from ")
    assert again[0] == 1
    assert "needs an empty one" in again[2]
