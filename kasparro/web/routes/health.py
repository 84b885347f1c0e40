"""GET /health, /health/live and /health/ready: whether the service works, lives, and can answer."""

import asyncio
import time
from typing import Annotated, Any, Literal

import asyncpg
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kasparro.errors import KasparroError, one_line
from kasparro.web.openapi.endpoint import Endpoint, json_response
from kasparro.web.schemas import SourceHealth
from kasparro.web.service import Service

# Health checks come every few seconds and give up soon. They get a response before that.
HEALTH_TIMEOUT_S = 2.0


class DatabaseHealth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether the PostgreSQL for reads answers, and how fast."""

    status: Literal["ok", "preparing", "unreachable"]
    latency_ms: float | None = None
    error: Annotated[str | None, msgspec.Meta(description="Why it cannot be reached, in one line.")] = None
    unreachable: Annotated[
        list[Literal["primary", "read"]],
        msgspec.Meta(
            description="The databases that cannot be reached: `primary` is DATABASE_URL, `read` is "
            "DATABASE_READ_URL. Without the primary, runs store nothing. Without the other, requests read "
            "from the primary."
        ),
    ] = []
    lag_s: Annotated[
        float | None,
        msgspec.Meta(
            description="How far the replica for reads is behind; null if it is no replica, or if unknown."
        ),
    ] = None


class AssetHealth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many coins there are across sources, and what a person should look at."""

    total: int
    diverging: Annotated[
        int, msgspec.Meta(description="Assets whose prices diverge: GET /assets?diverging=true.")
    ]
    diverging_first: Annotated[
        list[str], msgspec.Meta(description="Of these, the ten with the highest ranks.")
    ]
    candidates: Annotated[
        int, msgspec.Meta(description="Rows whose coin is uncertain: GET /assets/candidates.")
    ]
    problem: Annotated[
        str | None,
        msgspec.Meta(description="Why rows were not linked to assets after the last run; null: they were."),
    ]
    conflicts: Annotated[
        int, msgspec.Meta(description="Links that became uncertain: GET /assets/candidates?kind=conflict.")
    ]


class Health(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether the service works. `degraded`: it answers, but something is wrong. `reasons` are about the
    service itself; each source has its own."""

    status: Literal["ok", "degraded", "unavailable"]
    database: DatabaseHealth
    sources: dict[str, SourceHealth]
    assets: Annotated[
        AssetHealth | None,
        msgspec.Meta(description="Null without the database."),
    ] = None
    reasons: Annotated[
        list[str],
        msgspec.Meta(
            description="What is wrong in the service, one line each: the primary or the replicas cannot be "
            "reached, or a background task failed or a worker process died in the last minute."
        ),
    ] = []


class Alive(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether GET /data can be answered now."""

    status: Literal["ok", "unavailable"]
    reason: Annotated[str | None, msgspec.Meta(description="Why it cannot, in one line.")] = None


async def health(service: Service, request: Request, query: Any) -> Response:
    """GET /health."""
    (database, sources, assets), primary_error, reasons = await asyncio.gather(
        _read_health(service), _primary_error(service), service.problems()
    )
    if primary_error is not None:
        database = msgspec.structs.replace(database, unreachable=["primary", *database.unreachable])
        reasons = [f"the primary (DATABASE_URL) cannot be reached: {primary_error}", *reasons]
    if database.status == "ok" and service.database.replicas and service.database.reads_primary:
        database = msgspec.structs.replace(database, unreachable=[*database.unreachable, "read"])
        reasons = [
            "no replica (DATABASE_READ_URL) can be reached; requests read from the primary",
            *reasons,
        ]
    if database.status != "ok":
        return json_response(
            Health(status="unavailable", database=database, sources={}, reasons=reasons), 503
        )
    if assets is not None and assets.problem is not None:
        reasons = [*reasons, f"rows are not linked to assets: {assets.problem}"]
    healthy = not reasons and all(source.healthy for source in sources.values())
    return json_response(
        Health(
            status="ok" if healthy else "degraded",
            database=database,
            sources=sources,
            assets=assets,
            reasons=reasons,
        )
    )


async def _read_health(
    service: Service,
) -> tuple[DatabaseHealth, dict[str, SourceHealth], AssetHealth | None]:
    # The health of the database for reads, and of the sources and assets according to it.
    began = time.perf_counter()
    try:
        sources, totals = await service.health(HEALTH_TIMEOUT_S)
        latency_ms = round((time.perf_counter() - began) * 1e3, 2)
    except asyncpg.UndefinedTableError:
        return DatabaseHealth(status="preparing", error="not all tables exist yet"), {}, None
    except (KasparroError, asyncpg.PostgresError) as error:
        name: Literal["primary", "read"] = "read" if service.database.replicas else "primary"
        return DatabaseHealth(status="unreachable", error=one_line(error), unreachable=[name]), {}, None
    assets = AssetHealth(
        total=totals.assets,
        diverging=totals.diverging,
        diverging_first=totals.diverging_first,
        candidates=totals.candidates,
        conflicts=totals.conflicts,
        problem=totals.problem,
    )
    database = DatabaseHealth(status="ok", latency_ms=latency_ms, lag_s=await _lag_s(service))
    return database, sources, assets


async def _lag_s(service: Service) -> float | None:
    # Not every server says how far it is behind.
    if not service.database.replicas:
        return None
    try:
        return await service.replica_lag_s(HEALTH_TIMEOUT_S)
    except (KasparroError, asyncpg.PostgresError):
        return None


async def _primary_error(service: Service) -> str | None:
    # Why the primary cannot be reached, if reads have another database.
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
    return json_response(Alive())


async def ready(service: Service, request: Request, query: Any) -> Response:
    """GET /health/ready."""
    try:
        await service.check_ready(HEALTH_TIMEOUT_S)
    except (KasparroError, asyncpg.PostgresError) as error:
        return json_response(Readiness(status="unavailable", reason=one_line(error)), 503)
    return json_response(Readiness(status="ok"))


ENDPOINTS = (
    Endpoint(
        path="/health",
        caching="never",
        handler=health,
        summary="Whether the service works",
        description="The state of the database, the sources and the background tasks. It answers within "
        f"about {HEALTH_TIMEOUT_S:.0f} s, whatever the database does.",
        tag="operations",
        response=Health,
        other_responses={503: ("The database cannot be reached.", Health)},
        problems=(400, 500),
    ),
    Endpoint(
        path="/health/live",
        caching="never",
        handler=live,
        summary="Whether the process answers",
        description="It does not use the database. For checks that restart the service.",
        tag="operations",
        response=Alive,
        problems=(400, 500),
    ),
    Endpoint(
        path="/health/ready",
        caching="never",
        handler=ready,
        summary="Whether /data can be answered now",
        description="The database has all migrations, and the first page of /data was just read on one of "
        f"the connections that /data uses. It answers within about {HEALTH_TIMEOUT_S:.0f} s. For checks that "
        "wait for a start or send requests elsewhere.",
        tag="operations",
        response=Readiness,
        other_responses={503: ("/data cannot be answered now, for this reason.", Readiness)},
        problems=(400, 500),
    ),
)
