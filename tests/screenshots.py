"""`python -m tests.screenshots`: pictures of every view of the page, over the market of `kasparro demo`."""

import asyncio
import tempfile
from pathlib import Path

import stamina.instrumentation
from playwright.async_api import Browser

from kasparro.web.app import VIEWS
from tests.support.commands import listening_url, started_command
from tests.support.live_service import first_run
from tests.web.page.site import BROWSER, MISSING, chromium

FOLDER = Path("screenshots")
README = Path("docs/page.png")
WIDTHS = {390: 844, 1024: 768, 1920: 1080}
# Those of the navigation, and some that show a state.
PATHS = {
    **{view.template.removesuffix(".html"): view.path for view in VIEWS if view.label is not None},
    "run": "/page/activity/1",
    "coin": "/page/coin/btc-bitcoin",
    "candles": "/page/coin/eth-ethereum?range=1y&chart=candles",
    "nothing-found": "/?q=no+such+coin",
    "no-such-coin": "/page/coin/nosuch",
}
# Views with lines or charts, which come after the first paint.
DRAWN = frozenset({"market", "coin", "candles"})


async def main() -> None:
    """Start the demo and make the pictures."""
    if BROWSER is None:
        raise SystemExit(MISSING)
    with tempfile.TemporaryDirectory() as home:
        async with started_command("demo", PORT="0", KASPARRO_HOME=home, KASPARRO_LOG="json") as process:
            url = await listening_url(process)
            assert process.stderr is not None
            # Read while it runs, because a full pipe would block the service.
            rest = asyncio.create_task(process.stderr.read())
            await first_run(url)
            async with chromium() as browser:
                await pictures(browser, url)
            process.terminate()
            await rest
            # The folder must outlast the embedded PostgreSQL.
            await process.wait()


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
                if name in DRAWN:
                    await page.locator("svg .stroke").last.wait_for(state="attached")
                picture = FOLDER / f"{name}-{scheme}-{width}.png"
                await page.screenshot(path=picture, full_page=name not in {"market", "nothing-found"})
            await context.close()
    context = await browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    page = await context.new_page()
    await page.goto(url)
    await page.locator("svg .stroke").last.wait_for(state="attached")
    await page.screenshot(path=README)
    await context.close()


if __name__ == "__main__":
    # The wait for the first run is no event.
    stamina.instrumentation.set_on_retry_hooks([])
    asyncio.run(main())
