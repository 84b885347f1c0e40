"""The archives of a simulated market: its past, up to the prices that the APIs report."""

import csv
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from kasparro.simulator.archive import COINS, DAYS, HOURLY_DAYS, write_archives
from kasparro.simulator.clock import Clock
from kasparro.simulator.market import Market
from kasparro.sources.archives.source import Archives
from kasparro.store.pool import Database
from tests.support.runs import run_and_report

BASE = datetime(2026, 6, 1, 10, 30, tzinfo=UTC)


def market(base: datetime = BASE) -> Market:
    return Market(Clock(base, 60_000, manual=True), seed=1, coins=2_500)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_archives_end_where_the_apis_begin(tmp_path: Path) -> None:
    made = market(datetime(2026, 6, 1, 10, 0, 1, tzinfo=UTC))

    write_archives(made, tmp_path / "archives")

    last = {row["name"]: row for row in rows(tmp_path / "archives" / "hourly.csv")}
    bitcoin = next(quote for quote in made.listing("coingecko") if quote.id == "bitcoin")
    assert last["Bitcoin"]["timestamp"] == "2026-06-01T10:00:00Z"
    difference = Decimal(last["Bitcoin"]["price_usd"]) / Decimal(bitcoin.price_usd or 0) - 1
    assert abs(difference) < Decimal("0.001")


def test_no_coin_has_two_prices_at_one_moment(tmp_path: Path) -> None:
    write_archives(market(), tmp_path / "archives")

    daily, hourly = (rows(tmp_path / "archives" / f"{name}.csv") for name in ("daily", "hourly"))

    moments = [(row["symbol"], row["name"], row["timestamp"]) for row in daily + hourly]
    assert len(set(moments)) == len(moments)
    assert len(daily) == COINS * DAYS
    assert len(hourly) == COINS * (24 * HOURLY_DAYS + 11)


def test_existing_archives_stay(tmp_path: Path) -> None:
    folder = tmp_path / "archives"
    write_archives(market(), folder)
    before = (folder / "hourly.csv").read_bytes()

    write_archives(market(BASE + timedelta(days=1)), folder)

    assert (folder / "hourly.csv").read_bytes() == before


async def test_every_row_is_loaded(database: Database, tmp_path: Path) -> None:
    write_archives(market(), tmp_path / "archives")

    report = await run_and_report(database, [Archives(str(tmp_path / "archives"))])

    assert report.status == "succeeded"
    assert report.records.valid > COINS * (DAYS + 24 * HOURLY_DAYS + 11)
    assert report.records.rejected == 0
