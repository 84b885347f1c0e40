"""The page in a real browser."""

import asyncio
import re
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, BrowserContext, Route, expect

from kasparro.settings import ApiKey, Secret, Settings
from tests.support.proxy import Proxy
from tests.web.page.conftest import Tab
from tests.web.page.site import COINS, HOSTILE, NOW, Site, asset_id, site, violations

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

EXACT = "59990.623456789012345678"


async def test_market_is_there_at_once(market: Site, context: BrowserContext) -> None:
    # Without scripts, as at the first paint.
    without = await context.browser.new_context(java_script_enabled=False)  # type: ignore[union-attr]
    page = await without.new_page()
    await page.goto(market.url)
    await expect(page.locator("tbody tr")).to_have_count(50)
    await expect(page.locator(".summary .figure")).to_have_text("$59,990.62")
    await page.get_by_role("link", name="Next").click()
    await expect(page.locator("tbody tr")).to_have_count(10)
    await without.close()


async def test_search_as_you_type(market: Site, tab: Tab) -> None:
    await tab.page.goto(market.url)
    await tab.page.keyboard.press("/")
    await tab.page.keyboard.type("coin 5")
    await expect(tab.page.locator("tbody tr")).to_have_count(11)
    assert tab.page.url == f"{market.url}/?q=coin+5"
    await expect(tab.page.get_by_role("searchbox")).to_be_focused()

    # Going back from a coin shows the same search.
    await tab.page.get_by_role("link", name="Coin 52").click()
    await expect(tab.page.get_by_role("heading", name="Coin 52")).to_be_visible()
    await tab.page.go_back()
    await expect(tab.page.get_by_role("searchbox")).to_have_value("coin 5")
    await expect(tab.page.locator("tbody tr")).to_have_count(11)

    await tab.page.get_by_role("searchbox").fill("nosuchcoin")
    await expect(tab.page.get_by_text("No coin matches “nosuchcoin”")).to_be_visible()
    await tab.page.get_by_role("searchbox").press("Escape")
    await expect(tab.page.locator("tbody tr")).to_have_count(50)
    assert tab.errors == []


async def test_sort_filter_and_pages(market: Site, tab: Tab) -> None:
    rows = tab.page.locator("tbody tr")
    await tab.page.goto(market.url)
    price = tab.page.get_by_role("columnheader", name="Price")
    await price.get_by_role("link").click()
    await expect(price).to_have_attribute("aria-sort", "descending")
    await price.get_by_role("link").click()
    await expect(price).to_have_attribute("aria-sort", "ascending")
    await expect(rows.first).to_have_attribute("data-key", asset_id(COINS))

    await tab.page.get_by_role("link", name="Next").click()
    await expect(rows).to_have_count(10)
    await tab.page.get_by_role("link", name="Several sources").click()
    await expect(rows).to_have_count(10)
    await expect(rows.first).to_have_attribute("data-key", asset_id(10))
    await tab.page.go_back()
    await tab.page.go_back()
    await expect(rows).to_have_count(50)
    assert tab.page.url == f"{market.url}/?sort=price_usd"
    assert tab.errors == []


async def test_coin(market: Site, tab: Tab) -> None:
    await tab.page.goto(market.url)
    await tab.page.get_by_role("link", name="Bitcoin").first.click()
    chart = tab.page.get_by_role("slider")
    await expect(chart.locator("path.stroke")).to_be_visible()
    reading = tab.page.locator("#reading")
    await expect(reading).to_contain_text(f"$59,990.{EXACT.split('.')[1]}")

    # Pointer and keyboard read exact values.
    await chart.hover(position={"x": 3, "y": 100})
    await expect(reading).to_contain_text("$59,960.623456789012345678")
    await chart.focus()
    await tab.page.keyboard.press("End")
    await tab.page.keyboard.press("ArrowLeft")
    await expect(chart).to_have_attribute("aria-valuetext", re.compile(r"UTC: \$59,9[78]0\.\d{18}$"))

    await tab.page.get_by_role("link", name="Candles").click()
    await expect(chart.locator("rect.body").first).to_be_visible()
    await tab.page.get_by_role("link", name="All time").click()
    await expect(tab.page.locator("#words")).to_contain_text("All time")
    assert tab.page.url.endswith("/page/coin/btc-bitcoin?range=all&chart=candles")
    await tab.page.get_by_text("Prices as a table").click()
    await expect(tab.page.get_by_role("columnheader", name="Close")).to_be_visible()
    await tab.page.go_back()
    await expect(tab.page.locator("#words")).to_contain_text("Last 7 days")

    quotes = tab.page.locator(".quotes .card")
    await expect(quotes).to_have_count(2)
    await quotes.first.get_by_text("Linked by names").click()
    await expect(quotes.first).to_contain_text("names are equal: Bitcoin")
    async with tab.page.expect_download() as download:
        await tab.page.get_by_role("link", name="CSV").click()
    assert "59990.623456789012345678" in (await (await download.value).path()).read_text()
    assert tab.errors == []


