"""Limits that several processes share, here as several services on one database."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import asyncpg
import pytest

from kasparro.errors import DatabaseUnavailable
from kasparro.fair_semaphore import FairSemaphore
from kasparro.settings import Rate, Settings
from kasparro.store import shared_limits
from kasparro.store.pool import Connection, Database
from kasparro.store.shared_limits import SharedLimits, Turn
from kasparro.supervision import Supervisor
from kasparro.web.http import export_queue
from kasparro.web.http.export_queue import ExportLimits, ExportQueue
from kasparro.web.http.problems import Problem
from tests.web.conftest import serving


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not count as a primary that is away."""
    monkeypatch.setattr(shared_limits, "ANSWER_S", 20)


@asynccontextmanager
async def services(url: str, count: int, rate: Rate | None) -> AsyncIterator[list[aiohttp.ClientSession]]:
    async with AsyncExitStack() as stack:
        settings = Settings(rate_limit=rate, shared_limits=True)
        yield [await stack.enter_async_context(serving(url, settings)) for _ in range(count)]


# A process asks after its first statement.
SHARING = """
SELECT count(*) FROM pg_stat_activity
WHERE
    datname = current_database()
    AND application_name LIKE 'kasparro limits %'
    AND query LIKE '%DELETE FROM shared_quotas%'
    AND state = 'idle'
"""


async def sessions_open(connection: Connection, count: int) -> None:
    """Wait until so many processes share their limits."""
    async with asyncio.timeout(20):
        while await connection.fetchval(SHARING) < count:  # noqa: ASYNC110 - no event to wait for
            await asyncio.sleep(0.01)


@asynccontextmanager
async def limits(database: Database, connection: Connection, count: int = 1) -> AsyncIterator[SharedLimits]:
    async with SharedLimits(database, Supervisor()) as shared:
        await sessions_open(connection, count)
        yield shared


async def taken(shared: SharedLimits, client: str, turns: int) -> Turn:
    turn = await shared.try_turn(client, turns)
    assert turn is not None
    return turn


async def ended_elsewhere(shared: SharedLimits, client: str, turns: int) -> Turn:
    """Wait until another process has ended a turn of the client."""
    async with asyncio.timeout(10):
        while (turn := await shared.try_turn(client, turns)) is None:
            pass
    return turn


async def open_sessions(connection: Connection) -> set[int]:
    """The server processes of the sessions that share limits."""
    rows = await connection.fetch(
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'kasparro limits %'"
    )
    return {row["pid"] for row in rows}


async def lock_waiters(connection: Connection, count: int) -> None:
    """Wait until so many statements wait for the lock of the quotas."""
    async with asyncio.timeout(10):
        while (  # noqa: ASYNC110 - no event to wait for
            await connection.fetchval(
                "SELECT count(*) FROM pg_locks WHERE relation = 'shared_quotas'::regclass AND NOT granted"
            )
            < count
        ):
            await asyncio.sleep(0.01)


@asynccontextmanager
async def quotas_locked(url: str) -> AsyncIterator[None]:
    """A block in which no process can take from a quota."""
    blocker: Connection = await asyncpg.connect(url)
    try:
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE shared_quotas")
            yield
    finally:
        await blocker.close()


@pytest.mark.parametrize("requests", [10, 100])
async def test_rate_limit_holds_for_all_processes_together(
    database_url: str, connection: Connection, requests: int
) -> None:
    async def status(client: aiohttp.ClientSession) -> int:
        async with client.get("/data?limit=1") as response:
            assert "RateLimit" in response.headers
            return response.status

    async with services(database_url, 2, Rate(requests, 3_600)) as clients:
        await sessions_open(connection, 2)
        found = Counter(
            await asyncio.gather(*(status(client) for client in clients for _ in range(requests)))
        )
        async with clients[0].get("/data") as response:
            assert 0 < int(response.headers["Retry-After"]) <= 3_600

    assert found[429] == requests
    assert found[200] == requests


