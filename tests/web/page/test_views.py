"""What the service sends for the views, without a browser."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from html import unescape
from urllib.parse import urljoin

import aiohttp
import pytest
from yarl import URL

from kasparro.settings import ApiKey, Secret, Settings
from kasparro.store.pool import Connection
from kasparro.web.page.rendering import STATIC_FILES, data_block
from tests.support.assets import make_link, resolve
from tests.support.batches import load_records
from tests.support.response_cache import cached
from tests.support.runs import add_run, add_source
from tests.web.page.site import COINS, HOSTILE, NOW, record, site

pytestmark = pytest.mark.slow

# All that the first view may transfer.
BUDGET_BYTES = 100_000
VIEWS = ("/", "/?q=img", "/page/coin/btc-bitcoin", "/page/coin/asset-2?chart=candles&range=all")


async def text(client: aiohttp.ClientSession, path: str, status: int = 200) -> str:
    async with client.get(path) as response:
        assert response.status == status, await response.text()
        assert response.content_type == "text/html"
        return await response.text()


async def test_views_over_a_market(server_url: str, template: str) -> None:
    async with site(server_url, template) as running, aiohttp.ClientSession(running.url) as client:
        market = await text(client, "/")
        assert re.findall(r'<tr data-key="([^"]+)"', market)[:2] == ["btc-bitcoin", "asset-2"]
        # The exact digits are with the short ones: the median of both sources.
        assert 'value="59990.623456789012345678" title="59990.623456789012345678 USD"' in market
        assert "$59,990.62</data>" in market
        assert f"{COINS} coins" in market

        second = await text(client, "/?page=2&sort=name")
        assert len(re.findall("<tr data-key=", second)) == 10
        assert await text(client, "/?q=") == market
        assert "No coin matches “nosuchcoin”" in await text(client, "/?q=nosuchcoin")
        assert "No coin passes the filter" in await text(client, "/?diverging=true")
        assert "beyond the last one" in await text(client, "/?page=9")

        coin = await text(client, "/page/coin/btc-bitcoin?range=7d")
        assert coin.count('<li class="card" data-key=') == 2
        assert 'href="https://coinpaprika.com/coin/coin-1/"' in coin
        assert 'href="https://www.coingecko.com/en/coins/coin-1"' in coin
        assert "from $59,960.62 to $59,990.62. Lowest" in re.sub(r"<[^>]+>", "", coin)
        async with client.get(urljoin("/page/coin/", unescape(csv_link(coin)))) as response:
            assert response.content_type == "text/csv"

        # A name is text everywhere, also where scripts read it.
        for path in VIEWS:
            shown = await text(client, path)
            assert "<img src=x" not in shown
        assert "&lt;img src=x onerror=alert(1)&gt;" in market

        # The fragment is the same view without the frame.
        for path, fragment in (("/", "market"), ("/page/coin/btc-bitcoin", "coin/btc-bitcoin")):
            inner = (await text(client, f"/page/views/{fragment}")).strip()
            assert inner.startswith('<div id="view"')
            assert times_removed(inner) in times_removed(await text(client, path))

        # The charts of all coins of a table come at once.
        async with client.get("/page/sparklines?asset=btc-bitcoin,asset-2,nosuch") as response:
            lines = (await response.json())["lines"]
        assert lines.keys() == {"btc-bitcoin", "asset-2"}
        bitcoin = [height for height in lines["btc-bitcoin"] if height is not None]
        # It rose by a twentieth of a percent.
        assert (bitcoin[0], bitcoin[-1]) == (47, 53)

        # The response of a view is cached until the data changes.
        etag = (await cached(client, "/")).headers["ETag"]
        async with client.get("/", headers={"If-None-Match": etag}) as response:
            assert response.status == 304
        await running.report(1, "61000.5", NOW - timedelta(minutes=1))
        async with asyncio.timeout(10):
            while "$60,495.81" not in await text(client, "/"):
                pass


def csv_link(page: str) -> str:
    (link,) = re.findall(r'href="([^"]+history\.csv[^"]+)"', page)
    return str(link)


def words_of(page: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def times_removed(page: str) -> str:
    return re.sub(r"(<time[^>]*>)[^<]*|from=[^&]*", r"\1", page)


async def test_coins_with_old_quotes_alone_say_of_which_day_they_are(server_url: str, template: str) -> None:
    async with site(server_url, template) as running, aiohttp.ClientSession(running.url) as client:
        then = datetime(2018, 1, 6, 12, tzinfo=UTC)
        await load_records(running.database, "csv", record(77, then))
        await resolve(running.database, make_link("csv", "asset-77", "coin-77", symbol="C77", name="Coin 77"))

        rows = (await text(client, "/?page=2")).split("<tr data-key=")

        old = [row for row in rows if 'class="old"' in row]
        assert len(old) == 1
        assert old[0].startswith('"asset-77"')
        assert ">2018-01-06</time>" in old[0]


async def test_empty_service(client: aiohttp.ClientSession) -> None:
    page = await text(client, "/")
    assert "No coins yet" in page
    assert "No run has ended yet" in page
    assert page.count("no run yet") == 3


async def test_documents_forbid_scripts_and_other_hosts(client: aiohttp.ClientSession) -> None:
    async with client.get("/") as response:
        page = await response.text()
        policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert not re.findall(r"<script>|<style| style=| on\w+=", page)
    # Links to the vendors are for people to follow.
    loaded = re.findall(r'(?:src|<link[^>]*href)="([^"]+)"', page)
    assert len(loaded) > 5
    for link in loaded:
        assert not link.startswith(("/", "http")), link
        async with client.get("/" + link) as response:
            assert response.status == 200, link
            assert "immutable" in response.headers["Cache-Control"]


async def test_first_view_is_small(server_url: str, template: str) -> None:
    async with site(server_url, template) as running, aiohttp.ClientSession(running.url) as client:
        sent = 0
        page = await text(client, "/")
        loaded = dict.fromkeys(re.findall(r'(?:src|<link[^>]*href)="([^"]+)"', page))
        for path in ("/", *("/" + link for link in loaded), "/page/views/market"):
            async with client.get(path, headers={"Accept-Encoding": "gzip"}) as response:
                sent += int(response.headers["Content-Length"])
    assert sent < BUDGET_BYTES


async def test_problems_are_documents(client: aiohttp.ClientSession) -> None:
    for path, status, words in (
        ("/page/coin/nosuch", 404, "There is no such coin."),
        ("/page/coin/%00", 404, "There is no such coin."),
        ("/page/nosuch", 404, "The page has no such view."),
        ("/?sort=nosuch", 400, "sort is"),
        (f"/?{HOSTILE}=1", 400, "&lt;img"),
        ("/page/coin/a?range=2y", 400, "range is"),
    ):
        shown = await text(client, path, status)
        assert words in shown, path
        assert "<img src=x" not in shown
    async with client.get("/page/coin/nosuch") as response:
        assert response.headers["Cache-Control"] == "no-store"
    # A module that loads a fragment reads the problem itself.
    async with client.get("/page/views/coin/nosuch") as response:
        assert response.content_type == "application/problem+json"


async def test_links_of_problems_lead_to_the_service(client: aiohttp.ClientSession) -> None:
    for path in ("/page/nosuch", "/page/coin/a%2Fb%2Fc", "/page/a//b"):
        url = URL(path, encoded=True)
        async with client.get(url) as response:
            assert response.status == 404
            (style,) = re.findall(r'<link rel="stylesheet" href="([^"]+)"', await response.text())
        async with client.get(urljoin(path, style)) as response:
            assert response.status == 200, path
    # A long way back would fill the document.
    async with client.get(URL("/page" + "/" * 10_000, encoded=True)) as response:
        assert response.status == 404
        assert response.content_type == "application/problem+json"
        assert len(await response.read()) < 50_000


async def test_static_files(client: aiohttp.ClientSession) -> None:
    for name, content in STATIC_FILES.items():
        # The file of an earlier version of the page may still be asked for.
        async with client.get(f"/page/static/0123/{name}") as response:
            assert await response.read() == content
            assert response.headers["Cache-Control"] == "no-cache"
    for name in ("nosuch.js", "..%2F__init__.py", "document.html"):
        async with client.get(f"/page/static/0123/{name}") as response:
            assert response.status == 404


async def test_documents_have_no_data_if_keys_are_set(server_url: str, template: str) -> None:
    settings = Settings(api_keys=(ApiKey("a", Secret("right")),))
    async with site(server_url, template, settings) as running, aiohttp.ClientSession(running.url) as client:
        for path in ("/", "/?q=bit", "/page/coin/btc-bitcoin", "/page/coin/nosuch"):
            shown = await text(client, path)
            assert "An API key is needed" in shown
            assert "btc-bitcoin" not in shown.replace("page/views/coin/btc-bitcoin", "")
            assert "59,990" not in shown
            # Without a key nobody fills the response cache.
            async with client.get(path) as response:
                assert "cache;desc" not in response.headers["Server-Timing"]
                assert "ETag" in response.headers
        fragments = (
            "/page/views/market",
            "/page/views/coin/btc-bitcoin",
            "/page/sparklines?asset=btc-bitcoin",
        )
        for path in fragments:
            async with client.get(path) as response:
                assert response.status == 401, path
            async with client.get(path, headers={"X-API-Key": "right"}) as response:
                assert response.status == 200, path
                assert "private" in response.headers["Cache-Control"]


def test_data_block_ends_nowhere_within() -> None:
    block = str(data_block("bars", '["</script><script>alert(1)</script>"]'))
    assert block.count("<") == 2


async def test_view_of_a_run_is_stored_only_after_its_end(
    client: aiohttp.ClientSession, connection: Connection
) -> None:
    run = await add_run(connection, "running")
    await cached(client, "/page/views/market")
    path = f"/page/views/market?run={run}"
    assert "No run has ended yet" in await text(client, path)
    # The end of a run without changes leaves the data version as it was.
    await connection.execute("UPDATE runs SET status = 'failed', finished_at = now() WHERE id = $1", run)
    assert "Last run Failed" in words_of(await text(client, path))
    await cached(client, path)


async def test_summary_says_what_is_late_and_why(
    client: aiohttp.ClientSession, connection: Connection
) -> None:
    # Half a unit more than the ages that are shown, so that they stay while the test runs.
    now = datetime.now(UTC)
    ended = {"started_at": now - timedelta(hours=9.5), "finished_at": now - timedelta(hours=9.5)}
    run = await add_run(connection, "succeeded", **ended)
    for source in ("coinpaprika", "coingecko", "csv"):
        await add_source(connection, run, source, "succeeded", **ended)
    ended = {"started_at": now - timedelta(minutes=12), "finished_at": now - timedelta(minutes=10.5)}
    run = await add_run(connection, "partial", **ended)
    await add_source(connection, run, "coinpaprika", "failed", error=f"503: {HOSTILE}", **ended)
    for source in ("coingecko", "csv"):
        await add_source(
            connection, run, source, "succeeded", fetched=1_000, valid=1_000, updated=700, **ended
        )

    words = words_of(await text(client, "/"))

    assert "1 of 3 late coinpaprika late 9 h ago failed: 503: <img" in words.replace("\u202f", " ")
    assert "Last run Partial 10 min ago" in words.replace("\u202f", " ")
    assert "fetched 2,000 changed 1,400 rejected 0" in words
    assert f"coinpaprika: 503: {HOSTILE}" in unescape(await text(client, "/"))
