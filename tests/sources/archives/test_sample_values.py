"""Every field of the real archives has the same value in the database and in its file.

This module parses the files independently, with csv, `decimal` and a table of their layouts, so that an error
in detection or parsing cannot hide. `KASPARRO_TEST_SAMPLES=all` compares all rows; otherwise only every 17th
row of long files and every 5th daily snapshot are compared.
"""

import csv
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import msgspec
import pytest

from kasparro.model.record import VALUE_FIELDS
from kasparro.sources.archives.files import ArchiveFile
from kasparro.sources.archives.overrides import NO_OVERRIDES, Coin, Overrides
from kasparro.sources.archives.portions import Portion
from kasparro.sources.archives.reader import read_archive
from kasparro.store.loader import Loader
from kasparro.store.pool import Database
from kasparro.store.runs import RunRecord
from tests.support.archives import job_for

pytestmark = pytest.mark.slow

NOW = datetime(2026, 11, 1, tzinfo=UTC)
ALL = os.environ.get("KASPARRO_TEST_SAMPLES") == "all"
LONG_ROWS, ROW_STEP, SNAPSHOT_STEP = 5_000, 17, 5
FIELDS = ("symbol", "name", "rank", *VALUE_FIELDS)

Cells = Mapping[str, str]
Values = dict[str, Any]


def day(column: str, form: str) -> Callable[[Cells], datetime]:
    """A day; its close belongs to its last second."""
    return lambda row: (
        datetime.strptime(row[column], form).replace(tzinfo=UTC) + timedelta(hours=23, minutes=59, seconds=59)
    )


def utc(column: str, form: str, add: timedelta = timedelta()) -> Callable[[Cells], datetime]:
    """A time in UTC; `add` leads to the end of a candle."""
    return lambda row: datetime.strptime(row[column], form).replace(tzinfo=UTC) + add


def berlin(row: Cells) -> datetime:
    """A day in one column, and a local time of Berlin in another."""
    local = datetime.fromisoformat(f"{row['date_iso']}T{row['time_berlin']}")
    return local.replace(tzinfo=ZoneInfo("Europe/Berlin")).astimezone(UTC)


def iso(row: Cells) -> datetime:
    """CoinGecko's last_updated."""
    return datetime.fromisoformat(row["last_updated"])


