"""The views Sources and runs, Run, and Archives, in a real browser."""

import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import asyncpg
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from kasparro.sources.archives.source import Archives
from kasparro.sources.registry import load_settings
from kasparro.store.pool import Connection, Database
from tests.conftest import copied_database
from tests.support.archives import table
from tests.support.assets import make_link, resolve
from tests.support.runs import add_run, add_source, run_sources
from tests.web.conftest import serving
from tests.web.page.conftest import Tab
from tests.web.page.site import HOSTILE, violations

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

VIEWS = ("/page/activity", "/page/activity/{run}", "/page/archives")
RUNS = 30
REJECTS = 30
HOUR = timedelta(hours=1)


class Shown:
    """A running service: its URL, a client of it, and the run that has all kinds of findings."""

    def __init__(self, client: aiohttp.ClientSession, connection: Connection, run: int) -> None:
        self.client, self.connection, self.run = client, connection, run

    def url(self, path: str) -> str:
        """The URL of a view."""
        return f"{self.client._base_url}".rstrip("/") + path.format(run=self.run)


async def fill(connection: Connection, database: Database, folder: Path) -> int:
    """Runs of 30 hours; then one that loads a folder, and that has drift, anomalies and hostile texts.

    CoinGecko is on time, CoinPaprika is late.
    """
    now = datetime.now(UTC)
    for age in range(RUNS, 0, -1):
        began = now - age * HOUR
        times = {"started_at": began, "finished_at": began + timedelta(seconds=age)}
        run = await add_run(connection, "failed" if age == 9 else "succeeded", **times)
        for source in ("coingecko", "coinpaprika"):
            status = "failed" if source == "coinpaprika" and age < 10 else "succeeded"
            error = f"429: {HOSTILE}" if status == "failed" else None
            figures = {"fetched": 100, "valid": 100, "updated": 100} if error is None else {}
            await add_source(connection, run, source, status, error=error, **figures, **times)
    folder.mkdir()
    (folder / f"{HOSTILE}.csv").write_text(table("date,close", "2024-01-01,1.5", "2024-01-02,1.6"))
    for name in ("btc-usd-max.csv", "eth-usd-max.csv"):
        (folder / name).write_text(
            table("snapped_at,price,market_cap,total_volume", "2024-01-01 00:00:00 UTC,1.5,2.0,3.0")
        )
    await run_sources(database, [Archives(str(folder))], "schedule")
    run = await connection.fetchval("SELECT max(id) FROM runs")
    finding = {"field": HOSTILE, "change": "vanished", "records": 9, "of": 9, "before": "a number"}
    finding |= {"after": "not there", "samples": [HOSTILE], "nearest": None, "confidence": None}
    finding |= {"since_run": run}
    anomaly = {"kind": "few-records", "detail": "9 records, usually 100", "value": 9, "usual": 100}
    anomaly |= {"lasting": False, "since_run": run, "since": "2024-06-01T12:00:00Z"}
    await add_source(
        connection,
        *(run, "coingecko", "succeeded"),
        fetched=1_234,
        valid=1_234 - REJECTS,
        rejected=REJECTS,
        started_at=now,
        finished_at=now,
        drift=json.dumps([finding]),
        anomalies=json.dumps([anomaly]),
    )
    await connection.executemany(
        "INSERT INTO rejects (run_id, source, reason, field, raw) "
        "VALUES ($1, 'coingecko', $2, 'price_usd', $3)",
        [
            (run, f"not a number: {HOSTILE}", f'{{"id": {number}, "name": "{HOSTILE}"}}')
            for number in range(REJECTS)
        ],
    )
    await connection.execute(
        "INSERT INTO reject_counts VALUES ($1, 'coingecko', '', 'price_usd', 'not a number', $2)",
        run,
        REJECTS,
    )
    await connection.execute(
        "INSERT INTO api_calls VALUES ('coingecko', $1, 2500)", now.date().replace(day=1)
    )
    await resolve(database, make_link("csv", source_id="btc", symbol=None))
    # The run of the helper has no end.
    await connection.execute("DELETE FROM runs WHERE status = 'running'")
    return int(run)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shown(
    server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Shown]:
    """The service of this module."""
    settings = load_settings({"KASPARRO_COINGECKO_MONTHLY_CALLS": "10000"})
    async with copied_database(server_url, template) as url, Database(url) as database:
        connection = await asyncpg.connect(url, server_settings={"timezone": "UTC"})
        run = await fill(connection, database, tmp_path_factory.mktemp("archives") / "folder")
        async with serving(url, settings) as client:
            yield Shown(client, connection, run)
        await connection.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(tab: Tab) -> AsyncIterator[Page]:
    """A tab of a phone. It fails the test if its console shows an error."""
    await tab.page.set_viewport_size({"width": 390, "height": 844})
    yield tab.page
    assert tab.errors == []


