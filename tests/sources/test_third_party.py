"""A source from a package of somebody else: the example of CONTRIBUTING.md, installed and run."""

import asyncio
import json
import os
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.support.documents import blocks, section
from tests.support.packages import install_package

pytestmark = pytest.mark.slow

EXAMPLE = section("CONTRIBUTING.md", "Add a source")
TICKERS = [
    {"id": "btc-bitcoin", "symbol": "BTC", "name": "Bitcoin", "price": 64210.50},
    {"id": "bad", "symbol": "BAD", "name": "Bad", "price": "-1"},
]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the example package, as pip would install it."""
    (code,) = blocks(EXAMPLE, "python")
    (project,) = blocks(EXAMPLE, "toml")
    entry_points = tomllib.loads(project)["project"]["entry-points"]["kasparro.sources"]
    install_package(tmp_path, "kasparro-tide", {"kasparro_tide": code}, entry_points)
    return tmp_path


@pytest.fixture
async def upstream() -> AsyncIterator[str]:
    """The URL of an exchange that sends TICKERS."""

    async def tickers(request: web.Request) -> web.Response:
        del request
        return web.json_response(TICKERS)

    app = web.Application()
    app.router.add_get("/tickers", tickers)
    runner = web.AppRunner(app)
    await runner.setup()
    server = web.TCPSite(runner, "127.0.0.1", 0)
    await server.start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}"
    await runner.cleanup()


async def kasparro(*arguments: str, **environment: str) -> tuple[int | None, str, str]:
    """Run a command; gives its exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kasparro", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def service(**environment: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a running service."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kasparro", "serve"),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PORT": "0", "KASPARRO_LOG": "json", **environment},
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(30):
            while (event := json.loads(await process.stderr.readline()))["event"] != "listening":
                pass
        async with aiohttp.ClientSession(event["url"]) as session:
            yield session
    finally:
        process.terminate()
        await process.communicate()


async def get(session: aiohttp.ClientSession, path: str) -> Any:
    async with session.get(path) as response:
        return json.loads(await response.read())


async def test_installed_source_runs_and_appears_everywhere(
    database_url: str, site: Path, upstream: str
) -> None:
    environment = {
        "PYTHONPATH": str(site),
        "DATABASE_URL": database_url,
        "KASPARRO_TIDE_URL": upstream,
        "KASPARRO_SOURCES": "tide",
        "KASPARRO_INTERVAL": "off",
    }

    code, out, err = await kasparro("etl", "--json", **environment)

    assert code == 0, err
    (source,) = json.loads(out)["sources"]
    assert (source["source"], source["status"], source["calls"]) == ("tide", "succeeded", 1)
    assert source["records"]["inserted"] == 1
    assert [reject["field"] for reject in source["rejects"]] == ["price"]

    async with service(**environment) as session:
        (row,) = (await get(session, "/data?source=tide"))["data"]
        (run,) = (await get(session, "/runs"))["data"]
        stats = await get(session, "/stats")
        health = await get(session, "/health")
        document = await get(session, "/openapi.json")

    assert (row["source"], row["source_id"], row["price_usd"]) == ("tide", "btc-bitcoin", 64210.5)
    assert [part["source"] for part in run["sources"]] == ["tide"]
    assert stats["totals"]["by_source"] == {"coinpaprika": 0, "coingecko": 0, "csv": 0, "tide": 1}
    assert (stats["budget"]["tide"]["calls"], stats["budget"]["tide"]["limit"]) == (1, 3_000)
    assert stats["drift"] == {"tide": []}
    assert health["sources"]["tide"]["status"] == "succeeded"
    names = document["components"]["schemas"]["Source"]["enum"]
    assert set(names) == {"coinpaprika", "coingecko", "csv", "tide"}

    code, out, err = await kasparro("replay", str(run["id"]), "--json", **environment)

    assert code == 0, err
    assert json.loads(out)["sources"][0]["records"]["unchanged"] == 1


async def test_help_lists_the_settings_of_an_installed_source(site: Path) -> None:
    _, out, _ = await kasparro("--help", PYTHONPATH=str(site))

    assert "KASPARRO_TIDE_URL\n      base URL of Tide (default: the public URL)" in out
    assert "the sources that run (default: coinpaprika,coingecko,csv,tide)" in out


async def test_broken_package_is_named_and_stops_no_other_source(database_url: str, tmp_path: Path) -> None:
    install_package(
        tmp_path, "kasparro-wreck", {"wreck": "raise OSError('no disk')"}, {"wreck": "wreck:SOURCE"}
    )
    environment = {"PYTHONPATH": str(tmp_path), "DATABASE_URL": database_url, "KASPARRO_LOG": "json"}

    code, out, err = await kasparro("etl", "--source", "csv", "--json", **environment)

    assert (code, json.loads(out)["status"]) == (0, "succeeded")
    (event,) = [event for line in err.splitlines() if (event := json.loads(line))["level"] == "error"]
    assert (event["event"], event["source"], event["package"], event["reason"]) == (
        "source_unavailable",
        "wreck",
        "kasparro-wreck",
        "OSError: no disk",
    )


async def test_setting_that_names_a_broken_source_says_why(tmp_path: Path) -> None:
    install_package(
        tmp_path, "kasparro-wreck", {"wreck": "raise OSError('no disk')"}, {"wreck": "wreck:SOURCE"}
    )

    code, _, err = await kasparro("etl", PYTHONPATH=str(tmp_path), KASPARRO_SOURCES="csv,wreck")

    assert code == 2
    assert err == (
        "kasparro: KASPARRO_SOURCES is 'csv,wreck', which is not allowed; allowed: a comma list of "
        "coinpaprika, coingecko, csv; the source wreck of the package kasparro-wreck cannot be used: "
        "OSError: no disk\n"
    )