def epoch(column: str, unit: int) -> Callable[[Cells], datetime]:
    """Seconds since 1970, or with `unit` 1,000 milliseconds."""
    return lambda row: datetime.fromtimestamp(int(row[column]) // unit, UTC)


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Where one file has its values: columns by field, the time, the coin if the name gives it, bad lines.

    `overrides` are those that the file's rejection asks for. `candles` says that its rows are candles, in
    which a market cap or volume of 0 is unknown.
    """

    columns: dict[str, str]
    at: Callable[[Cells], datetime]
    coin: str | None = None
    delimiter: str = ","
    decimal: str = "."
    bad_lines: frozenset[int] = frozenset()
    candles: bool = False
    overrides: Overrides = NO_OVERRIDES


GECKO = {"price_usd": "price", "market_cap_usd": "market_cap", "volume_24h_usd": "total_volume"}
GECKO_MARKETS = {
    "source_id": "id",
    "symbol": "symbol",
    "name": "name",
    "rank": "market_cap_rank",
    "price_usd": "current_price",
    "market_cap_usd": "market_cap",
    "volume_24h_usd": "total_volume",
    "circulating_supply": "circulating_supply",
    "total_supply": "total_supply",
    "max_supply": "max_supply",
    "percent_change_24h": "price_change_percentage_24h",
}
DUMP = {
    "source_id": "id",
    "volume_24h_usd": "24h_volume_usd",
    "circulating_supply": "available_supply",
    **{
        field: field
        for field in (
            "symbol",
            "name",
            "rank",
            "price_usd",
            "market_cap_usd",
            "total_supply",
            "max_supply",
            "percent_change_1h",
            "percent_change_24h",
            "percent_change_7d",
        )
    },
}
NUMBERED = {
    "symbol": "Symbol",
    "name": "Name",
    "price_usd": "Close",
    "volume_24h_usd": "Volume",
    "market_cap_usd": "Marketcap",
}
DAILY = {"price_usd": "Close", "volume_24h_usd": "Volume", "market_cap_usd": "Market Cap"}
CRAWLED = {"price_usd": "Close**", "volume_24h_usd": "Volume", "market_cap_usd": "Market Cap"}
SNAPPED = utc("snapped_at", "%Y-%m-%d %H:%M:%S UTC")
SECONDS, DATED = utc("Date", "%Y-%m-%d %H:%M:%S"), day("Date", "%b %d, %Y")
GERMAN = {"symbol": "symbol", "price_usd": "price_usd"}

# By a part of the file's name; the first match counts.
LAYOUTS: dict[str, Layout] = {
    "AwalDinz": Layout(
        columns=GECKO_MARKETS
        | {
            "percent_change_1h": "price_change_percentage_1h",
            "percent_change_7d": "price_change_percentage_7d",
        },
        at=iso,
    ),
    "Bharti1947": Layout(
        columns={
            "symbol": "symbol",
            "name": "coin",
            "price_usd": "price",
            "volume_24h_usd": "volume",
            "market_cap_usd": "mkt_cap",
        },
        at=day("date", "%Y-%m-%d"),
    ),
    "merged_btc_eur_usd": Layout(columns=GERMAN, at=berlin, delimiter=";", decimal=","),
    "GOMINING": Layout(columns=GECKO, at=SNAPPED, coin="gomining"),
    "data_bitcoin_eur": Layout(columns=GERMAN, at=berlin, delimiter=";", decimal=","),
    "price_lists": Layout(columns=GERMAN, at=berlin, delimiter=";", decimal=",", bad_lines=frozenset({666})),
    "coin_CryptocomCoin": Layout(columns=NUMBERED, at=SECONDS, candles=True),
    "coin_Dogecoin": Layout(columns=NUMBERED, at=SECONDS, candles=True),
    "coin_Ethereum": Layout(columns=NUMBERED, at=SECONDS, candles=True),
    "BTC-USD_2_": Layout(
        columns={"price_usd": "Close", "volume_24h_usd": "Volume"}, at=day("Date", "%Y-%m-%d"), coin="btc"
    ),
    "Investing.com": Layout(columns={"price_usd": "Price"}, at=DATED, coin="bitcoin"),
    "coinmarketcap_06": Layout(columns=DUMP, at=epoch("last_updated", 1)),
    "AAVE-USD_1d": Layout(columns={"price_usd": "close"}, at=day("datetime", "%Y-%m-%d"), coin="aave"),
    "BTC-USD_1m": Layout(
        columns={"price_usd": "close"},
        at=utc("datetime", "%Y-%m-%d %H:%M:%S", timedelta(seconds=59)),
        coin="btc",
    ),
    "btc-usd-max": Layout(columns=GECKO, at=SNAPPED, coin="btc"),
    "perday": Layout(
        columns={
            "source_id": "coinId",
            "price_usd": "price",
            "market_cap_usd": "marketCap",
            "volume_24h_usd": "totalVolume",
        },
        at=epoch("timestamp", 1_000),
    ),
    "kittycapital": Layout(columns=GECKO, at=SNAPPED, coin="bitcoin", overrides=Overrides(currency="USD")),
    "bitcoin_price.csv": Layout(columns=DAILY, at=DATED, coin="bitcoin"),
    "ethereum_price": Layout(columns=DAILY, at=DATED, coin="ethereum"),
    "nem_price": Layout(columns=DAILY, at=DATED, coin="nem"),
    "Crypto-Pricing__coin.csv": Layout(columns=GECKO_MARKETS, at=iso),
    "dogecoin": Layout(columns=CRAWLED, at=DATED, coin="dogecoin", candles=True),
    "freedom-coin": Layout(
        columns={"price_usd": "Close**", "volume_24h_usd": "Volume"},
        at=DATED,
        coin="freedom-coin",
        candles=True,
        overrides=Overrides(coin=Coin(id="freedom-coin")),
    ),
    "xrp.csv": Layout(columns=CRAWLED, at=DATED, coin="xrp", candles=True),
}
# Files that are not loaded; test_samples.py has the reasons.
NOT_LOADED = (
    "2024_EURO",
    "coin_Cardano",
    "bitcoin_dataset",
    "BTCUSDT_1d",
    "fafusha",
    "fullcoinlist",
    "binance_1m",
    "lucastakara",
    "messari",
    "scottjoyner",
)


def number(text: str, decimal: str) -> Decimal | None:
    """A number without dollar sign, percent sign and group separators."""
    text = text.strip().removeprefix("$").removesuffix("%")
    if text in {"", "-"}:
        return None
    return Decimal(text.replace(",", "") if decimal == "." else text.replace(".", "").replace(",", "."))


def coin_id(*words: str) -> str:
    """The id made of symbol and name: letters and digits in lower case, joined by dashes."""
    text = "-".join(words)
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def rows_of(path: Path, layout: Layout) -> Iterator[tuple[str, datetime, Values]]:
    """The coin, time and values of every row that should load."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=layout.delimiter)
        header = next(rows)
        for cells in rows:
            if rows.line_num in layout.bad_lines or not any(cells):
                continue
            row = dict(zip(header, cells[: len(header)], strict=True))
            values: Values = dict.fromkeys(FIELDS)
            for field, column in layout.columns.items():
                if field in VALUE_FIELDS:
                    values[field] = number(row[column], layout.decimal)
                elif field == "rank":
                    values[field] = int(Decimal(row[column])) if row[column] else None
                elif field != "source_id":
                    values[field] = row[column].strip() or None
            if layout.candles and values["price_usd"]:
                for field in ("market_cap_usd", "volume_24h_usd"):
                    values[field] = values[field] or None
            coin = layout.coin or row.get(layout.columns.get("source_id", ""), "").strip()
            coin = coin or coin_id(*(values[field] for field in ("symbol", "name") if values[field]))
            yield coin, layout.at(row), values


async def load(database: Database, path: Path, source: str, overrides: Overrides) -> None:
    """Load a file as a separate source, so that files do not overwrite each other."""
    run = await RunRecord.start(database, "etl", (source,), NOW)
    loader = Loader(database, run.id, source)
    with ArchiveFile.at(path) as file:
        async for message in read_archive(file, job_for(path, now=NOW, overrides=overrides)):
            assert isinstance(message, Portion), message.reject
            await loader.load(message.batch, NOW)


def newest(expected: Mapping[tuple[str, datetime], Values]) -> dict[str, datetime]:
    """The latest time of each coin."""
    latest: dict[str, datetime] = {}
    for coin, at in expected:
        latest[coin] = max(at, latest.get(coin, at))
    return latest


async def test_database_equals_the_files(
    shared_data: Path, database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    table = []
    bulk = sorted((shared_data / "csv_bulk").iterdir())
    for path in [*sorted((shared_data / "csv").iterdir()), *(bulk if ALL else bulk[::SNAPSHOT_STEP])]:
        label = f"{path.parent.name}/{path.name}"
        if any(part in label for part in NOT_LOADED):
            continue
        layout = next(layout for part, layout in LAYOUTS.items() if part in label)
        expected = {(coin, at): values for coin, at, values in rows_of(path, layout)}

        await load(database, path, label, layout.overrides)

        stored = await connection.fetch("SELECT * FROM unified_history WHERE source = $1", label)
        assert {(row["source_id"], row["observed_at"]) for row in stored} == expected.keys(), label
        compared = stored[:: ROW_STEP if len(stored) > LONG_ROWS and not ALL else 1]
        differing = [
            (label, row["source_id"], row["observed_at"], field, row[field], value)
            for row in compared
            for field, value in expected[row["source_id"], row["observed_at"]].items()
            if row[field] != value
        ]
        assert differing == []
        current = await connection.fetch("SELECT * FROM unified_data WHERE source = $1", label)
        assert {row["source_id"]: row["observed_at"] for row in current} == newest(expected), label
        for row in current:
            assert {field: row[field] for field in FIELDS} == expected[row["source_id"], row["observed_at"]]
        table.append(f"{label[-60:]:60} {len(compared):6,} of {len(stored):6,} rows, 0 of 12 fields differ")
    print("", *table, sep="\n")
