"""GET /openapi.json and /docs."""

import json
import re
import shutil
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import aiohttp
import msgspec
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate
from playwright.async_api import Locator, Page, async_playwright
from yarl import URL

from kasparro.model.asset import Candidate
from kasparro.settings import ApiKey, Rate, Secret, Settings
from kasparro.store.pool import Connection, Database
from kasparro.web.http.problems import Problem
from kasparro.web.openapi.parameters import NoParameters, describe, parse
from kasparro.web.routes.data import DataQuery
from tests.support.assets import make_link, resolve
from tests.support.fake_scheduler import FakeScheduler
from tests.support.runs import add_run, add_source
from tests.web.conftest import Insert, serving

pytestmark = pytest.mark.slow

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Headers of HTTP itself, which the document does not describe.
OWN_HEADERS = {"content-type", "content-length", "content-encoding", "date", "transfer-encoding"}


async def openapi(client: aiohttp.ClientSession) -> Any:
    async with client.get("/openapi.json") as response:
        assert response.content_type == "application/json"
        return await response.json()


async def test_document_is_valid(database_url: str) -> None:
    async with serving(database_url, Settings(admin_token=Secret("t")), FakeScheduler()) as client:
        document = await openapi(client)
    validate(document)
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {
        "/data",
        "/data.csv",
        "/data.ndjson",
        "/data/{source}/{source_id}",
        "/assets",
        "/assets.csv",
        "/assets.ndjson",
        "/assets/candidates",
        "/assets/{asset}",
        "/assets/{asset}/history",
        "/assets/{asset}/history.csv",
        "/assets/{asset}/history.ndjson",
        "/data/{source}/{source_id}/history",
        "/data/{source}/{source_id}/history.csv",
        "/data/{source}/{source_id}/history.ndjson",
        "/stats",
        "/stream",
        "/runs",
        "/runs/{id}",
        "/runs/{id}/rejects",
        "/compare-runs",
        "/archives",
        "/health",
        "/health/live",
        "/health/ready",
        "/tables",
        "/metrics",
    }
    assert document["paths"]["/runs"]["post"]["security"] == [{"admin": []}]


async def test_missing_route_is_not_described(client: aiohttp.ClientSession) -> None:
    document = await openapi(client)
    assert set(document["paths"]["/runs"]) == {"get"}
    assert "securitySchemes" not in document["components"]


async def test_keys_and_limits_are_described_if_set(database_url: str) -> None:
    settings = Settings(api_keys=(ApiKey("a", Secret("b")),), rate_limit=Rate(10, 60))
    async with serving(database_url, settings) as client:
        document = await openapi(client)
    validate(document)
    read, health = (document["paths"][path]["get"] for path in ("/data", "/health"))
    assert read["security"] == [{"key": []}, {"bearer": []}]
    assert {"401", "429"} <= set(read["responses"])
    assert "RateLimit" in read["responses"]["200"]["headers"]
    assert "security" not in health
    assert not {"401", "429"} & set(health["responses"])


async def test_operations_are_complete(client: aiohttp.ClientSession) -> None:
    document = await openapi(client)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert operation["description"], path
            for parameter in operation["parameters"]:
                assert parameter["schema"], (path, parameter)
                assert parameter.get("description") or parameter["in"] == "path", (path, parameter)
                assert parameter["schema"].get("examples"), (path, parameter)
            assert {"200", "400", "500"} <= set(operation["responses"]), path
            for described in responses(document, operation).values():
                assert described["description"], path
                assert {"X-Request-ID", "Server-Timing"} <= set(described["headers"]), path
                for content in described.get("content", {}).values():
                    assert "example" in content, path


async def test_examples_match_schemas(client: aiohttp.ClientSession) -> None:
    document = await openapi(client)
    validator = validator_for(document)
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation["parameters"]:
                for example in parameter["schema"]["examples"]:
                    validator(parameter["schema"]).validate(example)
            for response in responses(document, operation).values():
                for content in response.get("content", {}).values():
                    validator(content["schema"]).validate(content["example"])


