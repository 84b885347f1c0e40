"""An endpoint said once: the route that serves it and its description come from the same words."""

import re
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Scope

from kasparro.web.http.context import OTHER, context_of
from kasparro.web.http.disconnects import cancel_on_disconnect
from kasparro.web.openapi import parameters
from kasparro.web.openapi.parameters import NoParameters
from kasparro.web.service import Service


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path: what it takes, what it gives, and the problems it may answer with.

    `query` and `path_shape` are structs whose fields are its parameters, `answer` is the struct of its body,
    or str where that is text of another media type.
    `caching` says what its answers follow from: the version of the data alone, with path and query, so that
    they are kept; more than that, so that clients ask each time whether theirs is still good; or the moment.
    `wide` tells of a query that its answer may take long.
    """

    path: str
    handler: Callable[[Service, Request, Any], Awaitable[Response]]
    summary: str
    description: str
    area: str
    answer: Any
    media_type: str = "application/json"
    method: str = "GET"
    status: int = 200
    query: type[msgspec.Struct] = NoParameters
    path_shape: type[msgspec.Struct] | None = None
    problems: tuple[int, ...] = (400, 500, 503)
    other_answers: dict[int, tuple[str, Any]] = {}
    headers: dict[str, str] = {}
    guarded: bool = False
    caching: Literal["version", "revalidate", "never"] = "revalidate"
    slow: Callable[[Any], bool] = lambda query: False

    @property
    def template(self) -> str:
        """The path as people write it, with the bare names of its parameters."""
        return _template(self.path)


def _template(path: str) -> str:
    return re.sub(r":\w+}", "}", path)


def route(endpoint: Endpoint, service: Service) -> Route:
    """The route that reads the endpoint's query before its handler does anything."""
    shape, handler, caching = endpoint.query, endpoint.handler, service.cache_policy
    render = partial(handler, service)

    async def answer(request: Request) -> ASGIApp:
        context = context_of(request.scope)
        context.route = endpoint.template
        query = parameters.read(shape, request.scope["query_string"])
        context.slow = endpoint.slow(query)
        if endpoint.method != "GET":
            return await made(request, query)
        async with cancel_on_disconnect(request):
            return await made(request, query)

    async def made(request: Request, query: Any) -> ASGIApp:
        if endpoint.caching == "version":
            return await caching.cached(request, query, render)
        response = await render(request, query)
        return (
            caching.no_store(response)
            if endpoint.caching == "never"
            else await caching.with_etag(request, response)
        )

    return Route(endpoint.path, answer, methods=[endpoint.method], name=handler.__name__)


def route_of(routes: Iterable[BaseRoute], scope: Scope) -> str:
    """The path that a request is counted under, by whatever method it asks; `other` where no route has it."""
    for one in routes:
        if isinstance(one, Route) and one.matches(scope)[0] is not Match.NONE:
            return _template(one.path)
    return OTHER
