"""Keeps the consensus of each asset equal to its quotes, within the transaction that changes them."""

from datetime import datetime

from kasparro.model.consensus import ConsensusLimits
from kasparro.store.pool import Connection
from kasparro.store.sql import statements

_SQL = statements("assets/consensus.sql")


async def stage(connection: Connection) -> None:
    """Prepare the transaction for statements that note assets themselves."""
    await connection.execute(_SQL["staging"])


async def touch_batch(connection: Connection, source: str) -> int:
    """Note the assets of the rows that a batch has changed; how many are new among the touched ones."""
    return await _touch(connection, "touch_changes", source)


async def touch_settled(connection: Connection, source: str) -> int:
    """The same for the rows that settling archives has changed or removed."""
    return await _touch(connection, "touch_settled", source)


async def touch_relinked(connection: Connection) -> int:
    """The same for the assets, before and after, of the rows whose asset is another now."""
    return await _touch(connection, "touch_relinked")


async def touch_all(connection: Connection) -> int:
    """The same for all assets."""
    return await _touch(connection, "touch_all")


async def settle(connection: Connection, limits: ConsensusLimits, now: datetime, version: int) -> int:
    """Write the consensus of the touched assets as part of a data version; returns how many have changed."""
    changed: int = await connection.fetchval(
        _SQL["settle"], version, now, limits.max_lag, limits.divergence_percent
    )
    return changed


async def _touch(connection: Connection, statement: str, *values: object) -> int:
    await stage(connection)
    touched: int = await connection.fetchval(_SQL[statement], *values)
    return touched
