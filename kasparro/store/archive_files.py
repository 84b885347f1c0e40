"""Knows which archive gave which records: takes files back, and settles moments that several files give."""

from collections.abc import Sequence
from datetime import datetime

import asyncpg
import msgspec

from kasparro.errors import KasparroError
from kasparro.model.batch import Checkpoint, KnownFile
from kasparro.model.rival_prices import ROUNDING, describe
from kasparro.store.pool import Connection, Database
from kasparro.store.sql import statements

_SQL = statements("load/archives.sql") | statements("load/settle.sql")
# Longer than the server's own limit in the statement `long_timeout`, so that the server reports first.
TIMEOUT_S = 61 * 60.0


class NoSuchFile(KasparroError):
    """No archive with this name is loaded."""


class FileConflict(KasparroError):
    """A file has several prices for one coin and time, so that all of it is rejected."""


class OpenFile(msgspec.Struct, frozen=True):
    """The file of a batch: its id, the ids of the files that it replaces, when its reading began, and whether
    it has shared moments to settle from before."""

    id: int
    replaces: tuple[int, ...]
    loading_since: datetime
    unsettled: bool


class Settled(msgspec.Struct, frozen=True):
    """What taking back files, or settling shared moments, changed.

    `removed` counts records that no file gives any more, `changed` moments that another file's record now
    fills, and `kept` moments whose content stays. `coins_removed` and `coins_updated` count rows of
    unified_data.
    """

    removed: int = 0
    changed: int = 0
    kept: int = 0
    coins_removed: int = 0
    coins_updated: int = 0


class ListedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file as `kasparro archives` lists it, before the folder is compared."""

    known: KnownFile
    loaded_at: datetime
    records: int
    coins: int
    coin: str | None
    quoted_in: Sequence[str] | None
    first_observed_at: datetime | None
    last_observed_at: datetime | None


async def known_files(connection: Connection, source: str, name: str, content: str) -> list[KnownFile]:
    """The files with this name or content, in the order in which they came."""
    return [KnownFile(**row) for row in await connection.fetch(_SQL["known_files"], source, name, content)]


async def named_file(connection: Connection, source: str, name: str) -> KnownFile | None:
    """The newest file with this name that was not forgotten."""
    row = await connection.fetchrow(_SQL["named_file"], source, name)
    return KnownFile(**row) if row else None


async def listed_files(connection: Connection, source: str) -> list[ListedFile]:
    """All files, by name."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        given = {row["file_id"]: row for row in await connection.fetch(_SQL["file_records"], source)}
        files = await connection.fetch(_SQL["all_files"], source)
    found = []
    for row in files:
        figures = dict(row)
        loaded_at, quoted_in = figures.pop("updated_at"), figures.pop("quoted_in")
        records = given.get(row["id"])
        found.append(
            ListedFile(
                known=KnownFile(**figures),
                loaded_at=loaded_at,
                records=records["records"] if records else 0,
                coins=records["coins"] if records else 0,
                coin=records["coin"] if records and records["coins"] == 1 else None,
                quoted_in=quoted_in,
                first_observed_at=records["first_observed_at"] if records else None,
                last_observed_at=records["last_observed_at"] if records else None,
            )
        )
    return found


async def listed_names(connection: Connection, source: str) -> list[str]:
    """The names of the files that were not forgotten."""
    rows = await connection.fetch(_SQL["all_files"], source)
    return [row["name"] for row in rows if not row["forgotten"]]


def find_name(names: Sequence[str], file: str) -> str:
    """The one of these names that a user means: the name itself, or a path that ends with it.

    Raises NoSuchFile.
    """
    if file in names:
        return file
    meant = sorted({name for name in names if file.endswith(f"/{name}")}, key=len)
    if not meant:
        raise NoSuchFile(f"no archive {file} is loaded; kasparro archives lists those that are")
    return meant[-1]


