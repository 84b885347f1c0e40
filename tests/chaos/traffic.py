"""Clients that never stop asking while the world breaks, and what they may be told."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

import aiohttp

PATHS = (
    "/data?limit=50",
    "/data?q=coin&sort=-market_cap_usd",
    "/data/csv/coin-1",
    "/stats",
    "/runs?limit=5",
    "/tables",
    "/health",
    "/health/live",
)
# What was on its way when the database went is still answered from what it had said.
MARGIN_S = 0.3


class Spell(NamedTuple):
    """A time in which something held of a service."""

    service: str
    began: float
    ended: float


class Health(NamedTuple):
    """What /health said, and when it was asked and had answered."""

    service: str
    asked: float
    answered: float
    status: int


class Ledger:
    """What clients saw in a round, and what was known to be out of order meanwhile."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._health: list[Health] = []
        self._away: list[Spell] = []
        self._disturbed: list[Spell] = []
        self._silences: list[tuple[Spell, str]] = []

    @contextmanager
    def away(self, *services: str) -> Iterator[None]:
        """The time in which these services could not reach their database for sure."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._away += [Spell(service, began, time.monotonic()) for service in services]

    @contextmanager
    def disturbed(self, *services: str) -> Iterator[None]:
        """The time in which these services may not answer."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._disturbed += [Spell(service, began, time.monotonic()) for service in services]

    async def ask(
        self,
        session: aiohttp.ClientSession,
        service: str,
        url: str,
        *,
        method: str = "GET",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Ask once, and judge the answer."""
        asked = time.monotonic()
        try:
            async with session.request(method, url, headers=headers) as reply:
                body = await reply.read()
                status, kind = reply.status, reply.content_type
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            silence = Spell(service, asked, time.monotonic())
            self._silences.append((silence, f"{method} {url}: {type(error).__name__}: {error}"))
            self.answers["none"] += 1
            return
        self.answers[str(status)] += 1
        self.wrong += _faults_of(f"{method} {url}", status, kind, body)
        if url.endswith("/health"):
            self._health.append(Health(service, asked, time.monotonic(), status))

    def judged(self) -> list[str]:
        """All that clients should not have seen."""
        wrong = list(self.wrong)
        for silence, text in self._silences:
            if not any(
                silence.service == spell.service
                and silence.began <= spell.ended
                and spell.began <= silence.ended
                for spell in self._disturbed
            ):
                wrong.append(f"no answer: {text}")
        for health in self._health:
            for spell in self._away:
                inside = spell.began + MARGIN_S < health.asked and health.answered < spell.ended
                if spell.service == health.service and inside and health.status != 503:
                    wrong.append(f"/health of {health.service} said {health.status} without its database")
        return wrong


def _faults_of(what: str, status: int, kind: str, body: bytes) -> list[str]:
    if b"Traceback" in body or status == 500:
        return [f"{what} answered {status}: {body[:500]!r}"]
    try:
        told = json.loads(body)
    except ValueError:
        return [f"{what} answered {status} with no JSON: {body[:500]!r}"]
    problem = {"type", "title", "status", "detail", "request_id"} <= set(told)
    if status >= 400 and not problem and not (status == 503 and "database" in told):
        return [f"{what} answered {status} with no problem document: {body[:500]!r}"]
    if problem and kind != "application/problem+json":
        return [f"{what} answered a problem as {kind}"]
    return []


@asynccontextmanager
async def traffic(ledger: Ledger, services: dict[str, str], chance: random.Random) -> AsyncIterator[None]:
    """Clients of these services (name and base URL) for as long as the block lasts."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=40)) as session:

        async def client(service: str, base: str, seed: float) -> None:
            mine = random.Random(seed)
            while True:
                await ledger.ask(session, service, base + mine.choice(PATHS))
                await asyncio.sleep(0.05)

        clients = [
            asyncio.create_task(client(service, base, chance.random()))
            for service, base in services.items()
            for _ in range(2)
        ]
        try:
            yield
        finally:
            for task in clients:
                task.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