async def test_requests_that_were_not_needed_return_to_the_quota(
    database: Database, connection: Connection
) -> None:
    async with limits(database, connection) as shared:
        assert (await shared.take("a", 8, 0, 10, 3_600)).requests == 8
        assert (await shared.take("a", 8, 0, 10, 3_600)).requests == 2
        assert (await shared.take("a", 8, 0, 10, 3_600)).requests == 0
        assert (await shared.take("a", 8, 3, 10, 3_600)).requests == 3
        assert (await shared.take("b", 20, 0, 10, 3_600)).requests == 10


async def test_each_process_limits_its_clients_while_the_primary_is_away(
    database_url: str, connection: Connection
) -> None:
    async with services(database_url, 1, Rate(5, 3_600)) as (client,):
        await sessions_open(connection, 1)
        await connection.execute("ALTER TABLE shared_quotas RENAME TO away")
        found = []
        for _ in range(8):
            async with client.get("/data?limit=1") as response:
                found.append(response.status)

    assert found == [200] * 5 + [429] * 3


async def test_turns_of_a_client_are_shared_and_end_with_their_process(
    database: Database, connection: Connection
) -> None:
    async with limits(database, connection) as first:
        async with limits(database, connection, 2) as second:
            turn = await taken(first, "a", 2)
            assert turn.number == 0
            assert (await taken(second, "a", 2)).number == 1
            assert await first.try_turn("a", 2) is None
            assert (await taken(first, "b", 2)).number == 0
            await first.end_turn(turn)
            assert (await taken(second, "a", 2)).number == 0
        async with asyncio.timeout(10):
            while await first.try_turn("a", 2) is None:
                pass


async def test_exports_of_a_client_wait_for_those_of_another_process(
    database_url: str, database: Database, connection: Connection
) -> None:
    async with (
        services(database_url, 1, None) as (client,),
        limits(database, connection, 2) as other,
    ):
        turn = await taken(other, "127.0.0.1", 2)
        await taken(other, "127.0.0.1", 2)
        exporting = asyncio.create_task(client.get("/data.ndjson"))
        await asyncio.wait({exporting}, timeout=0.5)
        assert not exporting.done()
        await other.end_turn(turn)
        async with asyncio.timeout(10):
            assert (await exporting).status == 200