async def test_responses_match_schemas(
    client: aiohttp.ClientSession, connection: Connection, database: Database, insert: Insert
) -> None:
    await insert(
        {"source_id": "bitcoin", "rank": 1, "name": "Bitcoin", "price_usd": Decimal("0.1")},
        {"source_id": "b", "source": "csv"},
    )
    evidence = [{"kind": "name", "detail": "both are Bitcoin"}]
    await resolve(
        database,
        make_link("coingecko", source_id="bitcoin", symbol=None, evidence=evidence),
        candidates=[
            Candidate(
                source="csv",
                source_id="b",
                kind="candidate",
                asset="btc-bitcoin",
                score=0.5,
                reason="no name",
                evidence=evidence,
                symbol=None,
                name=None,
            )
        ],
    )
    run_id = await add_run(connection, "partial")
    await add_source(connection, run_id, "csv", "failed", error="no such file")
    await connection.execute(
        "INSERT INTO rejects (run_id, source, reason, raw) VALUES ($1, 'csv', 'empty', '')", run_id
    )
    document = await openapi(client)
    validator = validator_for(document)
    paths = {
        **{
            f"/assets/{{asset}}{end}": f"/assets/btc-bitcoin{end}"
            for end in ("", "/history", "/history.csv", "/history.ndjson")
        },
        **{
            f"/data/{{source}}/{{source_id}}{end}": f"/data/coingecko/bitcoin{end}"
            for end in ("", "/history", "/history.csv", "/history.ndjson")
        },
        "/compare-runs": f"/compare-runs?a={run_id}&b={run_id}",
    }
    for path, operations in document["paths"].items():
        url = paths.get(path, path.replace("{id}", str(run_id)))
        for wrong, status in ({}, 200), ({"nosuch": "1"}, 400):
            async with client.get(URL(url).update_query(wrong)) as response:
                assert response.status == status, url
                described = responses(document, operations["get"])[str(status)]
                ((media_type, content),) = described["content"].items()
                assert response.content_type == media_type
                own = {name.lower() for name in response.headers} - OWN_HEADERS
                assert own == {name.lower() for name in described["headers"]}, url
                # A stream does not end.
                endless = media_type == "text/event-stream"
                text = (await response.content.readany()).decode() if endless else await response.text()
                is_text = content["schema"] == {"type": "string"}
                validator(content["schema"]).validate(text if is_text else json.loads(text))


async def test_parameters_follow_from_structs(client: aiohttp.ClientSession) -> None:
    described = {p["name"]: p for p in (await openapi(client))["paths"]["/data"]["get"]["parameters"]}
    assert list(described) == [*DataQuery.__struct_fields__, "If-None-Match"]
    assert all(parameter["description"] for parameter in described.values())
    assert described["price_usd_min"]["schema"]["type"] == "number"
    assert described["updated_since"]["schema"]["format"] == "date-time"
    assert described["as_of"]["schema"] == {
        "anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "format": "date"}],
        "examples": ["2024-06-01", "2024-06-01T12:00:00Z"],
    }
    assert described["limit"]["schema"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 1000,
        "default": 50,
        "examples": [50],
    }
    assert described["page"]["schema"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 2**31 - 1,
        "examples": [1],
    }
    assert described["source"]["schema"]["items"] == {"$ref": "#/components/schemas/Source"}
    assert (described["source"]["style"], described["source"]["explode"]) == ("form", False)
    assert described["sort"]["schema"] == {
        "$ref": "#/components/schemas/Sort",
        "examples": ["-market_cap_usd"],
    }


async def test_choices_have_names_for_code(client: aiohttp.ClientSession) -> None:
    schemas = (await openapi(client))["components"]["schemas"]
    assert schemas["Source"] == {
        "type": "string",
        "enum": ["coingecko", "coinpaprika", "csv"],
        "x-enum-varnames": ["COINGECKO", "COINPAPRIKA", "CSV"],
    }
    named = dict(zip(schemas["Sort"]["x-enum-varnames"], schemas["Sort"]["enum"], strict=True))
    assert (len(named), named["RANK"], named["RANK_DESC"]) == (36, "rank", "-rank")


def test_no_parameters() -> None:
    assert parse(NoParameters, b"") == parse(NoParameters, b"&&") == NoParameters()
    assert describe(NoParameters, "query") == []
    with pytest.raises(Problem) as error:
        parse(NoParameters, b"a=1")
    assert error.value.allowed == "no parameters"


def test_unsupported_parameter_type() -> None:
    class Bad(msgspec.Struct):
        when: float = 0.0

    with pytest.raises(TypeError):
        parse(Bad, b"when=1")


async def test_page_uses_no_other_host(client: aiohttp.ClientSession) -> None:
    async with client.get("/docs") as response:
        assert response.status == 200
        page = await response.text()
        policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(links) == 5
    for link in links:
        assert not link.startswith(("/", "http"))
        async with client.get("/" + link) as response:
            assert response.status == 200, link
            assert await response.read()


@pytest.fixture
async def tab() -> AsyncIterator[Page]:
    """A tab of a real browser."""
    if BROWSER is None:
        pytest.skip("Chromium is not installed; Debian's package is chromium")
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-background-networking"]
        )
        try:
            yield await browser.new_page()
        finally:
            await browser.close()


async def click(element: Locator) -> None:
    """Click without Playwright's wait for a still image, which takes too long on a busy machine."""
    await element.click(force=True)


