"""Who may make a request: API keys and the admin token."""

import hmac
import os
from hashlib import blake2b

import structlog
from starlette.types import Scope

from kasparro.log_rate import RateLimitedLog
from kasparro.settings import Rate, Settings
from kasparro.store.shared_limits import SharedLimits
from kasparro.web.http.headers import HeaderList
from kasparro.web.http.problems import Problem
from kasparro.web.http.rate_limit import (
    QuotaNeeded,
    RateLimiter,
    SharedRateLimiter,
    address_of,
    client_id,
    too_many_requests,
)

client_log = RateLimitedLog(structlog.get_logger())

# Limit of wrong secrets per address if no rate limit is set. Beyond it, the admin token is rejected from
# there. Keys are still accepted, because the address may be that of a proxy for many clients.
WRONG_SECRETS = Rate(60, 60)
# Orchestrators request these. They are always answered.
HEALTH_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
# People read these before they have a key.
# The documents of the page have no data if keys are set.
_OPEN = frozenset({"/openapi.json", "/docs", "/", "/page/activity", "/page/archives"})
_OPEN_FOLDERS = ("/docs/", "/page/static/", "/page/coin/", "/page/activity/")
ADMIN = "admin"
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="kasparro"'}


def needs_no_key(scope: Scope) -> bool:
    """Whether a request is for the API description, or one that browsers send without a key."""
    path = scope["path"]
    return path in _OPEN or path.startswith(_OPEN_FOLDERS) or scope["method"] == "OPTIONS"


class AccessControl:
    """Admits or rejects requests by API key, if keys are set, and by rate limit, if one is set.

    A client is the name of its key, or its address. Wrong secrets are counted separately, by address. Each
    process counts for itself, unless it has `shared`, the limits of all processes.
    """

    def __init__(self, settings: Settings, shared: SharedLimits | None = None) -> None:
        # Digests with a random key are compared, and always all of them. So the time depends neither on the
        # secrets nor on which of them matches.
        self._salt = os.urandom(32)
        self._names = {self._digest(key.secret.reveal().encode()): key.name for key in settings.api_keys}
        self._keyed = bool(self._names)
        self._admin = None
        if settings.admin_token is not None:
            self._admin = self._digest(settings.admin_token.reveal().encode())
            if self._keyed:
                self._names[self._admin] = ADMIN
        self._limit: RateLimiter | None = None
        if settings.rate_limit is not None:
            self._limit = RateLimiter(settings.rate_limit)
            if shared is not None:
                self._limit = SharedRateLimiter(settings.rate_limit, shared)
        self._wrong_secrets = RateLimiter(settings.rate_limit or WRONG_SECRETS)

    @property
    def active(self) -> bool:
        """Whether requests have to be checked at all."""
        return self._keyed or self._limit is not None

    @property
    def names(self) -> list[str]:
        """The names of the keys."""
        return list(self._names.values())

    async def admit_shared(
        self, scope: Scope, headers: dict[bytes, bytes], now: float
    ) -> tuple[str | None, HeaderList, Problem | None]:
        """As `admit`, if the rate limit is shared."""
        while True:
            try:
                return self.admit(scope, headers, now)
            except QuotaNeeded as needed:
                if isinstance(self._limit, SharedRateLimiter):
                    await self._limit.refill(needed.client, now)

    def admit(
        self, scope: Scope, headers: dict[bytes, bytes], now: float
    ) -> tuple[str | None, HeaderList, Problem | None]:
        """The name of the request's key, headers about its rate limit, and the problem if it is rejected.

        `now` is in seconds on any monotonic clock.
        """
        if scope["path"] in HEALTH_PATHS:
            return None, [], None
        name = None
        added: HeaderList = []
        needs_key = self._keyed and not needs_no_key(scope)
        if needs_key:
            secret = _secret(headers)
            if secret is not None:
                name = self._key_name(secret)
                limited = self._limit is not None
                if name is None or ((limited or name == ADMIN) and self._too_many_wrong(scope, now)):
                    problem, added = self._count_wrong_secret(scope, now, _needs_key(), limited=limited)
                    return None, added, problem
        if self._limit is not None:
            wait, added = self._limit.take(client_id(name, scope), now)
            if wait:
                return name, added, too_many_requests(self._limit.rate, wait)
        return name, added, _needs_key() if needs_key and name is None else None

    def admit_admin(
        self, scope: Scope, headers: dict[bytes, bytes], key_name: str | None, now: float
    ) -> None:
        """Return if the request has the admin token. `key_name` is the name of its API key.

        Raises Problem.
        """
        token = _bearer(headers)
        if token is None or (key_name is not None and key_name != ADMIN):
            # No token, or a key that is right for other paths: this is no attempt to guess.
            raise _needs_admin_token()
        right = self._admin is not None and hmac.compare_digest(self._digest(token), self._admin)
        if not right or self._too_many_wrong(scope, now):
            problem, _ = self._count_wrong_secret(scope, now, _needs_admin_token(), limited=True)
            raise problem

    def _too_many_wrong(self, scope: Scope, now: float) -> bool:
        # Then a right secret is rejected as well, so that nobody learns which guess was right.
        return self._wrong_secrets.wait(address_of(scope), now) > 0

    def _count_wrong_secret(
        self, scope: Scope, now: float, problem: Problem, *, limited: bool
    ) -> tuple[Problem, HeaderList]:
        # Logs and counts a wrong secret by its address. The secret itself is never logged.
        client_log.info("wrong_secret", address=address_of(scope), path=scope["path"])
        wait, added = self._wrong_secrets.take(address_of(scope), now)
        if not limited:
            return problem, []
        return too_many_requests(self._wrong_secrets.rate, wait) if wait else problem, added

    def _key_name(self, secret: bytes) -> str | None:
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


def _needs_admin_token() -> Problem:
    return Problem(
        401,
        "Missing or invalid admin token. Send Authorization: Bearer KASPARRO_ADMIN_TOKEN.",
        headers=_CHALLENGE,
    )


def _needs_key() -> Problem:
    return Problem(
        401,
        "Missing or invalid API key. Send X-API-Key or Authorization: Bearer.",
        kind="api-key",
        title="Missing or invalid API key",
        headers=_CHALLENGE,
    )
