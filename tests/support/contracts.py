"""The contracts that are stored."""

from kasparro.model.asset import Contract
from kasparro.store.pool import Connection


async def stored_contracts(connection: Connection, source: str | None = None) -> list[Contract]:
    """The contracts of all sources, or of one."""
    rows = await connection.fetch(
        "SELECT source, source_id, platform, address FROM contracts WHERE source = $1 OR $1 IS NULL"
        " ORDER BY source, source_id, platform, address",
        source,
    )
    return [Contract(*row) for row in rows]
