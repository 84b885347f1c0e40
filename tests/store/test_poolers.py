"""PgBouncer in front of PostgreSQL: what works in session mode, and what in transaction mode."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import aiohttp
import asyncpg
import pytest

from kasparro.errors import DatabaseUnavailable, RunInProgress, SettingsError
from kasparro.pipeline.run import Run
from kasparro.simulator import Simulator
from kasparro.store import data_version, pool, sessions
from kasparro.store.bootstrap import prepare
from kasparro.store.data_version import DataVersion
from kasparro.store.locks import LEASE_S, AdvisoryLease
from kasparro.store.pool import Database
from kasparro.store.sessions import Sessions
from tests.conftest import LogEvents
from tests.support.batches import load_batches, make_batch, make_record
from tests.support.commands import run_command
from tests.support.json_responses import parse_rows, source_ids
from tests.support.pgbouncer import Mode, needs_pgbouncer, pgbouncer
from tests.support.postgres import Server, servers
from tests.support.response_cache import MOVE, NOTIFY
from tests.support.runs import apis, run_sources
from tests.web.conftest import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="these servers are for Linux"),
    needs_pgbouncer,
]

REJECTED = (
    "DATABASE_URL leads to a pooler in transaction mode, in which the lock that keeps two runs apart does not "
    "hold: set it to PostgreSQL itself or to a pooler in session mode"
)
SERVER_PROCESS = "SELECT pg_backend_pid()"
LEAKED = "SELECT name FROM pg_settings WHERE source = 'session' AND name IN ('statement_timeout', 'jit')"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server with a migrated database."""
    async with servers() as made:
        primary = await made.primary()
        async with Database(primary.url()) as database:
            await prepare(database)
        yield primary


@asynccontextmanager
async def other_clients(url: str, count: int) -> AsyncIterator[None]:
    """So many clients use the pooler all the time."""

    async def work() -> None:
        connection = await asyncpg.connect(url, statement_cache_size=0)
        try:
            while True:
                await connection.execute("SELECT pg_sleep(0.001)")
        finally:
            connection.terminate()

    tasks = [asyncio.create_task(work()) for _ in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_runs_work_through_a_pooler_in_session_mode(server: Server) -> None:
    async with (
        pgbouncer(server, "session") as pooler,
        Database(pooler.url) as database,
        Simulator(seed=7, coins=300, manual=True) as simulator,
    ):
        for _ in range(3):
            assert await run_sources(database, apis(simulator)) == "succeeded"
        async with Run(database, apis(simulator), "etl"):
            with pytest.raises(RunInProgress):
                await run_sources(database, apis(simulator))


async def test_lock_of_a_session_pooler_ends_with_its_holder(server: Server) -> None:
    async with pgbouncer(server, "session") as pooler, Database(pooler.url) as database:
        async with AdvisoryLease(database, "run") as first, AdvisoryLease(database, "run") as second:
            for _ in range(20):
                assert await first.acquire()
                assert not await second.acquire()
                await first.release()
                assert await second.acquire()
                await second.release()


async def test_commits_are_announced_through_a_session_pooler(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_version, "POLL_S", 60)
    moved = asyncio.Event()
    async with (
        pgbouncer(server, "session") as pooler,
        Database(pooler.url) as database,
        DataVersion(database, moved.set),
        server.admin() as admin,
        asyncio.timeout(20),
    ):
        await moved.wait()
        assert database.can_listen
        # The listener follows right after the first version.
        moved.clear()
        while not moved.is_set():
            await admin.execute(MOVE)
            await admin.execute(NOTIFY)
            await asyncio.sleep(0)


async def test_commands_work_through_a_session_pooler(server: Server) -> None:
    async with pgbouncer(server, "session") as pooler:
        environment = {"DATABASE_URL": pooler.url, "KASPARRO_SOURCES": "csv"}
        assert (await run_command("etl", **environment))[0] == 0
        code, out, _ = await run_command("status", **environment)

    assert code == 0
    assert "succeeded" in out


async def test_pool_that_is_too_small_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "FIRST_STATEMENT_S", 0.3)
    async with pgbouncer(server, "session", default_pool_size=4) as pooler, AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(pooler.url, queue_s=1))
        # The first connection needs others for a moment, to test the pooler.
        await stack.enter_async_context(database.reading())
        for _ in range(3):
            await stack.enter_async_context(database.reading())
        with pytest.raises(
            DatabaseUnavailable,
            match=r"^PostgreSQL accepts no more connections: .* pool of a pooler must be larger than "
            "KASPARRO_DATABASE_CONNECTIONS$",
        ):
            await stack.enter_async_context(database.reading())


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize("round_robin", [0, 1])
@pytest.mark.parametrize("others", [0, 1, 3])
async def test_pooler_in_transaction_mode_is_rejected(
    server: Server, mode: Mode, round_robin: int, others: int
) -> None:
    async with (
        pgbouncer(server, mode, server_round_robin=round_robin, min_pool_size=3) as pooler,
        other_clients(pooler.url, others),
        Database(pooler.url) as database,
    ):
        for use in (database.reading, database.writing):
            with pytest.raises(SettingsError, match=f"^{REJECTED}"):
                await enter(use())
        # What it set would reach the other clients of the pooler.
        async with server.admin() as admin:
            assert await admin.fetch(LEAKED) == []


async def enter(block: Any) -> None:
    async with block:
        pass


@pytest.mark.parametrize("command", ["serve", "etl", "migrate", "status"])
async def test_command_ends_with_one_line_behind_a_transaction_pooler(server: Server, command: str) -> None:
    async with pgbouncer(server, "transaction") as pooler:
        code, _, err = await run_command(command, DATABASE_URL=pooler.url, PORT="0")

    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("kasparro: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"kasparro: {REJECTED}")
