"""Imports an export into an empty database."""

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import BinaryIO

import asyncpg
import msgspec

from kasparro.errors import DatabaseUnavailable, RunInProgress
from kasparro.store.locks import AdvisoryLease
from kasparro.store.migrations import Migration, available, migrate
from kasparro.store.pool import Connection, Database
from kasparro.store.sql import statements, templates
from kasparro.store.transfer.exporting import EXPORTED, HISTORY, TIMEOUT_S, columns_of, fingerprint
from kasparro.store.transfer.manifest import Manifest, Part, Progress, TransferError, read_manifest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_SQL = templates("operations/transfer.sql")
_NEW_CURSOR_KEY = statements("operations/instance.sql")["new_cursor_key"]
_PIECE = 1 << 20


async def import_export(database: Database, folder: Path, on_part: Callable[[Progress], None]) -> Manifest:
    """Load an export into an empty database, and then apply the migrations that are newer than the export.

    Everything is as it was, but for the key that signs cursors.

    Each part is one transaction, in which its file and the rows that PostgreSQL has stored are compared with
    the manifest. An import that was interrupted goes on where it ended. Nothing else uses the database before
    the import is complete.

    Raises TransferError if the export is damaged or from a newer program, or if the database has data;
    RunInProgress if another import is at work; MigrationError; DatabaseUnavailable.
    """
    manifest = read_manifest(folder)
    migrations = _migrations_of(manifest, available())
    identity = hashlib.sha256(manifest.encode()).hexdigest()
    async with AdvisoryLease(database, "run") as lease:
        if not await lease.acquire():
            raise RunInProgress("a run or another import is at work on this database")
        done = await _begin(database, identity)
        if len(done) < len(manifest.parts):
            await migrate(database, migrations, importing=True)
            await _require_all_tables(database, manifest)
        for number, part in enumerate(manifest.parts, 1):
            if kept := part.file in done:
                pass
            elif not lease.held:
                raise TransferError("the connection to PostgreSQL was lost: run kasparro import again")
            else:
                await _import_part(database, folder, part, identity)
            on_part(Progress(part=part, number=number, of=len(manifest.parts), kept=kept))
        await migrate(database, importing=True)
        await _end(database, manifest)
    return manifest


def _migrations_of(manifest: Manifest, known: list[Migration]) -> list[Migration]:
    """The migrations that the exported database had. Raises TransferError if this program lacks one."""
    exported = [(migration.version, migration.checksum) for migration in manifest.migrations]
    same = known[: len(exported)]
    if [(migration.version, migration.checksum) for migration in same] != exported:
        raise TransferError(
            f"Kasparro {manifest.kasparro} wrote this export, with migrations that this program does not "
            f"have: install Kasparro {manifest.kasparro} or newer"
        )
    return same


async def _begin(database: Database, identity: str) -> set[str]:
    """Reserve an empty database for the import; returns the files that were imported before."""
    async with database.writing() as connection, connection.transaction():
        await connection.execute(_SQL["lock_migrations"].compose().text)
        if await connection.fetchval(_SQL["import_begun"].compose().text):
            rows = await connection.fetch(_SQL["imported_parts"].compose().text)
            if any(row["export"] != identity for row in rows):
                raise TransferError(
                    "an import of another export began in this database and has not ended: run "
                    "kasparro import with that export again, or use an empty database"
                )
            return {row["file"] for row in rows}
        if await connection.fetchval(_SQL["has_schema"].compose().text):
            raise TransferError(
                "this database is in use by Kasparro already, and an import needs an empty one: create "
                "another database for DATABASE_URL, or set KASPARRO_HOME to another folder if it is unset"
            )
        await connection.execute(_SQL["begin_import"].compose().text)
    return set()


