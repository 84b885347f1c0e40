"""Worker processes that end are logged, counted, shown and replaced. If none starts, the service ends."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
import uvicorn
from uvicorn.supervisors.multiprocess import SIGNALS

from kasparro.settings import Settings
from kasparro.supervision import Supervisor
from kasparro.web.http.request_metrics import Counts, ProcessReport, RequestMetrics, write_report
from kasparro.web.server import _listening, uvicorn_config
from kasparro.web.workers import Workers, WorkersFailed, exit_reason
from tests.support.commands import listening_url, run_command, started_command
from tests.support.json_responses import get_json
from tests.support.metrics import metric_value, scrape

pytestmark = pytest.mark.slow


def broken() -> Any:
    """An application whose construction fails."""
    raise RuntimeError("no application today")


def exits() -> Any:
    """An application whose construction ends the process."""
    os._exit(7)


@pytest.fixture
def signals() -> Iterator[None]:
    """Restores the signal handlers that uvicorn's supervisor replaces."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("app", "reason"), [("broken", "exit code 1"), ("exits", "exit code 7")])
def test_service_ends_if_no_worker_starts(signals: None, tmp_path: Path, app: str, reason: str) -> None:
    config: uvicorn.Config = uvicorn_config(f"tests.web.test_workers:{app}", 2)
    with _listening(Settings(port=0)) as listener, structlog.testing.capture_logs() as logged:
        listener.listen()
        workers = Workers(config, listener, tmp_path, Supervisor())
        with pytest.raises(WorkersFailed) as failure:
            workers.run()

    assert str(failure.value) == f"none of the 2 worker processes could start ({reason}); the log says why"
    died = [event for event in logged if (event["event"], event["exit"]) == ("worker_died", reason)]
    assert len(died) == 2
    assert {event["pid"] for event in died} == {process.pid for process in workers.processes}


class Log:
    """The log of a service in another process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        self._stderr = process.stderr

    async def reached(self, event: str) -> dict[str, Any]:
        """The next line of this event."""
        async with asyncio.timeout(60):
            while line := await self._stderr.readline():
                fields: dict[str, Any] = json.loads(line)
                if fields["event"] == event:
                    return fields
        raise AssertionError(f"the service ended without {event}")


@asynccontextmanager
async def two_workers(database_url: str) -> AsyncIterator[tuple[Log, aiohttp.ClientSession]]:
    environment = {"DATABASE_URL": database_url, "KASPARRO_INTERVAL": "off", "KASPARRO_LOG": "json"}
    async with started_command("serve", "--workers", "2", PORT="0", **environment) as process:
        url = await listening_url(process)
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(url, connector=connector) as client:
            yield Log(process), client
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            await process.communicate()
        assert process.returncode == 0


async def pids(client: aiohttp.ClientSession, count: int) -> set[int]:
    """The pids of the worker processes, when there are `count`."""
    async with asyncio.timeout(60):
        while True:
            samples = await scrape(client)
            found = {dict(labels)["worker"] for name, labels in samples if name == "kasparro_cache_usable"}
            if len(found) == count:
                return {int(worker) for worker in found}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
async def test_killed_worker_is_logged_counted_and_replaced(
    database_url: str, number: signal.Signals
) -> None:
    async with two_workers(database_url) as (log, client):
        victim = min(await pids(client, 2))
        os.kill(victim, number)

        died = await log.reached("worker_died")
        assert (died["pid"], died["exit"], died["level"]) == (victim, number.name, "error")
        await log.reached("worker_started")
        async with asyncio.timeout(60):
            while metric_value(samples := await scrape(client), "kasparro_worker_exits_total") != 1:
                pass
            assert metric_value(samples, "kasparro_worker_exits_total", exit=number.name) == 1
            while victim in (await pids(client, 2)):
                pass
        health = await get_json(client, "/health")
        assert health["status"] == "degraded"
        assert health["reasons"] == [
            f"worker failed and is started again: process {victim} ended: {number.name}"
        ]


def test_exit_reasons() -> None:
    assert [exit_reason(code) for code in (0, 3, -9, -64, -200)] == [
        "exit code 0",
        "exit code 3",
        "SIGKILL",
        "SIGRTMAX",
        "signal 200",
    ]


async def test_command_ends_if_no_worker_starts(database_url: str, tmp_path: Path) -> None:
    # This fails in worker processes only.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'spawn_main' in ' '.join(sys.orig_argv):\n    raise SystemExit(5)\n"
    )
    environment = {"DATABASE_URL": database_url, "KASPARRO_INTERVAL": "off", "KASPARRO_LOG": "json"}
    async with asyncio.timeout(60):
        code, _, err = await run_command(
            *("serve", "--workers", "2"), PORT="0", PYTHONPATH=str(tmp_path), **environment
        )

    assert code == 1
    assert err.splitlines()[-1].startswith("kasparro: none of the 2 worker processes could start (exit code ")


async def test_counters_of_an_ended_worker_are_merged_once(tmp_path: Path) -> None:
    counts = Counts(requests={("/data", "GET", 200, "hit"): [0.5, 3.0]}, keys={"alice": 3})
    write_report(tmp_path / "41-a", ProcessReport("41", counts))
    write_report(tmp_path / "42-b", ProcessReport("42", counts))
    workers = Workers(uvicorn_config("app", 1), socket.socket(), tmp_path, Supervisor())

    workers._merge("41")
    reports = await request_metrics(tmp_path).reports()

    assert not (tmp_path / "41-a").exists()
    assert sum(report.counts.keys.get("alice", 0) for report in reports) == 6
    # As if a reader came between the supervisor's two steps.
    write_report(tmp_path / "41-a", ProcessReport("41", counts))
    reports = await request_metrics(tmp_path).reports()
    assert sum(report.counts.keys.get("alice", 0) for report in reports) == 6


def request_metrics(folder: Path) -> RequestMetrics:
    return RequestMetrics(dict, [], folder, Supervisor())
