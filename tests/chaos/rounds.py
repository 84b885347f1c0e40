"""Rounds of faults: inject them, repair, wait for recovery, check the invariants."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import aiohttp
import asyncpg
import msgspec

from kasparro.simulator.served import ServedResponse
from tests.chaos import invariants
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.model import Coin, Model, records_of_archive, records_of_response
from tests.chaos.traffic import ClientLog, traffic
from tests.chaos.world import World, start_world

# Then a new world starts: with other coins, and with small tables, which are quick to compare.
ROUNDS_A_WORLD = 20
RECOVERY_S = 60.0
PAGE_SIZE = 250


class InvariantViolated(AssertionError):
    """Describes each violation in one line."""


class Planned(NamedTuple):
    """A fault of a round: its start and its duration, in seconds."""

    fault: Fault
    starts_after_s: float
    lasts_s: float


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a round that passed."""

    number: int
    faults: list[str]
    seconds: float
    recovery_s: float
    """From the repair of the last fault to the end of the first complete run."""
    responses: Counter[str]
    runs: Counter[str]


class Deck:
    """Deals faults so that all occur equally often."""

    def __init__(self, seed: str) -> None:
        self._chance = random.Random(f"{seed} deck")
        self._cards: list[Fault] = []

    def deal(self, count: int) -> list[Fault]:
        """`count` faults of different groups."""
        dealt: list[Fault] = []
        set_aside: list[Fault] = []
        while len(dealt) < count:
            if not self._cards:
                self._cards = self._chance.sample(FAULTS, len(FAULTS))
            fault = self._cards.pop()
            (set_aside if any(fault.group == other.group for other in dealt) else dealt).append(fault)
        self._cards += reversed(set_aside)
        return dealt


def plans(seed: str, rounds: int) -> list[list[Planned]]:
    """The faults of each round; the same for the same seed."""
    deck, chance = Deck(seed), random.Random(f"{seed} plans")
    planned = []
    for _ in range(rounds):
        faults = deck.deal(chance.choices((1, 2, 3), (4, 4, 2))[0])
        planned.append(
            [Planned(fault, chance.uniform(0, 1.2), chance.uniform(*fault.lasts)) for fault in faults]
        )
    return planned


