"""Clients that send requests throughout a round, and which responses they may get."""

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
    "/health/ready",
)
# Requests that were under way when the database failed may still succeed.
MARGIN_S = 0.3


class Interval(NamedTuple):
    """A time span of one service, in seconds of the monotonic clock."""

    service: str
    start: float
    end: float


class HealthResponse(NamedTuple):
    """The status of a response of /health, and the interval of its request."""

    interval: Interval
    status: int


class ClientLog:
    """The responses of a round, and the intervals in which errors are expected."""

    def __init__(self) -> None:
        self.responses: Counter[str] = Counter()
        self._wrong: list[str] = []
        self._health: list[HealthResponse] = []
        self._database_down: list[Interval] = []
        self._service_down: list[Interval] = []
        self._unanswered: list[tuple[Interval, str]] = []

    @contextmanager
    def database_down(self, *services: str) -> Iterator[None]:
        """While this lasts, these services certainly cannot reach their database."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._database_down += [Interval(service, start, time.monotonic()) for service in services]

    @contextmanager
    def service_down(self, *services: str) -> Iterator[None]:
        """While this lasts, these services need not respond."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._service_down += [Interval(service, start, time.monotonic()) for service in services]

    async def request(
        self,
        session: aiohttp.ClientSession,
        service: str,
        url: str,
        *,
        method: str = "GET",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send a request, and check its response."""
        start = time.monotonic()
        try:
            async with session.request(method, url, headers=headers) as reply:
                body = await reply.read()
                status, kind = reply.status, reply.content_type
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            interval = Interval(service, start, time.monotonic())
            self._unanswered.append((interval, f"{method} {url}: {type(error).__name__}: {error}"))
            self.responses["none"] += 1
            return
        self.responses[str(status)] += 1
        self._wrong += _problems_of(f"{method} {url}", status, kind, body)
        if url.endswith("/health"):
            self._health.append(HealthResponse(Interval(service, start, time.monotonic()), status))

    def violations(self) -> list[str]:
        """Describes all responses that clients should not have got."""
        wrong = list(self._wrong)
        for request, text in self._unanswered:
            if not any(
                request.service == down.service and request.start <= down.end and down.start <= request.end
                for down in self._service_down
            ):
                wrong.append(f"no response: {text}")
        for request, status in self._health:
            for down in self._database_down:
                inside = down.start + MARGIN_S < request.start and request.end < down.end
                if down.service == request.service and inside and status != 503:
                    wrong.append(f"/health of {request.service} returned {status} without its database")
        return wrong


def _problems_of(what: str, status: int, kind: str, body: bytes) -> list[str]:
    if b"Traceback" in body or status == 500:
        return [f"{what} returned {status}: {body[:500]!r}"]
    try:
        content = json.loads(body)
    except ValueError:
        return [f"{what} returned {status} without JSON: {body[:500]!r}"]
    problem = {"type", "title", "status", "detail", "request_id"} <= set(content)
    if status >= 400 and not problem and not (status == 503 and {"database", "reason"} & set(content)):
        return [f"{what} returned {status} without a problem document: {body[:500]!r}"]
    if problem and kind != "application/problem+json":
        return [f"{what} returned a problem as {kind}"]
    return []


@asynccontextmanager
async def traffic(log: ClientLog, services: dict[str, str], chance: random.Random) -> AsyncIterator[None]:
    """Run clients of these services (base URLs by name) while the block runs."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=40)) as session:

        async def client(service: str, base: str, seed: float) -> None:
            client_chance = random.Random(seed)
            while True:
                await log.request(session, service, base + client_chance.choice(PATHS))
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
