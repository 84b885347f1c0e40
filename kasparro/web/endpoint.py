"""An endpoint said once: the route that serves it and its description come from the same words."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kasparro.web import parameters
from kasparro.web.parameters import NoParameters
from kasparro.web.service import Service


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path: what it takes, what it gives, and the problems it may answer with.

    `query` and `path_shape` are structs whose fields are its parameters, `answer` is the struct of its body.
    """

    path: str
    handler: Callable[[Service, Request, Any], Awaitable[Response]]
    summary: str
    description: str
    area: str
    answer: Any
    method: str = "GET"
    status: int = 200
    query: type[msgspec.Struct] = NoParameters
    path_shape: type[msgspec.Struct] | None = None
    problems: tuple[int, ...] = (400, 500, 503)
    other_answers: dict[int, tuple[str, Any]] = {}
    headers: dict[str, str] = {}
    guarded: bool = False


def route(endpoint: Endpoint, service: Service) -> Route:
    """The route that reads the endpoint's query before its handler does anything."""
    shape, handler = endpoint.query, endpoint.handler

    async def answer(request: Request) -> Response:
        return await handler(service, request, parameters.read(shape, request.scope["query_string"]))

    return Route(endpoint.path, answer, methods=[endpoint.method], name=handler.__name__)
