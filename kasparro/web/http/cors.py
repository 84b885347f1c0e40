"""Which pages of other origins may read the answers in a browser (CORS), by setting."""

from starlette.types import Scope

from kasparro.web.cache.response import HeaderList

# What a page may send, and what it may read beside the body.
_TAKEN = b"Authorization, Content-Type, If-None-Match, X-API-Key, X-Request-ID"
_SHOWN = (
    b"ETag, Link, Location, RateLimit, RateLimit-Policy, Retry-After, Server-Timing, WWW-Authenticate, "
    b"X-Request-ID"
)
# Browsers keep a preflight's answer two hours at most.
_PREFLIGHT_S = 7_200

_EXPOSE = (b"access-control-expose-headers", _SHOWN)


class Cors:
    """Tells browsers which origins may read: none, all (`*`), or those that are named."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self._all = "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    @property
    def named(self) -> bool:
        """Whether answers differ by the origin that asks, and so have to vary by it."""
        return bool(self._origins) and not self._all

    @property
    def always(self) -> HeaderList:
        """The headers of every answer."""
        return [(b"access-control-allow-origin", b"*"), _EXPOSE] if self._all else []

    def headers(self, origin: bytes | None) -> HeaderList:
        """The headers of an answer to a page of this origin, beside `always`."""
        if self.named and origin is not None and origin in self._origins:
            return [(b"access-control-allow-origin", origin), _EXPOSE]
        return []

    def preflight(self, scope: Scope, headers: dict[bytes, bytes]) -> HeaderList | None:
        """The headers of the answer to a browser that asks before it asks; None for any other request."""
        origin = headers.get(b"origin")
        if (
            scope["method"] != "OPTIONS"
            or b"access-control-request-method" not in headers
            or not (self._all or origin in self._origins)
        ):
            return None
        return [
            (b"access-control-allow-methods", b"GET, HEAD, POST, OPTIONS"),
            (b"access-control-allow-headers", _TAKEN),
            (b"access-control-max-age", b"%d" % _PREFLIGHT_S),
        ]