class Series:
    """Rounds in one world."""

    def __init__(self, world: World, seed: str) -> None:
        self.world = world
        self._seed = seed
        self._model = Model()
        self._upstream_calls: Counter[str] = Counter()
        self._last_added_call = 0
        self._log_offsets: dict[str, int] = {}
        self._last_run = 0

    async def prepare(self) -> None:
        """Wait for the first successful run, and install the write log."""
        await _wait_until(self._succeeded_after(0), RECOVERY_S, "no run succeeded before the first fault")
        async with self.world.server.admin() as connection:
            await connection.execute(invariants.WRITE_LOG)

    async def run(self, number: int, plan: list[Planned]) -> Round:
        """Run one round. Raises InvariantViolated, or the error of a fault."""
        world, chance = self.world, random.Random(f"{self._seed} round {number}")
        world.client_log, world.single_fault = ClientLog(), len(plan) == 1
        world.notes.clear()
        began = time.monotonic()
        urls = {service.name: service.url for service in world.services}
        async with traffic(world.client_log, urls, chance):
            async with asyncio.TaskGroup() as group:
                for planned in plan:
                    group.create_task(self._inject(planned, random.Random(chance.random())))
                group.create_task(self._send_news(random.Random(chance.random())))
            repaired_at = time.monotonic()
            world.note("all repaired")
            final, runs = await self._wait_for_recovery()
            recovery_s = time.monotonic() - repaired_at
            world.note("recovered")
            await _wait_until(self._healthy, 20, "a service's /health is not ok after recovery")
            await _wait_until(self._has_one_leader, 20, "there is no leader, or more than one")
        wrong = world.client_log.violations() + self._log_violations() + await self._table_violations(final)
        if wrong:
            raise InvariantViolated("\n".join(wrong[:20]))
        return Round(
            number=number,
            faults=[planned.fault.name for planned in plan],
            seconds=time.monotonic() - began,
            recovery_s=recovery_s,
            responses=world.client_log.responses,
            runs=runs,
        )

    async def close(self) -> None:
        """Stop the services by SIGTERM. Raises InvariantViolated if a run is left running."""
        codes = await asyncio.gather(*(service.stop() for service in self.world.services))
        async with self.world.server.admin() as connection:
            running = await connection.fetchval("SELECT count(*) FROM runs WHERE status = 'running'")
        if any(codes) or running:
            raise InvariantViolated(f"the services ended with {codes}, {running} runs were left running")

    async def _inject(self, planned: Planned, chance: random.Random) -> None:
        name = planned.fault.name
        await asyncio.sleep(planned.starts_after_s)
        self.world.note(f"starts: {name}")
        async with planned.fault.inject(self.world, chance):
            self.world.note(f"injected: {name}")
            await asyncio.sleep(planned.lasts_s)
            self.world.note(f"repairing: {name}")
        self.world.note(f"repaired: {name}")

    async def _send_news(self, chance: random.Random) -> None:
        """Move the market and add archives during the faults."""
        for _ in range(chance.randint(1, 3)):
            await asyncio.sleep(chance.uniform(0.1, 0.7))
            with suppress(aiohttp.ClientError, TimeoutError):
                await self.world.control("POST", "advance")
                self.world.note("market moved")
            if chance.random() < 0.4:
                self.world.write_archive()
                self.world.note("archive added")

    async def _wait_for_recovery(self) -> tuple[list[Coin], Counter[str]]:
        """Wait for runs that succeed and fetch every page.

        Returns the coins that these runs reported, and the number of the round's runs by status.
        """
        calls = await self.world.calls(sum(self._upstream_calls.values()))
        self._upstream_calls.update(calls)
        calls_before = sum(self._upstream_calls.values())
        async with self.world.server.admin() as connection:
            newest = await connection.fetchval("SELECT coalesce(max(id), 0) FROM runs")
        responses: list[ServedResponse] = []

        async def complete() -> bool:
            nonlocal responses
            if not await self._succeeded_after(newest)():
                return False
            responses = await self.world.responses(calls_before)
            return _complete(responses)

        await _wait_until(complete, RECOVERY_S, f"no run succeeded within {RECOVERY_S:.0f} s")
        # After a crawl that was resumed, a run that is still at work may have fetched the other pages.
        await _wait_until(await self._runs_ended(), RECOVERY_S, f"a run lasts longer than {RECOVERY_S:.0f} s")
        everything = await self.world.responses(self._last_added_call)
        for given in everything:
            self._model.add(records_of_response(given))
        self._last_added_call = max(given.number for given in everything)
        await self.world.control("DELETE", f"served?through={self._last_added_call}")
        final = {coin for given in responses for coin, _ in records_of_response(given)}
        for archive in sorted(self.world.archives.glob("*.csv")):
            records = list(records_of_archive(archive))
            self._model.add(records)
            final |= {coin for coin, _ in records}
        async with self.world.server.admin() as connection:
            rows = await connection.fetch(
                "SELECT id, status FROM runs WHERE id > $1 AND status <> 'running' ORDER BY id",
                self._last_run,
            )
        self._last_run = rows[-1]["id"]
        return sorted(final), Counter(row["status"] for row in rows)

    def _succeeded_after(self, run: int) -> Callable[[], Awaitable[bool]]:
        async def succeeded() -> bool:
            async with self.world.server.admin() as connection:
                return bool(
                    await connection.fetchval(
                        "SELECT EXISTS(SELECT FROM runs WHERE id > $1 AND status = 'succeeded')", run
                    )
                )

        return succeeded

    async def _runs_ended(self) -> Callable[[], Awaitable[bool]]:
        # Whether all runs that have started by now have ended.
        async with self.world.server.admin() as connection:
            newest = await connection.fetchval("SELECT max(id) FROM runs")

        async def ended() -> bool:
            async with self.world.server.admin() as connection:
                return not await connection.fetchval(
                    "SELECT EXISTS(SELECT FROM runs WHERE id <= $1 AND status = 'running')", newest
                )

        return ended

    async def _healthy(self) -> bool:
        return all(health["status"] == "ok" for health in await self.world.health())

    async def _has_one_leader(self) -> bool:
        async with self.world.server.admin() as connection:
            leaders = await connection.fetchval(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
                " AND (classid::bigint << 32 | objid::bigint) = hashtextextended('kasparro loop', 0)"
            )
        return bool(leaders == 1)

    def _log_violations(self) -> list[str]:
        wrong = []
        for service in self.world.services:
            with service.log.open("rb") as log:
                log.seek(self._log_offsets.get(service.name, 0))
                lines = log.read()
            complete = lines[: lines.rfind(b"\n") + 1]
            self._log_offsets[service.name] = self._log_offsets.get(service.name, 0) + len(complete)
            found = invariants.unexpected_log_lines(complete.decode(errors="replace").splitlines())
            wrong += [f"{service.name} logged {line}" for line in found]
        return wrong

    async def _table_violations(self, final: list[Coin]) -> list[str]:
        self._upstream_calls.update(await self.world.calls(sum(self._upstream_calls.values())))
        async with self.world.server.admin() as connection:
            return await invariants.violations(connection, self._model, final, self._upstream_calls)


def _complete(responses: list[ServedResponse]) -> bool:
    """Whether these responses contain all pages of both lists."""
    pages = {(given.api, given.page): sum(1 for _ in records_of_response(given)) for given in responses}
    gecko = {page: coins for (api, page), coins in pages.items() if api == "coingecko"}
    last = min((page for page, coins in gecko.items() if coins < PAGE_SIZE), default=None)
    return ("coinpaprika", 1) in pages and last is not None and all(page in gecko for page in range(1, last))


async def _wait_until(condition: Callable[[], Awaitable[bool]], seconds: float, otherwise: str) -> None:
    end = time.monotonic() + seconds
    while True:
        with suppress(OSError, TimeoutError, aiohttp.ClientError, asyncpg.PostgresError):
            if await condition():
                return
        if time.monotonic() > end:
            raise InvariantViolated(otherwise)
        await asyncio.sleep(0.1)


@asynccontextmanager
async def start_series(folder: Path, seed: str) -> AsyncIterator[Series]:
    """A new world after its first successful run."""
    async with start_world(folder, seed) as world:
        new_series = Series(world, seed)
        await new_series.prepare()
        yield new_series
