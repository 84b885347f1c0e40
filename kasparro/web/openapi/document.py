"""The description of the API (OpenAPI 3.1), made of the endpoints and the structs that they work with."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, get_args

import msgspec

from kasparro import __version__
from kasparro.pipeline.report import RunStatus, SourceName, SourceStatus
from kasparro.web.http.auth import HEALTH_PATHS
from kasparro.web.http.problems import MEDIA_TYPE, ProblemDocument
from kasparro.web.openapi import parameters
from kasparro.web.openapi.endpoint import Endpoint
from kasparro.web.routes.data import Field, Sort

_REFERENCE = "#/components/schemas/{name}"

# What each status means, and what differs in an example of its document.
_PROBLEMS: dict[int, tuple[str, dict[str, Any]]] = {
    400: (
        "A parameter is unknown, or has a value that is not allowed; the document names it.",
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
    404: ("There is no such thing.", {"detail": "There is no such run.", "parameter": "id"}),
    408: ("The request took too long to arrive.", {"detail": "The request did not arrive in time."}),
    409: (
        "Another run is at work.",
        {
            "type": "urn:kasparro:problem:run-in-progress",
            "title": "Run in progress",
            "detail": "Another run is at work; GET /stats shows it.",
        },
    ),
    411: ("The body came without its length.", {"detail": "A request body needs a Content-Length."}),
    413: ("The body is too large.", {"detail": "A request body has at most 1024 bytes."}),
    414: ("The URL is too long.", {"detail": "A URL has at most 16384 bytes."}),
    429: (
        "Too many requests, or exports at once, of this key or address.",
        {
            "type": "urn:kasparro:problem:rate-limit",
            "title": "Too many requests",
            "detail": "600 requests per 60 s are allowed. The next is allowed in 3 s.",
        },
    ),
    431: ("The headers are too large.", {"detail": "A request has at most 100 headers and 65536 bytes."}),
    500: (
        "Something went wrong here.",
        {"detail": "Internal error. See the server log for this request_id."},
    ),
    503: (
        "The database is out of reach, being prepared, or took too long; or too many wait for it already.",
        {
            "type": "urn:kasparro:problem:database-unreachable",
            "title": "Database unreachable",
            "detail": "The database cannot be reached. The next request tries again. "
            "GET /health has details.",
        },
    ),
}
# Any request may end so, whatever it asks for.
_ALWAYS = (400, 408, 414, 431, 500, 503)

# Every answer has these: what they mean, and an example.
_HEADERS = {
    "X-Request-ID": (
        "The request's id: the client's, where it sent a fit one.",
        "6f1c7a0e5b0d4c0f9a3e2d1c0b9a8f7e",
    ),
    "Server-Timing": (
        "Milliseconds that the answer took (`total`), the database's part in it (`db`), and whether the "
        "answer was kept from before (`cache;desc=hit`).",
        "total;dur=1.24, cache;desc=miss, db;dur=0.87",
    ),
    "Cache-Control": (
        "How long the answer may be used again.",
        "public, max-age=1, stale-while-revalidate=10, stale-if-error=300",
    ),
    "X-Content-Type-Options": ("Always `nosniff`.", "nosniff"),
}
# Answers that may be used again have these as well.
_REUSE_HEADERS = {
    "ETag": "Sent back as If-None-Match, it is answered with 304 while the answer is still the same.",
    "Vary": "What beside the URL the answer depends on.",
}
_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "Tags of answers that the client has: where one of them still holds, the answer is a 304.",
    "schema": {"type": "string", "examples": ['"9f2c5d2a7b0e4c1d8a6f3b57"']},
}
# Where requests are limited, every answer has these.
_LIMIT_HEADERS = {
    "RateLimit-Policy": "How many requests (`q`) in how many seconds (`w`) are allowed.",
    "RateLimit": "How many requests are left (`r`), and in how many seconds there are all again (`t`).",
}
# Headers that problems have beside these.
_PROBLEM_HEADERS = {
    401: {"WWW-Authenticate": "How to authenticate."},
    429: {"Retry-After": "Seconds to wait.", **_LIMIT_HEADERS},
    503: {"Retry-After": "Seconds to wait."},
}

# Choices with a name of their own, so that generated clients have one type for them.
_CHOICES = {
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

_AREAS = {
    "data": "Market data.",
    "operations": "How the service fares and what it did.",
}


def document(endpoints: Sequence[Endpoint], *, keyed: bool = False, limited: bool = False) -> bytes:
    """The OpenAPI document of these endpoints, as JSON: `keyed` where they take an API key, `limited` where
    so many requests are allowed.
    """
    structs = {ProblemDocument}
    for endpoint in endpoints:
        answers = {endpoint.answer, *(answer for _, answer in endpoint.other_answers.values())}
        structs |= answers - {str}
    ordered = sorted(structs, key=lambda struct: struct.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=_REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.template, {})[endpoint.method.lower()] = _operation(
            endpoint,
            keyed=keyed and endpoint.path not in HEALTH_PATHS,
            limited=limited and endpoint.path not in HEALTH_PATHS,
        )
    described = {"paths": paths, "schemas": schemas}
    _correct(described)
    used = {status for endpoint in endpoints for status in _statuses(endpoint, keyed=keyed, limited=limited)}
    security = (_ADMIN if any(one.guarded for one in endpoints) else {}) | (_KEY if keyed else {})
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Kasparro",
                "version": __version__,
                "summary": "Crypto market data of several sources in one exact table",
                "description": "Errors are problem documents (RFC 9457). An unknown parameter is an error. "
                "Times are RFC 3339 in UTC. Numbers are exact: read them as decimals.",
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "tags": [{"name": name, "description": text} for name, text in _AREAS.items()],
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
    values = sorted(get_args(literal), key=lambda value: (value.lstrip("-"), len(value)))
    # Names for generated code, which would number those that begin with a sign.
    names = [f"{value[1:]}_desc".upper() if value.startswith("-") else value.upper() for value in values]
    return {"type": "string", "enum": values, "x-enum-varnames": names}


def _correct(schema: Any) -> None:
    # msgspec writes decimals as strings, and describes them so; PostgreSQL writes ours, as numbers. Choices
    # that have a name are referred to by it.
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
    if endpoint.path_shape is not None:
        described = parameters.describe(endpoint.path_shape, "path") + described
    responses: dict[str, dict[str, Any]] = {
        str(status): {"$ref": f"#/components/responses/{_problem_name(status)}"}
        for status in _statuses(endpoint, keyed=keyed, limited=limited)
    }
    headers = endpoint.headers | (_LIMIT_HEADERS if limited else {})
    if endpoint.caching != "never":
        described.append(_IF_NONE_MATCH)
        headers |= _REUSE_HEADERS
        text = "The answer is still the one that If-None-Match names."
        responses["304"] = {"description": text, "headers": _named(headers)}
    answers = {endpoint.status: (endpoint.summary + ".", endpoint.answer), **endpoint.other_answers}
    for status, (text, answer) in answers.items():
        response = _response(text, answer, endpoint.media_type, headers)
        if str(status) in responses:
            # An answer of its own, but a problem may come in its place.
            problem = _problem(status)
            response["headers"] |= problem["headers"]
            response["content"] |= problem["content"]
        responses[str(status)] = response
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__,
        "tags": [endpoint.area],
        "summary": endpoint.summary,
        "description": endpoint.description,
        "parameters": described,
        "responses": dict(sorted(responses.items())),
    }
    if endpoint.guarded:
        operation["security"] = [{"admin": []}]
    elif keyed:
        operation["security"] = [{name: []} for name in _KEY]
    return operation


def _statuses(endpoint: Endpoint, *, keyed: bool, limited: bool) -> list[int]:
    return sorted({*_ALWAYS, *endpoint.problems, *([401] * keyed), *([429] * limited)})


def _response(text: str, answer: Any, media_type: str, headers: dict[str, str]) -> dict[str, Any]:
    content: dict[str, Any] = {
        "schema": {"type": "string"} if answer is str else {"$ref": _REFERENCE.format(name=answer.__name__)}
    }
    if (example := _EXAMPLES.get(media_type if answer is str else answer.__name__)) is not None:
        content["example"] = example
    return {"description": text, "headers": _named(headers), "content": {media_type: content}}


def _named(headers: dict[str, str]) -> dict[str, Any]:
    named: dict[str, Any] = {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS}
    for name, meaning in headers.items():
        named[name] = {"description": meaning, "schema": {"type": "string"}}
    return named


def _problem_name(status: int) -> str:
    return f"Problem{status}"


def _problem(status: int) -> dict[str, Any]:
    text, told = _PROBLEMS[status]
    response = _response(text, ProblemDocument, MEDIA_TYPE, _PROBLEM_HEADERS.get(status, {}))
    response["content"][MEDIA_TYPE]["example"] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "instance": "/data",
        "request_id": "6f1c7a0e5b0d4c0f9a3e2d1c0b9a8f7e",
    } | told
    return response


_RECORD = {
    "source": "coingecko",
    "source_id": "bitcoin",
    "asset": None,
    "symbol": "btc",
    "name": "Bitcoin",
    "rank": 1,
    "price_usd": 64210.5,
    "market_cap_usd": 1265000000000,
    "volume_24h_usd": 31200000000,
    "circulating_supply": 19700000,
    "total_supply": 21000000,
    "max_supply": 21000000,
    "percent_change_1h": 0.12,
    "percent_change_24h": -1.5,
    "percent_change_7d": 4.25,
    "observed_at": "2024-06-01T12:00:00.000000Z",
    "first_seen_at": "2024-05-01T09:00:02.500000Z",
    "updated_at": "2024-06-01T12:00:31.250000Z",
}
_RECORDS = {"fetched": 250, "valid": 249, "rejected": 1, "inserted": 3, "updated": 240, "unchanged": 6}
_DRIFT = {
    "field": "last_price",
    "change": "appeared",
    "records": 250,
    "of": 250,
    "before": "not there",
    "after": "number in 250 of 250 records",
    "samples": ["64210.5", "3071.88"],
    "nearest": "current_price",
    "confidence": 0.83,
    "since_run": 42,
}
_ANOMALY = {
    "kind": "few-records",
    "detail": "250 records, usually 12,000",
    "value": 250,
    "usual": 12000,
    "lasting": False,
    "since_run": 42,
    "since": "2024-06-01T12:00:09.4Z",
}
_RUN: dict[str, Any] = {
    "id": 42,
    "trigger": "schedule",
    "status": "succeeded",
    "started_at": "2024-06-01T12:00:00Z",
    "finished_at": "2024-06-01T12:00:09.5Z",
    "duration_s": 9.5,
    "records": _RECORDS,
    "sources": [
        {
            "source": "coingecko",
            "status": "succeeded",
            "started_at": "2024-06-01T12:00:00Z",
            "finished_at": "2024-06-01T12:00:09.4Z",
            "duration_s": 9.4,
            "records": _RECORDS,
            "corrected": 0,
            "rejects": [{"location": None, "field": "price_usd", "reason": "below zero", "rejects": 1}],
            "refused_files": [],
            "calls": 1,
            "payloads": 1,
            "payload_bytes": 23456,
            "note": "page 1 of 1",
            "drift": [_DRIFT],
            "anomalies": [_ANOMALY],
            "prices": {"coins": 240, "size_percent": 0.41, "change_percent": -0.08, "after_s": 3600},
            "error": None,
        }
    ],
    "error": None,
}
_DIFFERENCE = {"duration_s": 0.0, "calls": 0, "records": dict.fromkeys(_RECORDS, 0)}
_PAGINATION = {
    "limit": 50,
    "page": 1,
    "pages": 1,
    "total": 1,
    "next": None,
    "next_cursor": None,
}
_EXAMPLES: dict[str, Any] = {
    # Of answers that are text, by their media type.
    "text/plain": "# TYPE kasparro_database_up gauge\nkasparro_database_up 1.0\n",
    "text/csv": 'source,symbol,price_usd\r\n"coingecko","btc",64210.5\r\n',
    "application/x-ndjson": '{"source":"coingecko","symbol":"btc","price_usd":64210.5}\n',
    "Record": _RECORD,
    "DataPage": {
        "data": [_RECORD],
        "pagination": {
            "limit": 1,
            "page": 1,
            "pages": 15000,
            "total": 15000,
            "next": "/data?limit=1&cursor=ksQIl1v0",
            "next_cursor": "ksQIl1v0",
        },
    },
    "RunReport": _RUN,
    "RunsPage": {"data": [_RUN], "pagination": _PAGINATION},
    "RejectsPage": {
        "data": [
            {
                "id": 7,
                "source": "csv",
                "reason": "not a number: 'abc'",
                "setting": None,
                "field": "price_usd",
                "location": "dump.csv.gz",
                "line": 1204,
                "raw": "btc,Bitcoin,abc",
            }
        ],
        "pagination": _PAGINATION,
    },
    "Stats": {
        "status": "idle",
        "last_run": _RUN,
        "totals": {
            "records": 15000,
            "by_source": {"coinpaprika": 2500, "coingecko": 12000, "csv": 500},
            "runs": 42,
            "last_success_at": "2024-06-01T12:00:09.5Z",
            "last_failure_at": None,
        },
        "schedule": {"interval_s": 3600.0, "next_run_at": "2024-06-01T13:00:00Z"},
        "budget": {
            "coinpaprika": {
                "month": "2024-06",
                "calls": 12,
                "limit": 20000,
                "remaining": 19988,
                "pages": None,
                "pages_every_run": None,
                "pages_in_rotation": None,
                "rotation_runs": None,
                "covered_by": None,
                "age_s": None,
                "promised_age_s": None,
            },
            "coingecko": {
                "month": "2024-06",
                "calls": 228,
                "limit": 10000,
                "remaining": 9772,
                "pages": 72,
                "pages_every_run": 3,
                "pages_in_rotation": 69,
                "rotation_runs": 7,
                "covered_by": "2024-06-01T20:00:00Z",
                "age_s": 25291.0,
                "promised_age_s": 61200.0,
            },
        },
        "drift": {"coinpaprika": [], "coingecko": [_DRIFT]},
    },
    "Health": {
        "status": "ok",
        "database": {"status": "ok", "latency_ms": 0.8, "error": None},
        "sources": {
            "coingecko": {
                "status": "succeeded",
                "last_success_at": "2024-06-01T12:00:09.4Z",
                "age_s": 120.5,
                "expected_age_s": 7500.0,
                "stale": False,
                "error": None,
                "reasons": [],
            }
        },
    },
    "Comparison": {
        "a": _RUN,
        "b": {**_RUN, "id": 43},
        "difference": _DIFFERENCE,
        "only_a": [],
        "only_b": [],
        "sources": [
            {
                "source": "coingecko",
                "status_a": "succeeded",
                "status_b": "succeeded",
                "difference": _DIFFERENCE,
                "drift_begun": [],
                "drift_over": [],
                "anomalies_begun": [],
                "anomalies_over": [],
            }
        ],
    },
    "Alive": {"status": "ok"},
    "TableSizes": {
        "tables": [{"name": "unified_data", "rows": 15000, "bytes": 7340032, "estimated": False}],
    },
    "RunStarted": {"id": 43, "status": "running"},
}
