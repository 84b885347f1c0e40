"""A client that hangs up ends what is done for it, down to the query in PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import Response


class ClientDisconnected(Exception):
    """The client has hung up: there is nobody to answer."""


class ResponseAborted(Exception):
    """An answer that has begun must end incomplete, by a rule and not by a fault; the reason is logged."""


@asynccontextmanager
async def cancel_on_disconnect(request: Request) -> AsyncIterator[None]:
    """A block that is cancelled when the client hangs up, and then raises ClientDisconnected.

    For requests without a body: what else the client sends is not read meanwhile.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        if task is not None:
            task.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        # Cancelled by the watch alone, and by nobody who stops the service too.
        if gone and task is not None and task.uncancel() <= before:
            raise ClientDisconnected from None
        raise
    finally:
        watching.cancel()


async def client_disconnected(request: Request, error: Exception) -> Response:
    """What nobody gets; the status, which others use too, is for logs."""
    del request, error
    return Response(status_code=499)
