"""Services and runs stop on SIGTERM, SIGINT and SIGHUP. Under nohup, SIGHUP is ignored."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator

import pytest

from tests.support.commands import PROGRAM, listening_url, started_command

pytestmark = pytest.mark.slow

ENVIRONMENT = {"KASPARRO_INTERVAL": "off", "KASPARRO_LOG": "json", "PORT": "0"}


@pytest.fixture(autouse=True)
def default_sighup() -> Iterator[None]:
    """SIGHUP has its default effect in the services of these tests, even if the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(sys.platform != "linux", reason="setsid is a program of Linux")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["listening", "run_started"])
async def test_service_stops_cleanly_if_all_its_processes_get_the_signal(
    database_url: str, moment: str, number: signal.Signals
) -> None:
    """While its worker processes start, and while it loads an archive."""
    environment = {"DATABASE_URL": database_url, "KASPARRO_SOURCES": "csv", **ENVIRONMENT}
    if moment == "run_started":
        environment["KASPARRO_INTERVAL"] = "1h"
    events = []
    async with started_command(
        "serve", "--workers", "2", program=("setsid", *PROGRAM), **environment
    ) as process:
        assert process.stderr is not None
        async with asyncio.timeout(30):
            async for line in process.stderr:
                events.append(json.loads(line)["event"])
                if events[-1] == moment:
                    os.killpg(process.pid, number)
        code = await process.wait()

    assert code == 0
    assert events[-1] == "stopped"
    assert "worker_died" not in events


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
async def test_service_stops_cleanly(database_url: str, workers: str, number: signal.Signals) -> None:
    async with started_command(
        "serve", "--workers", workers, DATABASE_URL=database_url, **ENVIRONMENT
    ) as process:
        await listening_url(process)
        process.send_signal(number)
        async with asyncio.timeout(15):
            _, err = await process.communicate()

    assert process.returncode == 0
    assert json.loads(err.splitlines()[-1])["event"] == "stopped"


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_sighup_is_ignored_under_nohup(database_url: str, workers: str) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process_context = started_command(
            "serve", "--workers", workers, DATABASE_URL=database_url, **ENVIRONMENT
        )
        process = await process_context.__aenter__()
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        await listening_url(process)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGHUP)
        ended = asyncio.create_task(process.wait())
        done, _ = await asyncio.wait({ended}, timeout=1.0)
        assert not done
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            await process.communicate()
        assert process.returncode == 0
    finally:
        await process_context.__aexit__(*sys.exc_info())


async def test_etl_interrupts_its_run_on_sighup(database_url: str) -> None:
    async with started_command(
        *("etl", "--json"),
        DATABASE_URL=database_url,
        KASPARRO_COINPAPRIKA_URL="http://127.0.0.1:1",
        KASPARRO_COINGECKO_URL="http://127.0.0.1:1",
        KASPARRO_LOG="json",
    ) as process:
        assert process.stderr is not None
        while json.loads(await process.stderr.readline())["event"] != "retry_scheduled":
            pass
        process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(30):
            out, _ = await process.communicate()

    assert process.returncode == 1
    assert json.loads(out)["status"] == "interrupted"
