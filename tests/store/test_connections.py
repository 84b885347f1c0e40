"""How many connections a process takes, and how it waits for a server that has none free."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
import asyncpg
import pytest

from kasparro.errors import DatabaseUnavailable
from kasparro.settings import Settings
from kasparro.store import connections
from kasparro.store.bootstrap import pools, prepare, with_connections
from kasparro.store.connections import LEAST, MOST, RESERVED, Shares, per_process, shares
from kasparro.store.pool import Database
from tests.conftest import LogEvents
from tests.support.commands import listening_url, started_command
from tests.support.postgres import Server, servers

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="these servers are for Linux")


@pytest.mark.parametrize(
    ("allowed", "processes", "expected"),
    [(97, 1, 24), (97, 4, 12), (47, 1, 23), (17, 1, 8), (17, 2, 8), (5, 1, 8), (10_000, 1, 24)],
)
def test_service_takes_half_of_the_allowed_connections_within_bounds(
    allowed: int, processes: int, expected: int
) -> None:
    assert per_process(allowed, processes) == expected


@pytest.mark.parametrize("count", [LEAST, 9, 12, 17, MOST, 60])
def test_pools_share_all_connections(count: int) -> None:
    sizes = shares(count)
    numbers = [sizes.read, sizes.slow, sizes.export, sizes.write]
    assert sum(numbers) + RESERVED == count
    assert min(numbers) >= 1
    assert sizes.read == max(numbers)


def test_most_connections_give_full_pools() -> None:
    assert shares(MOST) == Shares(read=8, slow=2, export=4, write=6)


async def test_setting_decides_the_number(database: Database, database_url: str, logged: LogEvents) -> None:
    settings = await with_connections(Settings(database_connections=10), database, 1)
    (event,) = await logged.reached(1, "database_connections", level="info")

    assert settings.database_connections == event["per_process"] == 10
    async with pools(settings, database_url) as sized:
        assert {pool: limit for pool, (limit, _, _) in sized.usage().items()} == {
            "short": event["pools"]["read"],
            "slow": event["pools"]["slow"],
            "export": event["pools"]["export"],
        }


async def test_default_is_a_share_of_what_the_server_allows(database: Database, logged: LogEvents) -> None:
    settings = await with_connections(Settings(), database, 2)
    (event,) = await logged.reached(1, "database_connections")

    assert settings.database_connections == event["per_process"] == min(event["server_allows"] // 4, MOST)
    assert sum(event["pools"].values()) == event["per_process"] - RESERVED


async def test_warning_about_too_many_processes_says_what_to_do(
    database: Database, logged: LogEvents
) -> None:
    await with_connections(Settings(), database, 64)
    (event,) = await logged.reached(1, "database_connections_scarce", level="warning")
    assert "raise max_connections or start fewer workers" in event["reason"]


async def test_unreachable_server_is_assumed_to_have_its_default(logged: LogEvents) -> None:
    async with Database("postgresql://x@127.0.0.1:1/x") as database:
        settings = await with_connections(Settings(), database, 4)
    assert settings.database_connections == per_process(connections.DEFAULT_ALLOWED, 4)
    await logged.reached(1, "database_connections_unknown", level="warning")


@pytest.fixture
async def small() -> AsyncIterator[Server]:
    """A server that allows 20 connections, of which three are reserved for superusers."""
    async with servers() as made:
        server = await made.primary()
        await server.end()
        with (server.folder / "postgresql.conf").open("a") as file:
            file.write("max_connections = 20\n")
        await server.start()
        async with Database(server.url()) as database:
            await prepare(database)
        yield server


@pytest.mark.slow
@LINUX
async def test_limit_of_the_role_counts(small: Server) -> None:
    async with small.admin("postgres") as admin, Database(small.url()) as database:
        async with database.writing() as connection:
            assert await connections.allowed(connection) == 17
        await admin.execute("ALTER ROLE kasparro CONNECTION LIMIT 12")
        async with database.writing() as connection:
            assert await connections.allowed(connection) == 12


async def fill(
    server: Server, stack: AsyncExitStack, leave: int
) -> list["asyncpg.Connection[asyncpg.Record]"]:
    """Take all connections but `leave`."""
    taken: list[asyncpg.Connection[asyncpg.Record]] = []
    for _ in range(17 - leave):
        connection = await asyncpg.connect(server.url())
        stack.push_async_callback(connection.close)
        taken.append(connection)
    return taken


@pytest.mark.slow
@LINUX
@pytest.mark.parametrize("leave", [1, 2, 5])
async def test_open_connections_serve_all_requests_of_a_full_server(small: Server, leave: int) -> None:
    async def read(database: Database) -> int:
        async with database.reading() as connection:
            value: int = await connection.fetchval("SELECT 1 FROM pg_sleep(0.002)")
            return value

    async with AsyncExitStack() as stack, Database(small.url()) as database:
        await fill(small, stack, leave)
        async with asyncio.timeout(30):
            assert set(await asyncio.gather(*(read(database) for _ in range(200)))) == {1}


@pytest.mark.slow
@LINUX
async def test_pools_and_locks_wait_for_a_full_server(small: Server) -> None:
    async with AsyncExitStack() as stack, Database(small.url()) as database:
        taken = await fill(small, stack, 0)
        session = asyncio.create_task(database.session("kasparro test", 15.0))

        async def write() -> None:
            async with database.writing() as connection:
                await connection.execute("SELECT 1")

        writing = asyncio.create_task(write())
        done, _ = await asyncio.wait({session, writing}, timeout=0.6)
        assert not done
        for connection in taken[:2]:
            await connection.close()
        async with asyncio.timeout(10):
            await writing
            (await session).terminate()


@pytest.mark.slow
@LINUX
async def test_server_that_stays_full_is_an_error(small: Server) -> None:
    async with AsyncExitStack() as stack, Database(small.url(), queue_s=0.5) as database:
        await fill(small, stack, 0)
        with pytest.raises(DatabaseUnavailable, match=r"^PostgreSQL accepts no more connections: "):
            async with database.reading():
                pass


@pytest.mark.slow
@LINUX
async def test_idle_process_gives_connections_to_one_that_waits(small: Server) -> None:
    idle_s = connections.idle_limit_s(LEAST)
    async with (
        AsyncExitStack() as stack,
        Database(small.url(), idle_limit_s=idle_s) as idle,
        Database(small.url(), idle_limit_s=idle_s) as waiting,
    ):
        await fill(small, stack, 1)
        async with idle.reading() as connection:
            await connection.execute("SELECT 1")

        async with waiting.reading() as connection:
            assert await connection.fetchval("SELECT 1") == 1


PATHS = (
    "/data?limit=50&page={}",
    "/data?q=coin{}",
    "/runs?limit={}",
    "/data?symbol=s{}",
    "/data.csv?symbol=s{}",
)


@pytest.mark.slow
@LINUX
@pytest.mark.parametrize("workers", ["1", "4"])
async def test_small_server_serves_every_request(small: Server, workers: str) -> None:
    environment = {
        "DATABASE_URL": small.url(),
        "KASPARRO_SOURCES": "csv",
        "KASPARRO_LOG": "json",
        "KASPARRO_CACHE_MB": "0",
        "PORT": "0",
    }
    async with started_command("serve", "--workers", workers, **environment) as process:
        url = await listening_url(process)
        drained = asyncio.create_task(process.communicate())
        async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=64)) as client:

            async def status(number: int) -> int:
                path = PATHS[number % len(PATHS)].format(1 + number // len(PATHS))
                async with client.get(path) as response:
                    await response.read()
                    return response.status

            found = Counter(await asyncio.gather(*(status(number) for number in range(400))))
        process.terminate()
        await drained

    assert found == {200: 400}
