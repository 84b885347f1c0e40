"""/docs: Swagger UI from its package, on our own paths, asking no other host for anything."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route
from swagger_ui_bundle import swagger_ui_path  # type: ignore[import-untyped]

from kasparro.web import openapi
from kasparro.web.endpoint import Endpoint
from kasparro.web.problems import not_found

_ASSETS = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")

# Swagger UI sets styles on its elements and draws its icons from data: URLs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

# Relative addresses, so that the page works under a prefix too.
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
<noscript>The description itself: <a href="openapi.json">openapi.json</a></noscript>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""

# The validator is a badge from another host; it stays off.
_START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null,
});
"""


def routes(endpoints: Sequence[Endpoint]) -> list[Route]:
    """The routes that describe these endpoints, to programs and to people."""
    description = openapi.document(endpoints)

    async def openapi_json(request: Request) -> Response:
        return Response(description, media_type="application/json")

    return [
        Route("/", _front),
        Route("/openapi.json", openapi_json),
        Route("/docs", _page),
        Route("/docs/start.js", _start),
        Route("/docs/{name}", _asset),
    ]


async def _front(request: Request) -> Response:
    return RedirectResponse("docs")


async def _page(request: Request) -> Response:
    return Response(_PAGE, headers={"Content-Security-Policy": _POLICY}, media_type="text/html")


async def _start(request: Request) -> Response:
    return Response(_START, media_type="text/javascript")


async def _asset(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _ASSETS:
        raise not_found("There is nothing at this path; /docs lists what there is.")
    return FileResponse(swagger_ui_path / name, headers={"Cache-Control": "public, max-age=86400"})
