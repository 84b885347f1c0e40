"""Compares assets with the truth of the simulated market, in one snapshot of the database."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from statistics import median_low
from typing import Any

import asyncpg

from kasparro.assets.timeline import Candles, Points, SourceCandle, SourcePoint, median
from kasparro.model.batch import Batch
from kasparro.simulator import Simulator
from kasparro.simulator.coins import Api
from kasparro.sources.base import ContractSource, Source, SourceContext
from kasparro.store import asset_history
from kasparro.store.history import LENGTHS, Interval
from tests.support.citus import COORDINATOR

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
MEDIANS = ("price_usd", "market_cap_usd", "volume_24h_usd")
MEDIANS_OF_CHANGES = ("percent_change_1h", "percent_change_24h", "percent_change_7d")
LOWER = ("rank", "circulating_supply", "total_supply", "max_supply")
APIS: tuple[Api, ...] = ("coinpaprika", "coingecko")
# Sources differ by less than this, and prices move less in the hours of a test.
TOLERANCE = Decimal("0.1")

Key = tuple[str, str]
Row = dict[str, Any]


class Watch:
    """Looks at the database, and knows which coin each record is of.

    Of each asset that `look` finds, all quotes that count, points and candles must be of one coin, the one
    that it had at first. Prices that go astray are no coin's.
    """

    def __init__(self, simulator: Simulator, connection: asyncpg.Connection) -> None:
        self.versions: list[int] = []
        self.strays: set[tuple[Api, str]] = set()
        """The ids whose prices are astray now."""
        self.failure: AssertionError | None = None
        """What was wrong in the middle of a run, which records it as the failure of a source."""
        self._simulator = simulator
        self._connection = connection
        self._lock = asyncio.Lock()
        self._coins: dict[tuple[str, str, datetime], int | None] = {}
        self._bounds: dict[int, tuple[Decimal, Decimal]] = {}
        self._coin_of_asset: dict[str, int] = {}

    def note(self) -> None:
        """Note what the simulated market serves now."""
        for api in APIS:
            for quote in self._simulator.market.listing(api):
                moment = datetime.fromisoformat(quote.last_updated)
                is_stray = (api, quote.id) in self.strays
                self._coins[api, quote.id, moment] = None if is_stray else quote.coin.index
                if quote.price_usd is not None and not is_stray:
                    price, coin = Decimal(quote.price_usd), quote.coin.index
                    low, high = self._bounds.get(coin, (price, price))
                    self._bounds[coin] = min(low, price), max(high, price)

    def coin_of(self, asset: str) -> int:
        """The coin that an asset stands for."""
        return self._coin_of_asset[asset]

    async def look(self, assets: Iterable[str] = ()) -> dict[str, Row]:
        """Check all consensuses, and the history of these assets; returns the consensuses by asset."""
        try:
            return await self._look(assets)
        except AssertionError:
            if COORDINATOR is None:
                raise
            # The nodes of Citus may show a commit an instant later than the coordinator.
            return await self._look(assets)

    async def _look(self, assets: Iterable[str]) -> dict[str, Row]:
        async with (
            self._lock,
            self._connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            self.versions.append(await self._connection.fetchval("SELECT data_version FROM instance"))
            found = await self._consensuses()
            for asset in assets:
                await self._check_points(asset)
                for interval in LENGTHS:
                    await self._check_candles(asset, interval)
        return found

    async def _consensuses(self) -> dict[str, Row]:
        rows = {
            (row["source"], row["source_id"]): dict(row)
            for row in await self._connection.fetch("SELECT * FROM unified_data")
        }
        links: dict[str, list[Row]] = {}
        for link in await self._connection.fetch("SELECT * FROM asset_links WHERE valid_until = 'infinity'"):
            links.setdefault(link["asset"], []).append(dict(link))
        found = {
            row["asset"]: dict(row) for row in await self._connection.fetch("SELECT * FROM unified_assets")
        }
        assert found.keys() == links.keys()
        of_assets = {(each["source"], each["source_id"]): asset for asset in links for each in links[asset]}
        assert {key: row["asset"] for key, row in rows.items()} == {key: of_assets.get(key) for key in rows}
        for asset, of_asset in links.items():
            sources = [link["source"] for link in of_asset]
            assert len(sources) == len(set(sources)), f"two ids of one source are linked to {asset}"
            counted, expected = await self._consensus(asset, of_asset, rows)
            assert {name: found[asset][name] for name in expected} == expected, asset
            for row in counted:
                self._check_coin(asset, row["source"], row["source_id"], row["observed_at"])
        return found

    async def _consensus(
        self, asset: str, links: list[Row], rows: dict[Key, Row]
    ) -> tuple[list[Row], dict[str, Any]]:
        # As docs/api.md says it, in plain Python.
        usable = [
            row
            for link in links
            if (row := rows[link["source"], link["source_id"]])["price_usd"] is not None
            and (link["method"] == "rule" or (row["symbol"], row["name"]) == (link["symbol"], link["name"]))
        ]
        newest = max((row["observed_at"] for row in usable), default=None)
        fresh = [row for row in usable if newest and row["observed_at"] >= newest - HOUR]
        prices = [row["price_usd"] for row in fresh]
        outlying: list[Row] = []
        if len(fresh) > 2:
            outlying = [row for row in fresh if far(row["price_usd"], median(prices))]
        elif len(fresh) == 2 and max(prices) > Decimal("1.2") * min(prices):
            began_at = min(row["observed_at"] for row in fresh)
            before = await self._prices(asset, began_at - DAY, began_at)
            if len(before) > 2:
                outlying = [row for row in fresh if far(row["price_usd"], median_low(before))]
                outlying = [] if len(outlying) == 2 else outlying
        counted = [row for row in fresh if row not in outlying]
        found: dict[str, Any] = {
            name: median(values) if (values := known(counted, name)) else None
            for name in MEDIANS + MEDIANS_OF_CHANGES
        }
        found |= {name: median_low(values) if (values := known(counted, name)) else None for name in LOWER}
        spread = max(prices) - min(prices) if prices else 0
        found["source_count"] = len(counted)
        found["diverging"] = bool(prices) and 100 * spread > 5 * median(prices)
        found["observed_at"] = max((row["observed_at"] for row in counted), default=None)
        found["oldest_observed_at"] = min((row["observed_at"] for row in counted), default=None)
        return counted, found

    async def _prices(self, asset: str, since: datetime, until: datetime) -> list[Decimal]:
        return [
            row["price_usd"]
            for row in await self._connection.fetch(
                "SELECT price_usd FROM asset_links JOIN unified_history USING (source, source_id) "
                "WHERE asset = $1 AND observed_at >= $2 AND observed_at < $3 AND price_usd IS NOT NULL "
                "AND observed_at >= valid_from AND observed_at < valid_until",
                *(asset, since, until),
            )
        ]

    def _check_coin(self, asset: str, source: str, source_id: str, moment: datetime) -> None:
        coin = self._coins[source, source_id, moment]
        assert coin is not None, f"{asset}: the price of {source_id} that counts is astray"
        assert coin == self._coin_of_asset.setdefault(asset, coin), f"{asset} counts another coin's price"

    def _check_price(self, asset: str, *prices: Decimal) -> None:
        low, high = self._bounds[self.coin_of(asset)]
        assert all((1 - TOLERANCE) * low <= price <= (1 + TOLERANCE) * high for price in prices), (
            f"{asset}: {prices} are not all between {low} and {high}"
        )

    async def _check_points(self, asset: str) -> None:
        parts = await asset_history.parts(self._connection, asset)
        assert parts is not None
        for part in parts:
            for record in await self._connection.fetch(
                "SELECT observed_at FROM unified_history WHERE source = $1 AND source_id = $2 "
                "AND observed_at >= $3 AND observed_at < $4",
                *(part.source, part.source_id, part.since, part.until),
            ):
                coin = self._coins[part.source, part.source_id, record["observed_at"]]
                assert coin in {None, self.coin_of(asset)}, f"{asset} has a record of another coin"
        points = Points(HOUR)
        async for rows in asset_history.points(self._connection, parts):
            if (point := points.add([SourcePoint(*row) for row in rows])) is not None:
                self._check_price(asset, point.price_usd)

    async def _check_candles(self, asset: str, interval: Interval) -> None:
        parts = await asset_history.parts(self._connection, asset)
        candles = Candles(LENGTHS[interval], HOUR)
        async for rows in asset_history.candles(self._connection, parts or [], interval):
            if (candle := candles.add([SourceCandle(*row) for row in rows])) is not None:
                self._check_price(asset, candle.open, candle.high, candle.low, candle.close)


class Watched:
    """A source with contract lists, after each batch of which somebody looks at the database."""

    def __init__(self, source: Source, watch: Watch, assets: Iterable[str]) -> None:
        assert isinstance(source, ContractSource)
        self.name = source.name
        # Python 3.12 and newer do not find an attribute of a protocol through __getattr__.
        self.contract_root = source.contract_root
        self.contract_lists = source.contract_lists
        self._source: Source = source
        self._watch = watch
        self._assets = list(assets)

    async def extract(self, context: SourceContext) -> AsyncGenerator[Batch, None]:
        """The batches of the source. When the next one is asked for, the last one is committed."""
        async for batch in self._source.extract(context):
            yield batch
            try:
                await self._watch.look(self._assets)
            except AssertionError as error:
                self._watch.failure = error
                raise


def far(price: Decimal, middle: Decimal) -> bool:
    """Whether a price differs by more than a fifth."""
    return abs(price - middle) > middle / 5


def known(rows: list[Row], name: str) -> list[Any]:
    """The values of these rows that are not null."""
    return [row[name] for row in rows if row[name] is not None]
