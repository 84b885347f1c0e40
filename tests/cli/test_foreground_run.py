"""A run in the foreground, from the database to its report."""

import asyncio
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

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


async def test_server_that_crashes_after_the_outcome_is_recorded_changes_no_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "prices.csv"
    archive.write_text("id,symbol,name,price_usd,last_updated\nbitcoin,BTC,Bitcoin,1,2024-06-01T00:00:00Z\n")
    sources = [Archives(str(archive))]

    async def plan(database: Database) -> RunPlan:
        del database
        return sources, partial(Run, sources=sources, trigger="etl")

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