async def execute(tab: Page, client: aiohttp.ClientSession, operation: str, **fields: str) -> Locator:
    """Execute an operation on the page with these texts; returns the part that shows the response."""
    # A change of the fragment alone loads nothing.
    await tab.goto("about:blank")
    await tab.goto(f"{client._base_url}/docs#/data/{operation}")
    opened = tab.locator(".opblock.is-open")
    for name, text in fields.items():
        await opened.locator(f"tr[data-param-name={name}] input").fill(text)
    await click(opened.get_by_role("button", name="Execute"))
    shown = opened.locator(".live-responses-table")
    await shown.wait_for()
    return shown


async def saved(tab: Page, link: Locator) -> str:
    """The text of the file that a click on this link downloads."""
    async with tab.expect_download() as download:
        await click(link)
    return (await (await download.value).path()).read_bytes().decode()


async def test_browser_shows_all_operations(client: aiohttp.ClientSession, tab: Page) -> None:
    document = await openapi(client)
    hosts = set()
    tab.on("request", lambda request: hosts.add(URL(request.url).authority))
    await tab.goto(f"{client._base_url}/docs")
    expected = [path for path, operations in document["paths"].items() for _ in operations]
    blocks = tab.locator(".opblock-summary-path")
    await blocks.nth(len(expected) - 1).wait_for()
    assert [await block.get_attribute("data-path") for block in await blocks.all()] == expected
    assert hosts == {URL(str(client._base_url)).authority}


async def test_browser_shows_all_digits(client: aiohttp.ClientSession, tab: Page, insert: Insert) -> None:
    digits = {
        "price_usd": Decimal("118142961.899676295445666961"),
        "market_cap_usd": Decimal(123456789012345678901234567890),
        "volume_24h_usd": Decimal("0.000000000000000000000000123"),
        "percent_change_1h": Decimal("-1.10"),
    }
    await insert({"source_id": "a", "name": '"\\ 1.000000000000000000001 é', **digits})
    async with client.get("/data") as response:
        sent = json.loads(await response.text(), parse_float=str, parse_int=str)
    shown = await execute(tab, client, "page")
    code = shown.locator(".highlight-code code")
    for text in (await code.inner_text(), await saved(tab, shown.locator(".download-contents"))):
        assert json.loads(text, parse_float=str, parse_int=str) == sent
        # Indented, with one value per line.
        assert f'\n      "price_usd": {digits["price_usd"]},\n' in text

    # Problem documents too.
    shown = await execute(tab, client, "page", price_usd_min="118142961.899676295445666962")
    assert json.loads(await shown.locator("code").inner_text())["data"] == []
    shown = await execute(tab, client, "page", cursor="x")
    assert json.loads(await shown.locator("code").inner_text())["parameter"] == "cursor"


async def test_browser_downloads_csv(client: aiohttp.ClientSession, tab: Page, insert: Insert) -> None:
    await insert({"source_id": "a", "name": "=1+1", "price_usd": Decimal("118142961.899676295445666961")})
    for operation, query in (("export_csv", "/data.csv?spreadsheet=true"), ("export_ndjson", "/data.ndjson")):
        async with client.get(query) as response:
            sent = (await response.read()).decode()
        shown = await execute(tab, client, operation)
        assert await saved(tab, shown.get_by_text("Download file")) == sent


async def test_pages_take_no_parameters_and_no_ranges(client: aiohttp.ClientSession) -> None:
    for path in ("/openapi.json", "/docs", "/docs/start.js", "/docs/swagger-ui.css"):
        async with client.get(path + "?x=1") as response:
            problem = await response.json(content_type="application/problem+json")
        assert (response.status, problem["parameter"], problem["allowed"]) == (400, "x", "no parameters")
        async with client.get(path, headers={"Range": "bytes=9-1,x"}) as response:
            assert response.status == 200


@pytest.mark.parametrize("name", ["index.html", "..%2F__init__.py", "swagger-ui.js.map"])
async def test_other_files_are_not_served(client: aiohttp.ClientSession, name: str) -> None:
    async with client.get(f"/docs/{name}") as response:
        assert response.status == 404


def responses(document: Any, operation: Any) -> dict[str, Any]:
    """An operation's responses, with references resolved."""
    shared = document["components"]["responses"]
    return {
        status: shared[response["$ref"].rsplit("/", 1)[1]] if "$ref" in response else response
        for status, response in operation["responses"].items()
    }


def validator_for(document: Any) -> Any:
    """Makes a validator for a schema, which may refer to the document."""

    def make(schema: Any) -> OAS31Validator:
        return OAS31Validator({**schema, "components": document["components"]})

    return make
