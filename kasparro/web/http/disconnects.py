"""Ends the work for a client that has disconnected, down to its query in PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import Response

# Most requests end sooner, even if a hundred others wait for the database. To watch takes a task, which takes
# as long as a tenth of a request.
WATCHED_AFTER_S = 0.1


class ClientDisconnected(Exception):
    """The client has disconnected, so nobody reads the response."""


class ResponseAborted(Exception):
    """A limit ended a response that had begun. The code that applied the limit has logged the reason."""


@asynccontextmanager
async def cancel_on_disconnect(request: Request) -> AsyncIterator[None]:
    """A block that is cancelled when the client disconnects; raises ClientDisconnected then.

    For requests without a body: messages from the client are read and dropped meanwhile. A block that ends
    soon is not cancelled.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    gone = False
    watching: asyncio.Task[None] | None = None

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        if task is not None:
            task.cancel()

    def start() -> None:
        nonlocal watching
        watching = asyncio.create_task(watch())

    timer = asyncio.get_running_loop().call_later(WATCHED_AFTER_S, start)
    try:
        yield
    except asyncio.CancelledError:
        # Only if nobody else cancelled the task too, such as a shutdown.
        if gone and task is not None and task.uncancel() <= before:
            raise ClientDisconnected from None
        raise
    finally:
        timer.cancel()
        if watching is not None:
            watching.cancel()


async def client_disconnected(request: Request, error: Exception) -> Response:
    """The exception handler of ClientDisconnected. Nobody reads its response; the status is for the logs."""
    del request, error
    return Response(status_code=499)