async def test_copied_numbers_are_exact(market: Site, tab: Tab, context: BrowserContext) -> None:
    await context.grant_permissions(["clipboard-read", "clipboard-write"])
    await tab.page.goto(market.url)
    await tab.page.locator("tbody tr").first.evaluate("row => getSelection().selectAllChildren(row)")
    await tab.page.keyboard.press("Control+c")
    copied = (await tab.page.evaluate("navigator.clipboard.readText()")).split("\t")
    assert copied[:3] == ["1", "Bitcoin BTC", EXACT]
    await tab.page.locator("tbody .price_usd data").first.dblclick()
    await tab.page.keyboard.press("Control+c")
    assert await tab.page.evaluate("navigator.clipboard.readText()") == EXACT


async def test_hostile_name_is_shown_as_it_is(market: Site, tab: Tab) -> None:
    await tab.page.goto(f"{market.url}/?q=%3Cimg")
    await expect(tab.page.locator("tbody .label")).to_have_text(HOSTILE)
    await tab.page.locator("tbody .name a").click()
    await expect(tab.page.get_by_role("heading", level=1)).to_contain_text(HOSTILE)
    await expect(tab.page).to_have_title(f"{HOSTILE} · Kasparro")
    await tab.page.locator(".quotes summary").first.click()
    await expect(tab.page.locator(".evidence").first).to_contain_text(HOSTILE)
    # A fragment that replaces another one, and a search that shows it again.
    await tab.page.get_by_role("link", name="Last month").click()
    await expect(tab.page.locator("#words")).to_contain_text("Last month")
    await tab.page.goto(f"{market.url}/?q={HOSTILE}{HOSTILE}")
    await expect(tab.page.get_by_role("heading", name="No coin matches")).to_contain_text(HOSTILE)
    await tab.page.goto(f"{market.url}/page/coin/{HOSTILE}")
    await expect(tab.page.get_by_text("There is no such coin.")).to_be_visible()
    assert await tab.page.locator("img[src=x]").count() == 0
    assert [error for error in tab.errors if "404" not in error] == []


async def test_other_hosts_are_not_asked(market: Site, tab: Tab) -> None:
    asked: set[str] = set()
    tab.page.on("request", lambda request: asked.add(request.url.split("/")[2]))
    for path in ("/", "/page/coin/btc-bitcoin"):
        await tab.page.goto(market.url + path)
        await expect(tab.page.locator("svg path.stroke").first).to_be_attached()
    assert asked == {market.url.split("/")[2]}


async def test_pages_are_accessible(market: Site, browser: Browser) -> None:
    for scheme, width in (("light", 1280), ("dark", 390)):
        context = await browser.new_context(
            viewport={"width": width, "height": 844},
            color_scheme=scheme,  # type: ignore[arg-type]
        )
        page = await context.new_page()
        for path in ("/", "/?q=nosuchcoin", "/page/coin/btc-bitcoin?chart=candles", "/page/coin/nosuch"):
            await page.goto(market.url + path)
            assert await violations(page) == [], (scheme, path)
            # Nothing is wider than the window.
            assert await page.evaluate("document.documentElement.scrollWidth") <= width, (scheme, path)
        await context.close()


async def test_light_and_dark(market: Site, tab: Tab) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    await tab.page.emulate_media(color_scheme="dark")
    await tab.page.goto(market.url)
    dark = await tab.page.evaluate(ground)
    await tab.page.get_by_role("button", name="Switch between light and dark").click()
    light = await tab.page.evaluate(ground)
    assert light != dark
    await tab.page.reload()
    assert await tab.page.evaluate(ground) == light


async def test_summary_fits_on_a_phone(market: Site, browser: Browser) -> None:
    context = await browser.new_context(viewport={"width": 360, "height": 740})
    page = await context.new_page()
    await page.goto(market.url)
    for text in ("$59,990.62", "Sources", "Last run"):
        box = await page.locator(".summary").get_by_text(text, exact=True).bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < 740, text
    await context.close()


