"""A background task that fails is logged, shown on /health, and started again."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import pytest

from kasparro import supervision
from kasparro.embedded.server import EmbeddedPostgres
from kasparro.pipeline.scheduler import Scheduler
from kasparro.settings import Settings
from kasparro.sources.registry import load_settings
from kasparro.store import bootstrap
from kasparro.store.bootstrap import database_url as opened
from kasparro.store.bootstrap import prepare
from kasparro.store.data_version import DataVersion
from kasparro.store.locks import AdvisoryLease
from kasparro.store.pool import Database
from kasparro.supervision import Supervisor
from kasparro.web.http import request_metrics
from tests.conftest import LogEvents
from tests.support.json_responses import get_json
from tests.support.response_cache import cached
from tests.support.task_endings import TASK_ENDINGS
from tests.web.conftest import serving

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE_S", 0.01)


def fail_twice(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, ending: str) -> asyncio.Event:
    """Make a method fail twice in this way; returns an event that the third call sets."""
    real, calls, works = getattr(where, name), 0, asyncio.Event()

    async def broken(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls <= 2:
            return await TASK_ENDINGS[ending][0]()
        works.set()
        return await real(*arguments, **named)

    monkeypatch.setattr(where, name, broken)
    return works


@asynccontextmanager
async def service(database_url: str, folder: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the service with a scheduler, as one worker of several."""
    settings = load_settings({"KASPARRO_SOURCES": "csv", "KASPARRO_INTERVAL": "1h"})
    supervisor, database = Supervisor(), Database(database_url)
    async with database:
        scheduler = Scheduler(settings, database, prepare=partial(prepare, database), supervisor=supervisor)
        async with serving(
            database_url, settings, scheduler, metrics_folder=folder, supervisor=supervisor
        ) as client:
            yield client


@pytest.mark.parametrize("ending", TASK_ENDINGS)
@pytest.mark.parametrize(
    ("task", "where", "method"),
    [
        ("scheduler", Scheduler, "_keep_running"),
        ("data_version", DataVersion, "_follow"),
        ("metrics_writer", request_metrics.RequestMetrics, "_write_regularly"),
    ],
)
async def test_failed_task_is_shown_and_restarted(
    database_url: str,
    tmp_path: Path,
    logged: LogEvents,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    where: Any,
    method: str,
    ending: str,
) -> None:
    works = fail_twice(monkeypatch, where, method, ending)
    async with service(database_url, tmp_path) as client:
        await logged.reached(2, "background_task_failed", task=task, level="error")
        async with asyncio.timeout(10):
            await works.wait()
        health = await get_json(client, "/health")

        assert health["status"] == "degraded"
        shown = f"{task} failed and is started again: {TASK_ENDINGS[ending][1]}"
        assert health["reasons"] == [shown]
        await logged.reached(1, "run_finished", status="succeeded")
        await cached(client)
        assert [file.suffix for file in tmp_path.iterdir() if not file.suffix] == [""]


async def test_read_only_database_is_shown_until_it_is_writable(
    server_url: str, database_url: str, tmp_path: Path, logged: LogEvents
) -> None:
    name = urlsplit(database_url).path[1:]
    server = await asyncpg.connect(server_url)
    await server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    async with service(database_url, tmp_path) as client:
        await logged.reached(1, "waiting_for_database")
        health = await get_json(client, "/health")

        assert health["status"] == "degraded"
        (reason,) = health["reasons"]
        assert reason.startswith("runs wait until the database accepts writes: ")
        assert "PostgreSQL accepts no writes" in reason or "no host of PostgreSQL accepts writes" in reason
        await server.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await server.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        await logged.reached(1, "run_finished", status="succeeded")
        health = await get_json(client, "/health")
        assert "reasons" not in health or health["reasons"] == []
    await server.close()


