"""Writes the past of a simulated market as CSV archives."""

import csv
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kasparro.simulator.coins import SUPPLY_SCALE, Coin
from kasparro.simulator.market import Market, stamp
from kasparro.simulator.number_format import GO, numeral
from kasparro.sources.archives.discover import SAMPLE

# The coins of the first pages of a list.
COINS = 100
DAYS = 365
HOURLY_DAYS = 8
HEADER = ("timestamp", "symbol", "name", "price_usd", "market_cap_usd")


def write_archives(market: Market, folder: Path) -> None:
    """Write two archives of the largest coins beside the sample archive: each hour of the last days, and
    before them each day of a year. The prices continue in those that the APIs report. Existing archives
    stay."""
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    # An archive knows a coin by its symbol and name, which lookalikes share.
    coins = list(
        {(coin.symbol, coin.name): coin for coin in reversed(market.coins) if _is_leading(coin)}.values()
    )
    coins = sorted(coins, key=lambda coin: coin.index)[:COINS]
    base = market.clock.base.astimezone(UTC)
    hours_since = _midnight(base) - timedelta(days=HOURLY_DAYS)
    days_since = hours_since - timedelta(days=DAYS)
    hour, day = timedelta(hours=1), timedelta(days=1)
    _write(partial / "hourly.csv", market, coins, _moments(hours_since, base, hour))
    _write(partial / "daily.csv", market, coins, _moments(days_since, hours_since, day))
    for sample in SAMPLE.iterdir():
        shutil.copyfile(sample, partial / sample.name)
    partial.rename(folder)


def _is_leading(coin: Coin) -> bool:
    return (
        coin.coinpaprika_id is not None
        and coin.coingecko_id is not None
        and coin.priced
        and coin.capped
        and coin.activity > 0
        and coin.circulating is not None
    )


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _moments(since: datetime, until: datetime, step: timedelta) -> Iterator[datetime]:
    while since < until:
        yield since
        since += step


def _write(path: Path, market: Market, coins: list[Coin], moments: Iterator[datetime]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for moment in moments:
            time = stamp(moment, "seconds")
            elapsed_ms = (moment - market.clock.base) // timedelta(milliseconds=1)
            for coin in coins:
                price = market.price_at(coin, elapsed_ms)
                cap = price * (coin.circulating or 0) // 10 ** (coin.scale + SUPPLY_SCALE)
                symbol, name = market.labels("coingecko", coin)
                writer.writerow((time, symbol, name, numeral(price, coin.scale, GO), cap))
