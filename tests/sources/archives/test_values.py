"""Every field of every row of the real archives, in the database and in its file: the same value.

The files are read here once more, by the csv module, `decimal` and a table written by hand, so that no
mistake of the recogniser or of its readers can hide in both. `KASPARRO_TEST_SAMPLES=all` compares all rows;
without it long files are compared in every 17th, and every 5th of the daily snapshots.
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

from kasparro.model.record import VALUE_FIELDS
from kasparro.sources.archives.files import ArchiveFile
from kasparro.sources.archives.reader import Portion, read_archive
from kasparro.store.loader import Loader
from kasparro.store.pool import Database
from kasparro.store.runs import RunRecord
from tests.sources.archives.conftest import job_for

NOW = datetime(2026, 11, 1, tzinfo=UTC)
ALL = os.environ.get("KASPARRO_TEST_SAMPLES") == "all"
LONG, EVERY, SNAPSHOTS = 5_000, 17, 5
FIELDS = ("symbol", "name", "rank", *VALUE_FIELDS)

Cells = Mapping[str, str]
Values = dict[str, Any]


def day(column: str, written: str) -> Callable[[Cells], datetime]:
    """A day, whose close is of its last second."""
    return lambda row: (
        datetime.strptime(row[column], written).replace(tzinfo=UTC)
        + timedelta(hours=23, minutes=59, seconds=59)
    )


def utc(column: str, written: str, add: timedelta = timedelta()) -> Callable[[Cells], datetime]:
    """A time in UTC, and what a candle's length adds to it."""
    return lambda row: datetime.strptime(row[column], written).replace(tzinfo=UTC) + add


def berlin(row: Cells) -> datetime:
    """A day beside a clock of Berlin."""
    told = datetime.fromisoformat(f"{row['date_iso']}T{row['time_berlin']}")
    return told.replace(tzinfo=ZoneInfo("Europe/Berlin")).astimezone(UTC)


def iso(row: Cells) -> datetime:
    """CoinGecko's last_updated."""
    return datetime.fromisoformat(row["last_updated"])


