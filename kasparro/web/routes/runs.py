"""What operators ask: how the service fares, what its runs did, what its tables hold; and a run on demand."""

import asyncio
import re
import time
from typing import Annotated, Any, Literal

import asyncpg
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kasparro.errors import KasparroError, RunInProgress, one_line
from kasparro.pipeline import report
from kasparro.pipeline.comparison import Comparison, compare
from kasparro.pipeline.report import RejectReport, RunReport, RunStatus, SourceHealth, Stats, encode
from kasparro.store import tables as store_tables
from kasparro.store.tables import Table
from kasparro.web.http.context import context_of
from kasparro.web.http.problems import Problem, not_found
from kasparro.web.openapi import pagination as paging
from kasparro.web.openapi.endpoint import Endpoint
from kasparro.web.openapi.pagination import PageQuery, Pagination
from kasparro.web.service import Service

# A health check asks every few seconds and gives up soon; it gets its answer before that.
HEALTH_TIMEOUT_S = 2.0

_RUN_ID = re.compile(r"[1-9][0-9]{0,99}")


class RunsQuery(PageQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of /runs."""

    status: Annotated[
        RunStatus | None, msgspec.Meta(description="Runs of this status alone.", examples=["failed"])
    ] = None


# Whole numbers up to here are exact in every JSON reader; no database counts as far.
_RUN_ID_LIMIT = 2**53 - 1
_OneRun = Annotated[int, msgspec.Meta(ge=1, le=_RUN_ID_LIMIT)]


class CompareQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of /compare-runs."""

    a: Annotated[_OneRun, msgspec.Meta(description="The run to compare with.", examples=[1])]
    b: Annotated[_OneRun, msgspec.Meta(description="The run to look at.", examples=[2])]


class RunPath(msgspec.Struct, frozen=True, kw_only=True):
    """What identifies a run."""

    id: Annotated[int, msgspec.Meta(ge=1, examples=[1])]


class RunsPage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page of runs, newest first."""

    data: list[RunReport]
    pagination: Pagination


class RejectsPage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page of a run's rejects, in the order they were met."""

    data: list[RejectReport]
    pagination: Pagination


class RunStarted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run that was started on demand; Location tells where it reports."""

    id: int
    status: Literal["running"] = "running"


class DatabaseHealth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether the PostgreSQL that is read from answers, and how soon."""

    status: Literal["ok", "preparing", "unreachable"]
    latency_ms: float | None = None
    error: Annotated[str | None, msgspec.Meta(description="Why it is out of reach, in one line.")] = None
    unreachable: Annotated[
        list[Literal["primary", "read"]],
        msgspec.Meta(
            description="What is out of reach: `primary` is DATABASE_URL, `read` DATABASE_READ_URL. Without "
            "the primary runs store nothing, without the other nothing can be read."
        ),
    ] = []


class Health(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether the service can do its work. `degraded`: it answers, but something is wrong; `reasons` say what
    in the service itself, those of a source what there."""

    status: Literal["ok", "degraded", "unavailable"]
    database: DatabaseHealth
    sources: dict[str, SourceHealth]
    reasons: Annotated[
        list[str],
        msgspec.Meta(
            description="What is wrong in the service, a line each: the primary is out of reach, background "
            "tasks failed or worker processes died in the last minute."
        ),
    ] = []


class Alive(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The process answers."""

    status: Literal["ok"] = "ok"


class TableSizes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The service's tables."""

    tables: list[Table]


async def stats(service: Service, request: Request, query: Any) -> Response:
    """GET /stats."""
    async with service.read_connection(request) as connection:
        found = await report.stats(connection, service.settings, service.next_run_at)
    return _json(found)


async def runs(service: Service, request: Request, query: RunsQuery) -> Response:
    """GET /runs."""
    path = request.scope["path"]
    async with service.read_connection(request) as connection:
        signing_key = await service.signing_key(connection)
        part = await report.recent_runs(
            connection,
            limit=query.limit,
            offset=paging.offset(query),
            after=paging.start(query, path, signing_key),
            status=query.status,
        )
    pagination = paging.pagination(query, path, signing_key, total=part.total, last=part.last)
    headers = paging.links(query, path, pagination)
    return _json(RunsPage(data=part.items, pagination=pagination), headers=headers)


async def run(service: Service, request: Request, query: Any) -> Response:
    """GET /runs/{id}."""
    run_id = _run_id(request)
    async with service.read_connection(request) as connection:
        found = await report.run_report(connection, run_id)
    if found is None:
        raise not_found("There is no such run.", parameter="id")
    return _json(found)


async def rejects(service: Service, request: Request, query: PageQuery) -> Response:
    """GET /runs/{id}/rejects."""
    run_id = _run_id(request)
    path = request.scope["path"]
    async with service.read_connection(request) as connection:
        signing_key = await service.signing_key(connection)
        part = await report.rejects_of(
            connection,
            run_id,
            limit=query.limit,
            offset=paging.offset(query),
            after=paging.start(query, path, signing_key),
        )
    if part is None:
        raise not_found("There is no such run.", parameter="id")
    pagination = paging.pagination(query, path, signing_key, total=part.total, last=part.last)
    headers = paging.links(query, path, pagination)
    return _json(RejectsPage(data=part.items, pagination=pagination), headers=headers)


async def compare_runs(service: Service, request: Request, query: CompareQuery) -> Response:
    """GET /compare-runs."""
    async with service.read_connection(request) as connection:
        found = await report.two_runs(connection, query.a, query.b)
    for name, run_id in (("a", query.a), ("b", query.b)):
        if run_id not in found:
            raise not_found(f"There is no run {run_id}.", parameter=name)
    return _json(compare(found[query.a], found[query.b]))


async def start_run(service: Service, request: Request, query: Any) -> Response:
    """POST /runs."""
    scheduler = service.scheduler
    if scheduler is None or service.settings.admin_token is None:
        raise not_found("Runs cannot be started here.")
    context = context_of(request.scope)
    authorization = request.headers.get("Authorization", "").encode("latin-1")
    service.access.admit_admin(
        request.scope, {b"authorization": authorization}, context.key_name, context.started
    )
    try:
        run_id = await scheduler.trigger()
    except RunInProgress:
        raise Problem(
            409,
            "Another run is at work; GET /stats shows it.",
            kind="run-in-progress",
            title="Run in progress",
        ) from None
    return _json(RunStarted(id=run_id), 202, {"Location": f"/runs/{run_id}"})


async def health(service: Service, request: Request, query: Any) -> Response:
    """GET /health."""
    (database, sources), primary_error, reasons = await asyncio.gather(
        _read_health(service), _primary_error(service), service.problems()
    )
    if primary_error is not None:
        database = msgspec.structs.replace(database, unreachable=["primary", *database.unreachable])
        reasons = [f"the primary (DATABASE_URL) is out of reach: {primary_error}", *reasons]
    if database.status != "ok":
        return _json(Health(status="unavailable", database=database, sources={}, reasons=reasons), 503)
    sound = not reasons and all(source.sound for source in sources.values())
    status: Literal["ok", "degraded"] = "ok" if sound else "degraded"
    return _json(Health(status=status, database=database, sources=sources, reasons=reasons))


async def _read_health(service: Service) -> tuple[DatabaseHealth, dict[str, SourceHealth]]:
    """How the database that is read from fares, and the sources by what it says."""
    began = time.perf_counter()
    try:
        sources = await service.source_health(HEALTH_TIMEOUT_S)
    except asyncpg.UndefinedTableError:
        return DatabaseHealth(status="preparing", error="its tables are not all there yet"), {}
    except (KasparroError, asyncpg.PostgresError) as error:
        which: Literal["primary", "read"] = "read" if service.database.replicas else "primary"
        return DatabaseHealth(status="unreachable", error=one_line(error), unreachable=[which]), {}
    return DatabaseHealth(status="ok", latency_ms=round((time.perf_counter() - began) * 1e3, 2)), sources


async def _primary_error(service: Service) -> str | None:
    """Why the primary is out of reach, where reads have a database of their own."""
    if not service.database.replicas:
        return None
    try:
        await service.probe_primary(HEALTH_TIMEOUT_S)
    except asyncpg.UndefinedTableError:
        return None
    except (KasparroError, asyncpg.PostgresError) as error:
        return one_line(error)
    return None


async def live(service: Service, request: Request, query: Any) -> Response:
    """GET /health/live."""
    return _json(Alive())


async def tables(service: Service, request: Request, query: Any) -> Response:
    """GET /tables."""
    async with service.read_connection(request) as connection:
        found = await store_tables.tables(connection)
    return _json(TableSizes(tables=found))


def _run_id(request: Request) -> int:
    told = request.path_params["id"]
    if not _RUN_ID.fullmatch(told):
        raise not_found("The id of a run is a number.", parameter="id", allowed="a whole number from 1")
    return int(told)


def _json(answer: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode(answer), status, headers, "application/json")


ENDPOINTS = (
    Endpoint(
        path="/stats",
        handler=stats,
        summary="The service at a glance",
        description="What it does, its newest run, what it holds, when it runs next, its call budget.",
        area="operations",
        answer=Stats,
        # It counts rows.
        slow=lambda query: True,
    ),
    Endpoint(
        path="/runs",
        handler=runs,
        summary="Runs, newest first",
        description="Every pass over the sources, with what became of it.",
        area="operations",
        query=RunsQuery,
        answer=RunsPage,
        headers=paging.LINK,
    ),
    Endpoint(
        path="/runs/{id}",
        handler=run,
        summary="One run",
        description="What became of one pass over the sources.",
        area="operations",
        path_shape=RunPath,
        answer=RunReport,
        problems=(400, 404, 500, 503),
    ),
    Endpoint(
        path="/runs/{id}/rejects",
        handler=rejects,
        summary="What a run refused",
        description="Each refused record with its reason and its raw text, for as long as "
        "KASPARRO_PAYLOAD_RETENTION.",
        area="operations",
        path_shape=RunPath,
        query=PageQuery,
        answer=RejectsPage,
        headers=paging.LINK,
        problems=(400, 404, 500, 503),
    ),
    Endpoint(
        path="/compare-runs",
        handler=compare_runs,
        summary="Two runs side by side",
        description="Both runs in full, and of each source how b differs from a: figures of b minus those of "
        "a, and which fields began or ceased to drift.",
        area="operations",
        query=CompareQuery,
        answer=Comparison,
        problems=(400, 404, 500, 503),
    ),
    Endpoint(
        path="/health",
        caching="never",
        handler=health,
        summary="Whether the service can do its work",
        description=f"Answers within about {HEALTH_TIMEOUT_S:.0f} s, whatever the database does.",
        area="operations",
        answer=Health,
        other_answers={503: ("The database is out of reach.", Health)},
        problems=(400, 500),
    ),
    Endpoint(
        path="/health/live",
        caching="never",
        handler=live,
        summary="Whether the process answers",
        description="Asks nothing of the database.",
        area="operations",
        answer=Alive,
        problems=(400, 500),
    ),
    Endpoint(
        path="/tables",
        handler=tables,
        summary="The service's tables",
        description="Rows and bytes of each; partitions are summed into their table.",
        area="operations",
        answer=TableSizes,
    ),
)

START_RUN = Endpoint(
    path="/runs",
    method="POST",
    caching="never",
    handler=start_run,
    summary="Start a run",
    description="Starts a run at once. It needs the admin token, and exists only where one is set.",
    area="operations",
    status=202,
    answer=RunStarted,
    problems=(400, 401, 409, 411, 413, 429, 500, 503),
    headers={"Location": "Where the run reports."},
    guarded=True,
)
