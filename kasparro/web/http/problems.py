"""Error responses: a problem document (RFC 9457) for every error that a request can meet."""

from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import asyncpg
import msgspec
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ExceptionHandler, Scope

from kasparro.errors import DatabaseBusy, DatabaseUnavailable, ReplicaBehind, StatementTimeout
from kasparro.log_rate import RateLimitedLog
from kasparro.web.http.context import context_of

# Every request logs here while the database is away or busy.
client_log = RateLimitedLog(structlog.get_logger())

MEDIA_TYPE = "application/problem+json"
# About the time that a restart or failover of PostgreSQL takes, and a full queue of readers.
RETRY_AFTER_S = 5
BUSY_RETRY_AFTER_S = 1

_encode = msgspec.json.Encoder().encode


class ProblemDocument(msgspec.Struct, kw_only=True, omit_defaults=True, rename={"kind": "type"}):
    """Why a request failed (RFC 9457)."""

    kind: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    parameter: str | None = None
    allowed: str | None = None


class Problem(Exception):
    """A request that fails with this problem document.

    `parameter` names the part of the request that is wrong, `allowed` the values that it may have.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        kind: str | None = None,
        title: str | None = None,
        parameter: str | None = None,
        allowed: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.kind = f"urn:kasparro:problem:{kind}" if kind else "about:blank"
        self.title = title or HTTPStatus(status).phrase
        self.parameter = parameter
        self.allowed = allowed
        self.headers = headers


def bad_parameter(parameter: str, detail: str, allowed: str | None = None) -> Problem:
    """The problem of a query parameter whose value is not allowed."""
    return Problem(
        400,
        detail,
        kind="parameter",
        title="Invalid parameter",
        parameter=parameter,
        allowed=allowed,
    )


def not_found(detail: str, *, parameter: str | None = None, allowed: str | None = None) -> Problem:
    """The problem of a resource that does not exist."""
    return Problem(404, detail, parameter=parameter, allowed=allowed)


def document(problem: Problem, path: str, request_id: str) -> bytes:
    """The problem document of the request for a path, as JSON."""
    return _encode(
        ProblemDocument(
            kind=problem.kind,
            title=problem.title,
            status=problem.status,
            detail=problem.detail,
            # A client may send any bytes as its path. In the document it must be a URI reference.
            instance=quote(path[:1_000]),
            request_id=request_id,
            parameter=problem.parameter,
            allowed=problem.allowed,
        )
    )


def response(scope: Scope, problem: Problem) -> Response:
    """The problem document as a response to this request."""
    body = document(problem, scope["path"], context_of(scope).request_id)
    return Response(
        body, problem.status, {"Cache-Control": "no-store", **(problem.headers or {})}, MEDIA_TYPE
    )


async def _problem(request: Request, error: Problem) -> Response:
    return response(request.scope, error)


async def _http(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404:
        problem = not_found("No such path. /docs lists the paths of this API.")
    elif error.status_code == 405:
        allowed = ", ".join(sorted(_methods(request) | {"OPTIONS"}))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": allowed})
        problem = Problem(
            405,
            f"{request.method[:20]} is not allowed for this path.",
            parameter="method",
            allowed=allowed,
            headers={"Allow": allowed},
        )
    else:
        problem = Problem(error.status_code, error.detail, headers=dict(error.headers or {}))
    return response(request.scope, problem)


def _methods(request: Request) -> set[str]:
    # Several routes may share a path. The exception knows only the methods of the first one.
    found: set[str] = set()
    for route in request.scope["router"].routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return found


def _unavailable(kind: str, title: str, detail: str, retry_after_s: int = RETRY_AFTER_S) -> ExceptionHandler:
    async def handler(request: Request, error: Exception) -> Response:
        client_log.warning(
            kind.replace("-", "_"),
            path=request.scope["path"],
            reason=f"{type(error).__name__}: {error}",
            **context_of(request.scope).database_fields(),
        )
        headers = {"Retry-After": str(retry_after_s)}
        return response(request.scope, Problem(503, detail, kind=kind, title=title, headers=headers))

    return handler


HANDLERS: dict[Any, Any] = {
    Problem: _problem,
    HTTPException: _http,
    DatabaseUnavailable: _unavailable(
        "database-unreachable",
        "Database unreachable",
        "The database cannot be reached. The next request tries again. GET /health has details.",
    ),
    DatabaseBusy: _unavailable(
        "too-busy",
        "Too busy",
        "Too many requests are waiting for the database. Try again soon.",
        BUSY_RETRY_AFTER_S,
    ),
    ReplicaBehind: _unavailable(
        "replica-behind",
        "Replica behind",
        "No server that can be reached has the data version that you have seen. Try again.",
        BUSY_RETRY_AFTER_S,
    ),
    **dict.fromkeys(
        (asyncpg.QueryCanceledError, StatementTimeout),
        _unavailable(
            "query-took-too-long",
            "Query took too long",
            "The query took too long and was stopped. Narrow the filters, or use `cursor` instead of `page`.",
        ),
    ),
    asyncpg.UndefinedTableError: _unavailable(
        "database-being-prepared",
        "Database being prepared",
        "The database is being prepared. Some tables do not exist yet.",
    ),
}
