"""Who may ask, and how often: API keys, the admin token, and rate limits, each by setting."""

import hmac
import math
import os
from collections import OrderedDict
from hashlib import blake2b

import structlog
from starlette.types import Scope

from kasparro.log_rate import RateLimitedLog
from kasparro.settings import Rate, Settings
from kasparro.web.cache.response import HeaderList
from kasparro.web.http.addresses import client_name
from kasparro.web.http.problems import Problem

client_log = RateLimitedLog(structlog.get_logger())

# Clients whose use is remembered; of more than that, those that asked for nothing longest ago start anew.
CLIENTS = 50_000
# Wrong secrets of one address after which the admin token is refused from there, where no rate limit is set.
# Keys are not refused then, for the address may be that of a proxy for everybody.
GUESSES = Rate(60, 60)
# What orchestrators ask. It is never refused.
HEALTH = frozenset({"/health", "/health/live", "/health/ready"})
# What people ask before they have a key.
_OPEN = frozenset({"/openapi.json", "/docs", "/"})
_OPEN_FOLDER = "/docs/"
ADMIN = "admin"


def open_to_all(scope: Scope) -> bool:
    """Whether a request needs no key: the description, and the questions that browsers ask without one."""
    path = scope["path"]
    return path in _OPEN or path.startswith(_OPEN_FOLDER) or scope["method"] == "OPTIONS"


class AccessControl:
    """Admits requests: with keys set, those that bring one; with a limit set, so many of each client.

    A client is its key's name, or else its address. Wrong secrets are counted separately, by address. Each
    process counts for itself.
    """

    def __init__(self, settings: Settings) -> None:
        # Digests under a random key are compared, and always all of them: the time that it takes depends
        # neither on the secrets nor on which of them is right.
        self._salt = os.urandom(32)
        self._names = {self._digest(key.secret.reveal().encode()): key.name for key in settings.api_keys}
        self._keyed = bool(self._names)
        self._admin = None
        if settings.admin_token is not None:
            self._admin = self._digest(settings.admin_token.reveal().encode())
            if self._keyed:
                self._names[self._admin] = ADMIN
        self._limit = RateLimiter(settings.rate_limit) if settings.rate_limit is not None else None
        self._guesses = RateLimiter(settings.rate_limit or GUESSES)

    @property
    def guards(self) -> bool:
        """Whether there is anything to look at."""
        return self._keyed or self._limit is not None

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
        if scope["path"] in HEALTH:
            return None, [], None
        name = None
        added: HeaderList = []
        needs_key = self._keyed and not open_to_all(scope)
        if needs_key:
            secret = _secret(headers)
            if secret is not None:
                name = self._named(secret)
                limited = self._limit is not None
                if name is None or ((limited or name == ADMIN) and self._guessed_too_often(scope, now)):
                    problem, added = self._wrong(scope, now, _unknown(), limited=limited)
                    return None, added, problem
        if self._limit is not None:
            wait, added = self._limit.take(client_of(name, scope), now)
            if wait:
                return name, added, _too_many(self._limit.rate, wait)
        return name, added, _unknown() if needs_key and name is None else None

    def admit_admin(self, scope: Scope, headers: dict[bytes, bytes], key: str | None, now: float) -> None:
        """Admit a request that needs the admin token; `key` is the name of the key that it brought.

        Raises Problem.
        """
        token = _bearer(headers)
        if token is None or (key is not None and key != ADMIN):
            # Nothing is guessed, by a request without a token or with a key that is right for other paths.
            raise _not_admin()
        right = self._admin is not None and hmac.compare_digest(self._digest(token), self._admin)
        if not right or self._guessed_too_often(scope, now):
            problem, _ = self._wrong(scope, now, _not_admin(), limited=True)
            raise problem

    def _guessed_too_often(self, scope: Scope, now: float) -> bool:
        # Where it holds, a right secret is refused too: nobody learns which guess was right.
        return self._guesses.wait(_address(scope), now) > 0

    def _wrong(
        self, scope: Scope, now: float, refusal: Problem, *, limited: bool
    ) -> tuple[Problem, HeaderList]:
        # Logs and counts a wrong secret: where it came from, and never what it was.
        client_log.info("wrong_secret", address=_address(scope), path=scope["path"])
        wait, added = self._guesses.take(_address(scope), now)
        if not limited:
            return refusal, []
        return _too_many(self._guesses.rate, wait) if wait else refusal, added

    def _named(self, secret: bytes) -> str | None:
        presented = self._digest(secret)
        found = None
        for digest, name in self._names.items():
            if hmac.compare_digest(digest, presented):
                found = name
        return found

    def _digest(self, secret: bytes) -> bytes:
        return blake2b(secret, key=self._salt, digest_size=32).digest()


class RateLimiter:
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
    return f"key {key}" if key is not None else _address(scope)


def _address(scope: Scope) -> str:
    client = scope["client"]
    return client_name(client[0]) if client else ""


def _secret(headers: dict[bytes, bytes]) -> bytes | None:
    secret = headers.get(b"x-api-key")
    return _bearer(headers) if secret is None else secret.strip()


def _bearer(headers: dict[bytes, bytes]) -> bytes | None:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None


def _not_admin() -> Problem:
    return Problem(
        401,
        "This needs the admin token: Authorization: Bearer KASPARRO_ADMIN_TOKEN.",
        headers={"WWW-Authenticate": 'Bearer realm="kasparro"'},
    )


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
