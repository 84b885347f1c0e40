"""GET /assets/{asset}/history and its exports: one line of all ids of a coin."""

import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kasparro.model.asset import Link
from kasparro.settings import Settings
from kasparro.sources.archives.source import Archives
from kasparro.store.pool import Database
from tests.support.assets import make_link, resolve
from tests.support.batches import load_records, make_record
from tests.support.histories import keep_up
from tests.support.json_responses import get_exact
from tests.support.runs import run_sources
from tests.web.conftest import serving

URL = "/assets/btc-bitcoin/history"
BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
HOUR, MINUTE, DAY = timedelta(hours=1), timedelta(minutes=1), timedelta(days=1)
BOTH = (make_link("coinpaprika"), make_link("coingecko", source_id="bitcoin"))
IDS = {"coinpaprika": "btc-bitcoin", "coingecko": "bitcoin", "csv": "btc"}


async def load(
    database: Database, source: str, prices: dict[datetime, str], source_id: str | None = None, **values: Any
) -> None:
    """Load records of Bitcoin of a source."""
    await load_records(
        database,
        source,
        *(
            make_record(source_id or IDS[source], at, price_usd=price, **values)
            for at, price in prices.items()
        ),
        now=max(prices),
    )


def hourly(
    days: int, price: Decimal, *, begin: datetime = BEGIN, every: timedelta = HOUR
) -> dict[datetime, str]:
    """Prices that rise by 0.001 in each step."""
    return {begin + n * every: str(price + Decimal(n) / 1000) for n in range(int(days * DAY / every))}


async def everything(client: aiohttp.ClientSession, query: str) -> list[dict[str, Any]]:
    """All entries, in one page."""
    page = await get_exact(client, f"{URL}?{query}&limit=1000")
    assert page["pagination"]["next"] is None
    found: list[dict[str, Any]] = page["data"]
    return found


def moment(text: str) -> datetime:
    """A time of the API."""
    return datetime.fromisoformat(text)


