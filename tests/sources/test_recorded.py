"""Whole payloads and archives are stored exactly: our own samples, and recorded data.

The recorded data is in ../shared/data. Its tests are skipped on machines that do not have it.
"""

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kasparro.pipeline.run import Run
from kasparro.simulator import Simulator
from kasparro.sources.archives.source import Archives
from kasparro.sources.coingecko import CoinGecko
from kasparro.sources.coinpaprika import CoinPaprika
from kasparro.store.pool import Connection, Database
from tests.support.payload_samples import sample

COINGECKO_SAMPLES = ("coingecko_markets.json", "coingecko_markets_2021.json")
COINPAPRIKA_SAMPLES = ("coinpaprika_tickers.json", "coinpaprika_tickers_2019.json")
COINGECKO = (
    "Shahar-Mamok__Crypto-ETL__markets_1758966220.json",
    "Shahar-Mamok__Crypto-ETL__markets_1758986042.json",
    "daviddflix__nv-invest__top_200_coins__6d0198a7.txt",
    "rciminera__Crypto-Pricing__Notebooks_coingecko.json",
    "rciminera__Crypto-Pricing__cryptocurenccy_coingecko.json",
    "ganciaux__crypto__coingecko.json",
    "RozanovIgor__monkey__coins_markets.json",
    "BookmDan__portfolio_manager__coingecko.json",
    "gusgoros__API_DOCKER_PGADMIN__coins_markets.json",
    "gusgoros__API_DOCKER_PGADMIN__monedas.json",
)

FIELDS = {
    "price_usd": "current_price",
    "volume_24h_usd": "total_volume",
    "circulating_supply": "circulating_supply",
    "total_supply": "total_supply",
    "max_supply": "max_supply",
    "symbol": "symbol",
    "name": "name",
    "rank": "market_cap_rank",
}

_exact = msgspec.json.Decoder(list[dict[str, Any]], float_hook=Decimal).decode


async def check_coingecko(database: Database, connection: Connection, body: bytes) -> None:
    """Load a page, and compare the rows with its digits."""
    markets = _exact(body)
    async with Simulator(coins=1, manual=True) as upstream:
        upstream.replay("coingecko", [body])
        async with Run(database, [CoinGecko(upstream.coingecko_url, "public", None)], "etl") as run:
            await run.work(asyncio.Event())

    counts = await connection.fetchrow("SELECT * FROM run_sources")
    assert counts is not None
    assert (counts["fetched"], counts["inserted"], counts["rejected"]) == (len(markets), len(markets), 0)
    rows = {row["source_id"]: row for row in await connection.fetch("SELECT * FROM unified_data")}
    for market in markets:
        for ours, theirs in FIELDS.items():
            assert rows[market["id"]][ours] == market.get(theirs), (market["id"], ours)


async def check_coinpaprika(database: Database, connection: Connection, body: bytes) -> None:
    """Load a list, and compare the rows with its digits."""
    tickers = _exact(body)
    async with Simulator(coins=1, manual=True) as upstream:
        upstream.replay("coinpaprika", [body])
        async with Run(database, [CoinPaprika(upstream.coinpaprika_url, None)], "etl") as run:
            assert await run.work(asyncio.Event()) == "succeeded"

    counts = await connection.fetchrow("SELECT * FROM run_sources")
    assert counts is not None
    assert (counts["fetched"], counts["inserted"], counts["rejected"]) == (len(tickers), len(tickers), 0)
    rows = {row["source_id"]: row for row in await connection.fetch("SELECT * FROM unified_data")}
    for ticker in tickers:
        row, usd = rows[ticker["id"]], ticker["quotes"]["USD"]
        assert (row["name"], row["symbol"]) == (ticker["name"], ticker["symbol"])
        assert row["rank"] == (ticker["rank"] or None)
        assert row["price_usd"] == usd["price"]
        assert row["volume_24h_usd"] == usd["volume_24h"]
        assert row["market_cap_usd"] == (usd["market_cap"] or None)
        assert row["circulating_supply"] == (ticker.get("circulating_supply") or None)
        assert row["total_supply"] == ticker["total_supply"]
        assert row["max_supply"] == (ticker["max_supply"] or None)
        assert row["percent_change_7d"] == (
            None if usd["percent_change_7d"] == "" else usd["percent_change_7d"]
        )


@pytest.mark.parametrize("name", COINGECKO_SAMPLES)
async def test_sample_coingecko_pages_are_stored_exactly(
    database: Database, connection: Connection, name: str
) -> None:
    await check_coingecko(database, connection, sample(name))


@pytest.mark.parametrize("name", COINPAPRIKA_SAMPLES)
async def test_sample_coinpaprika_tickers_are_stored_exactly(
    database: Database, connection: Connection, name: str
) -> None:
    await check_coinpaprika(database, connection, sample(name))


@pytest.mark.parametrize("file", COINGECKO)
async def test_recorded_coingecko_pages_are_stored_exactly(
    database: Database, connection: Connection, shared_data: Path, file: str
) -> None:
    await check_coingecko(database, connection, (shared_data / "coingecko_markets" / file).read_bytes())


async def test_recorded_coinpaprika_tickers_are_stored_exactly(
    database: Database, connection: Connection, shared_data: Path
) -> None:
    (path,) = (shared_data / "coinpaprika_tickers").glob("*tickers-default.json")
    await check_coinpaprika(database, connection, path.read_bytes())
    assert await connection.fetchval("SELECT count(*) FROM unified_data") == 2_541


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "rows", "coin", "closes"),
    [
        (
            "ahmedovich19__Exploring-the-Bitcoin-Cryptocurrency-Market__coinmarketcap_06122017.csv",
            1_326,
            "bitcoin",
            {"2017-12-06 08:39:14": "12739.5"},
        ),
        (
            "Thanos6988__Cryptocurrency-Historical-Prices-Data-Analysis__coin_Dogecoin.csv",
            2_760,
            "doge-dogecoin",
            {"2013-12-16 23:59:59": "0.00020473099721129984", "2021-07-06 23:59:59": None},
        ),
        (
            "hathix__perday_1640563200000.csv",
            2_453,
            "bitcoin",
            {"2021-12-27 00:00:00": "50852.860259540656"},
        ),
    ],
)
async def test_real_archives_are_stored_exactly(
    database: Database,
    connection: Connection,
    shared_data: Path,
    file: str,
    rows: int,
    coin: str,
    closes: dict[str, str | None],
) -> None:
    async with Run(database, [Archives(str(shared_data / "csv" / file))], "etl") as run:
        assert await run.work(asyncio.Event()) == "succeeded"

    counts = await connection.fetchrow("SELECT * FROM run_sources")
    assert counts is not None
    assert (counts["valid"], counts["rejected"]) == (rows, 0)
    assert await connection.fetchval("SELECT count(*) FROM unified_history") == rows
    prices = {
        f"{row['observed_at']:%Y-%m-%d %H:%M:%S}": row["price_usd"]
        for row in await connection.fetch(
            "SELECT observed_at, price_usd FROM unified_history WHERE source_id = $1", coin
        )
    }
    for moment, close in closes.items():
        assert moment in prices
        if close is not None:
            assert prices[moment] == Decimal(close)
