"""Reads one asset with its quotes, candidates and conflicts, and totals of assets."""

import msgspec

from kasparro.store.pool import Connection
from kasparro.store.run_queries import RowPage
from kasparro.store.sql import templates

_SQL = templates("read/assets.sql")


class AssetTotals(msgspec.Struct, frozen=True, kw_only=True):
    """How many assets there are, how many of them are diverging, and how many candidates and conflicts.

    `diverging_first` are the ten diverging ones of the highest ranks. `problem` says why the resolver failed
    when it ran last.
    """

    assets: int
    diverging: int
    candidates: int
    conflicts: int
    diverging_first: list[str]
    problem: str | None


async def asset(connection: Connection, asset_id: str) -> str | None:
    """An asset with its quotes as a JSON object; None if there is no such asset."""
    statement = _SQL["asset"].compose()
    line: str | None = await connection.fetchval(statement.text, *statement.values({"asset": asset_id}))
    return line


async def candidates(
    connection: Connection, *, limit: int, offset: int = 0, after: int | None = None, kind: str | None = None
) -> RowPage:
    """A page of the candidates and conflicts, at an offset or after an id."""
    statement = _SQL["candidates"].compose(after=after is not None, kind=kind is not None)
    values = {"limit": limit, "offset": offset, "last_id": after, "kind": kind}
    rows = await connection.fetch(statement.text, *statement.values(values))
    # Without candidates there is one row, with the total alone.
    found = [row for row in rows[:limit] if row["id"] is not None]
    return RowPage(found, rows[0]["total"], found[-1]["id"] if len(rows) > limit else None)


async def totals(connection: Connection) -> AssetTotals:
    """The totals."""
    (row,) = await connection.fetch(_SQL["totals"].compose().text)
    return AssetTotals(**row)
