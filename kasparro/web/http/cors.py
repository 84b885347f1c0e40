"""CORS: which web pages of other origins may read responses in a browser."""

from starlette.types import Scope

from kasparro.web.http.headers import HeaderList

_ALLOWED_HEADERS = b"Authorization, Content-Type, If-None-Match, Last-Event-ID, X-API-Key, X-Request-ID"
_EXPOSE = (
    b"access-control-expose-headers",
    b"ETag, Link, Location, RateLimit, RateLimit-Policy, Retry-After, Server-Timing, WWW-Authenticate, "
    b"X-Request-ID",
)
# Browsers cache a preflight response for two hours at most.
_PREFLIGHT_S = 7_200


class Cors:
    """The origins that may read responses: none, all (`*`), or the named ones (KASPARRO_CORS_ORIGINS)."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self._all = "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    @property
    def named(self) -> bool:
        """Whether headers depend on the request's origin, so that responses need `Vary: Origin`."""
        return bool(self._origins) and not self._all

    @property
    def always(self) -> HeaderList:
        """The CORS headers of every response."""
        return [(b"access-control-allow-origin", b"*"), _EXPOSE] if self._all else []

    def headers(self, origin: bytes | None) -> HeaderList:
        """The CORS headers of a response to this origin, in addition to `always`."""
        if self.named and origin is not None and origin in self._origins:
            return [(b"access-control-allow-origin", origin), _EXPOSE]
        return []

    def preflight(self, scope: Scope, headers: dict[bytes, bytes]) -> HeaderList | None:
        """The additional headers of the response to a preflight request; None for any other request."""
        origin = headers.get(b"origin")
        if (
            scope["method"] != "OPTIONS"
            or b"access-control-request-method" not in headers
            or not (self._all or origin in self._origins)
        ):
            return None
        return [
            (b"access-control-allow-methods", b"GET, HEAD, POST, OPTIONS"),
            (b"access-control-allow-headers", _ALLOWED_HEADERS),
            (b"access-control-max-age", b"%d" % _PREFLIGHT_S),
        ]
