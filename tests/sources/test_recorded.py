"""Recorded payloads of both APIs and real archives, from ../shared/data; skipped without them."""

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from kasparro.pipeline.run import Run
from kasparro.simulator import Simulator
from kasparro.sources.archives.source import Archives
from kasparro.sources.coingecko import CoinGecko
from kasparro.sources.coinpaprika import CoinPaprika
from kasparro.store.pool import Database

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


@pytest.mark.parametrize("file", COINGECKO)
async def test_recorded_coingecko_pages_are_stored_exactly(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    shared_data: Path,
    file: str,
) -> None:
    body = (shared_data / "coingecko_markets" / file).read_bytes()
    recorded = _exact(body)
    async with Simulator(coins=1, manual=True) as upstream:
        upstream.replay("coingecko", [body])
        async with Run(database, [CoinGecko(upstream.coingecko_url, "public", None)], "etl") as run:
            await run.work(asyncio.Event())

    counts = await connection.fetchrow("SELECT * FROM run_sources")
    assert counts is not None
    assert (counts["fetched"], counts["inserted"], counts["rejected"]) == (len(recorded), len(recorded), 0)
    rows = {row["source_id"]: row for row in await connection.fetch("SELECT * FROM unified_data")}
    for market in recorded:
        for ours, theirs in FIELDS.items():
            assert rows[market["id"]][ours] == market.get(theirs), (market["id"], ours)


async def test_recorded_coinpaprika_tickers_are_stored_exactly(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", shared_data: Path
) -> None:
    body = next((shared_data / "coinpaprika_tickers").glob("*tickers-default.json")).read_bytes()
    async with Simulator(coins=1, manual=True) as upstream:
        upstream.replay("coinpaprika", [body])
        async with Run(database, [CoinPaprika(upstream.coinpaprika_url, None)], "etl") as run:
            assert await run.work(asyncio.Event()) == "succeeded"

    counts = await connection.fetchrow("SELECT * FROM run_sources")
    assert counts is not None
    assert (counts["fetched"], counts["inserted"], counts["rejected"]) == (2_541, 2_541, 0)
    rows = {row["source_id"]: row for row in await connection.fetch("SELECT * FROM unified_data")}
    for ticker in _exact(body):
        row, usd = rows[ticker["id"]], ticker["quotes"]["USD"]
        assert (row["name"], row["symbol"], row["rank"]) == (ticker["name"], ticker["symbol"], ticker["rank"])
        assert row["price_usd"] == usd["price"]
        assert row["volume_24h_usd"] == usd["volume_24h"]
        assert row["market_cap_usd"] == (usd["market_cap"] or None)
        assert row["circulating_supply"] == (ticker["circulating_supply"] or None)
        assert row["total_supply"] == ticker["total_supply"]
        assert row["max_supply"] == (ticker["max_supply"] or None)
        assert row["percent_change_7d"] == usd["percent_change_7d"]


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
    connection: "asyncpg.Connection[asyncpg.Record]",
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
