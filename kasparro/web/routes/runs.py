"""GET /stats, the routes of runs, /tables, and POST /runs."""

import re
from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kasparro.errors import RunInProgress
from kasparro.store import tables as table_sizes
from kasparro.store.tables import Table
from kasparro.web import reports
from kasparro.web.http.context import context_of
from kasparro.web.http.problems import Problem, not_found
from kasparro.web.openapi import pagination as paging
from kasparro.web.openapi.endpoint import Endpoint, json_response
from kasparro.web.openapi.pagination import PageQuery, Pagination
from kasparro.web.schemas import Comparison, RejectReport, RunReport, RunStatus, Stats
from kasparro.web.service import Service

_RUN_ID = re.compile(r"[1-9][0-9]{0,99}")
# Every JSON parser reads integers up to here exactly.
_MAX_RUN_ID = 2**53 - 1
_RunId = Annotated[int, msgspec.Meta(ge=1, le=_MAX_RUN_ID)]


class RunsQuery(PageQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of /runs."""

    status: Annotated[
        RunStatus | None, msgspec.Meta(description="Only runs with this status.", examples=["failed"])
    ] = None


class CompareQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of /compare-runs."""

    a: Annotated[_RunId, msgspec.Meta(description="The run to compare with.", examples=[1])]
    b: Annotated[_RunId, msgspec.Meta(description="The run that is compared.", examples=[2])]


class RunPath(msgspec.Struct, frozen=True, kw_only=True):
    """The path of a run."""

    id: Annotated[int, msgspec.Meta(ge=1, examples=[1])]


class RunsPage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page of runs, newest first."""

    data: list[RunReport]
    pagination: Pagination


class RejectsPage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page of a run's rejects, in the order in which the run found them."""

    data: list[RejectReport]
    pagination: Pagination


class RunStarted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run that was started on request. The Location header has the URL of its report."""

    id: int
    status: Literal["running"] = "running"


class TableSizes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The service's tables."""

    tables: list[Table]


async def stats(service: Service, request: Request, query: Any) -> Response:
    """GET /stats."""
    async with service.read_connection(request) as connection:
        found = await reports.stats(connection, service.settings, service.next_run_at)
    return json_response(found)


async def runs(service: Service, request: Request, query: RunsQuery) -> Response:
    """GET /runs."""
    path = request.scope["path"]
    async with service.read_connection(request) as connection:
        signing_key = await service.signing_key(connection)
        page = await reports.recent_runs(
            connection,
            limit=query.limit,
            offset=paging.offset(query),
            after=paging.decode_cursor(query, path, signing_key),
            status=query.status,
        )
    pagination = paging.pagination(query, path, signing_key, total=page.total, last=page.last)
    headers = paging.link_header(query, path, pagination)
    return json_response(RunsPage(data=page.items, pagination=pagination), headers=headers)


async def run(service: Service, request: Request, query: Any) -> Response:
    """GET /runs/{id}."""
    run_id = run_id_of(request.path_params["id"])
    async with service.read_connection(request) as connection:
        found = await reports.run_report(connection, run_id)
    if found is None:
        raise not_found("There is no such run.", parameter="id")
    return json_response(found)


async def rejects(service: Service, request: Request, query: PageQuery) -> Response:
    """GET /runs/{id}/rejects."""
    run_id = run_id_of(request.path_params["id"])
    path = request.scope["path"]
    async with service.read_connection(request) as connection:
        signing_key = await service.signing_key(connection)
        page = await reports.rejects(
            connection,
            run_id,
            limit=query.limit,
            offset=paging.offset(query),
            after=paging.decode_cursor(query, path, signing_key),
        )
    if page is None:
        raise not_found("There is no such run.", parameter="id")
    pagination = paging.pagination(query, path, signing_key, total=page.total, last=page.last)
    headers = paging.link_header(query, path, pagination)
    return json_response(RejectsPage(data=page.items, pagination=pagination), headers=headers)


async def compare_runs(service: Service, request: Request, query: CompareQuery) -> Response:
    """GET /compare-runs."""
    async with service.read_connection(request) as connection:
        found = await reports.run_reports(connection, [query.a, query.b])
    for name, run_id in (("a", query.a), ("b", query.b)):
        if run_id not in found:
            raise not_found(f"There is no run {run_id}.", parameter=name)
    return json_response(reports.compare(found[query.a], found[query.b]))


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
            "Another run is in progress. GET /stats shows it.",
            kind="run-in-progress",
            title="Run in progress",
        ) from None
    return json_response(RunStarted(id=run_id), 202, {"Location": f"/runs/{run_id}"})


async def tables(service: Service, request: Request, query: Any) -> Response:
    """GET /tables."""
    async with service.read_connection(request) as connection:
        found = await table_sizes.tables(connection)
    return json_response(TableSizes(tables=found))


def run_id_of(text: str) -> int:
    """The id of a run in a path. Raises Problem (404) if it is no number."""
    if not _RUN_ID.fullmatch(text):
        raise not_found("The id of a run is a number.", parameter="id", allowed="a whole number from 1")
    return int(text)


ENDPOINTS = (
    Endpoint(
        path="/stats",
        handler=stats,
        summary="The service at a glance",
        description="Current activity, the newest run, totals, the next run, call budgets and drift.",
        tag="operations",
        response=Stats,
        # It counts rows.
        slow=lambda query: True,
    ),
    Endpoint(
        path="/runs",
        handler=runs,
        summary="Runs, newest first",
        description="Every run with its outcome.",
        tag="operations",
        query=RunsQuery,
        response=RunsPage,
        headers=paging.LINK_HEADER,
    ),
    Endpoint(
        path="/runs/{id}",
        handler=run,
        summary="One run",
        description="The outcome of one run, in total and for each source.",
        tag="operations",
        path_params=RunPath,
        response=RunReport,
        problems=(400, 404, 500, 503),
    ),
    Endpoint(
        path="/runs/{id}/rejects",
        handler=rejects,
        summary="The rejects of a run",
        description="Each rejected record or file with its reason and raw text, stored for "
        "KASPARRO_PAYLOAD_RETENTION.",
        tag="operations",
        path_params=RunPath,
        query=PageQuery,
        response=RejectsPage,
        headers=paging.LINK_HEADER,
        problems=(400, 404, 500, 503),
    ),
    Endpoint(
        path="/compare-runs",
        handler=compare_runs,
        summary="Two runs side by side",
        description="Both runs in full, and for each source how b differs from a: its figures minus those of "
        "a, and which fields started or ceased to drift.",
        tag="operations",
        query=CompareQuery,
        response=Comparison,
        problems=(400, 404, 500, 503),
    ),
    Endpoint(
        path="/tables",
        handler=tables,
        summary="The service's tables",
        description="Rows and bytes of each table. A partitioned table is the sum of its partitions.",
        tag="operations",
        response=TableSizes,
    ),
)

START_RUN = Endpoint(
    path="/runs",
    method="POST",
    caching="never",
    handler=start_run,
    summary="Start a run",
    description="Starts a run at once. This route needs the admin token. It exists only if one is set.",
    tag="operations",
    status=202,
    response=RunStarted,
    problems=(400, 401, 409, 411, 413, 429, 500, 503),
    headers={"Location": "The URL of the run's report."},
    admin=True,
)
