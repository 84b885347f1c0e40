"""The view Coin: the history of one coin, and the quotes that its price is made of."""

from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from typing import Any, Literal
from urllib.parse import quote, urlencode

import msgspec
from starlette.requests import Request

from kasparro.assets.timeline import SourcePoint
from kasparro.sources.base import utc_now
from kasparro.store import asset_history as store
from kasparro.store import asset_queries
from kasparro.store.data_version import version_of
from kasparro.store.history import Interval
from kasparro.store.pool import Connection
from kasparro.web.http.problems import Problem, not_found
from kasparro.web.openapi import parameters
from kasparro.web.page import chart, rendering
from kasparro.web.page.chart import Bar
from kasparro.web.routes import asset_history
from kasparro.web.routes.assets import AssetWithQuotes, Quote
from kasparro.web.routes.history import HistoryNdjsonQuery
from kasparro.web.routes.page import View
from kasparro.web.service import Service

# In place of an interval: each moment at which a source reported.
MOMENTS: Interval = "raw"
# The ranges: their name, their length and the interval that is read first.
RANGES: dict[str, tuple[str, timedelta | None, Interval]] = {
    "1d": ("Last day", timedelta(days=1), MOMENTS),
    "7d": ("Last 7 days", timedelta(days=7), "1h"),
    "1m": ("Last month", timedelta(days=30), "1h"),
    "3m": ("Last 3 months", timedelta(days=91), "1d"),
    "1y": ("Last year", timedelta(days=365), "1d"),
    "all": ("All time", None, "1w"),
}
_FINER: dict[Interval, Interval] = {"1w": "1d", "1d": "1h", "1h": MOMENTS}
# A history with fewer candles than this is young, and is read again in shorter intervals.
FEW = 24

# Where people find a vendor's figures.
_PAGES = {
    "coinpaprika": ("CoinPaprika", "https://coinpaprika.com/coin/{}/"),
    "coingecko": ("CoinGecko", "https://www.coingecko.com/en/coins/{}"),
}
_RATIO = Context(prec=30)
_END = datetime.max.replace(tzinfo=UTC)

_decode = msgspec.json.Decoder(AssetWithQuotes).decode


class CoinQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of the view: what the chart shows."""

    range: Literal["1d", "7d", "1m", "3m", "1y", "all"] = "7d"
    chart: Literal["line", "candles"] = "line"


class ShownQuote(msgspec.Struct, frozen=True):
    """A quote, the page of its vendor, and how far it is from the price of the asset."""

    quote: Quote
    label: str
    url: str | None
    difference_percent: Decimal | None


async def coin(service: Service, request: Request, query: CoinQuery) -> dict[str, Any]:
    """What the template shows. Raises Problem (404) if there is no such asset."""
    asset_id = request.path_params["asset"]
    # No text in PostgreSQL contains NUL.
    if "\x00" in asset_id:
        raise _no_such_coin()
    async with service.read_connection(request) as connection, store.snapshot(connection):
        data_version = await version_of(connection)
        found = await asset_queries.asset(connection, asset_id)
        if found is None:
            raise _no_such_coin()
        since, interval, read = await _history(service, connection, request, query)
    asset = _decode(found)
    candles = query.chart == "candles"
    bars = chart.merged(read, candles=candles)
    return {
        "title": f"{asset.name or asset.symbol or asset.asset}",
        "data_version": data_version,
        "coin": asset,
        "quotes": [_shown(one, asset) for one in asset.quotes],
        "query": query,
        "ranges": RANGES,
        "link": lambda **changes: "?" + parameters.serialize(query, **changes),
        "summary": chart.summary(read),
        "csv": _csv_path(asset_id, since, interval),
        "block": rendering.data_block("bars", chart.encoded(bars, candles=candles)),
    }


def _no_such_coin() -> Problem:
    return not_found("There is no such coin.", parameter="asset")


async def _history(
    service: Service, connection: Connection, request: Request, query: CoinQuery
) -> tuple[datetime | None, Interval, list[Bar]]:
    # The start of the range, the interval of its bars, and the bars.
    _, length, interval = RANGES[query.range]
    since = None if length is None else utc_now() - length
    bars = await _read(service, connection, request, since, interval)
    while len(bars) < FEW and interval in _FINER:
        interval = _FINER[interval]
        bars = await _read(service, connection, request, since, interval)
    return since, interval, bars


async def _read(
    service: Service, connection: Connection, request: Request, since: datetime | None, interval: Interval
) -> list[Bar]:
    if interval == MOMENTS:
        return await _moments(service, connection, request, since)
    wanted = HistoryNdjsonQuery(begin=since, interval=interval)
    async with aclosing(asset_history.candles(service, connection, request, wanted)) as candles:
        return chart.bars([candle async for candle in candles])


async def _moments(
    service: Service, connection: Connection, request: Request, since: datetime | None
) -> list[Bar]:
    max_lag = service.settings.quote_max_lag
    parts = await store.parts(connection, request.path_params["asset"]) or []
    if since is not None:
        parts = store.between(parts, since - max_lag, _END)
    moments = chart.Moments(max_lag)
    async with aclosing(store.points(connection, parts)) as points:
        bars = [moments.add([SourcePoint(*row) for row in rows]) async for rows in points]
    return [bar for bar in bars if since is None or bar.time >= since]


def _shown(found: Quote, asset: AssetWithQuotes) -> ShownQuote:
    label, page = _PAGES.get(found.source, (found.source, None))
    difference = None
    if found.price_usd is not None and isinstance(asset.price_usd, Decimal) and asset.price_usd:
        difference = (_RATIO.divide(found.price_usd, asset.price_usd) - 1) * 100
    return ShownQuote(found, label, page and page.format(quote(found.source_id, "")), difference)


def _csv_path(asset: str, since: datetime | None, interval: Interval) -> str:
    bounds = {} if since is None else {"from": f"{since:%Y-%m-%dT%H:%M:%SZ}"}
    return f"assets/{quote(asset, '')}/history.csv?{urlencode({**bounds, 'interval': interval})}"


VIEW = View(
    path="/page/coin/{asset}",
    handler=coin,
    template="coin.html",
    module="coin",
    query=CoinQuery,
    # It reads the history.
    slow=lambda query: True,
)