@pytest.fixture
async def client(database_url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a service without a response cache, which learns of a commit a moment later."""
    async with serving(database_url, Settings(cache_mb=0)) as session:
        yield session


@pytest.fixture
async def bitcoin(database: Database) -> None:
    """Six days of two sources, one of which is astray for an hour."""
    await load(database, "coinpaprika", hourly(6, Decimal(100)))
    stray = {BEGIN + 5 * DAY + HOUR: "300", BEGIN + 5 * DAY + 2 * HOUR: "301"}
    await load(database, "coingecko", hourly(6, Decimal("100.0000000000000000001"), every=3 * HOUR) | stray)
    await resolve(database, *BOTH)


@pytest.mark.parametrize("interval", ["raw", "1h", "1d", "1w"])
@pytest.mark.usefixtures("bitcoin")
async def test_pages_and_exports_have_the_same(client: aiohttp.ClientSession, interval: str) -> None:
    whole = await everything(client, f"interval={interval}")
    for limit in (5, 50):
        paged, url = [], f"{URL}?interval={interval}&limit={limit}"
        while url:
            page = await get_exact(client, url)
            paged += page["data"]
            url = page["pagination"]["next"]
        assert paged == whole

    async with client.get(f"{URL}.ndjson?interval={interval}") as response:
        lines = (await response.text()).splitlines()
    assert [json.loads(line, parse_float=Decimal, parse_int=Decimal) for line in lines] == whole
    async with client.get(f"{URL}.csv?interval={interval}") as response:
        table = list(csv.reader(io.StringIO(await response.text(), newline="")))
    assert table[0] == list(whole[0])
    assert [dict(zip(table[0], row, strict=True)) for row in table[1:]] == [
        {
            name: " ".join(value) if name == "sources" else "" if value is None else str(value)
            for name, value in row.items()
        }
        for row in whole
    ]


@pytest.mark.parametrize("interval", ["raw", "1h", "1d"])
@pytest.mark.usefixtures("bitcoin")
async def test_any_range_gives_the_entries_of_the_whole(client: aiohttp.ClientSession, interval: str) -> None:
    """Both bounds are included, and what is outlying does not depend on them."""
    whole = await everything(client, f"interval={interval}")
    name = "observed_at" if interval == "raw" else "time"
    for first, last in (
        (0, 0),
        (1, 4),
        (len(whole) // 2, len(whole) // 2 + 3),
        (len(whole) - 2, len(whole) - 1),
    ):
        begin, end = whole[first][name], whole[min(last, len(whole) - 1)][name]
        assert (
            await everything(client, f"interval={interval}&from={begin}&to={end}") == whole[first : last + 1]
        )
    assert await everything(client, f"interval={interval}&to=2020-01-01") == []


@pytest.mark.usefixtures("bitcoin")
async def test_prices_astray_are_in_no_interval(client: aiohttp.ClientSession) -> None:
    for interval in ("raw", "1h", "1d", "1w"):
        found = await everything(client, f"interval={interval}")
        names = ("price_usd",) if interval == "raw" else ("open", "high", "low", "close")
        assert all(row[name] < 101 for row in found for name in names)


async def test_archive_and_live_rows_are_one_line(
    client: aiohttp.ClientSession, database: Database, tmp_path: Path
) -> None:
    """An archive of years ago, live rows since, and moments that both have: each moment once."""
    archive = {BEGIN - 3 * DAY + n * DAY: f"{97 + n}.5" for n in range(5)}
    (tmp_path / "btc-usd.csv").write_text(
        "time,price_usd\n" + "".join(f"{at:%Y-%m-%dT%H:%M:%SZ},{price}\n" for at, price in archive.items())
    )
    await run_sources(database, [Archives(str(tmp_path))])
    live = {BEGIN + n * 12 * HOUR: str(100 + n) for n in range(6)}
    await load(database, "coinpaprika", live)
    await resolve(
        database, make_link("coinpaprika"), make_link("csv", source_id="btc", symbol=None, name=None)
    )

    found = await everything(client, "interval=raw")

    assert [moment(row["observed_at"]) for row in found] == sorted({*archive, *live})
    sources = {moment(row["observed_at"]): row["sources"] for row in found}
    assert sources[BEGIN - DAY] == ["csv"]
    assert sources[BEGIN] == ["coinpaprika", "csv"]
    assert sources[BEGIN + 2 * DAY] == ["coinpaprika"]
    prices = {moment(row["observed_at"]): row["price_usd"] for row in found}
    # The mean of 100.5 in the archive and 100 of the source.
    assert prices[BEGIN] == Decimal("100.25")
    days = await everything(client, "interval=1d")
    assert [moment(row["time"]) for row in days] == [BEGIN + n * DAY for n in range(-3, 3)]


@pytest.mark.parametrize("end", ["", ".csv", ".ndjson"])
async def test_unknown_asset_is_not_found(client: aiohttp.ClientSession, end: str) -> None:
    for asset in ("nosuch", "%00", "btc%2Fbitcoin"):
        async with client.get(f"/assets/{asset}/history{end}") as response:
            assert response.status == 404


async def test_asset_without_a_row_has_an_empty_history(
    client: aiohttp.ClientSession, database: Database
) -> None:
    await load(database, "coinpaprika", {BEGIN: "100"})
    await resolve(database, make_link("coinpaprika"))
    await resolve(database, ended={("coinpaprika", "btc-bitcoin"): datetime.min.replace(tzinfo=UTC)})
    for interval in ("raw", "1h", "1d", "1w"):
        assert await everything(client, f"interval={interval}") == []


@pytest.mark.slow
@pytest.mark.parametrize("thinned_to", ["1h", "1d"])
async def test_thinned_months_answer_the_same_candles(
    client: aiohttp.ClientSession, database: Database, thinned_to: Any
) -> None:
    """Also on the day on which another coin took an id over."""
    await load(database, "coinpaprika", hourly(40, Decimal(100), every=25 * MINUTE))
    prices = hourly(40, Decimal(101), every=25 * MINUTE)
    reused_at = BEGIN + 10 * DAY + 10 * HOUR
    await load(database, "coingecko", {at: price for at, price in prices.items() if at < reused_at})
    await load(
        database,
        "coingecko",
        {at: "0.0005" for at in prices if at >= reused_at},
        symbol="SNX",
        name="Sanex",
    )
    stranger = make_link(
        "coingecko", "snx-sanex", "bitcoin", symbol="SNX", name="Sanex", valid_from=reused_at
    )
    former = make_link("coingecko", source_id="bitcoin", valid_until=reused_at)
    await resolve(database, make_link("coinpaprika"), former, stranger)
    coarser = ("1d", "1w") if thinned_to == "1d" else ("1h", "1d", "1w")
    before = {interval: await everything(client, f"interval={interval}") for interval in coarser}
    theirs = (await get_exact(client, "/assets/snx-sanex/history?interval=1d"))["data"]
    assert {row["high"] for row in theirs} == {Decimal("0.0005")}
    points = len(await everything(client, f"interval=raw&to={BEGIN + 5 * DAY:%Y-%m-%d}"))

    assert await keep_up(database, BEGIN + 60 * DAY, thinned_to) > 0

    assert len(await everything(client, f"interval=raw&to={BEGIN + 5 * DAY:%Y-%m-%d}")) < points
    assert {interval: await everything(client, f"interval={interval}") for interval in coarser} == before
    assert (await get_exact(client, "/assets/snx-sanex/history?interval=1d"))["data"] == theirs


async def test_ids_of_one_source_follow_each_other(client: aiohttp.ClientSession, database: Database) -> None:
    """The history of the old id ends where that of the new one begins, within a day and an hour."""
    until = BEGIN + 30 * MINUTE
    links = (
        make_link("coingecko", source_id="bitcoin", valid_until=until),
        make_link("coingecko", source_id="bitcoin-core", valid_from=until),
    )
    await load(database, "coingecko", {BEGIN + n * 20 * MINUTE: f"10{n}" for n in range(4)})
    await load(database, "coingecko", {BEGIN + n * 20 * MINUTE: f"10{n}.5" for n in range(4)}, "bitcoin-core")
    await resolve(database, *links)

    found = await everything(client, "interval=raw")

    assert [row["price_usd"] for row in found] == [100, 101, Decimal("102.5"), Decimal("103.5")]
    for interval in ("1d", "1w"):
        (candle,) = await everything(client, f"interval={interval}")
        assert (candle["open"], candle["high"], candle["low"]) == (100, Decimal("103.5"), 100)
        assert (candle["close"], candle["count"], candle["sources"]) == (Decimal("103.5"), 4, ["coingecko"])
    (first, second) = await everything(client, "interval=1h")
    assert (first["close"], second["open"]) == (Decimal("102.5"), Decimal("103.5"))


async def test_newest_point_is_the_consensus_if_one_source_reports_then(
    client: aiohttp.ClientSession, database: Database
) -> None:
    links: tuple[Link, ...] = BOTH
    await load(database, "coinpaprika", {BEGIN: "100"})
    await load(database, "coingecko", {BEGIN + 2 * HOUR: "104"})
    await resolve(database, *links)
    newest = (await everything(client, "interval=raw"))[-1]
    asset = await get_exact(client, "/assets/btc-bitcoin")
    # The other quote is stale.
    assert newest["price_usd"] == asset["price_usd"] == 104
    assert newest["observed_at"] == asset["observed_at"]

    await load(database, "coinpaprika", {BEGIN + 2 * HOUR: "105"})
    newest = (await everything(client, "interval=raw"))[-1]
    asset = await get_exact(client, "/assets/btc-bitcoin")
    assert newest["price_usd"] == asset["price_usd"] == Decimal("104.5")
