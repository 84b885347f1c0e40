"""Shares places, such as connections to PostgreSQL, between clients that wait for them."""

import asyncio
from collections import Counter, deque

from kasparro.concurrency import timeout


class FairSemaphore:
    """So many places. One that gets free goes to the client that holds the fewest, and among such to the one
    whose turn was longest ago. A client holds `each` at most, if that is told.
    """

    def __init__(self, count: int, each: int | None = None) -> None:
        self._free = count
        self._each = count if each is None else each
        self._held: Counter[str] = Counter()
        # Those of each client, in the order of the clients' turns.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    def waiting_of(self, client: str) -> int:
        """How many of one client wait."""
        return len(self._waiting.get(client, ()))

    @property
    def has_eligible_waiter(self) -> bool:
        """Whether somebody waits who could have a place that gets free."""
        return self._next() is not None

    async def acquire(self, client: str, wait_s: float) -> None:
        """Return when the client has a place. Raises TimeoutError."""
        # While a place is free, nobody waits who could have it.
        if self._free and self._held[client] < self._each:
            self._free -= 1
            self._held[client] += 1
            return
        given = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(given)
        try:
            async with timeout(wait_s):
                await given
        except BaseException:
            if given.done() and not given.cancelled():
                # It was given just when its taker went away.
                self.release(client)
            elif given in self._waiting.get(client, ()):
                self._waiting[client].remove(given)
                if not self._waiting[client]:
                    del self._waiting[client]
            raise

    def release(self, client: str) -> None:
        """Let others have the place of a client."""
        self._free += 1
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
        while self._free and (following := self._next()) is not None:
            waiting = self._waiting.pop(following)
            given = waiting.popleft()
            if waiting:
                self._waiting[following] = waiting
            if not given.done():
                self._free -= 1
                self._held[following] += 1
                given.set_result(None)

    def _next(self) -> str | None:
        ready = (client for client in self._waiting if self._held[client] < self._each)
        return min(ready, key=lambda client: self._held[client], default=None)
