"""One round after another: break the world, mend it, wait for its recovery, check what must hold."""

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

from kasparro.simulator.answers import Given
from tests.chaos import invariants
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.model import Coin, Model, of_answer, of_archive
from tests.chaos.traffic import Ledger, traffic
from tests.chaos.world import World, world

# After so many rounds everything starts anew: other coins, and tables that are quick to compare.
ROUNDS_A_WORLD = 20
RECOVERY_S = 60.0
PAGE_SIZE = 250


class Broken(AssertionError):
    """Something did not hold; the text says what, a line each."""


class Planned(NamedTuple):
    """A fault of a round: when it strikes and how long it is left."""

    fault: Fault
    begins: float
    lasts: float


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What a round that passed has seen."""

    number: int
    faults: list[str]
    seconds: float
    recovery_s: float
    """From the last fault's mending to the end of the run that was whole again."""
    answers: Counter[str]
    runs: Counter[str]


class Deck:
    """Deals faults so that each comes up as often as any other."""

    def __init__(self, seed: str) -> None:
        self._chance = random.Random(f"{seed} deck")
        self._left: list[Fault] = []

    def deal(self, count: int) -> list[Fault]:
        """So many faults of different groups."""
        dealt: list[Fault] = []
        passed: list[Fault] = []
        while len(dealt) < count:
            if not self._left:
                self._left = self._chance.sample(FAULTS, len(FAULTS))
            fault = self._left.pop()
            (passed if any(fault.group == other.group for other in dealt) else dealt).append(fault)
        self._left += reversed(passed)
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

    def __init__(self, built: World, seed: str) -> None:
        self.world = built
        self._seed = seed
        self._model = Model()
        self._seen: Counter[str] = Counter()
        self._heard = 0
        self._read: dict[str, int] = {}
        self._last_run = 0

    async def prepare(self) -> None:
        """Wait until the world has come up, and call a witness."""
        await _wait_until(self._succeeded_after(0), RECOVERY_S, "no run succeeded in an unbroken world")
        async with self.world.server.admin() as connection:
            await connection.execute(invariants.WITNESS)

    async def play(self, number: int, plan: list[Planned]) -> Round:
        """One round. Raises Broken, or what a fault could not stand."""
        built, chance = self.world, random.Random(f"{self._seed} round {number}")
        built.ledger, built.alone = Ledger(), len(plan) == 1
        built.notes.clear()
        began = time.monotonic()
        urls = {service.name: service.url for service in built.services}
        async with traffic(built.ledger, urls, chance):
            async with asyncio.TaskGroup() as group:
                for planned in plan:
                    group.create_task(self._strike(planned, random.Random(chance.random())))
                group.create_task(self._move(random.Random(chance.random())))
            mended = time.monotonic()
            built.note("mended")
            final, runs = await self._recovered()
            recovery_s = time.monotonic() - mended
            built.note("recovered")
            await _wait_until(self._healthy, 20, "a service's /health is not ok, though all is well")
            await _wait_until(self._led, 20, "not one process leads, but none or several")
        wrong = built.ledger.judged() + self._logged() + await self._checked(final)
        if wrong:
            raise Broken("\n".join(wrong[:20]))
        return Round(
            number=number,
            faults=[planned.fault.name for planned in plan],
            seconds=time.monotonic() - began,
            recovery_s=recovery_s,
            answers=built.ledger.answers,
            runs=runs,
        )

    async def close(self) -> None:
        """End the services as an operator would. Raises Broken where that leaves something behind."""
        codes = await asyncio.gather(*(service.stop() for service in self.world.services))
        async with self.world.server.admin() as connection:
            running = await connection.fetchval("SELECT count(*) FROM runs WHERE status = 'running'")
        if any(codes) or running:
            raise Broken(f"the services ended with {codes}, {running} runs were left running")

    async def _strike(self, planned: Planned, chance: random.Random) -> None:
        name = planned.fault.name
        await asyncio.sleep(planned.begins)
        self.world.note(f"begins: {name}")
        async with planned.fault.strike(self.world, chance):
            self.world.note(f"is there: {name}")
            await asyncio.sleep(planned.lasts)
            self.world.note(f"to be mended: {name}")
        self.world.note(f"mended: {name}")

    async def _move(self, chance: random.Random) -> None:
        """Let the market move, and archives come in, in the middle of it all."""
        for _ in range(chance.randint(1, 3)):
            await asyncio.sleep(chance.uniform(0.1, 0.7))
            with suppress(aiohttp.ClientError, TimeoutError):
                await self.world.control("POST", "advance")
                self.world.note("the market moves")
            if chance.random() < 0.4:
                self.world.write_archive()
                self.world.note("an archive comes in")

    async def _recovered(self) -> tuple[list[Coin], Counter[str]]:
        """Wait for runs that succeed and bring every page; gives the coins that they told, and how the runs
        of the round ended."""
        calls = await self.world.calls(sum(self._seen.values()))
        self._seen.update(calls)
        mended_at = sum(self._seen.values())
        async with self.world.server.admin() as connection:
            newest = await connection.fetchval("SELECT coalesce(max(id), 0) FROM runs")
        told: list[Given] = []

        async def whole() -> bool:
            nonlocal told
            if not await self._succeeded_after(newest)():
                return False
            told = await self.world.answers(mended_at)
            return _whole(told)

        await _wait_until(whole, RECOVERY_S, f"no run succeeded within {RECOVERY_S:.0f} s")
        everything = await self.world.answers(self._heard)
        for given in everything:
            self._model.hear(of_answer(given))
        self._heard = max(given.number for given in everything)
        await self.world.control("DELETE", f"answers?through={self._heard}")
        final = {coin for given in told for coin, _ in of_answer(given)}
        for archive in sorted(self.world.archives.glob("*.csv")):
            records = list(of_archive(archive))
            self._model.hear(records)
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

    async def _healthy(self) -> bool:
        return all(told["status"] == "ok" for told in await self.world.health())

    async def _led(self) -> bool:
        async with self.world.server.admin() as connection:
            leaders = await connection.fetchval(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
                " AND (classid::bigint << 32 | objid::bigint) = hashtextextended('kasparro loop', 0)"
            )
        return bool(leaders == 1)

    def _logged(self) -> list[str]:
        wrong = []
        for service in self.world.services:
            with service.log.open("rb") as log:
                log.seek(self._read.get(service.name, 0))
                lines = log.read()
            whole = lines[: lines.rfind(b"\n") + 1]
            self._read[service.name] = self._read.get(service.name, 0) + len(whole)
            found = invariants.of_log(whole.decode(errors="replace").splitlines())
            wrong += [f"{service.name} logged {line}" for line in found]
        return wrong

    async def _checked(self, final: list[Coin]) -> list[str]:
        self._seen.update(await self.world.calls(sum(self._seen.values())))
        async with self.world.server.admin() as connection:
            return await invariants.broken(connection, self._model, final, self._seen)


def _whole(told: list[Given]) -> bool:
    """Whether these answers hold the whole of both lists."""
    pages = {(given.api, given.page): sum(1 for _ in of_answer(given)) for given in told}
    gecko = {page: coins for (api, page), coins in pages.items() if api == "coingecko"}
    last = min((page for page, coins in gecko.items() if coins < PAGE_SIZE), default=None)
    return ("coinpaprika", 1) in pages and last is not None and all(page in gecko for page in range(1, last))


async def _wait_until(holds: Callable[[], Awaitable[bool]], seconds: float, otherwise: str) -> None:
    end = time.monotonic() + seconds
    while True:
        with suppress(OSError, TimeoutError, aiohttp.ClientError, asyncpg.PostgresError):
            if await holds():
                return
        if time.monotonic() > end:
            raise Broken(otherwise)
        await asyncio.sleep(0.1)


@asynccontextmanager
async def series(folder: Path, seed: str) -> AsyncIterator[Series]:
    """A new world, ready to be broken."""
    async with world(folder, seed) as built:
        made = Series(built, seed)
        await made.prepare()
        yield made
