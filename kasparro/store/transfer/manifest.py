"""The manifest of an export: which files it has, what they hold, and how they are verified.

An export is a folder with `manifest.json` and one file for each part: a table, or a month of the history.
A file has the rows in the text format of PostgreSQL's COPY
(https://www.postgresql.org/docs/current/sql-copy.html), compressed with zstd.
"""

import re
from datetime import datetime
from pathlib import Path

import msgspec

from kasparro.errors import KasparroError

# A program reads exports with this number only. It changes if the meaning of a field changes.
FORMAT = 1
NAME = "manifest.json"
SUFFIX = ".copy.zst"

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FILE = re.compile(r"[a-z0-9_-]+\.copy\.zst")
_MONTH = re.compile(r"\d{4}-\d{2}-01")


class TransferError(KasparroError):
    """An export or an import cannot go on. The text says why and what to do."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A file: the rows of a table, or those of one month (`YYYY-MM-01`) of the history.

    `digest` is of the rows, whatever their order; `sha256` is of the file.
    """

    file: str
    table: str
    month: str | None
    columns: tuple[str, ...]
    rows: int
    digest: str
    bytes: int
    sha256: str


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A part that is done, the `number`th of `of`. `kept` says that an earlier attempt did it."""

    part: Part
    number: int
    of: int
    kept: bool


class Sequence(msgspec.Struct, frozen=True, kw_only=True):
    """The last number that an identity column has given; null: none."""

    table_name: str
    column_name: str
    last_number: int | None


class AppliedMigration(msgspec.Struct, frozen=True, kw_only=True):
    """A migration of the exported database."""

    version: int
    checksum: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an export has."""

    format: int
    kasparro: str
    postgresql: int
    exported_at: datetime
    migrations: tuple[AppliedMigration, ...]
    parts: tuple[Part, ...]
    sequences: tuple[Sequence, ...]

    def encode(self) -> bytes:
        """The manifest as JSON for people and programs."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an export. Raises TransferError if there is none, or another program wrote it."""
    path = folder / NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise TransferError(
            f"{folder} holds no complete export: {NAME} is missing, which an export writes at its end; "
            "run kasparro export on the folder again"
        ) from None
    except OSError as error:
        raise TransferError(f"{path} cannot be read: {error.strerror}") from error
    try:
        version = msgspec.json.decode(content, type=dict[str, msgspec.Raw]).get("format")
        if version is not None and bytes(version) != str(FORMAT).encode():
            raise TransferError(
                f"{path} has format {bytes(version).decode()}, and this program reads format {FORMAT}: "
                "use the Kasparro that wrote it, or a newer one"
            )
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TransferError(f"{path} is damaged: {error}") from error
    for part in manifest.parts:
        # These names become parts of statements and paths, and the folder may come from somebody else.
        if not _NAME.fullmatch(part.table) or not all(_NAME.fullmatch(column) for column in part.columns):
            raise TransferError(f"{path} is damaged: {part.table!r} is no name of a table or column")
        if not _FILE.fullmatch(part.file) or not (part.month is None or _MONTH.fullmatch(part.month)):
            raise TransferError(f"{path} is damaged: {part.file!r} is no file of an export")
    return manifest
