"""Stores the contracts of coins: which list is due, and what a list changes."""

from datetime import datetime, timedelta

import msgspec

from kasparro.model.contract_list import ContractList
from kasparro.store.pool import Connection, Database
from kasparro.store.sql import statements

_SQL = statements("load/contracts.sql")

DAY = timedelta(days=1)
# After a failed request, the lists of the source rest for this long.
REST = timedelta(hours=1)
# A list that lacks more than a tenth of the stored contracts, or all of them, is short. A few contracts of a
# small list may go at once.
SHORT_PERCENT = 10
FEW = 5
# A short list removes nothing, unless it has been short for this long.
BELIEVED_AFTER = timedelta(days=3)


class Replaced(msgspec.Struct, frozen=True):
    """What a list changed. `kept` contracts stay although the list lacks them, because it is short."""

    added: int = 0
    removed: int = 0
    kept: int = 0


async def next_list(
    database: Database, source: str, root: str, now: datetime, *, limit: int | None
) -> str | None:
    """Note a request of the list that is due now, and return its path; None if none is due.

    Each list is fetched at most once a day (UTC), and at most `limit` lists a day are requested. `root` is
    the path of the list that the source always has. Raises DatabaseUnavailable.
    """
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    async with database.writing() as connection, connection.transaction():
        if (
            limit is not None
            and await connection.fetchval(_SQL["requested"], source, day, day + DAY) >= limit
        ):
            return None
        await connection.execute(_SQL["add_lists"], source, [root])
        path: str | None = await connection.fetchval(
            _SQL["due_list"], source, day, day + DAY, now - REST, now
        )
        if path is not None:
            await connection.execute(_SQL["note_request"], source, path, now)
    return path


async def replace(database: Database, source: str, found: ContractList, now: datetime) -> Replaced:
    """Load a list: write the contracts that differ from the stored ones. An older list changes nothing.

    Raises DatabaseUnavailable.
    """
    async with database.writing() as connection, connection.transaction():
        await connection.execute(_SQL["add_lists"], source, [found.path])
        locked = await connection.fetchrow(_SQL["lock_list"], source, found.path, found.received_at, now)
        if locked is None:
            return Replaced()
        replaced, short_since = Replaced(), None
        if found.lists is not None:
            await connection.execute(_SQL["add_lists"], source, found.lists)
            await connection.execute(_SQL["drop_lists"], source, [found.path, *found.lists])
        else:
            replaced, short_since = await _replace(connection, source, found, locked["short_since"])
        await connection.execute(
            _SQL["note_list"],
            source,
            found.path,
            found.received_at,
            short_since,
            now if replaced.added or replaced.removed else None,
        )
    return replaced


async def _replace(
    connection: Connection, source: str, found: ContractList, short_since: datetime | None
) -> tuple[Replaced, datetime | None]:
    """Write what differs; also, since when the list has been short."""
    await connection.execute(_SQL["staging"])
    await connection.copy_records_to_table(
        "staged_contracts", records=found.contracts, columns=("source_id", "platform", "address")
    )
    (row,) = await connection.fetch(_SQL["compare"], source, found.platform)
    stored, missing = row["stored"], row["missing"]
    added = await connection.fetchval(_SQL["add_contracts"], source)
    if missing and (missing == stored or missing > max(stored * SHORT_PERCENT // 100, FEW)):
        short_since = short_since or found.received_at
        if found.received_at - short_since < BELIEVED_AFTER:
            return Replaced(added=added, kept=missing), short_since
    if missing:
        await connection.execute(_SQL["remove_contracts"], source, found.platform)
    return Replaced(added=added, removed=missing), None


async def changed_at(connection: Connection) -> datetime | None:
    """When a list last added or removed a contract. None: no contract was ever loaded."""
    moment: datetime | None = await connection.fetchval(_SQL["changed_at"])
    return moment
