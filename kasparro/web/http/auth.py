"""Who may ask, and how often: API keys, the admin token, and rate limits, each by setting."""

import hmac
import os
from hashlib import blake2b

import structlog
from starlette.types import Scope

from kasparro.log_rate import RateLimitedLog
from kasparro.settings import Rate, Settings
from kasparro.web.cache.response import HeaderList
from kasparro.web.http.problems import Problem
from kasparro.web.http.rate_limit import RateLimiter, address_of, client_id, too_many_requests

client_log = RateLimitedLog(structlog.get_logger())

# Wrong secrets of one address after which the admin token is refused from there, where no rate limit is set.
# Keys are not refused then, for the address may be that of a proxy for everybody.
WRONG_SECRETS = Rate(60, 60)
# What orchestrators ask. It is never refused.
HEALTH_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
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
        self._guesses = RateLimiter(settings.rate_limit or WRONG_SECRETS)

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
        if scope["path"] in HEALTH_PATHS:
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
            wait, added = self._limit.take(client_id(name, scope), now)
            if wait:
                return name, added, too_many_requests(self._limit.rate, wait)
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
        return self._guesses.wait(address_of(scope), now) > 0

    def _wrong(
        self, scope: Scope, now: float, refusal: Problem, *, limited: bool
    ) -> tuple[Problem, HeaderList]:
        # Logs and counts a wrong secret: where it came from, and never what it was.
        client_log.info("wrong_secret", address=address_of(scope), path=scope["path"])
        wait, added = self._guesses.take(address_of(scope), now)
        if not limited:
            return refusal, []
        return too_many_requests(self._guesses.rate, wait) if wait else refusal, added

    def _named(self, secret: bytes) -> str | None:
        presented = self._digest(secret)
        found = None
        for digest, name in self._names.items():
            if hmac.compare_digest(digest, presented):
                found = name
        return found

    def _digest(self, secret: bytes) -> bytes:
        return blake2b(secret, key=self._salt, digest_size=32).digest()


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
