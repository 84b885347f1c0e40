"""What goes wrong, as answers: problem documents (RFC 9457) for every error a request can meet."""

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
from starlette.types import ExceptionHandler

from kasparro.errors import DatabaseBusy, DatabaseUnavailable
from kasparro.log_rate import RateLimitedLog
from kasparro.web.http.context import context_of

# Every request to a database that is away or busy leads here.
client_log = RateLimitedLog(structlog.get_logger())

MEDIA_TYPE = "application/problem+json"
# A restart or a failover of PostgreSQL takes about so long, and a queue of readers so.
RETRY_AFTER_S = 5
BUSY_RETRY_AFTER_S = 1

_encode = msgspec.json.Encoder().encode


class ProblemDocument(msgspec.Struct, kw_only=True, omit_defaults=True, rename={"kind": "type"}):
    """What went wrong with a request, by RFC 9457."""

    kind: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    parameter: str | None = None
    allowed: str | None = None


class Problem(Exception):
    """A request that cannot be answered as asked; carries what its problem document says.

    `parameter` names what was wrong with the request, `allowed` what it may be.
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
    """The problem of a query parameter with a value that is not allowed."""
    return Problem(
        400,
        detail,
        kind="parameter",
        title="A parameter is not allowed as it is",
        parameter=parameter,
        allowed=allowed,
    )


def not_found(detail: str, *, parameter: str | None = None, allowed: str | None = None) -> Problem:
    """The problem of asking for what is not there."""
    return Problem(404, detail, parameter=parameter, allowed=allowed)


def document(problem: Problem, path: str, request_id: str) -> bytes:
    """The problem document of the request for a path, as JSON."""
    return _encode(
        ProblemDocument(
            kind=problem.kind,
            title=problem.title,
            status=problem.status,
            detail=problem.detail,
            # Clients may send anything in a path; in an answer it is a URI reference.
            instance=quote(path[:1_000]),
            request_id=request_id,
            parameter=problem.parameter,
            allowed=problem.allowed,
        )
    )


def answer(scope: Any, problem: Problem) -> Response:
    """The problem document of a request, as a response."""
    body = document(problem, scope["path"], context_of(scope).request_id)
    return Response(
        body, problem.status, {"Cache-Control": "no-store", **(problem.headers or {})}, MEDIA_TYPE
    )


async def _problem(request: Request, error: Problem) -> Response:
    return answer(request.scope, error)


async def _http(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404:
        problem = not_found("There is nothing at this path; /docs lists what there is.")
    elif error.status_code == 405:
        allowed = ", ".join(sorted(_methods(request) | {"OPTIONS"}))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": allowed})
        problem = Problem(
            405,
            f"This path does not know {request.method[:20]}.",
            parameter="method",
            allowed=allowed,
            headers={"Allow": allowed},
        )
    else:
        problem = Problem(error.status_code, error.detail, headers=dict(error.headers or {}))
    return answer(request.scope, problem)


def _methods(request: Request) -> set[str]:
    # Several routes may share a path; the router tells only the first one's methods.
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
            request_id=context_of(request.scope).request_id,
            reason=f"{type(error).__name__}: {error}",
        )
        headers = {"Retry-After": str(retry_after_s)}
        return answer(request.scope, Problem(503, detail, kind=kind, title=title, headers=headers))

    return handler


_unreachable = _unavailable(
    "database-unreachable",
    "Database unreachable",
    "The database is out of reach; it is asked again with the next request. GET /health tells more.",
)

HANDLERS: dict[Any, Any] = {
    Problem: _problem,
    HTTPException: _http,
    DatabaseUnavailable: _unreachable,
    DatabaseBusy: _unavailable(
        "too-busy",
        "Too busy",
        "Too many wait for the database already; ask again soon.",
        BUSY_RETRY_AFTER_S,
    ),
    asyncpg.QueryCanceledError: _unavailable(
        "query-took-too-long",
        "Query took too long",
        "The query took too long and was stopped; ask for less, or page with `cursor` in place of `page`.",
    ),
    asyncpg.UndefinedTableError: _unavailable(
        "database-being-prepared",
        "Database being prepared",
        "The database is being prepared: its tables are not all there yet.",
    ),
}
