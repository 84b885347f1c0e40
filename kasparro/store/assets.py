"""Stores which rows are the same coin: reads what the resolver needs, and writes what it decides.

What the resolver reads and writes is text here, because it works in a process of its own. To read 20,000 rows
takes a fifth of a second, and requests would wait meanwhile.
"""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from kasparro.errors import LeaseLost
from kasparro.model.asset import Key
from kasparro.model.asset_documents import KnownDocuments, ResolutionDocuments
from kasparro.model.consensus import ConsensusLimits
from kasparro.store import asset_history, consensus
from kasparro.store.pool import Connection
from kasparro.store.sql import statements
from kasparro.store.text import sanitize

_SQL = statements("assets/links.sql")
_VERSION = statements("load/progress.sql") | statements("load/batch.sql")


class Resolved(msgspec.Struct, frozen=True):
    """What a resolution changed: rows that have another asset, and assets that have another consensus."""

    rows: int
    assets: int


async def is_pending(connection: Connection, depends_on: str) -> bool:
    """Whether the resolver has something to decide. `depends_on` is a digest of what its decisions depend on
    besides the rows."""
    pending: bool = await connection.fetchval(_SQL["pending"], depends_on)
    return pending


async def known(connection: Connection) -> KnownDocuments:
    """What the resolver starts from."""
    async with asset_history.snapshot(connection):
        return await _known(connection)


async def known_with_labels(connection: Connection) -> tuple[KnownDocuments, str]:
    """The same, and `labels` of the same moment."""
    async with asset_history.snapshot(connection):
        return await _known(connection), await labels(connection)


async def _known(connection: Connection) -> KnownDocuments:
    return KnownDocuments(
        **{name: await _documents(connection, name) for name in KnownDocuments.__struct_fields__}
    )


async def labels(connection: Connection) -> str:
    """A digest of what a decision by labels depends on in the rows: ids, symbols, names, listing states."""
    digest: str = await connection.fetchval(_SQL["labels"])
    return digest


async def prices(connection: Connection, pairs: Sequence[tuple[Key, Key]]) -> list[str]:
    """The prices of each two rows at about the same moments, as JSON arrays: which pair (from
    1), the price of its first row, and that of its second."""
    columns = zip(*((*one, *other) for one, other in pairs), strict=True)
    return await _documents(connection, "prices", *columns)


async def _documents(connection: Connection, name: str, *values: object) -> list[str]:
    return [row[0] for row in await connection.fetch(_SQL[name], *values)]


async def apply(
    connection: Connection,
    resolution: ResolutionDocuments,
    limits: ConsensusLimits,
    now: datetime,
    *,
    run_id: int,
    depends_on: str,
) -> Resolved:
    """Write a resolution and the consensus that follows from it, in one transaction.

    The limits are part of what `depends_on` is a digest of: with another digest, the consensus of every asset
    is judged again. Raises LeaseLost if the run may not write any more.
    """
    async with connection.transaction():
        if not await connection.fetchval(_SQL["fence"], run_id):
            raise LeaseLost(f"run {run_id} was ended by another process")
        version = await connection.fetchval(_VERSION["next_version"])
        touched = await _save(connection, resolution, now)
        await connection.execute(_SQL["staging"])
        rows: int = await connection.fetchval(_SQL["stage_relinked"])
        if rows:
            await connection.execute(_SQL["save_relinked_versions"], now, version)
            await connection.execute(_SQL["update_relinked"], now, version)
            touched += await consensus.touch_relinked(connection)
        if await connection.fetchval(_SQL["note_resolved"], depends_on):
            touched += await consensus.touch_all(connection)
        await note_problem(connection, None)
        changed = await consensus.settle(connection, limits, now, version) if touched else 0
        # The history of an asset follows from its links, also where its consensus stays as it is.
        new_version = bool(rows or changed or resolution.counts["links"] or resolution.counts["ended"])
        if new_version:
            await connection.execute(_VERSION["increment_version"])
    if new_version:
        await connection.execute(_VERSION["confirm_version"])
    return Resolved(rows, changed)


async def _save(connection: Connection, resolution: ResolutionDocuments, now: datetime) -> int:
    # Returns how many assets the resolution has changed or linked rows to.
    touched = 0
    await consensus.stage(connection)
    for assets in resolution.assets:
        touched += await connection.fetchval(_SQL["save_assets"], assets, now)
    if resolution.counts["ended"]:
        await connection.execute(_SQL["delete_links"], resolution.ended)
        await connection.execute(_SQL["end_links"], resolution.ended)
    for links in resolution.links:
        touched += await connection.fetchval(_SQL["save_links"], links, now)
    await connection.execute(_SQL["delete_candidates"], resolution.candidates)
    await connection.execute(_SQL["add_candidates"], resolution.candidates, now)
    return touched


async def note_problem(connection: Connection, reason: str | None) -> None:
    """Note why the resolver failed; None if it did not."""
    await connection.execute(_SQL["note_problem"], None if reason is None else sanitize(reason))


async def rows_meant(connection: Connection, text: str) -> list[tuple[str, str]]:
    """The rows that a person may mean by an asset, a source_id, or SOURCE/SOURCE_ID."""
    return [tuple(row) for row in await connection.fetch(_SQL["explained_rows"], text)]
