"""Who may ask, and how often: API keys and rate limits, each by setting."""

import hmac
import ipaddress
import math
import os
from collections import OrderedDict
from hashlib import blake2b

from starlette.types import Scope

from kasparro.settings import Rate, Settings
from kasparro.web.answers import HeaderList
from kasparro.web.problems import Problem

# Clients whose use is remembered; of more than that, those that asked for nothing longest ago start anew.
CLIENTS = 50_000
# What orchestrators and people ask before they have a key, and what costs nothing.
_OPEN = ("/health", "/health/live", "/openapi.json", "/docs", "/")
_OPEN_FOLDER = "/docs/"
ADMIN = "admin"


def open_to_all(path: str) -> bool:
    """Whether a path is answered without a key and without limit."""
    return path in _OPEN or path.startswith(_OPEN_FOLDER)


class Access:
    """Admits requests: with keys set, those that bring one; with a limit set, so many of each client.

    A client is its key's name, or else its address, and the guesses of wrong keys from an address count by
    themselves. Each process counts for itself.
    """

    def __init__(self, settings: Settings) -> None:
        # Compared are digests under a key that nobody knows, so how long it takes tells nothing of a secret.
        self._salt = os.urandom(32)
        self._names = {self._digest(key.secret.reveal().encode()): key.name for key in settings.api_keys}
        if self._names and settings.admin_token is not None:
            self._names[self._digest(settings.admin_token.reveal().encode())] = ADMIN
        self._limit = Limit(settings.rate_limit) if settings.rate_limit is not None else None

    @property
    def guards(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self._names) or self._limit is not None

    @property
    def names(self) -> list[str]:
        """The names of the keys."""
        return list(self._names.values())

    def admit(
        self, scope: Scope, headers: dict[bytes, bytes], now: float
    ) -> tuple[str | None, HeaderList, Problem | None]:
        """The name of the request's key, the headers that tell of its limit, and why it is refused if it is.

        `now` is in seconds on any steady clock.
        """
        if open_to_all(scope["path"]) or scope["method"] == "OPTIONS":
            return None, [], None
        secret = _secret(headers) if self._names else None
        name = None if secret is None else self._named(secret)
        told: HeaderList = []
        if self._limit is not None:
            guesses = f"guesses {_network(scope['client'])}"
            if name is not None and self._limit.wait(guesses, now):
                # Whoever guessed too often is not told which guess was right.
                name = None
            asker = guesses if secret is not None and name is None else client_of(name, scope)
            wait, told = self._limit.take(asker, now)
            if wait:
                return name, told, _too_many(self._limit.rate, wait)
        if self._names and name is None:
            return None, told, _unknown()
        return name, told, None

    def _named(self, secret: bytes) -> str | None:
        told = self._digest(secret)
        found = None
        for digest, name in self._names.items():
            if hmac.compare_digest(digest, told):
                found = name
        return found

    def _digest(self, secret: bytes) -> bytes:
        return blake2b(secret, key=self._salt, digest_size=32).digest()


class Limit:
    """So many requests in so many seconds for each client: all at once, or one by one as they come back
    (the generic cell rate algorithm: of each client, all that is kept is when it will have its whole quota).
    """

    def __init__(self, rate: Rate, clients: int = CLIENTS) -> None:
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


def client_of(key: str | None, scope: Scope) -> str:
    """Who asks, as limits go by it: the name of its key, or else its address."""
    return f"key {key}" if key is not None else _network(scope["client"])


def _secret(headers: dict[bytes, bytes]) -> bytes | None:
    secret = headers.get(b"x-api-key")
    if secret is None:
        scheme, _, secret = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            return None
    return secret.strip()


def _network(client: tuple[str, int] | None) -> str:
    # Who has one IPv6 address has the 2**64 of its network.
    host = client[0] if client else ""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        # How a socket that takes both kinds tells of an IPv4 client: all of them are in one such network.
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))


def _unknown() -> Problem:
    return Problem(
        401,
        "This needs an API key, and there is none or a wrong one: X-API-Key, or Authorization: Bearer.",
        kind="api-key",
        title="API key missing or wrong",
        headers={"WWW-Authenticate": 'Bearer realm="kasparro"'},
    )


def _too_many(rate: Rate, wait_s: int) -> Problem:
    return Problem(
        429,
        f"{rate.requests} requests in {rate.seconds} s are allowed; the next one in {wait_s} s.",
        kind="rate-limit",
        title="Too many requests",
        headers={"Retry-After": str(wait_s)},
    )
