"""GET /docs and /openapi.json: Swagger UI from its package, without requests to other hosts."""

from collections.abc import Sequence
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp
from swagger_ui_bundle import swagger_ui_path  # type: ignore[import-untyped]

from kasparro.web.cache.policy import CachePolicy, prepare
from kasparro.web.openapi import document, parameters
from kasparro.web.openapi.endpoint import Endpoint
from kasparro.web.openapi.parameters import NoParameters
from kasparro.web.service import Service

_ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}

# Swagger UI sets styles on its elements and has icons in data: URLs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS = {"Content-Security-Policy": _POLICY}

# Relative URLs, so that the page also works under a path prefix.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Kasparro API</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<noscript>The OpenAPI document: <a href="openapi.json">openapi.json</a></noscript>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""

_START = Path(__file__).with_name("docs.js")


def routes(endpoints: Sequence[Endpoint], service: Service) -> list[Route]:
    """The routes of the OpenAPI document of these endpoints and of Swagger UI."""
    policy, settings = service.cache_policy, service.settings
    description = document.document(
        endpoints, keyed=bool(settings.api_keys), limited=settings.rate_limit is not None
    )
    return [
        _route("/openapi.json", policy, Response(description, media_type="application/json")),
        _route("/docs", policy, Response(_PAGE, headers=_PAGE_HEADERS, media_type="text/html")),
        _route("/docs/start.js", policy, Response(_START.read_bytes(), media_type="text/javascript")),
        *(
            _route(
                f"/docs/{name}",
                policy,
                Response((swagger_ui_path / name).read_bytes(), media_type=media_type),
                "public, max-age=86400",
            )
            for name, media_type in _ASSETS.items()
        ),
    ]


def _route(path: str, policy: CachePolicy, response: Response, cache_control: str = "no-cache") -> Route:
    static = policy.static(response, cache_control)

    async def respond(request: Request) -> ASGIApp:
        parameters.parse(NoParameters, request.scope["query_string"])
        return await prepare(request, static)

    return Route(path, respond)