async def test_time_that_a_request_waits_for_others_is_not_time_of_its_statement(
    database: Database, database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with limits(database, connection) as shared, AsyncExitStack() as first_lock:
        sessions = await open_sessions(connection)
        await first_lock.enter_async_context(quotas_locked(database_url))
        first = asyncio.create_task(shared.take("a", 1, 0, 10, 3_600))
        await lock_waiters(connection, 1)
        async with AsyncExitStack() as second_lock:
            locking = asyncio.create_task(second_lock.enter_async_context(quotas_locked(database_url)))
            await lock_waiters(connection, 2)
            monkeypatch.setattr(shared_limits, "ANSWER_S", 2)
            second = asyncio.create_task(shared.take("a", 1, 0, 10, 3_600))
            await asyncio.sleep(0)
            monkeypatch.setattr(shared_limits, "ANSWER_S", 20)
            await first_lock.aclose()
            await locking
            assert (await first).requests == 1
            await asyncio.wait({second}, timeout=2.5)
        assert (await second).requests == 1
        assert await open_sessions(connection) == sessions


async def test_turn_ends_although_too_many_requests_wait(
    database: Database, database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with limits(database, connection) as first, limits(database, connection, 2) as second:
        sessions = await open_sessions(connection)
        turn = await taken(first, "a", 1)
        async with quotas_locked(database_url):
            working = asyncio.create_task(first.take("a", 1, 0, 10, 3_600))
            await lock_waiters(connection, 1)
            monkeypatch.setattr(shared_limits, "AWAY_S", 60)
            monkeypatch.setattr(shared_limits, "ANSWER_S", 0.01)
            with pytest.raises(DatabaseUnavailable):
                await first.take("a", 1, 0, 10, 3_600)
            monkeypatch.setattr(shared_limits, "ANSWER_S", 20)
            assert first.away
            ending = asyncio.create_task(first.end_turn(turn))
        assert (await working).requests == 1
        await ending
        await taken(second, "a", 1)
        assert await open_sessions(connection) == sessions


async def lose_session(shared: SharedLimits, connection: Connection, session: int) -> None:
    """Close a session, and wait until there is another one."""
    before = await open_sessions(connection)
    await connection.execute("SELECT pg_terminate_backend($1::integer, 10000)", session)
    async with asyncio.timeout(20):
        while shared.away or await open_sessions(connection) <= before:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)


async def test_lost_session_is_replaced_before_the_next_heartbeat(
    database: Database, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_limits, "HEARTBEAT_S", 3_600)
    async with limits(database, connection) as shared:
        (session,) = await open_sessions(connection)
        await lose_session(shared, connection, session)
        assert (await shared.take("a", 1, 0, 10, 3_600)).requests == 1


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
async def test_client_that_hangs_up_gets_no_turn_and_closes_no_session(
    database: Database, connection: Connection, steps: int
) -> None:
    async with limits(database, connection) as first, limits(database, connection, 2) as second:
        sessions = await open_sessions(connection)
        kept = await taken(first, "kept", 1)
        taking = asyncio.create_task(first.try_turn("a", 1))
        for _ in range(steps):
            await asyncio.sleep(0)
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        turn = await ended_elsewhere(second, "a", 1)
        ending = asyncio.create_task(second.end_turn(turn))
        for _ in range(steps):
            await asyncio.sleep(0)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        await ended_elsewhere(first, "a", 1)
        assert await second.try_turn(kept.client, 1) is None
        assert await open_sessions(connection) == sessions


async def test_no_turn_is_given_twice_if_another_ends_at_the_same_time(
    database: Database, connection: Connection
) -> None:
    async with limits(database, connection) as shared:
        turn = await taken(shared, "a", 2)
        taking = asyncio.create_task(shared.try_turn("a", 2))
        await asyncio.sleep(0)
        await shared.end_turn(turn)
        second, third = await taking, await taken(shared, "a", 2)
        assert second is not None
        assert {second.number, third.number} == {0, 1}
        assert await shared.try_turn("a", 2) is None


async def test_turn_of_a_lost_session_does_not_end_that_of_a_later_export(
    database: Database, connection: Connection
) -> None:
    async with limits(database, connection) as shared:
        (session,) = await open_sessions(connection)
        async with limits(database, connection, 2) as other:
            lost = await taken(shared, "a", 1)
            await lose_session(shared, connection, session)
            assert (await taken(shared, "a", 1)).number == lost.number
            await shared.end_turn(lost)
            assert await shared.try_turn("a", 1) is None
            assert await other.try_turn("a", 1) is None


async def test_export_that_waits_for_another_process_keeps_no_slot(
    database: Database, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ExportQueue, "limits", ExportLimits(per_client=1, queued_per_client=2))

    async def export(client: str) -> None:
        async with queue.slot(client, lambda: None):
            pass

    async with limits(database, connection) as shared, limits(database, connection, 2) as other:
        queue = ExportQueue(1, shared)
        turn = await taken(other, "a", 1)
        waiting = [asyncio.create_task(export("a")) for _ in range(2)]
        await asyncio.sleep(0)
        assert queue.waiting == 2
        with pytest.raises(Problem, match="2 more waiting"):
            await export("a")
        async with asyncio.timeout(10):
            await export("b")
            assert queue.waiting == 2
            await other.end_turn(turn)
            await asyncio.gather(*waiting)
        assert queue.waiting == 0


async def test_export_waits_for_its_turn_and_its_slot_under_one_deadline(
    database: Database, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []

    class Recorded(FairSemaphore):
        async def acquire(self, client: str, timeout_s: float) -> None:
            if client == "a":
                waits.append(timeout_s)
            await super().acquire(client, timeout_s)

    monkeypatch.setattr(export_queue, "FairSemaphore", Recorded)
    async with limits(database, connection) as shared, limits(database, connection, 2) as other:
        queue = ExportQueue(1, shared)
        turns = [await taken(other, "a", 2) for _ in range(2)]

        async def export() -> None:
            async with queue.slot("a", lambda: None):
                pass

        exporting = asyncio.create_task(export())
        await asyncio.wait({exporting}, timeout=0.5)
        await other.end_turn(turns[0])
        async with asyncio.timeout(10):
            await exporting

    # At least one pause between two attempts to get the turn is gone.
    assert waits[0] <= queue.limits.queue_timeout_s
    assert waits[-1] <= queue.limits.queue_timeout_s - export_queue.TURN_POLL_S
