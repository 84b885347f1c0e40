"""Requests, routes and metrics in README and docs agree with a running `kasparro demo`."""

import asyncio
import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.conftest import url_of_database
from tests.support.documents import blocks, pages, rows, section

START_S = 120
LOCAL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def demo(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a demo after its first run."""
    name = f"demo_{uuid.uuid4().hex[:12]}"
    asyncio.run(execute(server_url, f"CREATE DATABASE {name}"))
    folder = tmp_path_factory.mktemp("demo")
    log = folder / "log"
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("KASPARRO_")},
        "DATABASE_URL": url_of_database(server_url, name),
        "KASPARRO_ADMIN_TOKEN": "a-token-of-the-test",
        "KASPARRO_HOME": str(folder / "home"),
        "KASPARRO_LOG": "json",
        "PORT": "0",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "kasparro", "demo", "--seed", "7"],
            env=environment,
            stderr=output,
            stdout=output,
        )
    try:
        yield started(log, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        asyncio.run(execute(server_url, f"DROP DATABASE {name} WITH (FORCE)"))
        shutil.rmtree(folder)


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(statement)
    await connection.close()


def started(log: Path, process: "subprocess.Popen[bytes]") -> str:
    """The demo's base URL, once its first run has ended."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r'"url": "([^"]+)"', log.read_text(encoding="utf-8")):
            _, text = fetch(f"{found[1]}/stats")
            last_run = json.loads(text).get("last_run")
            if last_run is not None and last_run["finished_at"] is not None:
                return found[1]
        time.sleep(0.2)
    pytest.fail(f"the demo made no run within {START_S} s:\n{log.read_text(encoding='utf-8')}")


def fetch(url: str) -> tuple[int, str]:
    """Status and text of a GET."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def requests() -> list[tuple[str, str | None]]:
    """Each `curl` in README and docs: its URL, and the output that the page shows."""
    found: list[tuple[str, str | None]] = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for block in blocks(text, "console"):
            command, _, output = block.partition("\n")
            if command.startswith("$ curl "):
                found.append((shlex.split(command)[2], output))
        for block in blocks(text, "sh"):
            found += [
                (shlex.split(line, comments=True)[1], None)
                for line in block.splitlines()
                if line.startswith("curl ")
            ]
    return found


def assert_same_shape(shown: Any, returned: Any) -> None:
    """The same keys in the same order, and values of the same kind where neither is null."""
    if isinstance(shown, dict) and isinstance(returned, dict):
        assert list(shown) == list(returned)
        for key in shown:
            assert_same_shape(shown[key], returned[key])
    elif isinstance(shown, list) and isinstance(returned, list):
        for item_shown, item_returned in zip(shown, returned, strict=False):
            assert_same_shape(item_shown, item_returned)
    elif shown is not None and returned is not None:
        assert isinstance(returned, (int, float) if isinstance(shown, (int, float)) else type(shown))


@pytest.mark.slow
@pytest.mark.parametrize(("url", "shown"), requests())
def test_request_returns_what_the_page_shows(demo: str, url: str, shown: str | None) -> None:
    status, text = fetch(url.replace(LOCAL, demo))

    if shown is None:
        assert status == 200
    elif shown.startswith("{"):
        expected, returned = json.loads(shown), json.loads(text)
        assert status == expected.get("status", 200)
        assert_same_shape(expected, returned)
        if "/csv/" in url:
            loaded = ("first_seen_at", "updated_at")
            assert {k: v for k, v in returned.items() if k not in loaded} == {
                k: v for k, v in expected.items() if k not in loaded
            }
    else:
        expected_rows, returned_rows = (list(csv.reader(part.splitlines())) for part in (shown, text))
        assert status == 200
        assert returned_rows[0] == expected_rows[0]
        # Prices of the simulated sources depend on the clock; those of the sample archive do not.
        assert returned_rows == expected_rows


def test_routes_table_lists_the_routes(demo: str) -> None:
    document = json.loads(fetch(f"{demo}/openapi.json")[1])
    served = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    cells = [cell for cell, _ in rows(section("docs/api.md", "Routes"))]
    documented = {route for cell in cells for route in re.findall(r"`(.*?)`", cell)}
    assert documented == served | {"GET /docs", "GET /openapi.json"}


def test_filters_table_lists_the_parameters(demo: str) -> None:
    document = json.loads(fetch(f"{demo}/openapi.json")[1])
    parameters = document["paths"]["/data"]["get"]["parameters"]
    names = {parameter["name"] for parameter in parameters if parameter["in"] == "query"}
    cells = " ".join(cell for cell, _ in rows(section("docs/api.md", "Filters")))
    # The table gives `rank` as the example of a range, and the next section has the paging.
    ranges = {
        f"{field}_{end}"
        for field in ("price_usd", "market_cap_usd", "volume_24h_usd")
        for end in ("min", "max")
    }
    assert set(re.findall(r"`(\w+)`", cells)) | ranges | {"limit", "page", "cursor"} == names


def test_metrics_table_lists_the_metrics(demo: str) -> None:
    # HELP lines name counters with `_total` in the classic text format.
    served = set(re.findall(r"^# HELP (\w+)", fetch(f"{demo}/metrics")[1], re.MULTILINE))
    cells = " ".join(cell for cell, _ in rows(section("docs/operations.md", "Metrics")))
    assert set(re.findall(r"`(kasparro_\w+)`", cells)) == served
