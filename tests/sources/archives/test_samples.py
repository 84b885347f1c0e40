"""Real archives in the shared data: rows loaded and rejected, and figures checked manually."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kasparro.sources.archives.checked import Cell, Checked
from kasparro.sources.archives.explain import check
from kasparro.sources.archives.files import ArchiveFile
from kasparro.sources.archives.overrides import NO_OVERRIDES
from tests.support.archives import Outcome, read

# The samples hold rows until August 2026.
NOW = datetime(2026, 11, 1, tzinfo=UTC)

# By a part of the file's name: rows loaded and rows rejected, or a part of the reason why nothing is loaded.
EXPECTED: dict[str, tuple[int, int] | str] = {
    "AwalDinz": (1000, 0),
    "coin_gecko_2022-03-16": (500, 0),
    "merged_btc_eur_usd": (365, 0),
    "2024_EURO": "in EUR, not USD",
    "GOMINING": (1576, 0),
    "data_bitcoin_eur": (965, 0),
    "price_lists": (963, 1),
    "coin_Cardano": "market_cap_usd: not a number",
    "coin_CryptocomCoin": (935, 0),
    "coin_Dogecoin": (2760, 0),
    "coin_Ethereum": (2160, 0),
    "BTC-USD_2_": (2431, 0),
    "Investing.com": (2070, 0),
    "bitcoin_dataset": "none of its columns is known to hold a price",
    "06012018": (100, 0),
    "06122017": (1326, 0),
    "AAVE-USD_1d": (1603, 0),
    "BTC-USD_1m": (40604, 0),
    "BTCUSDT_1d": "in USDT, not USD",
    "fafusha": "neither a column nor the file name gives the time",
    "__btc-usd-max": (3070, 0),
    "fullcoinlist": "none of its columns is known to hold a price",
    "csv/hathix__perday_1640563200000": (2453, 0),
    "csv/hathix__perday_1640649600000": (2450, 0),
    "binance_1m": "its currency is unknown",
    "__bitcoin_price.csv": (1592, 0),
    "ethereum_price": (761, 0),
    "nem_price": (889, 0),
    "kittycapital": "its currency is unknown",
    "lucastakara": "neither a column nor the file name gives the time",
    "rciminera__Crypto-Pricing__coin.csv": (100, 0),
    "messari_screener": "neither a column nor the file name gives the time",
    "scottjoyner": "none of its columns is known to hold a price",
    "csv/supervehacker__Coinmarketcap_Crawl__dogecoin": (3304, 0),
    "freedom-coin": "words of unknown meaning ('freedom')",
    "xrp.csv": (3437, 0),
}

# By a part of the file's name, read manually: what selects a row, and values of that row.
CHECKED_ROWS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "06122017": (
        {"source_id": "swisscoin"},
        {"price_usd": "0.000122905", "market_cap_usd": r"\N", "rank": "1325", "total_supply": "10200000000"},
    ),
    "data_bitcoin_eur": ({"observed_at": "2023-12-31 23:00:00+00:00"}, {"price_usd": "44152.2269"}),
    "coin_CryptocomCoin": (
        {"observed_at": "2018-12-15 23:59:59+00:00"},
        {"price_usd": "0.0172433664486", "market_cap_usd": r"\N", "volume_24h_usd": "989709.642797211"},
    ),
    "Investing.com": (
        {"observed_at": "2022-09-01 23:59:59+00:00"},
        {"price_usd": "19995.7", "volume_24h_usd": r"\N"},
    ),
    "xrp.csv": (
        {"observed_at": "2013-08-04 23:59:59+00:00"},
        {"price_usd": "0.005882", "market_cap_usd": "45983577", "volume_24h_usd": r"\N"},
    ),
    "ethereum_price": (
        {"observed_at": "2015-08-07 23:59:59+00:00"},
        {"price_usd": "2.77", "market_cap_usd": r"\N"},
    ),
    "GOMINING": (
        {"observed_at": "2021-05-20 00:00:00+00:00"},
        {"source_id": "gomining", "price_usd": "0.1371174932423559", "volume_24h_usd": "2724.527382210886"},
    ),
    "csv/hathix__perday_1640563200000": (
        {"source_id": "zeedex"},
        {"price_usd": "0.15982334793981526", "observed_at": "2021-12-27 00:00:00+00:00"},
    ),
    "AwalDinz": (
        {"source_id": "templar"},
        {"symbol": "SN3", "name": "τemplar", "rank": "997", "percent_change_24h": "0.04296"},
    ),
}


@pytest.mark.slow
async def test_every_sample_is_loaded_or_rejected_for_the_right_reason(shared_data: Path) -> None:
    table: list[str] = []
    for path in sorted([*(shared_data / "csv").iterdir(), *(shared_data / "csv_bulk").iterdir()]):
        label = f"{path.parent.name}/{path.name}"
        outcome = await read(path, now=NOW)
        table.append(await _line(path, label, outcome))
        for part, expected in EXPECTED.items():
            if part in label:
                if isinstance(expected, str):
                    assert not outcome.rows
                    assert expected in outcome.problem
                else:
                    assert ((len(outcome.rows), len(outcome.rejects)), outcome.problems) == (expected, []), (
                        label
                    )
        for part, (selector, values) in CHECKED_ROWS.items():
            if part in label:
                (row,) = [row for row in outcome.rows if selector.items() <= row.items()]
                assert {column: row[column] for column in values} == values
    print("", *table, sep="\n")


async def _line(path: Path, label: str, outcome: Outcome) -> str:
    found = (await checked(path)).recognition
    reasons = Counter(f"{reject.field or 'row'}: {reject.reason}" for reject in outcome.rejects)
    summary = outcome.problems or [f"{count} x {reason}" for reason, count in reasons.most_common(3)]
    figures = f"{len(outcome.rows):6} {len(outcome.rejects):4}"
    return f"{label[-60:]:60} {found.layout if found else '-':36} {figures}  {'; '.join(summary)}"


async def test_check_shows_the_field_of_each_column(shared_data: Path) -> None:
    (path,) = (shared_data / "csv").glob("*__data_bitcoin_eur.csv")
    result = await checked(path)
    found = result.recognition
    assert found is not None
    assert (result.rows, result.rejected, result.problem) == (965, 0, None)
    assert (found.decimal, found.delimiter) == (",", ";")
    assert found.findings[0].answer == "dates that show their order, zone Europe/Berlin"
    euro, dollar = found.columns[3:5]
    assert (euro.field, euro.note) == (None, "in EUR, not USD (by its header)")
    assert dollar.field == "price_usd"
    assert dollar.cells[0] == Cell("44152,2269", "44152.2269")


async def checked(path: Path) -> Checked:
    with ArchiveFile.at(path) as file:
        return await check(file, path.name, NO_OVERRIDES, NOW)


async def test_check_shows_the_lines_of_rejects(shared_data: Path) -> None:
    (path,) = (shared_data / "csv").glob("*price_lists_bitcoin_prices.csv")
    (reason,) = (await checked(path)).reasons
    assert (reason.field, reason.rows, reason.first[0].line) == ("observed_at", 1, 666)
    assert reason.first[0].raw.startswith("2025-10-26;02:00;")