async def test_offline_and_back(market: Site, tab: Tab, context: BrowserContext) -> None:
    await tab.page.goto(market.url)
    await context.set_offline(True)
    await tab.page.get_by_role("searchbox").fill("coin 7")
    await expect(tab.page.get_by_role("alert")).to_contain_text("The service cannot be reached.")
    # What was there stays.
    await expect(tab.page.locator("tbody tr")).to_have_count(50)
    await context.set_offline(False)
    await expect(tab.page.locator("tbody tr")).to_have_count(1)
    await expect(tab.page.get_by_role("alert")).to_be_hidden()


async def test_lost_connection_and_back(market: Site, tab: Tab) -> None:
    live = tab.page.locator("#live")
    async with Proxy(urlsplit(market.url).port or 0) as proxy:
        await tab.page.goto(f"http://127.0.0.1:{proxy.port}/?q=coin+7")
        await expect(live).to_have_text("Live")
        proxy.reject()
        await expect(live).to_have_text("Reconnecting")
        await expect(tab.page.get_by_role("alert")).to_contain_text("What you see may be old", timeout=15_000)
        await expect(tab.page.locator("tbody tr")).to_have_count(1)
        proxy.forward()
        await expect(live).to_have_text("Live", timeout=15_000)
        await expect(tab.page.get_by_role("alert")).to_be_hidden(timeout=15_000)


async def test_stream_goes_on_from_a_reset(market: Site, tab: Tab) -> None:
    event = 'id: 7-1-0\nevent: reset\ndata: {"data_version": 1}\n\n'
    await tab.page.route(
        f"{market.url}/stream", lambda route: route.fulfill(body=event, content_type="text/event-stream")
    )
    async with tab.page.expect_request(lambda request: request.headers.get("last-event-id") == "7-1-0"):
        await tab.page.goto(market.url)


async def test_line_separators_in_events(market: Site, tab: Tab) -> None:
    # JSON may have them unescaped.
    event = 'id: 7-1-0\nevent: version\ndata: {"data_version": 1e9, "run": "\u2028\u2029"}\n\n'
    await tab.page.route(
        f"{market.url}/stream", lambda route: route.fulfill(body=event, content_type="text/event-stream")
    )
    async with tab.page.expect_request("**/page/views/market*"):
        await tab.page.goto(market.url)


async def test_new_data_moves_only_what_changed(market: Site, tab: Tab) -> None:
    await tab.page.goto(market.url)
    await expect(tab.page.locator("#live")).to_have_text("Live")
    third = tab.page.locator("tr[data-key=asset-3]")
    await third.evaluate("row => { row.untouched = true }")
    cell = third.locator(".price_usd data")
    before = await cell.get_attribute("value")
    await market.report(3, "2500", NOW - timedelta(minutes=2))
    await expect(cell).not_to_have_attribute("value", before or "")
    # It is the same element, and marked as risen.
    assert await third.evaluate("row => row.untouched")
    await expect(cell).to_have_attribute("data-flash", "up")
    await expect(tab.page.locator("tr[data-key=asset-4] data[data-flash]")).to_have_count(0)

    await tab.page.emulate_media(reduced_motion="reduce")
    await tab.page.goto(f"{market.url}/page/coin/asset-3")
    await expect(tab.page.locator("#live")).to_have_text("Live")
    await market.report(3, "2600", NOW - timedelta(minutes=1))
    await expect(tab.page.locator("#reading")).to_contain_text("$2,")
    assert tab.errors == []


@pytest.mark.parametrize("fault", ["page of a gateway", "connection lost within the body"])
async def test_broken_answer_is_asked_for_again(market: Site, tab: Tab, fault: str) -> None:
    await tab.page.goto(market.url)
    await expect(tab.page.locator("#live")).to_have_text("Live")
    if fault == "page of a gateway":
        await tab.page.route(
            "**/page/views/market*",
            lambda route: route.fulfill(body="<h1>Welcome</h1>", content_type="text/html"),
            times=1,
        )
    else:
        await tab.page.evaluate("""() => {
            const text = Response.prototype.text;
            Response.prototype.text = async () => {
                Response.prototype.text = text;
                throw new TypeError("network error");
            };
        }""")
    await market.report(4, "1000", NOW - timedelta(minutes=3))
    await expect(tab.page.get_by_role("alert")).to_contain_text("The answer of the service cannot be read.")
    await expect(tab.page.locator("tbody tr")).to_have_count(50)
    await expect(tab.page.get_by_role("alert")).to_be_hidden()
    # Later changes come as before.
    async with tab.page.expect_response("**/page/views/market*"):
        await market.report(4, "1100", NOW - timedelta(minutes=2))


