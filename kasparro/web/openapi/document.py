"""The OpenAPI 3.1 document, built from the endpoints and their structs."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, get_args

import msgspec

from kasparro import __version__
from kasparro.web.http.auth import HEALTH_PATHS
from kasparro.web.http.problems import MEDIA_TYPE, ProblemDocument
from kasparro.web.openapi import parameters
from kasparro.web.openapi.endpoint import Endpoint
from kasparro.web.openapi.examples import EXAMPLES
from kasparro.web.schemas import AssetField, AssetSort, Field, RunStatus, Sort, SourceName, SourceStatus

_REFERENCE = "#/components/schemas/{name}"

# The meaning of each status, and the fields of its example.
_PROBLEMS: dict[int, tuple[str, dict[str, Any]]] = {
    400: (
        "A parameter is unknown or its value is not allowed. The problem names it.",
        {
            "type": "urn:kasparro:problem:parameter",
            "title": "Invalid parameter",
            "detail": "limit is '0'; allowed: a whole number from 1 to 1000.",
            "parameter": "limit",
            "allowed": "a whole number from 1 to 1000",
        },
    ),
    401: (
        "The API key or the admin token is missing or wrong.",
        {"detail": "Missing or invalid admin token. Send Authorization: Bearer KASPARRO_ADMIN_TOKEN."},
    ),
    404: ("There is no such resource.", {"detail": "There is no such run.", "parameter": "id"}),
    408: ("The request took too long to arrive.", {"detail": "The request did not arrive in time."}),
    409: (
        "Another run is in progress.",
        {
            "type": "urn:kasparro:problem:run-in-progress",
            "title": "Run in progress",
            "detail": "Another run is in progress. GET /stats shows it.",
        },
    ),
    411: ("The request body has no length.", {"detail": "A request body needs a Content-Length."}),
    413: ("The request body is too large.", {"detail": "A request body has at most 1024 bytes."}),
    414: ("The URL is too long.", {"detail": "A URL has at most 16384 bytes."}),
    429: (
        "Too many requests, exports or streams at the same time, from this key or address.",
        {
            "type": "urn:kasparro:problem:rate-limit",
            "title": "Too many requests",
            "detail": "600 requests per 60 s are allowed. The next is allowed in 3 s.",
        },
    ),
    431: ("The headers are too large.", {"detail": "A request has at most 100 headers and 65536 bytes."}),
    500: ("Internal error.", {"detail": "Internal error. See the server log for this request_id."}),
    503: (
        "The database cannot be reached, is being prepared, took too long, or is busy with other requests.",
        {
            "type": "urn:kasparro:problem:database-unreachable",
            "title": "Database unreachable",
            "detail": "The database cannot be reached. The next request tries again. "
            "GET /health has details.",
        },
    ),
}
# The problems that any request may get.
_ALWAYS = (400, 408, 414, 431, 500, 503)

# The headers of every response, with an example.
_HEADERS = {
    "X-Request-ID": (
        "The id of the request: the client's own, if it sent a valid one.",
        "6f1c7a0e5b0d4c0f9a3e2d1c0b9a8f7e",
    ),
    "Server-Timing": (
        "Milliseconds for the response (`total`) and for the database (`db`), and whether the response came "
        "from the cache (`cache;desc=hit`).",
        "total;dur=1.24, cache;desc=miss, db;dur=0.87",
    ),
    "Cache-Control": (
        "How long the response may be reused.",
        "public, max-age=1, stale-while-revalidate=10, stale-if-error=300",
    ),
    "X-Content-Type-Options": ("Always `nosniff`.", "nosniff"),
}
# The headers of responses that may be reused.
_CACHE_HEADERS = {
    "ETag": "Send it as If-None-Match to get 304 as long as the response is the same.",
    "Vary": "The request headers that the response depends on.",
}
_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "ETags of responses that the client has. The response is 304 if one is still valid.",
    "schema": {"type": "string", "examples": ['"9f2c5d2a7b0e4c1d8a6f3b57"']},
}
# The headers of every response if requests are limited.
_LIMIT_HEADERS = {
    "RateLimit-Policy": "How many requests (`q`) are allowed in how many seconds (`w`).",
    "RateLimit": "How many requests are left (`r`), and in how many seconds all are available again (`t`).",
}
# Further headers of problems.
_PROBLEM_HEADERS = {
    401: {"WWW-Authenticate": "How to authenticate."},
    429: {"Retry-After": "Seconds to wait.", **_LIMIT_HEADERS},
    503: {"Retry-After": "Seconds to wait."},
}

# Choices with their own schemas, so that generated clients have one type for each.
_CHOICES = {
    "AssetField": AssetField,
    "AssetSort": AssetSort,
    "Field": Field,
    "RunStatus": RunStatus,
    "Sort": Sort,
    "Source": SourceName,
    "SourceStatus": SourceStatus,
}

_ADMIN = {"admin": {"type": "http", "scheme": "bearer", "description": "KASPARRO_ADMIN_TOKEN"}}
_KEY = {
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "One of KASPARRO_API_KEYS"},
    "bearer": {"type": "http", "scheme": "bearer", "description": "One of KASPARRO_API_KEYS"},
}

_TAGS = {
    "data": "Market data of each source.",
    "assets": "Coins across sources.",
    "operations": "The state of the service, and its runs.",
}


def document(endpoints: Sequence[Endpoint], *, keyed: bool = False, limited: bool = False) -> bytes:
    """The OpenAPI document of these endpoints as JSON; `keyed` if they need an API key, `limited` if requests
    are limited.
    """
    structs = {ProblemDocument}
    for endpoint in endpoints:
        responses = {endpoint.response, *(struct for _, struct in endpoint.other_responses.values())}
        structs |= responses - {str}
    ordered = sorted(structs, key=lambda struct: struct.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=_REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.template, {})[endpoint.method.lower()] = _operation(
            endpoint,
            keyed=keyed and endpoint.path not in HEALTH_PATHS,
            limited=limited and endpoint.path not in HEALTH_PATHS,
        )
    _correct({"paths": paths, "schemas": schemas})
    used = {status for endpoint in endpoints for status in _statuses(endpoint, keyed=keyed, limited=limited)}
    security = (_ADMIN if any(endpoint.admin for endpoint in endpoints) else {}) | (_KEY if keyed else {})
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Kasparro",
                "version": __version__,
                "summary": "Crypto market data of several sources in one exact table",
                "description": "Errors are problem documents (RFC 9457). An unknown parameter is an error. "
                "Times are RFC 3339 in UTC. Numbers are exact: parse them as decimals.",
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
            "paths": paths,
            "components": {
                "schemas": schemas | {name: _choice(literal) for name, literal in _CHOICES.items()},
                "responses": {_problem_name(status): _problem(status) for status in sorted(used)},
                "headers": {
                    name: {"description": text, "schema": {"type": "string"}, "example": example}
                    for name, (text, example) in _HEADERS.items()
                },
                **({"securitySchemes": security} if security else {}),
            },
        }
    )


def _choice(literal: Any) -> dict[str, Any]:
    values = parameters.in_pairs(get_args(literal))
    # Generators of clients would number the values that start with a sign.
    names = [f"{value[1:]}_desc".upper() if value.startswith("-") else value.upper() for value in values]
    return {"type": "string", "enum": values, "x-enum-varnames": names}


def _correct(schema: Any) -> None:
    # msgspec would write decimals as strings, and describes them so. PostgreSQL writes ours, as numbers.
    # Choices with their own schemas become references.
    if isinstance(schema, dict):
        if schema.get("format") == "decimal":
            schema["type"] = "number"
        for name, literal in _CHOICES.items():
            if isinstance(schema.get("enum"), list) and set(schema["enum"]) == set(get_args(literal)):
                del schema["enum"]
                schema.pop("type", None)
                schema["$ref"] = _REFERENCE.format(name=name)
        for part in schema.values():
            _correct(part)
    elif isinstance(schema, list):
        for part in schema:
            _correct(part)


def _operation(endpoint: Endpoint, *, keyed: bool, limited: bool) -> dict[str, Any]:
    described = parameters.describe(endpoint.query, "query")
    if endpoint.path_params is not None:
        described = parameters.describe(endpoint.path_params, "path") + described
    responses: dict[str, dict[str, Any]] = {
        str(status): {"$ref": f"#/components/responses/{_problem_name(status)}"}
        for status in _statuses(endpoint, keyed=keyed, limited=limited)
    }
    headers = endpoint.headers | (_LIMIT_HEADERS if limited else {})
    if endpoint.caching != "never":
        described.append(_IF_NONE_MATCH)
        headers |= _CACHE_HEADERS
        text = "The response is the one that If-None-Match names."
        responses["304"] = {"description": text, "headers": _header_objects(headers)}
    successes = {endpoint.status: (endpoint.summary + ".", endpoint.response), **endpoint.other_responses}
    for status, (text, struct) in successes.items():
        response = _response(text, struct, endpoint.media_type, headers)
        if str(status) in responses:
            # This status may also be a problem.
            problem = _problem(status)
            response["headers"] |= problem["headers"]
            response["content"] |= problem["content"]
        responses[str(status)] = response
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__,
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "description": endpoint.description,
        "parameters": described,
        "responses": dict(sorted(responses.items())),
    }
    if endpoint.admin:
        operation["security"] = [{"admin": []}]
    elif keyed:
        operation["security"] = [{name: []} for name in _KEY]
    return operation


def _statuses(endpoint: Endpoint, *, keyed: bool, limited: bool) -> list[int]:
    return sorted({*_ALWAYS, *endpoint.problems, *([401] * keyed), *([429] * limited)})


def _response(text: str, struct: Any, media_type: str, headers: dict[str, str]) -> dict[str, Any]:
    content: dict[str, Any] = {
        "schema": {"type": "string"} if struct is str else {"$ref": _REFERENCE.format(name=struct.__name__)}
    }
    if (example := EXAMPLES.get(media_type if struct is str else struct.__name__)) is not None:
        content["example"] = example
    return {"description": text, "headers": _header_objects(headers), "content": {media_type: content}}


def _header_objects(headers: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS}
    for name, meaning in headers.items():
        found[name] = {"description": meaning, "schema": {"type": "string"}}
    return found


def _problem_name(status: int) -> str:
    return f"Problem{status}"


def _problem(status: int) -> dict[str, Any]:
    text, fields = _PROBLEMS[status]
    response = _response(text, ProblemDocument, MEDIA_TYPE, _PROBLEM_HEADERS.get(status, {}))
    response["content"][MEDIA_TYPE]["example"] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "instance": "/data",
        "request_id": "6f1c7a0e5b0d4c0f9a3e2d1c0b9a8f7e",
    } | fields
    return response
