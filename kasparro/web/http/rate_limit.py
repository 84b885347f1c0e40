"""Limits how many requests a client makes in a period of time."""

import asyncio
import math
from collections import OrderedDict

from starlette.types import Scope

from kasparro.errors import DatabaseUnavailable
from kasparro.settings import Rate
from kasparro.store.shared_limits import SharedLimits
from kasparro.web.http.addresses import client_name
from kasparro.web.http.headers import HeaderList
from kasparro.web.http.problems import Problem

# Beyond this number of clients, those without a request for the longest time are forgotten.
MAX_CLIENTS = 50_000
# Of a shared quota, a process takes at most one part of so many at a time, and keeps it for this time.
BLOCKS = 20
SHARE_S = 1.0


class RateLimiter:
    """At most `rate.requests` in `rate.seconds` for each client, all at once or one by one as quota returns.

    This is the generic cell rate algorithm. For each client it stores only the time at which its quota is
    full again. Times are seconds on any monotonic clock.
    """

    def __init__(self, rate: Rate, clients: int = MAX_CLIENTS) -> None:
        self.rate = rate
        self._clients = clients
        self._request_s = rate.seconds / rate.requests
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._policy = (b"ratelimit-policy", b'"default";q=%d;w=%d' % (rate.requests, rate.seconds))

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, client: str, now: float) -> tuple[int, HeaderList]:
        """Take one request from a client's quota.

        Returns the seconds until its next request is allowed, 0 if this one is, and the headers that state
        what is left (draft-ietf-httpapi-ratelimit-headers).
        """
        full_at = max(self._full_at.get(client, now), now)
        wait = self.wait(client, now)
        if not wait:
            full_at += self._request_s
            self._full_at[client] = full_at
            if len(self._full_at) > self._clients:
                self._full_at.popitem(last=False)
        if client in self._full_at:
            self._full_at.move_to_end(client)
        return wait, self._headers(full_at, now)

    def _headers(self, full_at: float, now: float, more: int = 0) -> HeaderList:
        # What is left, of which `more` is not counted by `full_at`.
        full_s = max(full_at - now, 0)
        remaining = int((self.rate.seconds - full_s) / self._request_s + 1e-6) + more
        value = b'"default";r=%d;t=%d' % (max(remaining, 0), math.ceil(full_s))
        return [self._policy, (b"ratelimit", value)]

    def wait(self, client: str, now: float) -> int:
        """Seconds until a client's next request is allowed, 0 if it is now. Takes no quota."""
        full_at = max(self._full_at.get(client, now), now) + self._request_s
        wait_s = full_at - now - self.rate.seconds
        # Sums of floats have small errors, which must not cost a request at the edge of the quota.
        return math.ceil(wait_s) if wait_s > 1e-6 else 0


class QuotaNeeded(Exception):
    """A client has no request left of those that this process was given; `refill` asks for more."""

    def __init__(self, client: str) -> None:
        super().__init__(client)
        self.client = client


class _Share:
    # What this process was given of a client's quota.

    __slots__ = ("asked_at", "block", "denied_until", "full_at", "left", "refilling")

    def __init__(self) -> None:
        self.left = 0
        self.block = 1
        self.asked_at = self.denied_until = self.full_at = float("-inf")
        self.refilling: asyncio.Task[None] | None = None


class SharedRateLimiter(RateLimiter):
    """A rate limit that all processes share. Each asks the database for a few requests at a time.

    It asks for more at a time while a client makes requests fast, so that a request seldom waits for the
    database. All processes together never answer more than the rate allows. While the primary is away, each
    process limits its clients by itself.
    """

    def __init__(self, rate: Rate, shared: SharedLimits, clients: int = MAX_CLIENTS) -> None:
        super().__init__(rate, clients)
        self._shared = shared
        self._largest = max(1, rate.requests // BLOCKS)
        self._shares: OrderedDict[str, _Share] = OrderedDict()

    def take(self, client: str, now: float) -> tuple[int, HeaderList]:
        """As in `RateLimiter`. Raises QuotaNeeded; then the caller awaits `refill` and tries again."""
        if self._shared.away:
            return super().take(client, now)
        share = self._shares.get(client)
        if share is None or (not share.left and now >= share.denied_until):
            raise QuotaNeeded(client)
        wait = 0
        if share.left and now - share.asked_at < SHARE_S:
            share.left -= 1
        elif now < share.denied_until:
            wait = math.ceil(share.denied_until - now)
        else:
            raise QuotaNeeded(client)
        return wait, self._headers(share.full_at, now, share.left)

    async def refill(self, client: str, now: float) -> None:
        """Ask the database for requests of a client. Concurrent callers share the answer."""
        share = self._shares.get(client)
        if share is None:
            share = self._shares[client] = _Share()
            if len(self._shares) > self._clients:
                self._shares.popitem(last=False)
        self._shares.move_to_end(client)
        if share.refilling is None:
            share.refilling = asyncio.create_task(self._refill(client, share, now))
        await asyncio.shield(share.refilling)

    async def _refill(self, client: str, share: _Share, now: float) -> None:
        try:
            fast = now - share.asked_at < SHARE_S
            share.block = min(share.block * 2, self._largest) if fast else 1
            unused, share.left = share.left, 0
            try:
                grant = await self._shared.take(
                    client, share.block, unused, self.rate.requests, self.rate.seconds
                )
            except DatabaseUnavailable:
                return
            share.asked_at, share.left, share.full_at = now, grant.requests, now + grant.full_s
            if not grant.requests:
                share.denied_until = now + max(0.001, grant.full_s + self._request_s - self.rate.seconds)
        finally:
            share.refilling = None


def client_id(key_name: str | None, scope: Scope) -> str:
    """The client of a request, as limits count it: the name of its key, or its address."""
    return f"key {key_name}" if key_name is not None else address_of(scope)


def address_of(scope: Scope) -> str:
    """The address of a request's client, as limits count it; empty if the server does not know it."""
    client = scope["client"]
    return client_name(client[0]) if client else ""


def too_many_requests(rate: Rate, wait_s: int) -> Problem:
    """The problem of a client that has used up its quota."""
    return Problem(
        429,
        f"{rate.requests} requests per {rate.seconds} s are allowed. The next is allowed in {wait_s} s.",
        kind="rate-limit",
        title="Too many requests",
        headers={"Retry-After": str(wait_s)},
    )