def epoch(column: str, unit: int) -> Callable[[Cells], datetime]:
    """So many units of a second since 1970."""
    return lambda row: datetime.fromtimestamp(int(row[column]) // unit, UTC)


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What one file says where: its columns by field, its time, its one coin, lines that are refused."""

    columns: dict[str, str]
    at: Callable[[Cells], datetime]
    coin: str | None = None
    delimiter: str = ","
    decimal: str = "."
    refused: frozenset[int] = frozenset()


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

# By a part of the file's name; the first that fits.
TOLD: dict[str, Told] = {
    "AwalDinz": Told(
        columns=GECKO_MARKETS
        | {
            "percent_change_1h": "price_change_percentage_1h",
            "percent_change_7d": "price_change_percentage_7d",
        },
        at=iso,
    ),
    "Bharti1947": Told(
        columns={
            "symbol": "symbol",
            "name": "coin",
            "price_usd": "price",
            "volume_24h_usd": "volume",
            "market_cap_usd": "mkt_cap",
        },
        at=day("date", "%Y-%m-%d"),
    ),
    "merged_btc_eur_usd": Told(columns=GERMAN, at=berlin, delimiter=";", decimal=","),
    "GOMINING": Told(columns=GECKO, at=SNAPPED, coin="gomining"),
    "data_bitcoin_eur": Told(columns=GERMAN, at=berlin, delimiter=";", decimal=","),
    "price_lists": Told(columns=GERMAN, at=berlin, delimiter=";", decimal=",", refused=frozenset({666})),
    "coin_CryptocomCoin": Told(columns=NUMBERED, at=SECONDS),
    "coin_Dogecoin": Told(columns=NUMBERED, at=SECONDS),
    "coin_Ethereum": Told(columns=NUMBERED, at=SECONDS),
    "BTC-USD_2_": Told(
        columns={"price_usd": "Close", "volume_24h_usd": "Volume"}, at=day("Date", "%Y-%m-%d"), coin="btc"
    ),
    "Investing.com": Told(columns={"price_usd": "Price"}, at=DATED, coin="bitcoin"),
    "coinmarketcap_06": Told(columns=DUMP, at=epoch("last_updated", 1)),
    "AAVE-USD_1d": Told(columns={"price_usd": "close"}, at=day("datetime", "%Y-%m-%d"), coin="aave"),
    "BTC-USD_1m": Told(
        columns={"price_usd": "close"},
        at=utc("datetime", "%Y-%m-%d %H:%M:%S", timedelta(seconds=59)),
        coin="btc",
    ),
    "btc-usd-max": Told(columns=GECKO, at=SNAPPED, coin="btc"),
    "kittycapital": Told(columns=GECKO, at=SNAPPED, coin="bitcoin"),
    "perday": Told(
        columns={
            "source_id": "coinId",
            "price_usd": "price",
            "market_cap_usd": "marketCap",
            "volume_24h_usd": "totalVolume",
        },
        at=epoch("timestamp", 1_000),
    ),
    "bitcoin_price.csv": Told(columns=DAILY, at=DATED, coin="bitcoin"),
    "ethereum_price": Told(columns=DAILY, at=DATED, coin="ethereum"),
    "nem_price": Told(columns=DAILY, at=DATED, coin="nem"),
    "Crypto-Pricing__coin.csv": Told(columns=GECKO_MARKETS, at=iso),
    "dogecoin": Told(columns=CRAWLED, at=DATED, coin="dogecoin"),
    "freedom-coin": Told(
        columns={"price_usd": "Close**", "volume_24h_usd": "Volume"}, at=DATED, coin="freedom-coin"
    ),
    "xrp.csv": Told(columns=CRAWLED, at=DATED, coin="xrp"),
}
# Files of which nothing is loaded; test_samples.py holds the reasons.
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
    """A figure without its dollar sign, its percent sign and what groups it."""
    text = text.strip().removeprefix("$").removesuffix("%")
    if text in {"", "-"}:
        return None
    return Decimal(text.replace(",", "") if decimal == "." else text.replace(".", "").replace(",", "."))


def joined(*words: str) -> str:
    """Letters and digits in lower case, whatever is between them a dash: the id that symbol and name make."""
    text = "-".join(words)
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def rows_of(path: Path, told: Told) -> Iterator[tuple[str, datetime, Values]]:
    """The coin, time and values of every row that is to be loaded."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=told.delimiter)
        header = next(rows)
        for cells in rows:
            if rows.line_num in told.refused or not any(cells):
                continue
            row = dict(zip(header, cells[: len(header)], strict=True))
            values: Values = dict.fromkeys(FIELDS)
            for field, column in told.columns.items():
                if field in VALUE_FIELDS:
                    values[field] = number(row[column], told.decimal)
                elif field == "rank":
                    values[field] = int(Decimal(row[column])) if row[column] else None
                elif field != "source_id":
                    values[field] = row[column].strip() or None
            coin = told.coin or row.get(told.columns.get("source_id", ""), "").strip()
            coin = coin or joined(*(values[field] for field in ("symbol", "name") if values[field]))
            yield coin, told.at(row), values


async def loaded(database: Database, path: Path, source: str) -> None:
    """Load a file as a source of its own, so that no two files meet."""
    run = await RunRecord.start(database, "etl", (source,), NOW)
    into = Loader(database, run.id, source)
    with ArchiveFile.at(path) as file:
        async for message in read_archive(file, job_for(path, now=NOW)):
            assert isinstance(message, Portion), message.reject
            await into.load(message.batch, NOW)


def newest(expected: Mapping[tuple[str, datetime], Values]) -> dict[str, datetime]:
    """The last time of each coin."""
    last: dict[str, datetime] = {}
    for coin, at in expected:
        last[coin] = max(at, last.get(coin, at))
    return last


async def test_the_database_says_what_the_files_say(
    shared_data: Path, database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    table = []
    bulk = sorted((shared_data / "csv_bulk").iterdir())
    for path in [*sorted((shared_data / "csv").iterdir()), *(bulk if ALL else bulk[::SNAPSHOTS])]:
        label = f"{path.parent.name}/{path.name}"
        if any(part in label for part in NOT_LOADED):
            continue
        told = next(told for part, told in TOLD.items() if part in label)
        expected = {(coin, at): values for coin, at, values in rows_of(path, told)}

        await loaded(database, path, label)

        stored = await connection.fetch("SELECT * FROM unified_history WHERE source = $1", label)
        assert {(row["source_id"], row["observed_at"]) for row in stored} == expected.keys(), label
        compared = stored[:: EVERY if len(stored) > LONG and not ALL else 1]
        differing = [
            (label, row["source_id"], row["observed_at"], field, row[field], said)
            for row in compared
            for field, said in expected[row["source_id"], row["observed_at"]].items()
            if row[field] != said
        ]
        assert differing == []
        current = await connection.fetch("SELECT * FROM unified_data WHERE source = $1", label)
        assert {row["source_id"]: row["observed_at"] for row in current} == newest(expected), label
        for row in current:
            assert {field: row[field] for field in FIELDS} == expected[row["source_id"], row["observed_at"]]
        table.append(f"{label[-60:]:60} {len(compared):6,} of {len(stored):6,} rows, 0 of 12 fields differ")
    print("", *table, sep="\n")