async def disagreements(database: Database, source: str) -> list[str]:
    """One line for each two files that give different prices of one coin. Raises DatabaseUnavailable."""
    async with database.writing() as connection:
        rows = await connection.fetch(_SQL["disagreements"], source)
    return [
        f"{row['file']} and {row['other']} disagree: their prices of {row['source_id']} differ by more than "
        f"1 % at {row['differing']:,} of {row['moments']:,} moments; kasparro archives forget FILE takes one "
        "of them back"
        for row in rows
    ]


async def save_progress(
    connection: Connection, source: str, checkpoint: Checkpoint, now: datetime
) -> OpenFile:
    """Write the progress of a file, and return the file."""
    if checkpoint.continues is not None:
        await connection.execute(
            _SQL["continue_file"],
            *(source, checkpoint.continues, checkpoint.key, checkpoint.content, checkpoint.grown),
        )
    if checkpoint.replaces:
        await connection.execute(_SQL["reopen_files"], source, checkpoint.replaces)
    row = await connection.fetchrow(
        _SQL["save_file"],
        source,
        checkpoint.key,
        checkpoint.name,
        checkpoint.position,
        checkpoint.complete,
        checkpoint.bytes,
        checkpoint.interpretation,
        checkpoint.content,
        checkpoint.coin,
        now,
        checkpoint.quoted_in,
    )
    if row is None:
        raise AssertionError("the statement save_file returns a row")
    # The currencies of rows that were loaded before are kept, because these rows may stay.
    known = set(row["quoted_in"] or ())
    if row["quoted_in"] is None or not known.issuperset(checkpoint.quoted_in):
        currencies = sorted(known.union(checkpoint.quoted_in))
        await connection.execute(_SQL["save_currencies"], row["id"], currencies)
    replaces = tuple(number for number in checkpoint.replaces if number != row["id"])
    return OpenFile(row["id"], replaces, row["loading_since"], row["unsettled"])


async def save_bounds(connection: Connection, file: OpenFile, first: datetime, last: datetime) -> None:
    """Note the times of the oldest and the newest record that a batch has of the file."""
    await connection.execute(_SQL["save_bounds"], file.id, first, last)


async def require_one_price(connection: Connection, source: str, file: OpenFile) -> None:
    """Raise FileConflict if the staged batch gives a moment of a coin another price than the file did."""
    found = await connection.fetchrow(_SQL["rival_prices"], source, file.id, file.loading_since, ROUNDING)
    if found is not None:
        when = found["observed_at"].isoformat()
        raise FileConflict(
            describe(found["source_id"], when, found["lowest"], found["highest"], found["moments"])
        )


async def share(
    connection: Connection, source: str, file: OpenFile, lacks: Sequence[str], fetched_at: datetime
) -> None:
    """Store what each file gives, for staged moments that another file has already given."""
    await connection.execute(_SQL["note_unsettled"], file.id, fetched_at)
    await connection.execute(_SQL["share_known"], source)
    await connection.execute(_SQL["share_staged"], source, fetched_at, lacks, file.id)


async def finish(connection: Connection, source: str, name: str, file: OpenFile, *, shares: bool) -> Settled:
    """Settle what a file shares with others after its last batch, and take back what it replaces.

    `shares` says that its last batch shares moments.
    """
    await connection.execute(_SQL["delete_forgotten"], source, name)
    if not (
        shares
        or file.unsettled
        or file.replaces
        or await connection.fetchval(_SQL["has_provisional"], file.id)
    ):
        return Settled()
    await connection.execute(_SQL["long_timeout"])
    await connection.execute(_SQL["staging"])
    removed = 0
    if file.replaces:
        removed, _ = await _delete_records(connection, source, file.replaces)
        await connection.execute(_SQL["delete_files"], source, file.replaces)
        for own in await connection.fetch(_SQL["file_bounds"], source, [file.id]):
            await _touch_coins(connection, source, own)
    await connection.execute(_SQL["touch_shared"], source, file.id, timeout=TIMEOUT_S)
    await connection.execute(_SQL["note_settled"], file.id)
    settled = await _settle(connection, source)
    await connection.execute(_SQL["delete_disagreements"], source, [file.id])
    await connection.execute(_SQL["find_disagreements"], source, file.id, timeout=TIMEOUT_S)
    return msgspec.structs.replace(settled, removed=removed)


