"""A run in the foreground, from the database to its report."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from kasparro.cli import foreground_run
from kasparro.cli.foreground_run import RunPlan, run_once
from kasparro.pipeline.run import Run
from kasparro.settings import Secret, Settings
from kasparro.sources.archives.source import Archives
from kasparro.store.pool import Connection, Database
from kasparro.web import reports, schemas
from tests.support.postgres import servers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="these servers are for Linux"),
]


def plan_of_one_record(folder: Path) -> Callable[[Database], Awaitable[RunPlan]]:
    """A plan to load an archive with one record."""
    archive = folder / "prices.csv"
    archive.write_text("id,symbol,name,price_usd,last_updated\nbitcoin,BTC,Bitcoin,1,2024-06-01T00:00:00Z\n")
    sources = [Archives(str(archive))]

    async def plan(database: Database) -> RunPlan:
        del database
        return sources, partial(Run, sources=sources, trigger="etl")

    return plan


async def test_stop_signal_at_the_end_of_a_run_does_not_cut_its_report(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grace_s = 0.1
    work, read_report = Run.work, reports.run_report

    async def work_until_a_signal(run: Run, stop: asyncio.Event) -> None:
        await work(run, stop)
        os.kill(os.getpid(), signal.SIGINT)
        await stop.wait()

    async def after_the_grace_period(connection: Connection, run_id: int) -> schemas.RunReport | None:
        await asyncio.sleep(2 * grace_s)
        return await read_report(connection, run_id)

    monkeypatch.setattr(foreground_run, "STOP_GRACE_S", grace_s)
    monkeypatch.setattr(Run, "work", work_until_a_signal)
    monkeypatch.setattr(reports, "run_report", after_the_grace_period)

    report = await run_once(
        Settings(database_url=Secret(database_url)), plan_of_one_record(tmp_path), progress=False
    )

    assert (report.status, report.records.inserted) == ("succeeded", 1)


async def test_server_that_crashes_after_the_outcome_is_recorded_changes_no_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of_one_record(tmp_path)

    async with servers() as made:
        server = await made.primary()
        restarts: list[asyncio.Task[None]] = []
        read_report = reports.run_report

        async def after_a_crash(connection: Connection, run_id: int) -> schemas.RunReport | None:
            if not restarts:
                await server.end(signal.SIGKILL)
                restarts.append(asyncio.create_task(server.start()))
            return await read_report(connection, run_id)

        monkeypatch.setattr(reports, "run_report", after_a_crash)

        report = await run_once(Settings(database_url=Secret(server.url())), plan, progress=False)

        assert len(restarts) == 1
        assert (report.status, report.records.inserted) == ("succeeded", 1)