async def test_a_late_source_is_plain_without_scrolling(page: Page, shown: Shown) -> None:
    await page.goto(shown.url("/page/activity"))

    verdict = page.locator(".banner")
    await expect(verdict).to_contain_text("coinpaprika: late")
    await expect(verdict).not_to_contain_text("coingecko: late")
    late = page.locator(".source", has_text="coinpaprika")
    await expect(late).to_contain_text("9\N{NARROW NO-BREAK SPACE}h ago")
    await expect(late).to_contain_text("expected within 2\N{NARROW NO-BREAK SPACE}h")
    box = await late.bounding_box()
    assert box is not None
    assert box["y"] + box["height"] < 844


async def test_a_source_shows_its_error_and_its_call_budget(page: Page, shown: Shown) -> None:
    await page.goto(shown.url("/page/activity"))

    await expect(page.locator(".source", has_text="coinpaprika")).to_contain_text(f"failed: 429: {HOSTILE}")
    budget = page.locator(".source", has_text="coingecko").locator(".budget")
    await expect(budget).to_contain_text("2,500 of 10,000 calls")
    await expect(budget.locator(".part")).to_have_attribute("width", "25")


async def test_the_strip_has_a_bar_for_each_run_and_leads_to_it(page: Page, shown: Shown) -> None:
    await page.goto(shown.url("/page/activity"))

    bars = page.locator(".strip svg a")
    await expect(bars).to_have_count(RUNS + 1)
    title = await bars.last.locator("title").text_content()
    assert title is not None
    assert re.fullmatch(
        rf"Run {shown.run}, partial: .* UTC, .*, [\d,]+ changed, {REJECTS + 1} rejected", title
    )
    await bars.nth(-2).locator(".slot").click(force=True)
    await expect(page.locator("h1")).to_have_text(f"Run {shown.run - 1} succeeded")


async def test_runs_are_filtered_and_paged_under_urls_of_their_own(page: Page, shown: Shown) -> None:
    await page.goto(shown.url("/page/activity"))
    rows = page.locator(".runs tbody tr")
    await expect(rows).to_have_count(25)

    await page.get_by_role("link", name="Next").click()
    await expect(rows).to_have_count(RUNS + 1 - 25)
    assert page.url.endswith("?page=2")

    await page.get_by_role("link", name="Failed").click()
    await expect(rows).to_have_count(1)
    assert page.url.endswith("?status=failed")
    await page.reload()
    await expect(rows).to_have_count(1)

    await page.get_by_role("link", name="Interrupted").click()
    await expect(page.get_by_role("heading", name="No run has this status")).to_be_visible()
    await page.go_back()
    await expect(rows).to_have_count(1)


async def test_a_run_shows_its_findings_and_rejects(page: Page, shown: Shown) -> None:
    await page.goto(shown.url("/page/activity/{run}"))

    part = page.locator(".part", has_text="coingecko")
    await expect(part.locator("[data-count=fetched]")).to_have_text("1,234")
    await expect(part.get_by_text("9 records, usually 100")).to_be_visible()
    await expect(part.locator(".findings code").first).to_have_text(HOSTILE)
    await expect(page.locator(".part", has_text="Rejected files: 1")).to_contain_text('currency = "USD"')
    rejects = page.locator(".rejects tbody tr")
    await expect(rejects).to_have_count(25)
    await expect(rejects.last).to_contain_text(f"not a number: {HOSTILE}")
    await page.get_by_role("link", name="Next").click()
    await expect(rejects).to_have_count(REJECTS + 1 - 25)
    await expect(rejects.last).to_contain_text(f'{{"id": {REJECTS - 1}')


async def test_runs_lead_to_their_neighbours(page: Page, shown: Shown) -> None:
    await page.goto(shown.url("/page/activity/{run}"))

    await expect(page.get_by_role("link", name=f"Run {shown.run + 1}")).to_have_count(0)
    await page.get_by_role("link", name=f"Run {shown.run - 1}").click()
    await expect(page.get_by_role("link", name=f"Run {shown.run}", exact=True)).to_be_visible()


async def test_an_unknown_run_is_explained(shown: Shown) -> None:
    for run, why in (("999", "There is no such run."), ("x", "The id of a run is a number.")):
        async with shown.client.get(f"/page/activity/{run}") as response:
            assert response.status == 404
            assert why in await response.text()


async def test_archives_show_what_is_loaded_and_what_would_settle_the_rest(page: Page, shown: Shown) -> None:
    await page.goto(shown.url("/page/archives"))

    loaded = page.locator(".archives tr", has_text="btc-usd-max.csv")
    await expect(loaded).to_contain_text("loaded")
    await expect(loaded.get_by_role("link", name="btc")).to_have_attribute("href", "../page/coin/btc-bitcoin")
    await expect(page.locator(".archives .file").first).to_have_text(f"{HOSTILE}.csv")
    rejected = page.locator(".archives .problem")
    await expect(rejected).to_contain_text("its currency is unknown")
    await expect(rejected).to_contain_text(f"put this into {HOSTILE}.csv.toml")
    await expect(rejected.locator("pre")).to_contain_text('currency = "USD"')


