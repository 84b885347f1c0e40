"""Decides which responses may be reused: by our cache for one data version, by clients by their headers."""

import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any, Self

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp

from kasparro.settings import Settings
from kasparro.store.data_version import DataVersion
from kasparro.store.pool import Database
from kasparro.supervision import Supervisor
from kasparro.web.cache.read_ahead import ReadAhead
from kasparro.web.cache.response import CachedResponse, PreparedResponse
from kasparro.web.cache.store import ResponseCache
from kasparro.web.http.context import HIT, MISS, RequestContext, context_of
from kasparro.web.http.cors import Cors

Handler = Callable[[Request, Any], Awaitable[Response]]

# One second is the longest delay of a poll for the data version. Downstream caches may serve stale responses,
# while they revalidate or when we answer with an error. We never do.
_BY_VERSION = "max-age=1, stale-while-revalidate=10, stale-if-error=300"

_encode = msgspec.msgpack.Encoder().encode


class CachePolicy:
    """The response cache, and the Cache-Control and Vary headers of every kind of response."""

    def __init__(self, settings: Settings, database: Database, supervisor: Supervisor) -> None:
        self.responses = ResponseCache(settings.cache_mb * 2**20)
        self.version = DataVersion(database, self.responses.drop, supervisor)
        self._read_ahead = ReadAhead(database)
        # With API keys, a shared cache must not give one client's response to others.
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
        await self._read_ahead.close()
        await self.version.__aexit__(kind, error, trace)

    async def cached(self, request: Request, query: msgspec.Struct, handler: Handler) -> ASGIApp:
        """The response from the cache, or from the handler, called once for concurrent equal queries."""
        scope = request.scope
        context = context_of(scope)
        key = (scope["raw_path"], _encode(query))

        seen = self.version.newest_named(context.if_none_match)
        response = self.responses.find(key) if context.started < self.version.fresh_until else None
        if response is not None and response.oldest_version < seen:
            response = None
        context.cache = MISS if response is None else HIT
        if response is None:
            render = partial(self._render, request, query, handler)
            response = await self.responses.render(key, render)
            if response.oldest_version < seen and context.oldest_version is None:
                # It was rendered for another client, which has not seen as new a version as this one.
                response, _ = await render()
        prepared = await prepare(request, response)
        self.responses.add_alias(response, (scope["raw_path"], scope["query_string"]))
        if response.next_cursor is not None and self.responses.limit_bytes:
            self._read_ahead.start(partial(self._next_page, request, query, handler, response.next_cursor))
        return prepared

    async def _next_page(
        self, request: Request, query: msgspec.Struct, handler: Handler, cursor: str
    ) -> None:
        # Render the page after a cursor as if the client of the request had asked for it. It gets no alias:
        # then the client's own request comes here too, and reads ahead further.
        context, before = RequestContext({}), context_of(request.scope)
        context.route, context.key_name, context.at_least = before.route, before.key_name, before.at_least
        query = msgspec.structs.replace(query, cursor=cursor)
        key = (request.scope["raw_path"], _encode(query))
        if self.responses.find(key) is None:
            ahead = Request({**request.scope, "kasparro.context": context})
            await self.responses.render(key, partial(self._render, ahead, query, handler))

    async def _render(
        self, request: Request, query: msgspec.Struct, handler: Handler
    ) -> tuple[CachedResponse, bool]:
        # The handler's response, and whether it may be cached.
        context = context_of(request.scope)
        # `Service.read_connection` compares the data version.
        context.fresh, context.oldest_version, context.data_version = True, None, None
        response = await handler(request, query)
        return self._tagged(response, context, self._by_version), context.fresh

    async def with_etag(self, request: Request, response: Response) -> ASGIApp:
        """The response with an entity tag, so that clients can revalidate it; errors and streams get none."""
        if response.status_code != 200 or isinstance(response, StreamingResponse):
            return self.no_store(response)
        return await prepare(request, self._tagged(response, context_of(request.scope), self._revalidate))

    def _tagged(self, response: Response, context: RequestContext, cache_control: str) -> CachedResponse:
        return CachedResponse(
            response,
            context.route,
            cache_control,
            self.vary,
            versions=(context.oldest_version or 0, context.data_version or 0),
            tokens=self.version.tokens,
            # The connections for slow queries are few, so nothing is read ahead with them.
            next_cursor=None if context.slow else context.next_cursor,
        )

    def no_store(self, response: Response) -> ASGIApp:
        """The response, which no cache may store."""
        response.headers["Cache-Control"] = "no-store"
        return response

    def static(self, response: Response, cache_control: str) -> CachedResponse:
        """A response that stays the same while the process lives."""
        return CachedResponse(response, "docs", cache_control, self.vary)

    def gauges(self) -> dict[str, float]:
        """The gauges of the cache by name."""
        return {
            "cache_answers": len(self.responses),
            "cache_bytes": self.responses.bytes,
            "cache_limit_bytes": self.responses.limit_bytes,
            "cache_usable": int(time.perf_counter() < self.version.fresh_until),
        }


async def prepare(request: Request, response: CachedResponse) -> PreparedResponse:
    """The response in the encoding that the request accepts, or a 304 if the client has it already."""
    context = context_of(request.scope)
    return PreparedResponse(await response.encoded(context.encoding), context.if_none_match)
