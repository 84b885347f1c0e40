"""One browser and one service for all browser tests of a module."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page

from tests.web.page.site import BROWSER, MISSING, Site, chromium, site


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    if BROWSER is None:
        pytest.skip(MISSING)
    async with chromium() as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def market(server_url: str, template: str) -> AsyncIterator[Site]:
    async with site(server_url, template) as running:
        yield running


class Tab:
    """A tab of the browser; `errors` are those that its console shows."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._note)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.errors.append(message.text)


@pytest_asyncio.fixture(loop_scope="module")
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """A profile of the browser for one test."""
    opened = await browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
    opened.set_default_timeout(15_000)
    yield opened
    await opened.close()


@pytest_asyncio.fixture(loop_scope="module")
async def tab(context: BrowserContext) -> Tab:
    return Tab(await context.new_page())
