"""GET /page/sparklines: the heights of the small charts beside the coins of the page."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Context, Decimal
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kasparro.assets.timeline import median
from kasparro.sources.base import utc_now
from kasparro.store import sparklines as store
from kasparro.store.sparklines import RecentPrice
from kasparro.web.openapi.endpoint import Endpoint, json_response
from kasparro.web.schemas import Moment
from kasparro.web.service import Service

PERIOD = timedelta(days=7)
# Four a day.
PARTS = 28
# Assets of one request.
MOST_ASSETS = 100
# The height of the highest price; the lowest one has 0.
HEIGHT = 100
LEAST_SPAN = Decimal("0.01")

_EXACT = Context(prec=200_000, Emax=999_999, Emin=-999_999)


class SparklinesQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of the small charts."""

    asset: Annotated[
        tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=200)], ...],
        msgspec.Meta(min_length=1, max_length=MOST_ASSETS),
    ]


class Sparklines(msgspec.Struct, frozen=True, kw_only=True):
    """For each asset with a price, the heights of its line, null where it has no price.

    All lines begin at `since`, which is null without prices.
    """

    since: Moment | None
    parts: int
    lines: dict[str, list[int | None]]


async def sparklines(service: Service, request: Request, query: SparklinesQuery) -> Response:
    """GET /page/sparklines."""
    now: datetime = utc_now()
    async with service.read_connection(request) as connection:
        found = await store.recent_prices(
            connection, sorted(set(query.asset)), since=now - PERIOD, until=now, parts=PARTS
        )
    max_lag = service.settings.quote_max_lag
    lines = {}
    if found.since is not None:
        length = (now - found.since) / PARTS
        ends = [found.since + length * part for part in range(1, PARTS + 1)]
        lines = {asset: heights(prices, ends, max_lag) for asset, prices in found.by_asset.items()}
    return json_response(Sparklines(since=found.since, parts=PARTS, lines=lines))


def heights(prices: Sequence[RecentPrice], ends: Sequence[datetime], max_lag: timedelta) -> list[int | None]:
    """The median of the fresh prices at the end of each part as a height.

    A price counts in its part, and later while it is at most `max_lag` old. A line that moves by less than
    LEAST_SPAN of its price is in the middle, and does not fill the height.
    """
    of_part: dict[int, list[RecentPrice]] = {}
    for price in prices:
        of_part.setdefault(price.part, []).append(price)
    newest: dict[str, RecentPrice] = {}
    medians: list[Decimal | None] = []
    for part, end in enumerate(ends, 1):
        newest |= {price.source: price for price in of_part.get(part, ())}
        fresh = [
            price.price_usd
            for price in newest.values()
            if price.part == part or price.observed_at >= end - max_lag
        ]
        medians.append(median(fresh) if fresh else None)
    known = [price for price in medians if price is not None]
    low, high = min(known), max(known)
    moved = _EXACT.subtract(high, low)
    # A stablecoin that moves by a thousandth must not look like one that crashes.
    span = max(moved, _EXACT.multiply(abs(high), LEAST_SPAN))
    below = _EXACT.multiply(_EXACT.subtract(span, moved), Decimal("0.5"))

    def height(price: Decimal) -> int:
        if not span:
            # All prices are 0.
            return HEIGHT // 2
        # Only the position of a pixel follows from this.
        return round(HEIGHT * float((_EXACT.subtract(price, low) + below) / span))

    return [None if price is None else height(price) for price in medians]


ENDPOINT = Endpoint(
    path="/page/sparklines",
    handler=sparklines,
    summary="Small charts",
    description="The heights of the lines of the page.",
    tag="page",
    query=SparklinesQuery,
    response=Sparklines,
    caching="version",
    # Thousands of look-ups.
    slow=lambda query: True,
)
