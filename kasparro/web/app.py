"""The web application: routes, errors and the background loop, put together."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware

from kasparro.settings import Settings
from kasparro.store.database import Database
from kasparro.web import data, docs, operations, problems
from kasparro.web.endpoint import route
from kasparro.web.exchange import ExchangeMiddleware
from kasparro.web.service import SchedulerLike, Service


def create_app(settings: Settings, *, database: Database, scheduler: SchedulerLike | None) -> Starlette:
    """The application. Its lifespan opens the database's pools and starts the loop; without a loop the
    service only answers.
    """
    service = Service(settings, database, scheduler)
    endpoints = [*data.ENDPOINTS, *operations.ENDPOINTS]
    if settings.admin_token is not None and scheduler is not None:
        endpoints.append(operations.START_RUN)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(database)
            await stack.enter_async_context(service)
            if scheduler is not None:
                await stack.enter_async_context(scheduler)
            yield

    app = Starlette(
        routes=[*(route(endpoint, service) for endpoint in endpoints), *docs.routes(endpoints)],
        middleware=[Middleware(ExchangeMiddleware)],
        exception_handlers=problems.HANDLERS,
        lifespan=lifespan,
    )
    # A path with a slash too many is another path: its answer says so, with no detour.
    app.router.redirect_slashes = False
    return app
