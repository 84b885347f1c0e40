"""Brings a database's schema up to date from the numbered files of `sql/migrations`."""

import hashlib
import itertools
import re

import asyncpg
import msgspec
import structlog

from kasparro.errors import MigrationError
from kasparro.store.pool import Connection, Database
from kasparro.store.sql import folder, statements

log = structlog.get_logger()
_SQL = statements("operations/migrations.sql")
# Longer than the server's own limits in the statement `patience`, which are to speak first.
PATIENCE_S = 31 * 60.0
_FILE = re.compile(r"(\d{4})_\w+\.sql")


class Migration(msgspec.Struct, frozen=True):
    """One numbered file; `checksum` is the SHA-256 of its text with Unix line ends."""

    version: int
    name: str
    text: str
    checksum: str


def available() -> list[Migration]:
    """The program's migrations in order. Raises MigrationError where two share a number."""
    found = []
    for file in folder("migrations").iterdir():
        if match := _FILE.fullmatch(file.name):
            text = file.read_text(encoding="utf-8").replace("\r\n", "\n")
            checksum = hashlib.sha256(text.encode()).hexdigest()
            found.append(Migration(int(match[1]), file.name, text, checksum))
    found.sort(key=lambda migration: migration.name)
    for one, next_one in itertools.pairwise(found):
        if one.version == next_one.version:
            raise MigrationError(f"two migrations have one number: {one.name} and {next_one.name}")
    return found


async def migrate(database: Database, migrations: list[Migration] | None = None) -> list[str]:
    """Apply what is missing, each file in a transaction of its own; returns the names applied.

    Several processes may do so at once: they take turns, and the later ones find nothing left. Raises
    MigrationError where an applied file was edited or is missing, or where one fails; DatabaseUnavailable.
    """
    migrations = available() if migrations is None else migrations
    done: list[str] = []
    async with database.writing() as connection:
        if (encoding := await connection.fetchval(_SQL["encoding"])) != "UTF8":
            raise MigrationError(f"this database is encoded in {encoding}; create one with ENCODING 'UTF8'")
        try:
            while await _apply_next(connection, migrations, done):
                pass
        except (
            asyncpg.SyntaxOrAccessError,
            asyncpg.IntegrityConstraintViolationError,
            # Rows that somebody put in by hand, of longer texts than any index takes.
            asyncpg.ProgramLimitExceededError,
        ) as error:
            name = next((one.name for one in migrations if one.name not in done), "their own table")
            raise MigrationError(f"migrating stopped at {name}: {error}") from error
    return done


async def pending(database: Database) -> list[str]:
    """Names of the migrations that this database lacks. Raises as `migrate` does, and changes nothing."""
    async with database.reading() as connection:
        known = await connection.fetchval(_SQL["table_exists"])
        applied = await connection.fetch(_SQL["applied"]) if known else []
    return [migration.name for migration in _missing(available(), applied)]


async def _apply_next(connection: Connection, migrations: list[Migration], done: list[str]) -> bool:
    async with connection.transaction():
        # Waiting for another process's migrations may take longer than any other lock.
        await connection.execute(_SQL["patience"])
        await connection.execute(_SQL["lock"], timeout=PATIENCE_S)
        await connection.execute(_SQL["impatience"])
        await connection.execute(_SQL["table"])
        missing = _missing(migrations, await connection.fetch(_SQL["applied"]))
        if not missing:
            return False
        migration = missing[0]
        await connection.execute(migration.text, timeout=PATIENCE_S)
        await connection.execute(_SQL["record"], migration.version, migration.name, migration.checksum)
    log.info("migrated", migration=migration.name)
    done.append(migration.name)
    return True


def _missing(migrations: list[Migration], applied: list[asyncpg.Record]) -> list[Migration]:
    known = {migration.version: migration for migration in migrations}
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
