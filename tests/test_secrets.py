"""No secret of the settings is in logs, responses, metrics, output of commands or names of processes."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from kasparro.sources import registry
from tests.support.commands import listening_url, run_command, started_command

MARK = "planted"
API_KEY, ADMIN_TOKEN = "planted-api-key-0001", "planted-admin-token-1"
KEY = {"X-API-Key": API_KEY}
# In an Authorization header, a password of a URL has another form.
ENCODED = base64.b64encode(b"me:planted-account").decode()


def secrets(database_url: str, upstream: str) -> dict[str, str]:
    """A secret in every setting that may have one."""
    joint = "&" if "?" in database_url else "?"
    account = upstream.replace("http://", "http://me:planted-account@")
    return {
        "DATABASE_URL": f"{database_url}{joint}password=planted-database&sslpassword=planted-ssl",
        "DATABASE_READ_URL": f"{database_url}{joint}password=planted-replica",
        "KASPARRO_API_KEYS": f"alice:{API_KEY}",
        "KASPARRO_ADMIN_TOKEN": ADMIN_TOKEN,
        "KASPARRO_COINGECKO_KEY": "planted-coingecko",
        "KASPARRO_COINGECKO_PLAN": "demo",
        "KASPARRO_COINGECKO_URL": account,
        "KASPARRO_COINPAPRIKA_KEY": "planted-coinpaprika",
        "KASPARRO_COINPAPRIKA_URL": account,
    }


def assert_no_secret(text: str) -> None:
    for secret in (MARK, ENCODED):
        at = text.find(secret)
        assert at < 0, text[max(0, at - 300) : at + 300]


@asynccontextmanager
async def indiscreet_upstream() -> AsyncIterator[str]:
    """The URL of an upstream that rejects every call, and repeats all of it."""

    async def repeat(request: web.Request) -> web.Response:
        return web.json_response({"error": f"rejected: {request.url} {dict(request.headers)}"}, status=401)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", repeat)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield "http://{}:{}".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()


def descendants(pid: int) -> list[int]:
    """The ids of the processes that a process has started, and those that they have started."""
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").glob("*/children")
        for child in task.read_text().split()
    ]
    return children + [each for child in children for each in descendants(child)]


@pytest.mark.slow
async def test_running_service_shows_no_secret(database_url: str) -> None:
    async with indiscreet_upstream() as upstream:
        settings = secrets(database_url, upstream)
        options = {"PORT": "0", "KASPARRO_LOG": "json", "KASPARRO_LOG_LEVEL": "debug"}
        async with started_command("serve", "--workers", "2", **settings, **options) as process:
            url = await listening_url(process)
            assert process.stderr is not None
            rest = asyncio.create_task(process.stderr.read())
            try:
                async with aiohttp.ClientSession(url) as client:
                    shown = await responses(client)
            except BaseException:
                process.kill()
                await rest
                raise
            titles = [
                (Path(f"/proc/{pid}") / name).read_text()
                for pid in (process.pid, *descendants(process.pid))
                for name in ("cmdline", "comm")
            ]
            process.terminate()
            log = (await rest).decode()
        status = await run_command("status", **settings)

    assert "answered 401" in shown
    assert "wrong_secret" in log
    assert "request_answered" in log
    for text in (shown, log, *titles, *status[1:]):
        assert_no_secret(text)
    of_runs = [event for line in log.splitlines() if (event := json.loads(line)).get("run")]
    assert {event["run"] for event in of_runs} == {1, 2}
    # The second run was started by a request, and its lines have the id of that request.
    assert {event.get("request_id") for event in of_runs if event["run"] == 2} == {"started-by-me"}
    assert {event.get("request_id") for event in of_runs if event["run"] == 1} == {None}
    finished = [event for event in of_runs if event["event"] == "source_finished"]
    assert {event["source"] for event in finished} == {"coingecko", "coinpaprika", "csv"}


async def post(client: aiohttp.ClientSession, path: str, headers: dict[str, str]) -> int:
    async with client.post(path, headers=headers) as response:
        return response.status


async def responses(client: aiohttp.ClientSession) -> str:
    """What the service answers after its first run, and after one that a request started."""
    for number in (1, 2):
        async with asyncio.timeout(60):
            while True:
                async with client.get(f"/runs/{number}", headers=KEY) as response:
                    if response.status == 200 and (await response.json())["finished_at"]:
                        break
                await asyncio.sleep(0.1)
        if number == 1:
            headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "X-Request-ID": "started-by-me"}
            # A run holds its lock for a moment after its end.
            while (status := await post(client, "/runs", headers)) == 409:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            assert status == 202
    texts = []
    data = ("/data", "/data?limit=0", f"/data?api_key={API_KEY}", "/assets", "/nosuch")
    runs = ("/stats", "/runs", "/runs/1", "/runs/1/rejects", "/compare-runs?a=1&b=2")
    operations = ("/health", "/health/ready", "/tables", "/metrics", "/openapi.json", "/docs")
    for path in (*data, *runs, *operations):
        async with client.get(path, headers=KEY) as response:
            texts += [await response.text(), str(response.headers)]
    async with client.get("/data", headers={"X-API-Key": "planted-wrong-key"}) as response:
        assert response.status == 401
        texts.append(await response.text())
    return "\n".join(texts)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["status", "etl", "migrate", "serve"])
async def test_commands_without_a_database_show_no_secret(command: str) -> None:
    settings = secrets("postgresql://me@127.0.0.1:1/nosuch", "http://127.0.0.1:1")
    async with started_command(command, PORT="0", KASPARRO_LOG="json", **settings) as process:
        if command == "serve":
            await listening_url(process)
            process.terminate()
        out, err = await process.communicate()
    assert command == "serve" or b"PostgreSQL" in err
    assert_no_secret(out.decode() + err.decode())


@pytest.mark.parametrize("setting", [variable.name for variable in registry.variables() if variable.secret])
async def test_secret_of_the_wrong_form_is_not_shown(setting: str) -> None:
    code, out, err = await run_command("status", **{setting: "planted but wrong"})
    assert code == 2
    assert setting in err
    assert_no_secret(out + err)


def test_settings_show_no_secret() -> None:
    settings = secrets("postgresql://me:planted@127.0.0.1:1/nosuch", "http://127.0.0.1:1")
    upstreams = {"KASPARRO_COINGECKO_URL": "http://x", "KASPARRO_COINPAPRIKA_URL": "http://x"}
    assert_no_secret(repr(registry.load_settings(settings | upstreams)))


def test_settings_of_secrets_are_planted() -> None:
    marked = {variable.name for variable in registry.variables() if variable.secret}
    assert marked <= secrets("postgresql://x", "http://x").keys()
