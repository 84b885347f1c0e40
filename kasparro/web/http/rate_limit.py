"""Limits how many requests a client makes in a period of time."""

import math
from collections import OrderedDict

from starlette.types import Scope

from kasparro.settings import Rate
from kasparro.web.http.addresses import client_name
from kasparro.web.http.headers import HeaderList
from kasparro.web.http.problems import Problem

# Beyond this number of clients, those without a request for the longest time are forgotten.
MAX_CLIENTS = 50_000


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
        remaining = int((self.rate.seconds - (full_at - now)) / self._request_s + 1e-6)
        value = b'"default";r=%d;t=%d' % (max(remaining, 0), math.ceil(full_at - now))
        return wait, [self._policy, (b"ratelimit", value)]

    def wait(self, client: str, now: float) -> int:
        """Seconds until a client's next request is allowed, 0 if it is now. Takes no quota."""
        full_at = max(self._full_at.get(client, now), now) + self._request_s
        wait_s = full_at - now - self.rate.seconds
        # Sums of floats have small errors, which must not cost a request at the edge of the quota.
        return math.ceil(wait_s) if wait_s > 1e-6 else 0


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
