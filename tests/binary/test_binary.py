"""The commands work in a built binary. `KASPARRO_TEST_BINARY` names the file that `just binary` built."""

import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import stamina

from tests.support.commands import listening_url, run_command, started_command
from tests.support.documents import ROOT

BINARY = os.environ.get("KASPARRO_TEST_BINARY", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BINARY, reason="KASPARRO_TEST_BINARY names no binary"),
]

SAMPLE = ROOT / "kasparro" / "sources" / "archives" / "sample"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, Any]:
    return {
        "program": [str(Path(BINARY).absolute())],
        "KASPARRO_HOME": str(tmp_path / "home"),
        "KASPARRO_LOG": "json",
        "KASPARRO_SOURCES": "csv",
        "DATABASE_URL": "",
        "PORT": "0",
    }


async def rows(url: str, query: str = "") -> list[Any]:
    """The rows of /data, as soon as there are some."""
    async with aiohttp.ClientSession() as session:
        async for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=30):
            with attempt:
                async with session.get(f"{url}/data{query}") as response:
                    found = (await response.json())["data"]
                    assert found
    return list(found)


async def test_version_names_the_commit(environment: dict[str, Any]) -> None:
    code, output, _ = await run_command("--version", **environment)
    assert code == 0
    assert "(commit " in output


@pytest.mark.parametrize(
    "arguments",
    [("check", str(SAMPLE / "tickers-january-2018.csv")), ("migrate",), ("etl",)],
    ids=lambda arguments: arguments[0],
)
async def test_commands(environment: dict[str, Any], arguments: tuple[str, ...]) -> None:
    code, _, errors = await run_command(*arguments, **environment)
    assert code == 0, errors


async def test_demo_keeps_its_data_when_it_is_killed(environment: dict[str, Any]) -> None:
    environment["KASPARRO_SOURCES"] = ""
    async with started_command("demo", **environment) as process:
        before = await rows(await listening_url(process), "?source=csv&fields=source_id,first_seen_at")
        process.send_signal(signal.SIGKILL)
        await process.wait()
    async with started_command("demo", **environment) as process:
        after = await rows(await listening_url(process), "?source=csv&fields=source_id,first_seen_at")
        process.terminate()
    assert all(row in after for row in before)


async def test_workers_and_files(environment: dict[str, Any]) -> None:
    async with started_command("serve", "--workers", "2", **environment) as process:
        url = await listening_url(process)
        assert await rows(url)
        async with aiohttp.ClientSession(url, raise_for_status=True) as session:
            for path in ("/", "/docs", "/docs/swagger-ui.css", "/openapi.json", "/metrics"):
                async with session.get(path) as response:
                    assert await response.read()
        process.terminate()
        assert await process.wait() == 0
