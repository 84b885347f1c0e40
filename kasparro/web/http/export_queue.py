"""Who may export when: each client in its turn, and an end to readers so slow that others wait for them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import ClassVar

import msgspec
import structlog

from kasparro.errors import DatabaseBusy
from kasparro.log_rate import RateLimitedLog
from kasparro.places import Places
from kasparro.web.http.problems import Problem

client_log = RateLimitedLog(structlog.get_logger())


class ExportLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What exports may take.

    A client has at most `per_client` exports at work, and `queued_per_client` more that wait for up to
    `queue_timeout_s`. While other exports wait, a client must read `min_bytes_per_s` (before compression),
    averaged over each `window_s` of waiting for it.
    """

    per_client: int = 2
    queued_per_client: int = 126
    queue_timeout_s: float = 30.0
    min_bytes_per_s: int = 262_144
    window_s: float = 10.0


class ExportSlot:
    """One export at work: how fast its client reads, and how to cut it."""

    def __init__(self, client: str, cut: Callable[[], None], limits: ExportLimits) -> None:
        self.client = client
        self.cut = cut
        self._limits = limits
        self._slow = False
        self._bytes = 0
        self._waited_s = 0.0
        self._since: float | None = None

    @contextmanager
    def sending(self, size: int) -> Iterator[None]:
        """A block in which we wait for the client to take so many bytes."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._waited_s += time.monotonic() - self._since
            self._since = None
            self._bytes += size
            if self._waited_s >= self._limits.window_s:
                self._slow = self._lags(self._waited_s)
                self._bytes, self._waited_s = 0, 0.0

    def slow(self) -> bool:
        """Whether its client falls behind the pace."""
        waited_s = self._waited_s + (0.0 if self._since is None else time.monotonic() - self._since)
        return self._lags(waited_s) if waited_s >= self._limits.window_s else self._slow

    def _lags(self, waited_s: float) -> bool:
        return self._bytes < self._limits.min_bytes_per_s * waited_s


class ExportQueue:
    """So many exports at once of all clients, in the order of `Places`."""

    limits: ClassVar[ExportLimits] = ExportLimits()

    def __init__(self, places: int) -> None:
        self._places = Places(places, self.limits.per_client)
        self._working: list[ExportSlot] = []
        self._looking: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._places.waiting

    @asynccontextmanager
    async def slot(self, client: str, cut: Callable[[], None]) -> AsyncIterator[ExportSlot]:
        """A block that has its turn; `cut` ends the connection of its client.

        Raises Problem (429) where too many of this client wait already, DatabaseBusy where the wait is too
        long.
        """
        if self._places.waiting_of(client) >= self.limits.queued_per_client:
            raise _too_many(self.limits)
        if self._looking is None:
            self._look_again()
        try:
            await self._places.take(client, self.limits.queue_timeout_s)
        except TimeoutError:
            raise DatabaseBusy("no export ended within the time that others wait for one") from None
        turn = ExportSlot(client, cut, self.limits)
        self._working.append(turn)
        try:
            yield turn
        finally:
            self._working.remove(turn)
            self._places.give_back(client)

    def _look_again(self) -> None:
        loop = asyncio.get_running_loop()
        self._looking = loop.call_later(self.limits.window_s / 10, self._look)

    def _look(self) -> None:
        # One at a time, for one place is what somebody waits for.
        self._looking = None
        if not self._places.wanted:
            return
        slow = next((turn for turn in self._working if turn.slow()), None)
        if slow is not None:
            client_log.info("slow_export_aborted", client=slow.client)
            slow.cut()
        self._look_again()


def _too_many(limits: ExportLimits) -> Problem:
    return Problem(
        429,
        f"A client can have {limits.per_client} exports at work and {limits.queued_per_client} more waiting.",
        kind="too-many-exports",
        title="Too many exports",
        headers={"Retry-After": f"{limits.queue_timeout_s:.0f}"},
    )
