"""Reads a few recent prices of many assets at once, for small charts."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

import msgspec

from kasparro.store.pool import Connection
from kasparro.store.sql import templates

_SQL = templates("read/sparklines.sql")


class RecentPrices(msgspec.Struct, frozen=True):
    """The last prices of the sources of each asset in equal parts of the time since `since`, by the number of
    the part, from 1. `since` is None if there are no prices."""

    since: datetime | None
    by_asset: dict[str, dict[int, list[Decimal]]]


async def recent_prices(
    connection: Connection, assets: Sequence[str], *, since: datetime, until: datetime, parts: int
) -> RecentPrices:
    """The prices of these assets between two moments. The parts begin with the earliest of these prices."""
    statement = _SQL["sparklines"].compose()
    values = {"assets": assets, "since": since, "until": until, "parts": parts}
    by_asset: dict[str, dict[int, list[Decimal]]] = {}
    began_at = None
    for row in await connection.fetch(statement.text, *statement.values(values)):
        began_at = row["since"]
        by_asset.setdefault(row["asset"], {})[row["number"]] = row["prices"]
    return RecentPrices(began_at, by_asset)