@pytest.mark.parametrize("query", ["?sort=-price_usd", "?source_count_min=2", "?q=nosuchcoin"])
async def test_change_that_may_bring_a_coin_onto_the_page(market: Site, tab: Tab, query: str) -> None:
    change = '{"data_version": 1e9, "changed": {"assets": ["asset-51"]}, "truncated": false}'
    # With the first event the page knows which version it has.
    events = f'event: version\ndata: {{"data_version": 0}}\n\nevent: version\ndata: {change}\n\n'
    await tab.page.route(
        f"{market.url}/stream", lambda route: route.fulfill(body=events, content_type="text/event-stream")
    )
    async with tab.page.expect_request("**/page/views/market*"):
        await tab.page.goto(f"{market.url}/{query}")


async def test_key_is_asked_for_and_kept_for_the_session(
    server_url: str, template: str, browser: Browser
) -> None:
    settings = Settings(api_keys=(ApiKey("a", Secret("right")),))
    async with site(server_url, template, settings) as running:
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(running.url)
        await expect(page.get_by_label("API key")).to_be_visible()
        assert await violations(page) == []
        await page.get_by_label("API key").fill("wrong")
        await page.get_by_role("button", name="Show the data").click()
        await expect(page.get_by_role("alert").filter(has_text="invalid API key")).to_be_visible()
        await page.get_by_label("API key").fill("right")
        await page.keyboard.press("Enter")
        await expect(page.locator("tbody tr")).to_have_count(50)
        await expect(page.locator("tbody svg").first).to_be_visible()

        await page.get_by_role("link", name="Bitcoin").first.click()
        await expect(page.get_by_role("slider").locator("path.stroke")).to_be_visible()
        async with page.expect_download() as download:
            await page.get_by_role("link", name="CSV").click()
        assert (await download.value).suggested_filename == "btc-bitcoin-7d.csv"
        assert "right" not in str(await context.storage_state())

        other = await context.new_page()
        await other.goto(running.url)
        await expect(other.get_by_label("API key")).to_be_visible()
        await context.close()


async def test_first_load_with_a_key_is_tried_again(
    server_url: str, template: str, context: BrowserContext
) -> None:
    settings = Settings(api_keys=(ApiKey("a", Secret("right")),))
    async with site(server_url, template, settings) as running:
        page = await context.new_page()
        await page.route("**/page/views/market", lambda route: route.fulfill(status=429), times=1)
        await page.goto(running.url)
        await page.get_by_label("API key").fill("right")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert").first).to_contain_text("The service answered 429.")
        await expect(page.locator("tbody tr")).to_have_count(50)
        await expect(page.locator("#live")).to_have_text("Live")
        await expect(page.locator("tbody svg").first).to_be_visible()


async def test_service_that_is_not_available_is_asked_when_it_says(market: Site, tab: Tab) -> None:
    asked = 0
    answered = asyncio.Event()

    async def answer(route: Route) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            problem = await route.fetch(url=f"{market.url}/page/nosuch")
            body = (await problem.text()).replace('data-status="404"', 'data-status="503"').replace("../", "")
            await route.fulfill(status=503, body=body, content_type="text/html")
        elif asked == 2:
            await answered.wait()
            await route.fulfill(status=503, headers={"Retry-After": "20"})
        else:
            await route.continue_()

    await tab.page.route(f"{market.url}/", answer)
    await tab.page.clock.install()
    await tab.page.goto(market.url)
    async with tab.page.expect_request(f"{market.url}/"):
        await tab.page.clock.run_for(3_000)
    await tab.page.clock.run_for(30_000)
    assert asked == 2
    answered.set()
    seconds = 0
    while asked == 2:
        await tab.page.clock.run_for(1_000)
        seconds += 1
    assert seconds >= 20
    await expect(tab.page.locator("tbody tr")).to_have_count(50)


async def test_database_that_goes_away(server_url: str, template: str, browser: Browser) -> None:
    async with site(server_url, template) as running:
        context = await browser.new_context()
        page, late = await context.new_page(), await context.new_page()
        await page.goto(running.url)
        await running.allow_connections(allowed=False)
        await page.get_by_role("searchbox").fill("coin 7")
        await expect(page.get_by_role("alert")).to_contain_text("The database cannot be reached.")
        await expect(page.locator("tbody tr")).to_have_count(50)
        await late.goto(running.url)
        await expect(late.get_by_text("This page tries again by itself.")).to_be_visible()

        await running.allow_connections(allowed=True)
        await expect(page.locator("tbody tr")).to_have_count(1, timeout=20_000)
        await expect(page.get_by_role("alert")).to_be_hidden()
        await expect(late.locator("tbody tr")).to_have_count(50, timeout=20_000)
        await context.close()
