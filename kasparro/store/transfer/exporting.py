"""Exports all state of a database into a folder."""

import asyncio
import fcntl
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from kasparro import __version__
from kasparro.store.migrations import pending
from kasparro.store.pool import Connection, Database
from kasparro.store.sql import templates
from kasparro.store.tables import TABLES
from kasparro.store.transfer.manifest import (
    FORMAT,
    NAME,
    SUFFIX,
    AppliedMigration,
    Manifest,
    Part,
    Progress,
    TransferError,
    read_manifest,
)
from kasparro.store.transfer.manifest import Sequence as IdentitySequence

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_SQL = templates("operations/transfer.sql")

# A part of the history of a year of runs takes minutes, and the database may be slow.
TIMEOUT_S = 24 * 3_600.0
HISTORY = "unified_history"
# The manifest has the migrations. The other tables follow each other so that foreign keys are met.
EXPORTED = ("runs", *(name for name in TABLES if name not in {"runs", "schema_migrations"}))
# Higher levels take three times as long for a few percent fewer bytes.
_LEVEL = 3


async def export(database: Database, folder: Path, on_part: Callable[[Progress], None]) -> Manifest:
    """Write all state of the database, as it is at one moment, into a folder; returns its manifest.

    The name of a file has the digest of its rows, so a file of an earlier export or attempt is kept where its
    rows are the same. The manifest is replaced at the end, and then the files that it does not name are
    deleted. So an export that is in the folder stays whole until the next one is complete.

    Raises TransferError if the schema is not up to date, or if the folder has other files, cannot be written,
    or has an export at work; MigrationError if the schema is newer than this program, or an import has not
    ended; DatabaseUnavailable.
    """
    if missing := await pending(database):
        raise TransferError(
            f"the database lacks {', '.join(missing)}: run kasparro migrate first, or export with the "
            "Kasparro that used it last"
        )
    with _owned(folder) as earlier:
        async with (
            database.writing() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            await connection.execute(_SQL["lock_history"].compose().text)
            await connection.execute(_SQL["settings"].compose().text)
            if await connection.fetchval(_SQL["import_begun"].compose().text):
                raise TransferError("an import into this database has not ended: finish it first")
            migrations = await _migrations(connection)
            wanted = await _wanted(connection)
            parts = []
            for number, (table, month) in enumerate(wanted, 1):
                part, kept = await _export_part(connection, folder, table, month, earlier)
                parts.append(part)
                on_part(Progress(part=part, number=number, of=len(wanted), kept=kept))
            manifest = Manifest(
                format=FORMAT,
                kasparro=__version__,
                postgresql=connection.get_server_version().major,
                exported_at=datetime.now(UTC),
                migrations=migrations,
                parts=tuple(parts),
                sequences=await _sequences(connection),
            )
        _complete(folder, manifest)
    return manifest


async def columns_of(connection: Connection, table: str) -> tuple[str, ...]:
    """The columns of a table; none if there is no such table."""
    statement = _SQL["columns"].compose()
    rows = await connection.fetch(statement.text, *statement.values({"table": table}))
    return tuple(row["attname"] for row in rows)


async def fingerprint(
    connection: Connection, table: str, columns: tuple[str, ...], month: str | None
) -> tuple[int, str]:
    """The number of rows of a part, and the digest of its rows in these columns."""
    statement = _SQL["fingerprint"].compose(table=table, columns=columns, month=month is not None)
    values = statement.values({"month": None if month is None else date.fromisoformat(month)})
    (found,) = await connection.fetch(statement.text, *values, timeout=TIMEOUT_S)
    return found["rows"], f"{int(found['digest'], 2):032x}"


async def _migrations(connection: Connection) -> tuple[AppliedMigration, ...]:
    return tuple([AppliedMigration(**row) for row in await connection.fetch(_SQL["applied"].compose().text)])


async def _wanted(connection: Connection) -> list[tuple[str, str | None]]:
    months = [row["month"].isoformat() for row in await connection.fetch(_SQL["months"].compose().text)]
    wanted: list[tuple[str, str | None]] = []
    for table in EXPORTED:
        if table == HISTORY:
            wanted += [(HISTORY, month) for month in months]
        else:
            wanted.append((table, None))
    return wanted


async def _export_part(
    connection: Connection, folder: Path, table: str, month: str | None, earlier: Mapping[str, str]
) -> tuple[Part, bool]:
    columns = await columns_of(connection, table)
    rows, digest = await fingerprint(connection, table, columns, month)
    # Other columns with the same rows are another content.
    content = hashlib.sha256(f"{columns} {rows} {digest}".encode()).hexdigest()[:16]
    name = "-".join([table, *([] if month is None else [month[:7]]), content])
    path = folder / f"{name}{SUFFIX}"
    size, checksum, kept = 0, "", path.exists()
    if kept:
        size, checksum = await asyncio.to_thread(_checksum, path)
        # A damaged file is written again. An interrupted export has no checksums to compare with.
        kept = checksum == earlier[path.name] if path.name in earlier else await _is_whole(path, rows)
    if not kept:
        query = _SQL["part"].compose(table=table, columns=columns, month=month)
        size, checksum = await _copy_out(connection, query.text.removesuffix(";"), path)
    part = Part(
        file=path.name,
        table=table,
        month=month,
        columns=columns,
        rows=rows,
        digest=digest,
        bytes=size,
        sha256=checksum,
    )
    return part, kept


async def _copy_out(connection: Connection, query: str, path: Path) -> tuple[int, str]:
    compressor, checksum, size = zstd.ZstdCompressor(_LEVEL), hashlib.sha256(), 0
    with _NewFile(path) as file:

        def write(compressed: bytes) -> None:
            nonlocal size
            size += len(compressed)
            checksum.update(compressed)
            file.write(compressed)

        async def output(piece: bytes) -> None:
            write(compressor.compress(piece))

        await connection.copy_from_query(query, output=output, timeout=TIMEOUT_S)
        write(compressor.flush())
    return size, checksum.hexdigest()


def _complete(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest, and delete the files that it does not name."""
    with _NewFile(folder / NAME) as file:
        file.write(manifest.encode())
    with _translated(folder):
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    named = {NAME, *(part.file for part in manifest.parts)}
    for path in folder.iterdir():
        if SUFFIX in path.name and path.name not in named:
            path.unlink()


async def _sequences(connection: Connection) -> tuple[IdentitySequence, ...]:
    statement = _SQL["sequences"].compose()
    rows = await connection.fetch(statement.text, *statement.values({"tables": EXPORTED}))
    return tuple(IdentitySequence(**row) for row in rows)


def _checksum(path: Path) -> tuple[int, str]:
    with _translated(path), path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), checksum


async def _is_whole(path: Path, rows: int) -> bool:
    """Whether a file can be decompressed and has this many rows."""
    return await asyncio.to_thread(_count_rows, path) == rows


def _count_rows(path: Path) -> int | None:
    decompressor, rows = zstd.ZstdDecompressor(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                # COPY escapes line ends within values.
                rows += decompressor.decompress(piece).count(b"\n")
    except (zstd.ZstdError, EOFError):
        return None
    return rows if decompressor.eof else None


@contextmanager
def _owned(folder: Path) -> Iterator[dict[str, str]]:
    """The folder, for one export at a time: the SHA-256 of each file of the export that it has.

    It is created if it is missing.
    """
    # Payloads and the key that signs cursors are nobody else's business.
    with _translated(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TransferError(f"another export is writing to {folder}: wait until it has ended") from None
        strangers = [path.name for path in folder.iterdir() if path.name != NAME and SUFFIX not in path.name]
        if strangers:
            raise TransferError(f"{folder} has other files, such as {min(strangers)}: name an empty folder")
        parts = read_manifest(folder).parts if (folder / NAME).exists() else ()
        yield {part.file: part.sha256 for part in parts}
    finally:
        os.close(handle)


class _NewFile:
    """A file that has its name only when the block has ended and its content is on the disk.

    Raises TransferError if it cannot be written. Other errors of the block are raised unchanged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.name}{SUFFIX}.partial")

    def __enter__(self) -> Self:
        with _translated(self._partial):
            handle = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._file = os.fdopen(handle, "wb")
        return self

    def write(self, content: bytes) -> None:
        with _translated(self._partial):
            self._file.write(content)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with _translated(self._partial), self._file as file:
                if error is None:
                    file.flush()
                    os.fsync(file.fileno())
                    self._partial.rename(self._path)
        finally:
            self._partial.unlink(missing_ok=True)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TransferError(
            f"{path} cannot be written: {error.strerror}; complete files are kept, so "
            "run kasparro export again when this is mended"
        ) from error