@pytest.mark.parametrize("ending", ["exception", "group", "stray cancel", "cancelled"])
async def test_failed_run_does_not_end_the_scheduler(
    database_url: str, tmp_path: Path, logged: LogEvents, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    works = fail_twice(monkeypatch, AdvisoryLease, "acquire", ending)
    async with service(database_url, tmp_path):
        await logged.reached(1, "background_task_failed", task="scheduler")
        async with asyncio.timeout(10):
            await works.wait()
        await logged.reached(1, "run_finished", status="succeeded")


@pytest.mark.parametrize("ending", TASK_ENDINGS)
async def test_watch_over_the_embedded_server_is_restarted(
    tmp_path: Path, logged: LogEvents, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(bootstrap, "CHECK_S", 0.01)
    works = fail_twice(monkeypatch, bootstrap, "_keep_alive", ending)
    supervisor = Supervisor()
    async with opened(Settings(home=tmp_path), supervisor):
        await logged.reached(2, "background_task_failed", task="embedded_postgres")
        async with asyncio.timeout(10):
            await works.wait()
        assert len(supervisor.problems()) == 1


async def test_failed_restart_of_the_embedded_server_is_shown(
    tmp_path: Path, logged: LogEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "CHECK_S", 0.01)
    works = fail_twice(monkeypatch, EmbeddedPostgres, "ensure", "own error")
    supervisor = Supervisor()
    async with opened(Settings(home=tmp_path), supervisor), asyncio.timeout(10):
        await works.wait()
        assert supervisor.problems() == ["embedded_postgres failed and is started again: do this"]


async def test_killed_embedded_server_is_restarted_and_shown(
    tmp_path: Path, logged: LogEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "CHECK_S", 0.05)
    supervisor = Supervisor()
    async with opened(Settings(home=tmp_path), supervisor) as url:
        postmaster = int((tmp_path / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(postmaster, signal.SIGKILL)
        await logged.reached(1, "embedded_postgres_restarted", level="error")
        connection = await asyncpg.connect(url)
        await connection.close()
        assert supervisor.problems() == [
            "embedded_postgres failed and is started again: the server had ended and was started again"
        ]


async def test_stalled_embedded_server_is_not_reported_as_restarted(
    tmp_path: Path, logged: LogEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "CHECK_S", 0.01)
    supervisor, answers, calls = Supervisor(), EmbeddedPostgres._answers, 0

    async def answers_late(server: EmbeddedPostgres) -> bool:
        nonlocal calls
        calls += 1
        # Two calls fail: that of the watch, and that with the lock for starting a server.
        return calls not in {4, 5} and await answers(server)

    async with opened(Settings(home=tmp_path), supervisor):
        calls = 0
        monkeypatch.setattr(EmbeddedPostgres, "_answers", answers_late)
        await logged.reached(1, "embedded_postgres_stalled")

    (line,) = supervisor.problems()
    assert line.startswith("the embedded PostgreSQL did not answer for ")
    assert not [event for event in logged.seen if event["event"] == "embedded_postgres_restarted"]


@pytest.mark.parametrize("ending", ["exception", "group", "stray cancel", "cancelled"])
async def test_failed_heartbeat_gives_up_the_lease(
    database: Database, logged: LogEvents, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    async def beat(self: AdvisoryLease, session: Any) -> None:
        del self, session
        await TASK_ENDINGS[ending][0]()

    monkeypatch.setattr(AdvisoryLease, "_send_heartbeats", beat)
    async with AdvisoryLease(database, "lead") as lease:
        assert await lease.acquire()
        await logged.reached(1, "lease_heartbeat_failed", level="error")
        assert not lease.held


async def test_problems_of_other_processes_are_shown(database_url: str, tmp_path: Path) -> None:
    report = request_metrics.ProcessReport("supervisor", request_metrics.Counts(), problems=["worker 7 died"])
    async with serving(database_url, metrics_folder=tmp_path) as client:
        request_metrics.write_report(tmp_path / "supervisor", report)
        health = await get_json(client, "/health")
        assert (health["status"], health["reasons"]) == ("degraded", ["worker 7 died"])
