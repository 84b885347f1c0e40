"""Control characters from clients and upstreams reach neither a terminal nor a log."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from tests.support.commands import run_command, started_command
from tests.support.unsafe_characters import UNSAFE_CHARACTERS

pytestmark = pytest.mark.slow

# Without a space: structlog quotes a value with spaces, which escapes some of these characters.
HOSTILE = "\x1b]0;pwned\x07\x9b2J\u202e\u2066\x7f"
ESCAPED = r"\x1b]0;pwned\x07\x9b2J\u202e\u2066\x7f"


def unsafe(*texts: str) -> set[str]:
    return set("".join(texts).replace("\n", "")) & UNSAFE_CHARACTERS


@asynccontextmanager
async def upstream(error: str) -> AsyncIterator[str]:
    """The base URL of an API that answers every call with status 403 and this error."""

    async def respond(request: web.Request) -> web.Response:
        return web.json_response({"error": error}, status=403)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", respond)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/v1"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("form", ["text", "json"])
async def test_upstream_error_is_escaped_in_etl_and_status(database_url: str, form: str) -> None:
    async with upstream(HOSTILE) as url:
        environment = {
            "DATABASE_URL": database_url,
            "KASPARRO_SOURCES": "coinpaprika",
            "KASPARRO_COINPAPRIKA_URL": url,
            "KASPARRO_LOG": form,
        }
        code, out, log = await run_command("etl", **environment)
        _, report, _ = await run_command("etl", "--json", **environment)
        _, status, _ = await run_command("status", **environment)
        _, stats, _ = await run_command("status", "--json", **environment)

    assert code == 1
    assert unsafe(out, log, report, status, stats) == set()
    assert ESCAPED in out, log
    assert ESCAPED in status
    assert ESCAPED in log.replace("\\\\", "\\")
    # JSON has the original text.
    assert HOSTILE in json.loads(report)["sources"][0]["error"]
    assert HOSTILE in json.loads(stats)["last_run"]["sources"][0]["error"]


async def test_upstream_error_with_nul_fails_only_that_source(database_url: str) -> None:
    async with upstream("no\x00body") as url:
        code, out, _ = await run_command(
            "etl",
            DATABASE_URL=database_url,
            KASPARRO_SOURCES="coinpaprika,csv",
            KASPARRO_COINPAPRIKA_URL=url,
        )

    assert code == 1
    assert r"no\x00body" in out
    assert re.search(r"csv +succeeded", out)


@pytest.mark.parametrize("form", ["text", "json"])
async def test_client_path_is_escaped_in_the_log(form: str) -> None:
    environment = {
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "KASPARRO_INTERVAL": "off",
        "KASPARRO_LOG": form,
        "KASPARRO_LOG_LEVEL": "debug",
        "PORT": "0",
    }
    async with started_command("serve", **environment) as process:
        assert process.stderr is not None
        log = ""
        async with asyncio.timeout(30):
            while "listening" not in log:
                log += (await process.stderr.readline()).decode()
        url = re.findall(r"http://[\d.:]+", log)[0]
        async with aiohttp.ClientSession() as session:
            for path in (HOSTILE, "\n2026-01-01T00:00:00Z [info] forged", "x" * 10_000):
                async with session.get(URL(f"{url}/data/csv/{quote(path)}", encoded=True)) as response:
                    assert response.status in {404, 503}
        process.terminate()
        log += (await process.stderr.read()).decode()

    assert unsafe(log) == set()
    assert ESCAPED in log.replace("\\\\", "\\")
    assert all(len(line) < 10_000 for line in log.splitlines())
    assert not any(line.startswith("2026-01-01") for line in log.splitlines())
