"""The page: a document and a fragment for each of its views, static files, and errors as documents."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote

import msgspec
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, ExceptionHandler

from kasparro.web.cache.policy import CachePolicy, prepare
from kasparro.web.http import problems
from kasparro.web.http.problems import ProblemDocument, not_found
from kasparro.web.openapi import parameters
from kasparro.web.openapi.endpoint import Endpoint, route
from kasparro.web.openapi.parameters import NoParameters
from kasparro.web.page import rendering
from kasparro.web.service import Service

# Fragments have the data, so that they need a key where documents need none.
FRAGMENTS = "/page/views"
_HEADERS = {
    "Content-Security-Policy": rendering.CONTENT_SECURITY_POLICY,
    "Referrer-Policy": "no-referrer",
}
_FOREVER = "public, max-age=31536000, immutable"
# Deeper paths get a plain problem: a document repeats the way back in each of its links.
_DEEPEST = 8

_decode_problem = msgspec.json.Decoder(ProblemDocument).decode


class View(msgspec.Struct, frozen=True, kw_only=True):
    """One view of the page: the document at `path`, and the fragment of it that modules load again.

    `handler` returns the variables of the template; `title` must be one of them. `label` is its name in the
    navigation. `caching` and `slow` are those of an Endpoint. `module` is the script of the view.
    """

    path: str
    handler: Callable[[Service, Request, Any], Awaitable[dict[str, Any]]]
    template: str
    label: str | None = None
    module: str | None = None
    query: type[msgspec.Struct] = NoParameters
    caching: Literal["version", "revalidate"] = "version"
    slow: Callable[[Any], bool] = lambda query: False

    @property
    def fragment_path(self) -> str:
        """The path of the view's fragment."""
        return FRAGMENTS + ("/market" if self.path == "/" else self.path.removeprefix("/page"))


def linker(query: msgspec.Struct, **always: Any) -> Callable[..., str]:
    """Makes links to the view with changes of its query, and with those of `always`."""

    def link(**changes: Any) -> str:
        # Another search, order or filter begins at its first page.
        return "?" + parameters.serialize(query, **{"page": 1, **always, **changes})

    return link


def routes(views: Sequence[View], data: Sequence[Endpoint], service: Service) -> list[BaseRoute]:
    """The routes of the page: of its views, of the endpoints that only its modules use, and of its files."""
    handlers = _document_handlers(views)
    # With API keys, clients without a key must not fill the response cache.
    keyed = bool(service.settings.api_keys)
    found: list[BaseRoute] = []
    for view in views:
        for path, handler, caching in (
            (view.path, _document(view, views), "revalidate" if keyed else view.caching),
            (view.fragment_path, _fragment(view), view.caching),
        ):
            endpoint = Endpoint(
                path=path,
                handler=handler,
                summary=view.label or view.template,
                description="",
                tag="page",
                query=view.query,
                response=str,
                media_type="text/html",
                caching=caching,
                slow=view.slow,
            )
            made = route(endpoint, service)
            if path == view.path:
                made.app = ExceptionMiddleware(made.app, handlers)
            found.append(made)
    found += [route(endpoint, service) for endpoint in data]
    found.append(Route("/page/static/{version}/{name}", _static_files(service.cache_policy)))
    found.append(Route("/page/{path:path}", _nothing, middleware=[Middleware(ExceptionMiddleware, handlers)]))
    return found


def _html(text: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(text, status, {**(headers or {}), **_HEADERS}, "text/html")


def _shell(request: Request, views: Sequence[View], **shown: Any) -> str:
    # URLs are relative, so that the page also works under a path prefix.
    root = "../" * (_slashes(request) - 1)
    view: View | None = shown["view"]
    module = view.module if view is not None else None
    modules = dict.fromkeys([*rendering.modules("page"), *(rendering.modules(module) if module else ())])
    return rendering.render(
        "document.html", **{**shown, "root": root, "navigation": _navigation(views), "modules": modules}
    )


def _slashes(request: Request) -> int:
    # To a browser, an escaped slash does not separate parts of a path.
    count: int = request.scope["raw_path"].count(b"/")
    return count


def _navigation(views: Sequence[View]) -> list[tuple[str, str]]:
    return [(view.path.removeprefix("/"), view.label) for view in views if view.label is not None]


async def _shown(view: View, service: Service, request: Request, query: Any) -> dict[str, Any]:
    shown = await view.handler(service, request, query)
    depth = view.path.count("/") - 1
    return {"root": "../" * depth, "view": view, **shown}


def _document(view: View, views: Sequence[View]) -> Callable[[Service, Request, Any], Awaitable[Response]]:
    async def document(service: Service, request: Request, query: Any) -> Response:
        fragment = view.fragment_path.format(**{k: quote(v, "") for k, v in request.path_params.items()})
        # With API keys the document comes without data. A module asks for the key and loads the fragment.
        keyed = bool(service.settings.api_keys)
        shown = (
            {"title": view.label or "", "view": view}
            if keyed
            else await _shown(view, service, request, query)
        )
        shown |= {"fragment": fragment.removeprefix("/"), "keyed": keyed, "problem": None}
        return _html(_shell(request, views, **shown))

    return document


def _fragment(view: View) -> Callable[[Service, Request, Any], Awaitable[Response]]:
    async def fragment(service: Service, request: Request, query: Any) -> Response:
        return _html(rendering.render("fragment.html", **await _shown(view, service, request, query)))

    return fragment


def _document_handlers(views: Sequence[View]) -> dict[Any, ExceptionHandler]:
    # The handlers of the API's problems, whose documents become documents for people.
    def as_document(handler: Any) -> ExceptionHandler:
        async def handle(request: Request, error: Exception) -> Response:
            answered: Response = await handler(request, error)
            if answered.media_type != problems.MEDIA_TYPE or _slashes(request) > _DEEPEST:
                return answered
            problem = _decode_problem(answered.body)
            kept = ("cache-control", "retry-after", "allow")
            return _html(
                _shell(
                    request, views, title=problem.title, problem=problem, view=None, fragment="", keyed=False
                ),
                answered.status_code,
                {name: value for name, value in answered.headers.items() if name in kept},
            )

        return handle

    return {kind: as_document(handler) for kind, handler in problems.HANDLERS.items()}


async def _nothing(request: Request) -> Response:
    raise not_found("The page has no such view.")


def _static_files(policy: CachePolicy) -> Callable[[Request], Awaitable[ASGIApp]]:
    responses = {
        name: Response(content, media_type=rendering.MEDIA_TYPES[name.rpartition(".")[2]])
        for name, content in rendering.STATIC_FILES.items()
    }
    current = {name: policy.static(response, _FOREVER) for name, response in responses.items()}
    # A document of an earlier version may ask for its files while the service is updated.
    other = {name: policy.static(response, "no-cache") for name, response in responses.items()}

    async def static_file(request: Request) -> ASGIApp:
        version, name = request.path_params["version"], request.path_params["name"]
        found = (current if version == rendering.STATIC_VERSION else other).get(name)
        if found is None:
            raise not_found("The page has no such file.")
        return await prepare(request, found)

    return static_file
