"""Runs while the database fails: they recover, or fail with an error that says what to do."""

import asyncio
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from kasparro.errors import DatabaseUnavailable
from kasparro.model.batch import Batch, BatchBuilder
from kasparro.model.record import Record
from kasparro.pipeline import retry
from kasparro.pipeline.run import Run
from kasparro.sources.base import SourceContext
from kasparro.store import pool as limits
from kasparro.store.bootstrap import prepare
from kasparro.store.locks import AdvisoryLease
from kasparro.store.pool import Connection, Database
from tests.support.postgres import USER, Server, servers, small_disk

pytestmark = pytest.mark.slow

ROWS = 3


class StepSource:
    """A source of ROWS batches with one record each; it waits for `next` before each batch."""

    name = "csv"

    def __init__(self) -> None:
        self.next = asyncio.Event()
        self.next.set()

    async def extract(self, passing: SourceContext) -> AsyncGenerator[Batch, None]:
        builder = BatchBuilder()
        for number in range(ROWS):
            await self.next.wait()
            at = passing.clock() - timedelta(hours=1)
            builder.add(Record(source_id=f"coin-{number}", symbol="C", name="Coin", observed_at=at))
            yield builder.take()


class Scene:
    """A dedicated PostgreSQL server, and runs on it."""

    def __init__(self, server: Server, database: Database) -> None:
        self.server = server
        self.database = database
        self.source = StepSource()

    async def run(self) -> str:
        async with Run(self.database, [self.source], "etl") as run:
            return await run.work(asyncio.Event())

    async def fetchval(self, statement: str, *values: object) -> Any:
        async with self.server.admin() as connection:
            return await connection.fetchval(statement, *values)

    async def outcome(self) -> tuple[str, str | None, int]:
        """Status and error of the last run, and the number of rows, which equals the inserted records."""
        async with self.server.admin() as connection:
            row = await connection.fetchrow("SELECT * FROM run_sources ORDER BY run_id DESC LIMIT 1")
            inserted = await connection.fetchval("SELECT sum(inserted)::int FROM run_sources")
            rows = await connection.fetchval("SELECT count(*) FROM unified_data")
            history = await connection.fetchval("SELECT count(*) FROM unified_history")
        assert row is not None
        assert inserted == rows == history
        return row["status"], row["error"], rows

    @asynccontextmanager
    async def locked(self, table: str) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
        """Another session locks the table meanwhile."""
        async with self.server.admin() as connection, connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield connection

    async def started(self) -> None:
        """Wait until the run has started."""
        async with asyncio.timeout(20):
            while not await self.fetchval("SELECT count(*) FROM runs"):  # noqa: ASYNC110 - a table has no event
                await asyncio.sleep(0.02)

    async def logged(self, text: str) -> None:
        """Wait until the server has logged this."""
        async with asyncio.timeout(20):
            while text not in self.server.log.read_text():  # noqa: ASYNC110 - nor has a file
                await asyncio.sleep(0.02)

    async def waiting(self, table: str) -> int:
        """Wait until a batch waits for the table; returns the pid of its backend."""
        async with asyncio.timeout(20):
            while True:
                pid: int | None = await self.fetchval(
                    "SELECT min(pid) FROM pg_locks WHERE relation = to_regclass($1) AND NOT granted", table
                )
                if pid is not None:
                    return pid
                await asyncio.sleep(0.02)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with servers() as made:
        server = await made.primary()
        async with Database(server.url()) as database:
            await prepare(database)
            yield Scene(server, database)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGQUIT, signal.SIGINT])
async def test_restart_during_a_batch(scene: Scene, how: signal.Signals) -> None:
    async with asyncio.TaskGroup() as group:
        try:
            async with scene.locked("instance"):
                running = group.create_task(scene.run())
                await scene.waiting("instance")
                await scene.server.end(how)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            # The session that holds the lock lost its server too.
            pass
        await scene.server.start()

    assert await running == "succeeded"
    assert await scene.outcome() == ("succeeded", None, ROWS)


async def test_failover_during_a_run() -> None:
    async with servers() as made:
        primary = await made.primary()
        standby = await made.standby(primary)
        both = f"postgresql://{USER}@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/{USER}"
        async with Database(both) as database:
            await prepare(database)
            before, after = Scene(primary, database), Scene(standby, database)
            async with primary.admin() as connection:
                # Synchronous: every acknowledged commit is on the standby.
                await connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
                await connection.execute("SELECT pg_reload_conf()")
            before.source.next.clear()
            async with asyncio.TaskGroup() as group:
                running = group.create_task(before.run())
                await before.started()
                await primary.end(signal.SIGKILL)
                before.source.next.set()
                await after.fetchval("SELECT pg_promote()")

        assert await running == "succeeded"
        assert await after.outcome() == ("succeeded", None, ROWS)


async def test_waits_while_the_server_takes_no_connections(scene: Scene) -> None:
    scene.source.next.clear()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(scene.run())
        await scene.started()
        await scene.fetchval(f"ALTER ROLE {USER} CONNECTION LIMIT 0")
        await scene.fetchval(
            f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{USER}'"
        )
        scene.source.next.set()
        await scene.logged("too many connections for role")
        with pytest.raises(DatabaseUnavailable, match=r"^PostgreSQL accepts no more connections: "):
            async with scene.database.reading():
                pass
        await scene.fetchval(f"ALTER ROLE {USER} CONNECTION LIMIT -1")

    assert await running == "succeeded"
    assert await scene.outcome() == ("succeeded", None, ROWS)


