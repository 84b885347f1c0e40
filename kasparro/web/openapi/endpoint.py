"""Describes a route once: its Starlette route and its OpenAPI operation both follow from an Endpoint."""

import re
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kasparro.errors import ConnectionLost
from kasparro.web.http.context import OTHER, context_of
from kasparro.web.http.disconnects import CancelOnDisconnect
from kasparro.web.openapi import parameters
from kasparro.web.openapi.parameters import NoParameters
from kasparro.web.reports import encode
from kasparro.web.service import Service


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path: its parameters, responses and problems.

    The fields of the structs `query` and `path_params` are the parameters. `response` is the struct of the
    body, or str for text of another media type; `other_responses` has a description and a struct for each
    other status. `slow` says whether a query may take long. `admin` marks a route that needs the admin token.

    `caching` is `version` if the response follows from path, query and data version, so that it is cached;
    `revalidate` if it depends on more, so that clients ask again with its ETag; `never` if it
    describes only the current moment. `live` says for which
    queries `version` means `revalidate`.
    """

    path: str
    handler: Callable[[Service, Request, Any], Awaitable[Response]]
    summary: str
    description: str
    tag: str
    response: Any
    media_type: str = "application/json"
    method: str = "GET"
    status: int = 200
    query: type[msgspec.Struct] = NoParameters
    path_params: type[msgspec.Struct] | None = None
    problems: tuple[int, ...] = (400, 500, 503)
    other_responses: dict[int, tuple[str, Any]] = {}
    headers: dict[str, str] = {}
    admin: bool = False
    caching: Literal["version", "revalidate", "never"] = "revalidate"
    live: Callable[[Any], bool] = lambda query: False
    slow: Callable[[Any], bool] = lambda query: False

    @property
    def template(self) -> str:
        """The path as documented: its parameters without converters."""
        return _template(self.path)


def _template(path: str) -> str:
    return re.sub(r":\w+}", "}", path)


def json_response(body: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response with a struct as its JSON body."""
    return Response(encode(body), status, headers, "application/json")


def route(endpoint: Endpoint, service: Service) -> Route:
    """The route of an endpoint. It parses the query before it calls the handler."""
    cache_policy = service.cache_policy
    handler = partial(endpoint.handler, service)

    template = endpoint.template

    async def respond(request: Request) -> ASGIApp:
        context = context_of(request.scope)
        context.route = template
        query = parameters.parse(endpoint.query, request.scope["query_string"])
        context.slow = endpoint.slow(query)
        if endpoint.method != "GET":
            return await render(request, query)
        with CancelOnDisconnect(request):
            try:
                return await render(request, query)
            except ConnectionLost:
                # PostgreSQL restarts, or another server takes over. Reading again changes nothing.
                return await render(request, query)

    async def render(request: Request, query: Any) -> ASGIApp:
        if endpoint.caching == "version" and not endpoint.live(query):
            return await cache_policy.cached(request, query, handler)
        response = await handler(request, query)
        if endpoint.caching == "never":
            return cache_policy.no_store(response)
        return await cache_policy.with_etag(request, response)

    return _Route(endpoint.path, _Answer(respond), methods=[endpoint.method], name=endpoint.handler.__name__)


class _Answer:
    # The ASGI application that sends the response of a handler. Starlette would wrap a function in handlers
    # of exceptions, which the whole application has already.

    def __init__(self, respond: Callable[[Request], Awaitable[ASGIApp]]) -> None:
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._respond(Request(scope, receive, send))
        await response(scope, receive, send)


class _Route(Route):
    # A route whose last part, if it follows a parameter with slashes, is as the client sent it: the id of a
    # coin may end with an escaped `/history`.

    def __init__(self, path: str, endpoint: Callable[..., Any], *, methods: list[str], name: str) -> None:
        super().__init__(path, endpoint, methods=methods, name=name)
        _, converter, end = path.rpartition(":path}")
        self._raw_end = end.encode() if converter else b""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if self._raw_end and not scope.get("raw_path", b"").endswith(self._raw_end):
            return Match.NONE, {}
        return super().matches(scope)


def route_of(routes: Iterable[BaseRoute], scope: Scope) -> str:
    """The template of a request's path for the metrics, for any method; `other` if no route has the path."""
    for candidate in routes:
        if isinstance(candidate, Route) and candidate.matches(scope)[0] is not Match.NONE:
            return _template(candidate.path)
    return OTHER
