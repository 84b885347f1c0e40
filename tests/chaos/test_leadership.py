"""Of several processes on one database exactly one is the leader, also after failures."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import invariants
from tests.chaos.world import Service, World, start_world

pytestmark = pytest.mark.slow


class Pair:
    """Two services of a world: the leader and the other one, which waits to lead."""

    def __init__(self, world: World, leader: Service, other: Service) -> None:
        self.world = world
        self.leader = leader
        self.other = other

    async def fetch_value(self, statement: str, *values: object) -> Any:
        async with self.world.server.admin() as connection:
            return await connection.fetchval(statement, *values)

    async def wait_until(self, statement: str) -> None:
        """Repeat a query until it returns true."""
        async with asyncio.timeout(60):
            while not await self.fetch_value(statement):  # noqa: ASYNC110 - no event to wait for
                await asyncio.sleep(0.05)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    tmp_path.chmod(0o755)
    async with start_world(tmp_path, "leadership") as world:
        first, second = world.services
        waiting = {
            asyncio.create_task(logged(second, "another_process_leads")): (first, second),
            asyncio.create_task(logged(first, "another_process_leads")): (second, first),
        }
        done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        leader, other = waiting[done.pop()]
        await logged(leader, "run_finished")
        async with world.server.admin() as connection:
            await connection.execute(invariants.WRITE_LOG)
        yield Pair(world, leader, other)


async def logged(service: Service, event: str, count: int = 1, **fields: object) -> list[dict[str, Any]]:
    """Wait until a service has logged this event `count` times; returns the events."""
    async with asyncio.timeout(60):
        while True:
            entries = [
                json.loads(line) for line in service.log.read_text().splitlines() if line.endswith("}")
            ]
            found = [entry for entry in entries if {"event": event, **fields}.items() <= entry.items()]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.05)


async def test_follower_responds_and_runs_nothing(pair: Pair) -> None:
    runs = len(await logged(pair.leader, "run_finished"))
    await logged(pair.leader, "run_finished", runs + 3)

    assert {health["status"] for health in await pair.world.health()} == {"ok"}
    assert "run_started" not in pair.other.log.read_text()


async def test_follower_takes_over_from_a_killed_leader(pair: Pair) -> None:
    await pair.world.control("POST", "faults", {"api": "coingecko", "kind": "hang"})
    run = (await logged(pair.leader, "run_started", 2))[-1]["run"]
    await pair.leader.kill()
    await pair.world.control("DELETE", "faults")

    await logged(pair.other, "run_finished", status="succeeded")

    assert await pair.fetch_value("SELECT status FROM runs WHERE id = $1", run) == "interrupted"
    assert (
        await pair.fetch_value("SELECT error FROM runs WHERE id = $1", run) == "the process of this run ended"
    )


async def test_leader_paused_during_a_batch_is_replaced(pair: Pair) -> None:
    """It loses its lease, and does not write when it continues."""
    async with pair.world.server.admin() as connection, connection.transaction():
        # Every batch locks the row of instance, so the leader stops within its batch, with its rows locked.
        # Reading the row, as every process does to follow the data version, is not blocked.
        await connection.execute("LOCK TABLE instance IN EXCLUSIVE MODE")
        await pair.world.control("POST", "advance")
        await pair.wait_until(
            "SELECT EXISTS(SELECT FROM pg_locks WHERE relation = 'instance'::regclass AND NOT granted)"
        )
        run = await pair.fetch_value("SELECT max(id) FROM runs")
        pair.leader.signal(signal.SIGSTOP)

    await logged(pair.other, "run_finished", status="succeeded")
    assert await pair.fetch_value("SELECT status FROM runs WHERE id = $1", run) == "interrupted"
    pair.leader.signal(signal.SIGCONT)
    await logged(pair.leader, "run_lease_lost")
    await logged(pair.leader, "another_process_leads")

    assert await pair.fetch_value("SELECT status FROM runs WHERE id = $1", run) == "interrupted"
    assert await late_writes(pair, run) == 0


async def test_follower_takes_over_from_a_disconnected_leader(pair: Pair) -> None:
    pair.leader.database.block()
    await logged(pair.leader, "lease_lost")
    await logged(pair.other, "run_finished", status="succeeded")
    runs_of_leader = {event["run"] for event in await logged(pair.leader, "run_started")}
    pair.leader.database.forward()

    await logged(pair.leader, "another_process_leads")
    runs = len(await logged(pair.other, "run_finished"))
    await logged(pair.other, "run_finished", runs + 2)

    assert {event["run"] for event in await logged(pair.leader, "run_started")} == runs_of_leader
    for run in runs_of_leader:
        assert await late_writes(pair, run) == 0


async def late_writes(pair: Pair, run: int) -> int:
    """How often a run wrote after a later run had started."""
    count: int = await pair.fetch_value(
        "SELECT count(*) FROM write_log WHERE run_id = $1 AND wrote AND number >"
        " (SELECT min(number) FROM write_log WHERE run_id > $1)",
        run,
    )
    return count
