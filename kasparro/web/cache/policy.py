"""How answers may be used again: by us while the data stays as it is, by clients as their headers say."""

import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any, Self

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Scope

from kasparro.settings import Settings
from kasparro.store.data_version import DataVersion
from kasparro.store.pool import Database
from kasparro.supervision import Supervisor
from kasparro.web.cache.response import CachedResponse, PreparedResponse
from kasparro.web.cache.store import ResponseCache
from kasparro.web.http.context import HIT, MISS, RequestContext
from kasparro.web.http.cors import Cors
from kasparro.web.openapi import parameters
from kasparro.web.renewal import Renewal

Handler = Callable[[Request, Any], Awaitable[Response]]

# A second is what a poll of the version takes at worst. A cache in front may show the last answer while it
# fetches the next, and where we answer with an error: that choice is its user's, we never do.
_BY_VERSION = "max-age=1, stale-while-revalidate=10, stale-if-error=300"

# An answer for which the database took longer is rendered for who asks alone.
QUICK_S = 0.05

_encode = msgspec.msgpack.Encoder().encode


class CachePolicy:
    """The answers kept for the version of the data, and what all answers say of their reuse."""

    def __init__(self, settings: Settings, database: Database, supervisor: Supervisor) -> None:
        self.kept = ResponseCache(settings.cache_mb * 2**20)
        self.renewal = Renewal(self.kept, supervisor)
        self.version = DataVersion(database, self._moved, supervisor)
        self._one_server = database.one_server
        # What only key holders may have is none of a shared cache's business.
        private = bool(settings.api_keys)
        self._by_version = f"{'private' if private else 'public'}, {_BY_VERSION}"
        self._revalidate = "private, no-cache" if private else "no-cache"
        self.vary = "Accept-Encoding, Origin" if Cors(settings.cors_origins).named else "Accept-Encoding"

    async def __aenter__(self) -> Self:
        await self.version.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.version.__aexit__(kind, error, trace)
        await self.renewal.close()
        await self.kept.close()

    def _moved(self) -> None:
        self.renewal.moved(known=time.perf_counter() < self.version.fresh_until)

    async def by_version(self, request: Request, query: msgspec.Struct, handler: Handler) -> ASGIApp:
        """The handler's answer, kept, or made once for all who ask for it now."""
        scope = request.scope
        exchange = scope["kasparro.exchange"]
        key = (scope["raw_path"], _encode(query))

        answer = self.kept.find(key) if exchange.started < self.version.fresh_until else None
        exchange.cache = MISS if answer is None else HIT
        if answer is None:
            answer = await self.kept.render(key, partial(self.render, request, query, handler))
        answer.asks += 1
        variant = await answer.variant(exchange.encoding)
        self.kept.remember(answer, (scope["raw_path"], scope["query_string"]))
        return PreparedResponse(variant, exchange.if_none_match)

    async def render(
        self, request: Request, query: msgspec.Struct, handler: Handler
    ) -> tuple[CachedResponse, bool]:
        """The handler's answer, and whether it may be kept."""
        exchange = request.scope["kasparro.exchange"]
        # Of several servers the one that is read may lag behind; where it is only one, it never does.
        exchange.current = self._one_server
        response = await handler(request, query)
        again = None
        if not (exchange.slow or exchange.one_off) and (exchange.database_s or 0.0) < QUICK_S:
            again = _Again(self, request.scope, type(query), handler)
        return CachedResponse(response, exchange.route, self._by_version, self.vary, again), exchange.current

    async def revalidated(self, request: Request, response: Response) -> ASGIApp:
        """The response with a tag, by which a client may ask whether it still holds."""
        if response.status_code != 200 or isinstance(response, StreamingResponse):
            return self.never(response)
        exchange = request.scope["kasparro.exchange"]
        answer = CachedResponse(response, exchange.route, self._revalidate, self.vary)
        return PreparedResponse(await answer.variant(exchange.encoding), exchange.if_none_match)

    def never(self, response: Response) -> ASGIApp:
        """The response, which is of its moment."""
        response.headers["Cache-Control"] = "no-store"
        return response

    def gauges(self) -> dict[str, float]:
        """The cache in figures, by name."""
        return {
            "cache_answers": len(self.kept),
            "cache_bytes": self.kept.bytes,
            "cache_limit_bytes": self.kept.most,
            "cache_usable": int(time.perf_counter() < self.version.fresh_until),
        }

    def fixed(self, response: Response, cache_control: str) -> CachedResponse:
        """An answer that stays the same while the process lives."""
        return CachedResponse(response, "docs", cache_control, self.vary)


async def present(request: Request, answer: CachedResponse) -> PreparedResponse:
    """A fixed answer, in the coding that the request takes."""
    exchange = request.scope["kasparro.exchange"]
    return PreparedResponse(await answer.variant(exchange.encoding), exchange.if_none_match)


class _Again:
    # Renders once more what a request asked for. The query is read anew, for it may take more memory than the
    # answer; its text is there anyway, as the spelling that the answer is found by.
    __slots__ = (
        "_caching",
        "_handler",
        "_path",
        "_path_params",
        "_query_string",
        "_raw_path",
        "_route",
        "_shape",
    )

    def __init__(
        self, caching: CachePolicy, scope: Scope, shape: type[msgspec.Struct], handler: Handler
    ) -> None:
        self._caching = caching
        self._handler = handler
        self._shape = shape
        self._route = scope["kasparro.exchange"].route
        self._path = scope["path"]
        self._raw_path = scope["raw_path"]
        self._query_string = scope["query_string"]
        self._path_params = scope["path_params"]

    async def __call__(self) -> tuple[CachedResponse, bool]:
        exchange = RequestContext({})
        exchange.route = self._route
        request = Request(
            {
                "type": "http",
                "method": "GET",
                "path": self._path,
                "raw_path": self._raw_path,
                "query_string": self._query_string,
                "path_params": self._path_params,
                "headers": [],
                "client": None,
                "kasparro.exchange": exchange,
            }
        )
        query = parameters.read(self._shape, self._query_string)
        return await self._caching.render(request, query, self._handler)
