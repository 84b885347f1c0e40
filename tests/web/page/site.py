"""A service with the page over a small market, and what tests of the page need of a browser."""

import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped]
from playwright.async_api import Browser, Page, async_playwright

from kasparro.settings import Settings
from kasparro.sources.registry import load_settings
from kasparro.store.pool import Database
from tests.conftest import copied_database, url_of_database
from tests.support.assets import make_link, resolve
from tests.support.batches import load_records, make_record
from tests.web.conftest import serving

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "Chromium is not installed; Debian's package is chromium"

HOSTILE = "<img src=x onerror=alert(1)>"
NOW = datetime.now(UTC).replace(microsecond=0)
# More than a page of them.
COINS = 60


class Site:
    """A running service at `url`, and its database."""

    def __init__(self, url: str, database_url: str, database: Database) -> None:
        self.url = url
        self.database_url = database_url
        self.database = database

    async def report(self, rank: int, price: str, at: datetime, source: str = "coingecko") -> None:
        """Load a new price of a coin, as a run would."""
        await load_records(self.database, source, record(rank, at, price_usd=price))

    async def allow_connections(self, *, allowed: bool) -> None:
        """Let the database accept connections, or end and refuse all."""
        name = urlsplit(self.database_url).path.removeprefix("/")
        administrator = await asyncpg.connect(url_of_database(self.database_url, "postgres"))
        await administrator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}")
        if not allowed:
            await administrator.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
            )
        await administrator.close()


def coin_name(rank: int) -> str:
    """The name of the coin with a rank; one is hostile."""
    return {1: "Bitcoin", 2: HOSTILE}.get(rank, f"Coin {rank}")


def record(rank: int, at: datetime, **values: Any) -> Any:
    """A record of the coin with this rank. Lower ranks have higher prices and caps."""
    symbol = "BTC" if rank == 1 else f"C{rank}"
    given = {
        "rank": rank,
        "price_usd": f"{60_000 / rank**3:.12f}",
        "market_cap_usd": str(10**12 // rank),
        "volume_24h_usd": str(10**10 // rank),
        "percent_change_1h": "0.5",
        "percent_change_24h": "-1.25",
        "percent_change_7d": "3",
    }
    return make_record(f"coin-{rank}", at=at, symbol=symbol, name=coin_name(rank), **{**given, **values})


def asset_id(rank: int) -> str:
    """The asset of the coin with a rank."""
    return "btc-bitcoin" if rank == 1 else f"asset-{rank}"


@asynccontextmanager
async def site(server_url: str, template: str, settings: Settings | None = None) -> AsyncIterator[Site]:
    """A service whose coins have a price of each of the last four hours. All have a quote of CoinGecko, the
    first ten one of CoinPaprika too."""
    async with AsyncExitStack() as stack:
        database_url = await stack.enter_async_context(copied_database(server_url, template))
        database = await stack.enter_async_context(Database(database_url))
        sources: dict[str, Sequence[int]] = {"coingecko": range(1, COINS + 1), "coinpaprika": range(1, 11)}
        for hours in (4, 3, 2, 1):
            at = NOW - timedelta(hours=hours)
            for source, ranks in sources.items():
                records = [
                    record(rank, at, **({} if rank > 1 else _bitcoin(hours, source))) for rank in ranks
                ]
                await load_records(database, source, *records)
        links = [
            make_link(
                source,
                asset_id(rank),
                f"coin-{rank}",
                symbol=record(rank, NOW).symbol,
                name=coin_name(rank),
                evidence=[{"kind": "name", "verdict": "for", "text": f"names are equal: {coin_name(rank)}"}],
            )
            for source, ranks in sources.items()
            for rank in ranks
        ]
        await resolve(database, *links)
        client = await stack.enter_async_context(serving(database_url, settings or load_settings({})))
        yield Site(str(client._base_url).rstrip("/"), database_url, database)


def _bitcoin(hours: int, source: str) -> dict[str, str]:
    # Bitcoin rises by 10 an hour, and the sources differ by one.
    return {"price_usd": f"{60_000 - 10 * hours + (source == 'coinpaprika')}.123456789012345678"}


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser."""
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-background-networking"]
        )
        try:
            yield browser
        finally:
            await browser.close()


async def violations(page: Page) -> list[str]:
    """What axe-core finds wrong, in one line each."""
    results = await Axe().run(page)
    return [
        f"{found['id']}: {found['help']}: {found['nodes'][0]['html'][:200]}"
        for found in results.response["violations"]
    ]
