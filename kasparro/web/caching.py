"""How answers may be used again: by us while the data stays as it is, by clients as their headers say."""

import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Self

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Scope

from kasparro.settings import Settings
from kasparro.store.database import Database
from kasparro.store.version import DataVersion
from kasparro.web.answers import Answer, Prepared
from kasparro.web.cors import Cors
from kasparro.web.exchange import HIT, MISS, Exchange
from kasparro.web.kept import KeptAnswers
from kasparro.web.renewal import Renewal

Handler = Callable[[Request], Awaitable[Response]]

# A second is what a poll of the version takes at worst. A cache in front may show the last answer while it
# fetches the next, and where we answer with an error: that choice is its user's, we never do.
_BY_VERSION = "max-age=1, stale-while-revalidate=10, stale-if-error=300"

# What an answer by version may follow from; nothing of who asked, when, and in which words.
_LASTING = ("type", "method", "path", "raw_path", "query_string", "path_params")

_encode = msgspec.msgpack.Encoder().encode


class Caching:
    """The answers kept for the version of the data, and what all answers say of their reuse."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.kept = KeptAnswers(settings.cache_mb * 2**20)
        self.renewal = Renewal(self.kept)
        self.version = DataVersion(database, self._moved)
        self._one_server = database.one_server
        # What only key holders may have is none of a shared cache's business.
        private = bool(settings.api_keys)
        self._by_version = f"{'private' if private else 'public'}, {_BY_VERSION}"
        self._revalidate = "private, no-cache" if private else "no-cache"
        self._vary = "Accept-Encoding, Origin" if Cors(settings.cors_origins).named else "Accept-Encoding"

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
        self.renewal.moved(known=time.perf_counter() < self.version.vouched_until)

    async def by_version(self, request: Request, query: msgspec.Struct, handler: Handler) -> ASGIApp:
        """The handler's answer, kept, or made once for all who ask for it now."""
        scope = request.scope
        exchange = scope["kasparro.exchange"]
        key = (scope["raw_path"], _encode(query))

        answer = self.kept.find(key) if exchange.started < self.version.vouched_until else None
        exchange.cache = MISS if answer is None else HIT
        if answer is None:
            answer = await self.kept.render(key, partial(self._render, request, handler))
        answer.asks += 1
        variant = await answer.variant(exchange.encoding)
        self.kept.remember(answer, (scope["raw_path"], scope["query_string"]))
        return Prepared(variant, exchange.if_none_match)

    async def _render(self, request: Request, handler: Handler) -> tuple[Answer, bool]:
        exchange = request.scope["kasparro.exchange"]
        # Of several servers the one that is read may lag behind; where it is only one, it never does.
        exchange.current = self._one_server
        response = await handler(request)
        lasting = {name: request.scope[name] for name in _LASTING}
        again = None if exchange.wide else partial(self._render_again, lasting, exchange.route, handler)
        return Answer(response, exchange.route, self._by_version, self._vary, again), exchange.current

    async def _render_again(self, scope: Scope, route: str, handler: Handler) -> tuple[Answer, bool]:
        exchange = Exchange({})
        exchange.route = route
        request = Request({**scope, "headers": [], "kasparro.exchange": exchange})
        return await self._render(request, handler)

    async def revalidated(self, request: Request, response: Response) -> ASGIApp:
        """The response with a tag, by which a client may ask whether it still holds."""
        if response.status_code != 200 or isinstance(response, StreamingResponse):
            return self.never(response)
        exchange = request.scope["kasparro.exchange"]
        answer = Answer(response, exchange.route, self._revalidate, self._vary)
        return Prepared(await answer.variant(exchange.encoding), exchange.if_none_match)

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
            "cache_usable": int(time.perf_counter() < self.version.vouched_until),
        }

    def fixed(self, response: Response, cache_control: str) -> Answer:
        """An answer that stays the same while the process lives."""
        return Answer(response, "docs", cache_control, self._vary)


async def present(request: Request, answer: Answer) -> Prepared:
    """A fixed answer, in the coding that the request takes."""
    exchange = request.scope["kasparro.exchange"]
    return Prepared(await answer.variant(exchange.encoding), exchange.if_none_match)
