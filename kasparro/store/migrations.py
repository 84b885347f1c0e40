"""Brings a database's schema up to date from the numbered files of `sql/migrations`."""

import hashlib
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
import msgspec
import structlog

from kasparro.errors import MigrationError
from kasparro.store.pool import Connection, Database
from kasparro.store.sql import folder, statements

log = structlog.get_logger()
_SQL = statements("operations/migrations.sql")
# Longer than the server's own limits in the statement `long_timeouts`, so that the server reports first.
TIMEOUT_S = 31 * 60.0
_FILE = re.compile(r"(\d{4})_\w+\.sql")
# Development versions before 0.1 had these; no migration leads from their schema.
_DEVELOPMENT_MIGRATION = "0002_pages.sql"
_DEVELOPMENT_CHECKSUM = "a7805e5341c94c286c658d17cd64b2cc04f2b4e1eee19ccf68ccecdfc6324314"


class Migration(msgspec.Struct, frozen=True):
    """One numbered file; `checksum` is the SHA-256 of its text with Unix line ends."""

    version: int
    name: str
    text: str
    checksum: str


def available() -> list[Migration]:
    """The program's migrations in order. Raises MigrationError if two have the same number."""
    found = []
    for file in folder("migrations").iterdir():
        if match := _FILE.fullmatch(file.name):
            text = file.read_text(encoding="utf-8").replace("\r\n", "\n")
            checksum = hashlib.sha256(text.encode()).hexdigest()
            found.append(Migration(int(match[1]), file.name, text, checksum))
    found.sort(key=lambda migration: migration.name)
    for earlier, later in itertools.pairwise(found):
        if earlier.version == later.version:
            raise MigrationError(f"two migrations have the same number: {earlier.name} and {later.name}")
    return found


async def migrate(
    database: Database, migrations: list[Migration] | None = None, *, importing: bool = False
) -> list[str]:
    """Apply the missing migrations, each file in its own transaction; returns the names of those applied.

    Several processes may do this at the same time: each waits for the one before it, and finds nothing left
    to do. Raises MigrationError if an applied file was edited or is missing, if a migration fails, or if an
    import has not ended and this is not `importing`; DatabaseUnavailable.
    """
    migrations = available() if migrations is None else migrations
    done: list[str] = []
    async with database.writing() as connection:
        if (encoding := await connection.fetchval(_SQL["encoding"])) != "UTF8":
            raise MigrationError(f"this database is encoded in {encoding}; create one with ENCODING 'UTF8'")
        while await _apply_next(connection, migrations, done, importing=importing):
            pass
    return done


async def pending(database: Database) -> list[str]:
    """The names of the migrations that this database lacks. Changes nothing; raises as `migrate` does."""
    async with database.reading() as connection:
        await _require_complete(connection)
        known = await connection.fetchval(_SQL["table_exists"])
        applied = await connection.fetch(_SQL["applied"]) if known else []
    return [migration.name for migration in _missing(available(), applied)]


async def _require_complete(connection: Connection) -> None:
    if await connection.fetchval(_SQL["import_begun"]):
        raise MigrationError(
            "an import into this database has not ended, so the database is incomplete: run kasparro import "
            "with the same folder again"
        )


async def _apply_next(
    connection: Connection, migrations: list[Migration], done: list[str], *, importing: bool
) -> bool:
    async with connection.transaction():
        await connection.execute(_SQL["long_timeouts"])
        await connection.execute(_SQL["lock"], timeout=TIMEOUT_S)
        await connection.execute(_SQL["short_timeouts"])
        if not importing:
            await _require_complete(connection)
        with _stops_at("the table schema_migrations"):
            await connection.execute(_SQL["table"])
            applied = await connection.fetch(_SQL["applied"])
        missing = _missing(migrations, applied)
        if not missing:
            return False
        migration = missing[0]
        with _stops_at(migration.name):
            for statement in _statements(migration.text):
                await connection.execute(statement, timeout=TIMEOUT_S)
            await connection.execute(_SQL["record"], migration.version, migration.name, migration.checksum)
    log.info("migrated", migration=migration.name)
    done.append(migration.name)
    return True


def _statements(text: str) -> Iterator[str]:
    # Citus does not accept several statements at once that change a distributed table. A semicolon at the end
    # of a line ends a statement, except inside of $$.
    statement = ""
    for part in text.split(";\n"):
        statement += part
        if statement.count("$$") % 2:
            statement += ";\n"
        elif statement.strip():
            yield statement
            statement = ""


@contextmanager
def _stops_at(name: str) -> Iterator[None]:
    try:
        yield
    except (
        asyncpg.SyntaxOrAccessError,
        asyncpg.IntegrityConstraintViolationError,
        # A row that was inserted manually has a longer text than any index takes.
        asyncpg.ProgramLimitExceededError,
    ) as error:
        raise MigrationError(f"migrating stopped at {name}: {error}") from error


def _missing(migrations: list[Migration], applied: list[asyncpg.Record]) -> list[Migration]:
    known = {migration.version: migration for migration in migrations}
    if any(
        row["name"] == _DEVELOPMENT_MIGRATION or row["checksum"] == _DEVELOPMENT_CHECKSUM for row in applied
    ):
        raise MigrationError(
            "this database was created by a development version before 0.1, whose schema cannot be upgraded: "
            "export what you need with that version, and start with an empty database"
        )
    for row in applied:
        migration = known.get(row["version"])
        if migration is None:
            raise MigrationError(
                f"this database has migration {row['name']}, which this program does not know: it was used "
                "with a newer Kasparro; install that version or newer"
            )
        if migration.checksum != row["checksum"]:
            raise MigrationError(
                f"migration {migration.name} was edited after it was applied to this database: restore the "
                "file and put the change into a new migration"
            )
    last = max((row["version"] for row in applied), default=0)
    missing = [
        migration for migration in migrations if migration.version not in {r["version"] for r in applied}
    ]
    for migration in missing:
        if migration.version < last:
            raise MigrationError(
                f"migration {migration.name} was added below {last:04}, which this database has: "
                "give it a higher number"
            )
    return missing
