"""Reads a few recent prices of many assets at once, for small charts."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

import msgspec

from kasparro.store.pool import Connection
from kasparro.store.sql import templates

_SQL = templates("read/sparklines.sql")


class RecentPrice(msgspec.Struct, frozen=True):
    """The last price of a source in a part of the time; parts are numbered from 1."""

    part: int
    source: str
    observed_at: datetime
    price_usd: Decimal


class RecentPrices(msgspec.Struct, frozen=True):
    """The recent prices of each asset in the order of time. `since` is None if there are none."""

    since: datetime | None
    by_asset: dict[str, list[RecentPrice]]


async def recent_prices(
    connection: Connection, assets: Sequence[str], *, since: datetime, until: datetime, parts: int
) -> RecentPrices:
    """The prices of these assets between two moments. The parts begin with the earliest of these prices."""
    statement = _SQL["sparklines"].compose()
    values = {"assets": assets, "since": since, "until": until, "parts": parts}
    by_asset: dict[str, list[RecentPrice]] = {}
    began_at = None
    for row in await connection.fetch(statement.text, *statement.values(values)):
        began_at = row["since"]
        price = RecentPrice(row["number"], row["source"], row["observed_at"], row["price_usd"])
        by_asset.setdefault(row["asset"], []).append(price)
    return RecentPrices(began_at, by_asset)
