"""How answers may be used again: by us while the data stays as it is, by clients as their headers say."""

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
from kasparro.web.cache.response import CachedResponse, PreparedResponse
from kasparro.web.cache.store import ResponseCache
from kasparro.web.http.context import HIT, MISS, context_of
from kasparro.web.http.cors import Cors

Handler = Callable[[Request, Any], Awaitable[Response]]

# A second is what a poll of the version takes at worst. A cache in front may show the last answer while it
# fetches the next, and where we answer with an error: that choice is its user's, we never do.
_BY_VERSION = "max-age=1, stale-while-revalidate=10, stale-if-error=300"

_encode = msgspec.msgpack.Encoder().encode


class CachePolicy:
    """The answers kept for the version of the data, and what all answers say of their reuse."""

    def __init__(self, settings: Settings, database: Database, supervisor: Supervisor) -> None:
        self.kept = ResponseCache(settings.cache_mb * 2**20)
        self.version = DataVersion(database, self.kept.drop, supervisor)
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
        await self.kept.close()

    async def cached(self, request: Request, query: msgspec.Struct, handler: Handler) -> ASGIApp:
        """The handler's answer, kept, or made once for all who ask for it now."""
        scope = request.scope
        context = context_of(scope)
        key = (scope["raw_path"], _encode(query))

        answer = self.kept.find(key) if context.started < self.version.fresh_until else None
        context.cache = MISS if answer is None else HIT
        if answer is None:
            answer = await self.kept.render(key, partial(self.render, request, query, handler))
        variant = await answer.variant(context.encoding)
        self.kept.remember(answer, (scope["raw_path"], scope["query_string"]))
        return PreparedResponse(variant, context.if_none_match)

    async def render(
        self, request: Request, query: msgspec.Struct, handler: Handler
    ) -> tuple[CachedResponse, bool]:
        """The handler's answer, and whether it may be kept."""
        context = context_of(request.scope)
        # Of several servers the one that is read may lag behind; where it is only one, it never does.
        context.fresh = self._one_server
        response = await handler(request, query)
        return CachedResponse(response, context.route, self._by_version, self.vary), context.fresh

    async def with_etag(self, request: Request, response: Response) -> ASGIApp:
        """The response with a tag, by which a client may ask whether it still holds."""
        if response.status_code != 200 or isinstance(response, StreamingResponse):
            return self.no_store(response)
        context = context_of(request.scope)
        answer = CachedResponse(response, context.route, self._revalidate, self.vary)
        return PreparedResponse(await answer.variant(context.encoding), context.if_none_match)

    def no_store(self, response: Response) -> ASGIApp:
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

    def static(self, response: Response, cache_control: str) -> CachedResponse:
        """An answer that stays the same while the process lives."""
        return CachedResponse(response, "docs", cache_control, self.vary)


async def encoded(request: Request, answer: CachedResponse) -> PreparedResponse:
    """A fixed answer, in the coding that the request takes."""
    context = context_of(request.scope)
    return PreparedResponse(await answer.variant(context.encoding), context.if_none_match)
