"""Of several processes on one database exactly one runs the loop, whatever becomes of it."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import invariants
from tests.chaos.world import Service, World, world


class Pair:
    """Two services that have come up: the one that leads, and the one that waits to."""

    def __init__(self, built: World, leader: Service, other: Service) -> None:
        self.world = built
        self.leader = leader
        self.other = other

    async def ask(self, statement: str, *values: object) -> Any:
        async with self.world.server.admin() as connection:
            return await connection.fetchval(statement, *values)

    async def until(self, statement: str) -> None:
        """Ask until it is true."""
        async with asyncio.timeout(60):
            while not await self.ask(statement):  # noqa: ASYNC110 - a database tells nobody
                await asyncio.sleep(0.05)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    tmp_path.chmod(0o755)
    async with world(tmp_path, "leadership") as built:
        one, two = built.services
        waiting = {
            asyncio.create_task(logged(two, "another process runs the loop")): (one, two),
            asyncio.create_task(logged(one, "another process runs the loop")): (two, one),
        }
        done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        leader, other = waiting[done.pop()]
        await logged(leader, "run finished")
        async with built.server.admin() as connection:
            await connection.execute(invariants.WITNESS)
        yield Pair(built, leader, other)


async def logged(service: Service, event: str, count: int = 1, **fields: object) -> list[dict[str, Any]]:
    """Wait until a service has logged so many of these events; gives them."""
    async with asyncio.timeout(60):
        while True:
            told = [json.loads(line) for line in service.log.read_text().splitlines() if line.endswith("}")]
            found = [one for one in told if {"event": event, **fields}.items() <= one.items()]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.05)


async def test_the_other_answers_and_runs_nothing(pair: Pair) -> None:
    runs = len(await logged(pair.leader, "run finished"))
    await logged(pair.leader, "run finished", runs + 3)

    assert {told["status"] for told in await pair.world.health()} == {"ok"}
    assert "run started" not in pair.other.log.read_text()


async def test_when_the_leader_is_killed_the_other_takes_over_and_marks_its_run(pair: Pair) -> None:
    await pair.world.control("POST", "faults", {"api": "coingecko", "kind": "hang"})
    run = (await logged(pair.leader, "run started", 2))[-1]["run"]
    await pair.leader.kill()
    await pair.world.control("DELETE", "faults")

    await logged(pair.other, "run finished", status="succeeded")

    assert await pair.ask("SELECT status FROM runs WHERE id = $1", run) == "interrupted"
    assert await pair.ask("SELECT error FROM runs WHERE id = $1", run) == "the process of this run ended"


async def test_a_leader_that_stands_still_in_mid_batch_is_replaced_and_steps_back_when_it_goes_on(
    pair: Pair,
) -> None:
    async with pair.world.server.admin() as connection, connection.transaction():
        # Every batch locks this row, so the leader's is open when it stops, and its rows are locked. Who only
        # reads it, as every process does to follow the version, waits for nothing.
        await connection.execute("LOCK TABLE instance IN EXCLUSIVE MODE")
        await pair.world.control("POST", "advance")
        await pair.until(
            "SELECT EXISTS(SELECT FROM pg_locks WHERE relation = 'instance'::regclass AND NOT granted)"
        )
        run = await pair.ask("SELECT max(id) FROM runs")
        pair.leader.signal(signal.SIGSTOP)

    await logged(pair.other, "run finished", status="succeeded")
    assert await pair.ask("SELECT status FROM runs WHERE id = $1", run) == "interrupted"
    pair.leader.signal(signal.SIGCONT)
    await logged(pair.leader, "run lost")
    await logged(pair.leader, "another process runs the loop")

    assert await pair.ask("SELECT status FROM runs WHERE id = $1", run) == "interrupted"
    assert await wrote_after(pair, run) == 0


async def test_a_leader_whose_packets_are_dropped_stops_and_the_other_takes_over(pair: Pair) -> None:
    pair.leader.database.swallow()
    await logged(pair.leader, "lock lost")
    await logged(pair.other, "run finished", status="succeeded")
    mine = {told["run"] for told in await logged(pair.leader, "run started")}
    pair.leader.database.pass_on()

    await logged(pair.leader, "another process runs the loop")
    runs = len(await logged(pair.other, "run finished"))
    await logged(pair.other, "run finished", runs + 2)

    assert {told["run"] for told in await logged(pair.leader, "run started")} == mine
    for one in mine:
        assert await wrote_after(pair, one) == 0


async def wrote_after(pair: Pair, run: int) -> int:
    """How often a run wrote when a later one had begun."""
    count: int = await pair.ask(
        "SELECT count(*) FROM witness WHERE run_id = $1 AND wrote AND number >"
        " (SELECT min(number) FROM witness WHERE run_id > $1)",
        run,
    )
    return count