async def test_the_lines_of_an_archive_are_copied(page: Page, shown: Shown) -> None:
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.goto(shown.url("/page/archives?problem=true"))

    await page.get_by_role("button", name="Copy").click()

    await expect(page.get_by_role("button", name="Copied")).to_be_visible()
    copied = await page.evaluate("navigator.clipboard.readText()")
    assert copied == await page.locator(".setting pre").text_content()


async def test_archives_are_searched_as_you_type(page: Page, shown: Shown) -> None:
    await page.goto(shown.url("/page/archives"))
    files = page.locator(".archives tbody th")

    await page.keyboard.press("/")
    await page.keyboard.type("ETH-")
    await expect(files).to_have_text(["eth-usd-max.csv"])
    assert page.url.endswith("?q=ETH-")

    await page.keyboard.type("nothing")
    await expect(page.get_by_role("heading", name="No file matches “ETH-nothing”")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(files).to_have_count(3)


async def test_hostile_texts_are_texts(page: Page, shown: Shown) -> None:
    for path in VIEWS:
        await page.goto(shown.url(path))
        await expect(page.get_by_text(HOSTILE).first).to_be_attached()
        await expect(page.locator("main img, main script")).to_have_count(0)


async def test_views_are_accessible_and_fit_their_window(shown: Shown, browser: Browser) -> None:
    for scheme, width in (("light", 360), ("light", 1024), ("dark", 390), ("dark", 1920)):
        context = await browser.new_context(
            viewport={"width": width, "height": 844},
            color_scheme=scheme,  # type: ignore[arg-type]
        )
        page = await context.new_page()
        for path in VIEWS:
            await page.goto(shown.url(path))
            assert await violations(page) == [], (scheme, path)
            assert await page.evaluate("document.documentElement.scrollWidth") <= width, (width, path)
        await context.close()


async def test_a_run_is_followed_from_its_start_to_its_end(page: Page, shown: Shown) -> None:
    before = await add_run(shown.connection, "succeeded", started_at=datetime.now(UTC))
    await add_source(shown.connection, before, "coingecko", "succeeded", fetched=900)
    await page.goto(shown.url("/page/activity"))
    await expect(page.locator("#live")).to_have_text("Live")
    newest, rows, sources = page.locator(".now"), page.locator(".runs tbody tr"), page.locator(".sources")
    await expect(newest).to_have_attribute("data-status", "succeeded")
    place = await sources.bounding_box()

    run = await add_run(shown.connection, "running", started_at=datetime.now(UTC))
    await add_source(shown.connection, run, "coingecko", "running", fetched=1_000)
    await expect(newest).to_have_attribute("data-status", "running")
    await expect(newest.locator("h2")).not_to_contain_text("took")
    await expect(newest.locator("[data-count=fetched]")).to_have_text("1,000")
    assert await sources.bounding_box() == place

    # Its counts move without a load of the view.
    await newest.evaluate("card => { card.untouched = true }")
    await shown.connection.execute("UPDATE run_sources SET fetched = 2000 WHERE run_id = $1", run)
    await expect(newest.locator("[data-count=fetched]")).to_have_text("2,000")
    assert await newest.evaluate("card => card.untouched")

    await shown.connection.execute(
        "UPDATE runs SET status = 'failed', finished_at = now() WHERE id = $1", run
    )
    await expect(newest).to_have_attribute("data-status", "failed")
    await expect(rows.first).to_contain_text(f"{run} failed")
    assert await sources.bounding_box() == place

    await shown.connection.execute("DELETE FROM runs WHERE id = ANY($1)", [before, run])


async def test_views_without_data_say_what_comes_next(page: Page, server_url: str, template: str) -> None:
    async with copied_database(server_url, template) as url, serving(url) as client:
        for path, heading in (
            ("/page/activity", "No run yet"),
            ("/page/archives", "No archive is loaded"),
        ):
            await page.goto(f"{client._base_url}".rstrip("/") + path)
            await expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
        await page.goto("about:blank")


async def test_views_need_the_key(server_url: str, template: str) -> None:
    key = "a-key-of-the-tests"
    settings = load_settings({"KASPARRO_API_KEYS": f"tests:{key}"})
    async with copied_database(server_url, template) as url, serving(url, settings) as client:
        for path, heading in (("/activity", "Sources and runs"), ("/archives", "No archive is loaded")):
            async with client.get(f"/page{path}") as response:
                document = await response.text()
            assert "An API key is needed" in document
            assert heading not in document
            async with client.get(f"/page/views{path}") as response:
                assert response.status == 401
            async with client.get(f"/page/views{path}", headers={"X-API-Key": key}) as response:
                assert heading in await response.text()