async def forget(connection: Connection, source: str, name: str, now: datetime) -> Settled:
    """Take back the records of the files with this name, which stay out until they change."""
    rows = await connection.fetch(_SQL["all_files"], source)
    ids = [row["id"] for row in rows if row["name"] == name and not row["forgotten"]]
    settled = await _take_back(connection, source, ids)
    await connection.execute(_SQL["delete_forgotten"], source, name)
    await connection.execute(_SQL["forget_files"], source, ids, now)
    return settled


async def reject(connection: Connection, source: str, file: OpenFile, reason: str) -> Settled:
    """Take back the records of a file that is rejected after some of its batches were loaded."""
    settled = await _take_back(connection, source, [file.id])
    await connection.execute(_SQL["reject_file"], source, file.id, reason)
    return settled


async def _take_back(connection: Connection, source: str, ids: Sequence[int]) -> Settled:
    await connection.execute(_SQL["long_timeout"])
    await connection.execute(_SQL["staging"])
    removed, shared = await _delete_records(connection, source, ids)
    settled = await _settle(connection, source)
    return msgspec.structs.replace(settled, removed=removed, kept=shared - settled.changed)


async def _delete_records(connection: Connection, source: str, ids: Sequence[int]) -> tuple[int, int]:
    # Returns how many records only these files gave, and how many others give as well.
    removed = 0
    for file in await connection.fetch(_SQL["file_bounds"], source, ids):
        if file["first_observed_at"] is None:
            continue
        statement, values = "delete_records", [file["first_observed_at"], file["last_observed_at"]]
        if file["coin"] is not None:
            statement, values = "delete_records_of_coin", [*values, file["coin"]]
        removed += await connection.fetchval(_SQL[statement], source, file["id"], *values, timeout=TIMEOUT_S)
    shared = await connection.fetchval(_SQL["delete_shared"], source, ids, timeout=TIMEOUT_S)
    await connection.execute(_SQL["delete_disagreements"], source, ids)
    return removed, shared


async def _touch_coins(connection: Connection, source: str, file: asyncpg.Record) -> None:
    if file["coin"] is not None:
        await connection.execute(_SQL["touch_coin"], file["coin"])
    elif file["first_observed_at"] is not None:
        await connection.execute(
            _SQL["touch_coins"],
            *(source, file["id"], file["first_observed_at"], file["last_observed_at"]),
            timeout=TIMEOUT_S,
        )


async def _settle(connection: Connection, source: str) -> Settled:
    # Writes what the touched moments and coins are now.
    await connection.execute(_SQL["stage_newest"], source, timeout=TIMEOUT_S)
    await connection.execute(_SQL["note_provisional"], source, timeout=TIMEOUT_S)
    changed = await connection.fetchval(_SQL["settle_moments"], source, timeout=TIMEOUT_S)
    for moment in await connection.fetch(_SQL["abandoned_moments"], source, timeout=TIMEOUT_S):
        await connection.execute(_SQL["delete_moment"], source, *moment)
    await connection.execute(_SQL["delete_single"], source, timeout=TIMEOUT_S)
    (coins,) = await connection.fetch(_SQL["settle_coins"], source, timeout=TIMEOUT_S)
    return Settled(changed=changed, coins_removed=coins["removed"], coins_updated=coins["updated"])


async def write_coins(
    connection: Connection, source: str, settled: Settled, now: datetime, version: int
) -> None:
    """Write the settled rows of unified_data, as part of this data version."""
    await connection.execute(_SQL["save_settled_versions"], source, now, version)
    if settled.coins_updated:
        await connection.execute(_SQL["update_settled"], source, now, version)
    if settled.coins_removed:
        await connection.execute(_SQL["delete_settled"], source)
