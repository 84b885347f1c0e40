"""Wires the web application: routes, error handlers, middleware and lifespan."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Router
from starlette.types import ASGIApp

from kasparro.settings import Settings
from kasparro.store.pool import Database
from kasparro.store.sql import compile_templates
from kasparro.supervision import Supervisor
from kasparro.tracing import flush, trace_requests
from kasparro.web.http import problems
from kasparro.web.http.disconnects import ClientDisconnected, client_disconnected
from kasparro.web.middleware import ServiceMiddleware
from kasparro.web.openapi.endpoint import route, route_of
from kasparro.web.routes import (
    archives,
    asset_history,
    assets,
    data,
    docs,
    exports,
    health,
    history,
    metrics,
    page,
    page_activity,
    page_archives,
    page_coin,
    page_market,
    runs,
    sparklines,
    stream,
)
from kasparro.web.service import SchedulerLike, Service

# The views of the page in the order of its navigation, and what only its modules read.
VIEWS = (
    page_market.VIEW,
    page_coin.VIEW,
    page_activity.ACTIVITY,
    page_activity.RUN,
    page_archives.VIEW,
)
PAGE_DATA = (sparklines.ENDPOINT,)


def create_app(
    settings: Settings,
    *,
    database: Database,
    scheduler: SchedulerLike | None,
    metrics_folder: Path | None = None,
    supervisor: Supervisor | None = None,
    upkeep: AbstractAsyncContextManager[object] | None = None,
) -> ASGIApp:
    """The ASGI application. Its lifespan opens the database pools, and runs the scheduler and the upkeep of
    the history, if there are any.

    The processes of one service share their metrics through `metrics_folder`. /health shows the problems of
    `supervisor`.
    """
    service = Service(settings, database, scheduler, metrics_folder, supervisor)
    # The path of a row also matches that of its history, so the history comes first.
    endpoints = [
        *history.ENDPOINTS,
        *data.ENDPOINTS,
        *exports.ENDPOINTS,
        *assets.ENDPOINTS,
        *asset_history.ENDPOINTS,
        *runs.ENDPOINTS,
        archives.ENDPOINT,
        *health.ENDPOINTS,
        metrics.ENDPOINT,
        stream.ENDPOINT,
    ]
    if settings.admin_token is not None and scheduler is not None:
        endpoints.append(runs.START_RUN)

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        compile_templates()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(flush)
            await stack.enter_async_context(database)
            await stack.enter_async_context(service)
            if scheduler is not None:
                await stack.enter_async_context(scheduler)
            if upkeep is not None:
                await stack.enter_async_context(upkeep)
            yield

    router = Router(
        routes=[
            # They are tried in this order, and most requests are for a fixed path.
            *(route(endpoint, service) for endpoint in sorted(endpoints, key=lambda each: "{" in each.path)),
            *docs.routes(endpoints, service),
            *page.routes(VIEWS, PAGE_DATA, service),
        ],
        # `/data/` is not `/data`: it is answered with a 404, not with a redirect.
        redirect_slashes=False,
        lifespan=lifespan,
    )
    handlers = {**problems.HANDLERS, ClientDisconnected: client_disconnected}
    find_route = partial(route_of, router.routes)
    app = ServiceMiddleware(ExceptionMiddleware(router, handlers), service, find_route)
    return trace_requests(app, find_route)
