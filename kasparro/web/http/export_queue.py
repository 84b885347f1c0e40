"""Lets a bounded number of exports run at once, fairly between clients, and ends those of slow readers."""

import asyncio
import contextvars
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import ClassVar

import msgspec
import structlog

from kasparro.errors import DatabaseBusy, DatabaseUnavailable
from kasparro.fair_semaphore import FairSemaphore
from kasparro.log_rate import RateLimitedLog
from kasparro.store.shared_limits import SharedLimits, Turn
from kasparro.web.http.problems import Problem

client_log = RateLimitedLog(structlog.get_logger())

# Between two attempts to get a turn that all processes share.
TURN_POLL_S = 0.2


class ExportLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of exports.

    A client has at most `per_client` exports running, and `queued_per_client` more that wait for up to
    `queue_timeout_s`. While other exports wait, a client must read `min_bytes_per_s` (before compression),
    averaged over each `window_s` of waiting for it.
    """

    per_client: int = 2
    queued_per_client: int = 126
    queue_timeout_s: float = 30.0
    min_bytes_per_s: int = 262_144
    window_s: float = 10.0


class ExportSlot:
    """One running export: measures how fast its client reads; `abort` ends it."""

    def __init__(self, client: str, abort: Callable[[], None], limits: ExportLimits) -> None:
        self.client = client
        self.abort = abort
        self.context = contextvars.copy_context()
        self._limits = limits
        self._slow = False
        self._bytes = 0
        self._waited_s = 0.0
        self._since: float | None = None

    @contextmanager
    def sending(self, size: int) -> Iterator[None]:
        """A block that waits for the client to read this number of bytes."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._waited_s += time.monotonic() - self._since
            self._since = None
            self._bytes += size
            if self._waited_s >= self._limits.window_s:
                self._slow = self._too_slow(self._waited_s)
                self._bytes, self._waited_s = 0, 0.0

    @property
    def slow(self) -> bool:
        """Whether the client reads more slowly than it must."""
        waited_s = self._waited_s + (0.0 if self._since is None else time.monotonic() - self._since)
        return self._too_slow(waited_s) if waited_s >= self._limits.window_s else self._slow

    def _too_slow(self, waited_s: float) -> bool:
        return self._bytes < self._limits.min_bytes_per_s * waited_s


class ExportQueue:
    """Admits `slots` exports at once, in the fair order of `FairSemaphore`."""

    limits: ClassVar[ExportLimits] = ExportLimits()

    def __init__(self, slots: int, shared: SharedLimits | None = None) -> None:
        self._shared = shared
        self._slots = FairSemaphore(slots, self.limits.per_client)
        # Of the waiting exports of a client, so many ask for a turn that all processes share.
        self._askers = FairSemaphore(sys.maxsize, self.limits.per_client)
        self._waiting: Counter[str] = Counter()
        self._running: list[ExportSlot] = []
        self._check: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """The number of waiting exports."""
        return self._waiting.total()

    @asynccontextmanager
    async def slot(self, client: str, abort: Callable[[], None]) -> AsyncIterator[ExportSlot]:
        """A block that runs when the client may export. `abort` must end the export if it is too slow.

        Raises Problem (429) if too many exports of this client wait, DatabaseBusy after `queue_timeout_s`.
        """
        if self._waiting[client] >= self.limits.queued_per_client:
            raise _too_many(self.limits)
        deadline = time.monotonic() + self.limits.queue_timeout_s
        async with AsyncExitStack() as held:
            self._waiting[client] += 1
            try:
                # The turn first: an export that waits for those of other processes must not keep a slot.
                if self._shared is not None:
                    await held.enter_async_context(self._turn(self._shared, client, deadline))
                if self._check is None:
                    self._schedule_check()
                await self._slots.acquire(client, deadline - time.monotonic())
                held.callback(self._slots.release, client)
            except TimeoutError:
                raise _busy(self.limits) from None
            finally:
                self._waiting[client] -= 1
                if not self._waiting[client]:
                    del self._waiting[client]
            slot = ExportSlot(client, abort, self.limits)
            self._running.append(slot)
            try:
                yield slot
            finally:
                self._running.remove(slot)

    @asynccontextmanager
    async def _turn(self, shared: SharedLimits, client: str, deadline: float) -> AsyncIterator[None]:
        # One of the exports that the client may have in all processes together. Raises TimeoutError.
        await self._askers.acquire(client, deadline - time.monotonic())
        try:
            turn = await self._shared_turn(shared, client, deadline)
            try:
                yield
            finally:
                if turn is not None:
                    await shared.end_turn(turn)
        finally:
            self._askers.release(client)

    async def _shared_turn(self, shared: SharedLimits, client: str, deadline: float) -> Turn | None:
        # None while the primary is away: then only the exports of this process count.
        try:
            while (turn := await shared.try_turn(client, self.limits.per_client)) is None:
                if time.monotonic() + TURN_POLL_S > deadline:
                    raise TimeoutError
                await asyncio.sleep(TURN_POLL_S)
        except DatabaseUnavailable:
            return None
        return turn

    def _schedule_check(self) -> None:
        loop = asyncio.get_running_loop()
        self._check = loop.call_later(self.limits.window_s / 10, self._abort_slow)

    def _abort_slow(self) -> None:
        # One export per check: the next check sees whether another one still has to wait.
        self._check = None
        if not self._slots.has_eligible_waiter:
            return
        slow = next((slot for slot in self._running if slot.slow), None)
        if slow is not None:
            # In the context of its request, not of the one that waits.
            slow.context.run(client_log.info, "slow_export_aborted", client=slow.client)
            slow.abort()
        self._schedule_check()


def _busy(limits: ExportLimits) -> DatabaseBusy:
    return DatabaseBusy(f"no export ended within {limits.queue_timeout_s:g} s")


def _too_many(limits: ExportLimits) -> Problem:
    return Problem(
        429,
        f"A client can have {limits.per_client} exports running and {limits.queued_per_client} more waiting.",
        kind="too-many-exports",
        title="Too many exports",
        headers={"Retry-After": f"{limits.queue_timeout_s:.0f}"},
    )
