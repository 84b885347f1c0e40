"""PgBouncer in front of PostgreSQL: what works in session mode, and what in transaction mode."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import aiohttp
import asyncpg
import pytest

from kasparro.errors import DatabaseUnavailable, RunInProgress, SettingsError
from kasparro.model.batch import Batch
from kasparro.pipeline.run import Run
from kasparro.settings import Settings
from kasparro.simulator import Simulator
from kasparro.store import data_version, locks, pool, sessions
from kasparro.store.bootstrap import prepare, with_connections
from kasparro.store.data_version import DataVersion
from kasparro.store.locks import AdvisoryLease
from kasparro.store.pool import Database
from kasparro.store.sessions import Sessions
from tests.conftest import LogEvents
from tests.support.batches import T0, load_batches, make_batch, make_record
from tests.support.commands import run_command
from tests.support.live_service import live_service
from tests.support.pgbouncer import Mode, needs_pgbouncer, pgbouncer
from tests.support.postgres import Server, servers
from tests.support.response_cache import MOVE, NOTIFY, wait_for_prices
from tests.support.runs import apis, run_sources
from tests.web.conftest import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="these servers are for Linux"),
    needs_pgbouncer,
]

REJECTED = (
    "DATABASE_URL leads to a pooler in transaction mode, which cannot be used, because the lock that keeps "
    "two runs apart does not hold there: set it to PostgreSQL itself or to a pooler in session mode"
)
CHANGED = "SELECT name FROM pg_settings WHERE source = 'session' AND name IN ('statement_timeout', 'jit')"
KEYS = [f"coin-{number:02}" for number in range(30)]


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

    async def work(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        while True:
            await connection.execute("SELECT pg_sleep(0.001)")

    connections = [await asyncpg.connect(url, statement_cache_size=0) for _ in range(count)]
    tasks = [asyncio.create_task(work(connection)) for connection in connections]
    try:
        yield
    finally:
        for task, connection in zip(tasks, connections, strict=True):
            task.cancel()
            connection.terminate()
        await asyncio.gather(*tasks, return_exceptions=True)


async def settings_of_shared_sessions(url: str) -> set[str]:
    """Settings that clients left in the server processes of a pooler with at most three of them."""
    async with AsyncExitStack() as stack:
        found: set[str] = set()
        for _ in range(3):
            connection = await asyncpg.connect(url, statement_cache_size=0)
            stack.callback(connection.terminate)
            # Open transactions have different processes.
            await connection.execute("BEGIN")
            found |= {row["name"] for row in await connection.fetch(CHANGED)}
        return found


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
    async with (
        pgbouncer(server, "session") as pooler,
        Database(pooler.url) as database,
        AdvisoryLease(database, "run") as first,
        AdvisoryLease(database, "run") as second,
    ):
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
        moved.clear()
        await admin.execute(MOVE)
        await admin.execute(NOTIFY)
        await moved.wait()


async def test_commands_work_through_a_session_pooler(server: Server) -> None:
    async with pgbouncer(server, "session") as pooler:
        environment = {"DATABASE_URL": pooler.url, "KASPARRO_SOURCES": "csv"}
        assert (await run_command("etl", **environment))[0] == 0
        code, out, _ = await run_command("status", **environment)

    assert code == 0
    assert "succeeded" in out


async def test_service_runs_and_answers_through_a_session_pooler(server: Server) -> None:
    async with (
        pgbouncer(server, "session") as pooler,
        live_service(pooler.url) as service,
        aiohttp.ClientSession(service.url) as client,
        client.get("/health") as response,
    ):
        health = await response.json()

    assert health["status"] == "ok"
    assert not [event for event in service.log if event["level"] in {"warning", "error"}]


async def test_service_takes_half_of_a_default_pool(server: Server) -> None:
    async with pgbouncer(server, "session") as pooler, Database(pooler.url) as database:
        settings = await with_connections(Settings(), database, 1)

    assert settings.database_connections == 10


async def test_service_does_not_start_with_a_read_url_that_a_pooler_rejects(server: Server) -> None:
    async with pgbouncer(server, "session") as pooler:
        code, _, err = await run_command(
            "serve",
            DATABASE_URL=server.url(),
            DATABASE_READ_URL=f"{pooler.url}?options=-cjit%3Doff",
            PORT="0",
        )

    assert code == 2
    assert "kasparro: DATABASE_READ_URL leads to a pooler that rejects a parameter of the URL" in err


async def test_many_first_connections_share_one_test(server: Server) -> None:
    async def read() -> int:
        async with database.reading() as connection:
            value: int = await connection.fetchval("SELECT 1")
            return value

    async with pgbouncer(server, "session", default_pool_size=12) as pooler, Database(pooler.url) as database:
        assert set(await asyncio.gather(*(read() for _ in range(40)))) == {1}


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


async def test_pooler_that_accepts_no_more_clients_is_named(server: Server) -> None:
    async with (
        pgbouncer(server, "transaction", max_client_conn=2) as pooler,
        other_clients(pooler.url, 2),
        Database(server.url(), pooler.url, queue_s=1) as database,
    ):
        with pytest.raises(
            DatabaseUnavailable, match=r"^PostgreSQL accepts no more connections: no more connections allowed"
        ):
            await enter(database.reading())


async def test_url_of_a_dashboard_works(server: Server) -> None:
    parameters = "sslmode=prefer&channel_binding=require&connect_timeout=10&keepalives=1&pgbouncer=true"
    async with pgbouncer(server, "session") as pooler:
        code, _, err = await run_command("status", DATABASE_URL=f"{pooler.url}?{parameters}")

    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("mode", "round_robin", "others"),
    [
        ("transaction", 0, 0),
        ("transaction", 0, 3),
        ("transaction", 1, 0),
        ("transaction", 1, 1),
        ("statement", 0, 0),
    ],
)
async def test_pooler_in_transaction_mode_is_rejected(
    server: Server, mode: Mode, round_robin: int, others: int
) -> None:
    async with (
        pgbouncer(
            server, mode, server_round_robin=round_robin, min_pool_size=3, default_pool_size=3
        ) as pooler,
        other_clients(pooler.url, others),
        Database(pooler.url) as database,
    ):
        for use in (database.reading, database.writing):
            with pytest.raises(SettingsError, match=f"^{REJECTED}"):
                await enter(use())
        if mode == "transaction":
            assert await settings_of_shared_sessions(pooler.url) == set()


async def enter(block: Any) -> None:
    async with block:
        pass


async def test_every_command_ends_with_one_line_behind_a_transaction_pooler(server: Server) -> None:
    async with pgbouncer(server, "transaction") as pooler:
        for command in ("serve", "etl", "migrate", "status"):
            code, _, err = await run_command(command, DATABASE_URL=pooler.url, PORT="0")

            assert code == 2
            (line,) = [line for line in err.splitlines() if line.startswith("kasparro: ")]
            assert line.startswith(f"kasparro: {REJECTED}")


@asynccontextmanager
async def untested(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """The URL of a pooler in transaction mode that the test does not recognize."""

    async def passed(self: Sessions) -> None:
        pass

    monkeypatch.setattr(Sessions, "_test", passed)
    async with pgbouncer(server, "transaction") as pooler:
        yield pooler.url


async def test_shared_session_gives_the_run_lock_only_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        untested(server, monkeypatch) as url,
        Database(url) as database,
        AdvisoryLease(database, "run") as first,
        AdvisoryLease(database, "run") as second,
    ):
        assert await first.acquire()
        with pytest.raises(SettingsError, match=f"^{REJECTED}"):
            await second.acquire()


async def test_holder_whose_session_went_to_another_client_gives_up(
    server: Server, monkeypatch: pytest.MonkeyPatch, logged: LogEvents
) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.05)
    async with (
        untested(server, monkeypatch) as url,
        Database(url) as database,
        AdvisoryLease(database, "run") as lease,
    ):
        assert await lease.acquire()
        other = await asyncpg.connect(url, statement_cache_size=0)
        async with other.transaction():
            await other.execute("SELECT 1")
            (event,) = await logged.reached(1, "lease_lost", level="warning")
        await other.close()
        assert not lease.held

    assert REJECTED in event["reason"]


async def test_lock_is_checked_before_its_holder_writes(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        untested(server, monkeypatch) as url,
        Database(url) as database,
        AdvisoryLease(database, "run") as lease,
    ):
        assert await lease.acquire()
        other = await asyncpg.connect(url, statement_cache_size=0)
        async with other.transaction():
            await other.execute("SELECT 1")
            with pytest.raises(DatabaseUnavailable, match=REJECTED):
                await enter(lease.writing())
        await other.close()


async def test_change_to_transaction_mode_is_noticed_by_the_next_run(server: Server) -> None:
    async with (
        pgbouncer(server, "session") as pooler,
        Database(pooler.url) as database,
        AdvisoryLease(database, "run") as lease,
    ):
        assert await lease.acquire()
        await lease.release()
        pooler.configure("transaction")
        await pooler.reload()
        with pytest.raises(SettingsError, match=f"^{REJECTED}"):
            await lease.acquire()


async def test_parameter_that_a_pooler_rejects_is_named(server: Server) -> None:
    async with (
        pgbouncer(server, "session") as pooler,
        Database(f"{pooler.url}?options=-csearch_path%3Dpublic") as database,
    ):
        with pytest.raises(
            SettingsError,
            match="^DATABASE_URL leads to a pooler that rejects a parameter of the URL "
            r"\(unsupported startup parameter.*: \w+\): remove it .* ignore_startup_parameters$",
        ):
            await enter(database.writing())


async def pages(client: aiohttp.ClientSession) -> list[dict[str, Any]]:
    """All rows of /data, read page by page with a cursor."""
    rows: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        parameters = {"limit": "7", "sort": "source"} | ({"cursor": cursor} if cursor else {})
        async with client.get("/data", params=parameters) as response:
            page = await response.json()
        rows += page["data"]
        cursor = page["pagination"]["next_cursor"]
    return rows


async def export(client: aiohttp.ClientSession) -> list[dict[str, Any]]:
    """All rows of /data.ndjson."""
    async with client.get("/data.ndjson", params={"sort": "source"}) as response:
        return [json.loads(line) for line in (await response.text()).splitlines()]


async def test_reads_through_a_transaction_pooler_show_one_version_while_runs_load(server: Server) -> None:
    last = 40

    def batch(price: int) -> Batch:
        at = T0 + timedelta(hours=price)
        return make_batch(*(make_record(key, at, price_usd=price) for key in KEYS))

    async with (
        pgbouncer(server, "transaction", default_pool_size=3) as pooler,
        other_clients(pooler.url, 2),
        Database(server.url()) as writer,
        serving(server.url(), read_url=pooler.url) as client,
    ):
        await load_batches(writer, batch(1))

        async def write() -> None:
            for price in range(2, last + 1):
                await load_batches(writer, batch(price))

        async def read(rows: Callable[[aiohttp.ClientSession], Awaitable[list[dict[str, Any]]]]) -> None:
            while not writing.done():
                found = await rows(client)
                assert [row["source_id"] for row in found] == KEYS
                assert len({row["price_usd"] for row in found}) == 1

        writing = asyncio.create_task(write())
        async with asyncio.timeout(60):
            await asyncio.gather(writing, *map(read, (pages, pages, pages, export)))
        await wait_for_prices(client, [last] * len(KEYS), 5)
        assert await settings_of_shared_sessions(pooler.url) == set()


async def test_routes_answer_through_a_transaction_pooler(server: Server) -> None:
    async def status(path: str) -> int:
        async with client.get(path) as response:
            await response.read()
            return response.status

    async with (
        pgbouncer(server, "transaction", default_pool_size=2) as pooler,
        serving(server.url(), read_url=pooler.url) as client,
    ):
        paths = ("/data?q=a&as_of=2026-02-01", "/stats", "/health", "/health/ready", "/runs", "/tables")
        found = await asyncio.gather(*(status(path) for path in paths * 20))

    assert set(found) == {200}


async def test_readers_behind_a_transaction_pooler_have_their_settings(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "READ_TIMEOUT_S", 1)
    async with pgbouncer(server, "transaction") as pooler, Database(server.url(), pooler.url) as database:
        async with database.reading() as connection:
            found = {name: await connection.fetchval(f"SHOW {name}") for name in ("jit", "statement_timeout")}
        with pytest.raises(asyncpg.QueryCanceledError, match="statement timeout"):
            async with database.reading() as connection:
                await connection.fetchval("SELECT pg_sleep(30)")
        async with database.reading() as connection:
            assert await connection.fetchval("SELECT 1") == 1

    assert found == {"jit": "off", "statement_timeout": "1s"}