async def _require_all_tables(database: Database, manifest: Manifest) -> None:
    """Raise TransferError if the manifest does not have each table of the exported schema as it is."""
    parts = {part.table: part.columns for part in manifest.parts}
    months = {part.month for part in manifest.parts if part.table == HISTORY}
    async with database.writing() as connection:
        tables = {table: await columns_of(connection, table) for table in EXPORTED}
    wanted = {table: columns for table, columns in tables.items() if columns}
    if not months:
        # Nothing was loaded into it yet.
        wanted.pop(HISTORY)
    if parts != wanted or None in months:
        wrong = {name for name in parts.keys() | wanted.keys() if parts.get(name) != wanted.get(name)}
        raise TransferError(
            f"the manifest is damaged: it is wrong about the tables {', '.join(sorted(wrong))}"
        )


async def _import_part(database: Database, folder: Path, part: Part, identity: str) -> None:
    async with database.writing() as connection, connection.transaction():
        await connection.execute(_SQL["settings"].compose().text)
        if part.month is None:
            # A migration writes the first row of some tables.
            await connection.execute(_SQL["empty"].compose(table=part.table).text)
        else:
            statement = _SQL["create_month"].compose()
            await connection.execute(
                statement.text, *statement.values({"month": date.fromisoformat(part.month)})
            )
        await _copy_in(connection, folder / part.file, part)
        found = await fingerprint(connection, part.table, part.columns, part.month)
        if found != (part.rows, part.digest):
            raise TransferError(
                f"PostgreSQL stored other rows than {part.file} has: {found[0]} with the digest {found[1]} "
                f"instead of {part.rows} with {part.digest}; nothing of this file was kept"
            )
        statement = _SQL["note_part"].compose()
        await connection.execute(statement.text, *statement.values({"export": identity, "file": part.file}))


async def _copy_in(connection: Connection, path: Path, part: Part) -> None:
    try:
        file = path.open("rb")
    except OSError as error:
        raise TransferError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        copying = asyncio.create_task(
            connection.copy_to_table(
                part.table, source=_rows(file, part), columns=part.columns, timeout=TIMEOUT_S
            )
        )

        def lost(_: object) -> None:
            # asyncpg would wait for ever to send the next piece.
            copying.cancel()

        connection.add_termination_listener(lost)
        try:
            await copying
        except asyncio.CancelledError:
            if not connection.is_closed():
                raise
            raise DatabaseUnavailable("the connection was lost: run kasparro import again") from None
        finally:
            # A lost connection is no longer that of the pool.
            with suppress(asyncpg.InterfaceError):
                connection.remove_termination_listener(lost)


async def _rows(file: BinaryIO, part: Part) -> AsyncIterator[bytes]:
    """The rows of a part as COPY reads them. Raises TransferError if the file is not the one in the manifest,
    so that PostgreSQL stores none of it."""
    checksum, decompressor = hashlib.sha256(), zstd.ZstdDecompressor()
    damaged = TransferError(
        f"{part.file} is damaged: its SHA-256 is not the one in the manifest; copy it again"
    )
    while compressed := file.read(_PIECE):
        checksum.update(compressed)
        try:
            yield decompressor.decompress(compressed)
        except (zstd.ZstdError, EOFError):
            raise damaged from None
    if not decompressor.eof or checksum.hexdigest() != part.sha256:
        raise damaged


async def _end(database: Database, manifest: Manifest) -> None:
    async with database.writing() as connection:
        for table in EXPORTED:
            async with connection.transaction():
                await connection.execute(_SQL["settings"].compose().text)
                await connection.execute(_SQL["analyze"].compose(table=table).text, timeout=TIMEOUT_S)
        async with connection.transaction():
            statement = _SQL["set_sequence"].compose()
            for sequence in manifest.sequences:
                if sequence.last_number is not None:
                    await connection.execute(statement.text, *statement.values(msgspec.to_builtins(sequence)))
            await connection.execute(_NEW_CURSOR_KEY)
            await connection.execute(_SQL["end_import"].compose().text)
