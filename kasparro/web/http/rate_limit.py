"""Limits how many requests a client makes in a period of time."""

import math
from collections import OrderedDict

from starlette.types import Scope

from kasparro.settings import Rate
from kasparro.web.cache.response import HeaderList
from kasparro.web.http.addresses import client_name
from kasparro.web.http.problems import Problem

# Clients whose use is remembered; of more than that, those that asked for nothing longest ago start anew.
MAX_CLIENTS = 50_000


class RateLimiter:
    """So many requests in so many seconds for each client: all at once, or one by one as they come back
    (the generic cell rate algorithm: of each client, all that is kept is when it will have its whole quota).
    """

    def __init__(self, rate: Rate, clients: int = MAX_CLIENTS) -> None:
        self.rate = rate
        self._clients = clients
        self._each_s = rate.seconds / rate.requests
        self._whole_at: OrderedDict[str, float] = OrderedDict()
        self._policy = (b"ratelimit-policy", b'"default";q=%d;w=%d' % (rate.requests, rate.seconds))

    def __len__(self) -> int:
        return len(self._whole_at)

    def take(self, client: str, now: float) -> tuple[int, HeaderList]:
        """Take one request from a client's quota. Gives how many seconds it has to wait, 0 if it need not,
        and the headers that tell what is left (draft-ietf-httpapi-ratelimit-headers).
        """
        whole_at = max(self._whole_at.get(client, now), now)
        wait = self.wait(client, now)
        if not wait:
            whole_at += self._each_s
            self._whole_at[client] = whole_at
            if len(self._whole_at) > self._clients:
                self._whole_at.popitem(last=False)
        if client in self._whole_at:
            self._whole_at.move_to_end(client)
        left = int((self.rate.seconds - (whole_at - now)) / self._each_s + 1e-6)
        told = b'"default";r=%d;t=%d' % (max(left, 0), math.ceil(whole_at - now))
        return wait, [self._policy, (b"ratelimit", told)]

    def wait(self, client: str, now: float) -> int:
        """How many seconds a client has to wait for its next request, 0 if it need not; takes none."""
        whole_at = max(self._whole_at.get(client, now), now) + self._each_s
        wait_s = whole_at - now - self.rate.seconds
        # Sums of floats are off by a little; a request more or less is the quota's edge.
        return math.ceil(wait_s) if wait_s > 1e-6 else 0


def client_id(key: str | None, scope: Scope) -> str:
    """Who asks, as limits go by it: the name of its key, or else its address."""
    return f"key {key}" if key is not None else address_of(scope)


def address_of(scope: Scope) -> str:
    """The address that a request came from, as limits count it; empty if the server does not tell it."""
    client = scope["client"]
    return client_name(client[0]) if client else ""


def too_many_requests(rate: Rate, wait_s: int) -> Problem:
    """The problem of a client beyond its limit."""
    return Problem(
        429,
        f"{rate.requests} requests in {rate.seconds} s are allowed; the next one in {wait_s} s.",
        kind="rate-limit",
        title="Too many requests",
        headers={"Retry-After": str(wait_s)},
    )
