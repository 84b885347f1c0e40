"""`python -m tests.screenshots`: pictures of every view of the page, over a week of an invented market."""

import asyncio
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from playwright.async_api import Browser

from kasparro import logs
from kasparro.embedded.server import EmbeddedPostgres
from kasparro.pipeline.identity import options_of
from kasparro.pipeline.run import Run
from kasparro.settings import Settings
from kasparro.simulator import Simulator
from kasparro.sources.registry import build, load_settings
from kasparro.store.migrations import migrate
from kasparro.store.pool import Database
from kasparro.web.app import VIEWS
from tests.support.runs import apis
from tests.web.conftest import serving
from tests.web.page.site import BROWSER, MISSING, chromium

FOLDER = Path("screenshots")
README = Path("docs/page.png")
WIDTHS = {390: 844, 1024: 768, 1920: 1080}
# A week with six runs a day.
STEP = timedelta(hours=4)
RUNS = 43
COINS = 300

PATHS = {
    **{view.template.removesuffix(".html"): view.path for view in VIEWS if view.label is not None},
    "run": f"/page/activity/{RUNS}",
    "coin": "/page/coin/btc-bitcoin",
    "candles": "/page/coin/eth-ethereum?chart=candles",
    "nothing-found": "/?q=no+such+coin",
    "no-such-coin": "/page/coin/nosuch",
}


async def main() -> None:
    """Make a market and the pictures."""
    if BROWSER is None:
        raise SystemExit(MISSING)
    with tempfile.TemporaryDirectory() as home:
        async with EmbeddedPostgres(Path(home)) as server, Database(server.dsn) as database:
            await migrate(database)
            await load_week(database)
            settings = load_settings({"KASPARRO_INTERVAL": "4h"})
            async with serving(server.dsn, settings) as client, chromium() as browser:
                await pictures(browser, str(client._base_url).rstrip("/"))


async def load_week(database: Database) -> None:
    """Run over the simulator as if a week had passed, with the sample archive in the last run."""
    now = datetime.now(UTC)
    began_at = now - (RUNS - 1) * STEP - timedelta(minutes=1)
    settings = load_settings({})
    async with Simulator(
        seed=1, coins=COINS, base=began_at, tick=STEP.total_seconds(), manual=True
    ) as simulator:
        for number in range(RUNS):
            sources = [*apis(simulator), *(build(settings, ["csv"]) if number == RUNS - 1 else ())]
            options: dict[str, Any] = {"clock": simulator.clock.now, "assets": options_of(settings)}
            async with Run(database, sources, "schedule", interval=STEP, **options) as run:
                await run.work(asyncio.Event())
            if number < RUNS - 1:
                simulator.advance(1)


async def pictures(browser: Browser, url: str) -> None:
    """Every view in light and dark, in each width; and the picture of the README."""
    FOLDER.mkdir(exist_ok=True)
    for scheme in ("light", "dark"):
        for width, height in WIDTHS.items():
            context = await browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme=scheme,
                reduced_motion="reduce",
            )
            page = await context.new_page()
            for name, path in PATHS.items():
                await page.goto(url + path)
                # Lines and charts come after the first paint.
                if name in {"market", "coin", "candles"}:
                    await page.locator("svg .stroke").last.wait_for(state="attached")
                await page.screenshot(path=FOLDER / f"{name}-{scheme}-{width}.png")
                if name in {"coin", "candles"}:
                    await page.screenshot(path=FOLDER / f"{name}-{scheme}-{width}-all.png", full_page=True)
            await context.close()
    context = await browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    page = await context.new_page()
    await page.goto(url)
    await page.locator("svg .stroke").last.wait_for(state="attached")
    await page.screenshot(path=README)
    await context.close()


if __name__ == "__main__":
    logs.configure(Settings(log_level="error"))
    asyncio.run(main())