async def test_held_lock_is_retried_after_the_lock_timeout(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOCK_TIMEOUT_S", 1)
    async with Database(scene.server.url()) as database, asyncio.TaskGroup() as group:
        other = Scene(scene.server, database)
        async with scene.locked("unified_history"):
            running = group.create_task(other.run())
            await scene.logged("canceling statement due to lock timeout")

        assert await running == "succeeded"
    assert await scene.outcome() == ("succeeded", None, ROWS)


async def test_lock_that_is_never_released_fails_the_source(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOCK_TIMEOUT_S", 1)
    monkeypatch.setattr(retry, "DATABASE_PATIENCE_S", 0.5)
    async with Database(scene.server.url()) as database, scene.locked("unified_history"):
        assert await Scene(scene.server, database).run() == "failed"

    status, error, rows = await scene.outcome()
    assert (status, rows) == ("failed", 0)
    assert error is not None
    assert error.startswith("another session holds a lock that we need: ")


async def test_statement_timeout_fails_the_source(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WRITE_TIMEOUT_S", 1)
    async with Database(scene.server.url()) as database, scene.locked("unified_history"):
        assert await Scene(scene.server, database).run() == "failed"

    status, error, rows = await scene.outcome()
    assert (status, rows) == ("failed", 0)
    assert error is not None
    assert error.startswith("PostgreSQL ended a statement that took too long: ")


async def test_every_session_has_timeouts(scene: Scene) -> None:
    limits = {
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
    }
    keepalives = {"tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count"}

    async def session_settings(connection: Connection) -> tuple[list[str], list[str]]:
        values = [
            [await connection.fetchval("SELECT current_setting($1)", name) for name in sorted(names)]
            for names in (limits, keepalives)
        ]
        return values[0], values[1]

    database = scene.database
    async with (
        database.reading() as short,
        database.reading(pool="slow") as slow,
        database.exporting() as export,
        database.writing() as write,
        database.following() as following,
        AdvisoryLease(database, "run") as lock,
    ):
        await lock.acquire()
        async with lock.writing() as lease:
            sessions = [
                await session_settings(session) for session in (short, slow, export, write, following, lease)
            ]

    assert [limits for limits, _ in sessions] == [
        ["1min", "0", "30s", "15s"],
        ["1min", "0", "30s", "15s"],
        ["10min", "0", "30s", "1min"],
        ["1min", "0", "30s", "5min"],
        ["1min", "0", "30s", "15s"],
        ["15s", "15s", "30s", "5min"],
    ]
    assert {tuple(keepalives) for _, keepalives in sessions} == {("3", "30", "10")}


async def test_cancelled_statement_is_retried(scene: Scene) -> None:
    async with asyncio.TaskGroup() as group, scene.locked("instance"):
        running = group.create_task(scene.run())
        await scene.fetchval("SELECT pg_cancel_backend($1::integer)", await scene.waiting("instance"))

    assert await running == "succeeded"
    assert await scene.outcome() == ("succeeded", None, ROWS)


async def test_serialization_failure_is_retried(scene: Scene) -> None:
    await scene.fetchval(f"ALTER DATABASE {USER} SET default_transaction_isolation = 'repeatable read'")
    async with Database(scene.server.url()) as database, asyncio.TaskGroup() as group:
        other = Scene(scene.server, database)
        async with scene.locked("instance") as connection:
            running = group.create_task(other.run())
            await scene.waiting("instance")
            # The batch has read this row before, and now waits to update it.
            await connection.execute("UPDATE instance SET data_version = data_version + 1")

        assert await running == "succeeded"
    assert await scene.outcome() == ("succeeded", None, ROWS)
    assert "could not serialize access" in scene.server.log.read_text()


async def test_deadlock_is_retried(scene: Scene) -> None:
    await scene.fetchval(f"ALTER DATABASE {USER} SET deadlock_timeout = '3s'")
    async with Database(scene.server.url()) as database, asyncio.TaskGroup() as group:
        other = Scene(scene.server, database)
        async with scene.locked("instance") as connection:
            await connection.execute("SET LOCAL deadlock_timeout = '10min'")
            running = group.create_task(other.run())
            await scene.waiting("instance")
            await connection.execute("UPDATE run_sources SET error = NULL")

        assert await running == "succeeded"
    assert await scene.outcome() == ("succeeded", None, ROWS)
    assert "deadlock detected" in scene.server.log.read_text()


async def test_full_disk_fails_the_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next run repairs it."""
    monkeypatch.setattr(retry, "DATABASE_PATIENCE_S", 0.5)
    async with small_disk(32) as disk, servers() as made:
        if disk.missing is not None:
            pytest.skip(disk.missing)
        server = await made.primary()
        await server.move_to(disk)
        async with Database(server.url()) as database:
            await prepare(database)
            scene = Scene(server, database)
            scene.source.next.clear()
            async with asyncio.TaskGroup() as group:
                running = group.create_task(scene.run())
                await scene.started()
                disk.fill()
                scene.source.next.set()
            assert await running == "failed"
            status, error, rows = await scene.outcome()
            disk.clear()
            assert await scene.run() == "succeeded"
        repaired = await scene.outcome()

    assert (status, rows) == ("failed", 0)
    assert error is not None
    assert error.startswith("PostgreSQL has no room left on its disk: ")
    assert repaired == ("succeeded", None, ROWS)
