"""A semaphore that divides its permits, such as connections to PostgreSQL, fairly between clients."""

import asyncio
from collections import Counter, deque


class FairSemaphore:
    """`count` permits. A client may hold at most `per_client` of them; None: all.

    A released permit goes to the waiting client that holds the fewest. Among equals it goes to the client
    that was served the longest ago.
    """

    def __init__(self, count: int, per_client: int | None = None) -> None:
        self._free = count
        self._per_client = count if per_client is None else per_client
        self._held: Counter[str] = Counter()
        # The waiters of each client. The client that was served the longest ago comes first.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @property
    def waiting(self) -> int:
        """How many waiters there are."""
        return sum(map(len, self._waiting.values()))

    def waiting_of(self, client: str) -> int:
        """How many waiters one client has."""
        return len(self._waiting.get(client, ()))

    @property
    def has_eligible_waiter(self) -> bool:
        """Whether a waiting client could take a permit if one were released now."""
        return self._next() is not None

    async def acquire(self, client: str, timeout_s: float) -> None:
        """Return when the client has a permit. Raises TimeoutError."""
        # While a permit is free, every waiting client holds as many as it may.
        if self._free and self._held[client] < self._per_client:
            self._free -= 1
            self._held[client] += 1
            return
        loop = asyncio.get_running_loop()
        granted = loop.create_future()
        self._waiting.setdefault(client, deque()).append(granted)
        # asyncio.timeout would take as long as a tenth of a page of `/data`.
        timer = loop.call_later(timeout_s, _give_up, granted)
        try:
            await granted
        except BaseException:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                # The permit was granted in the same moment in which the waiter was cancelled.
                self.release(client)
            elif granted in self._waiting.get(client, ()):
                self._waiting[client].remove(granted)
                if not self._waiting[client]:
                    del self._waiting[client]
            raise
        finally:
            timer.cancel()

    def release(self, client: str) -> None:
        """Return a permit of the client."""
        self._free += 1
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
        while self._free and self._waiting and (served := self._next()) is not None:
            # Removed and inserted again: the client is now the last in order.
            waiters = self._waiting.pop(served)
            granted = waiters.popleft()
            if waiters:
                self._waiting[served] = waiters
            if not granted.done():
                self._free -= 1
                self._held[served] += 1
                granted.set_result(None)

    def _next(self) -> str | None:
        eligible = (client for client in self._waiting if self._held[client] < self._per_client)
        return min(eligible, key=lambda client: self._held[client], default=None)


def _give_up(granted: asyncio.Future[None]) -> None:
    if not granted.done():
        granted.set_exception(TimeoutError())
