"""Ends the work for a client that has disconnected, down to its query in PostgreSQL."""

import asyncio
from types import TracebackType

from starlette.requests import Request
from starlette.responses import Response

# Most requests end sooner, even if a hundred others wait for the database. To watch takes a task, which takes
# as long as a tenth of a request.
WATCHED_AFTER_S = 0.1


class ClientDisconnected(Exception):
    """The client has disconnected, so nobody reads the response."""


class ResponseAborted(Exception):
    """A limit ended a response that had begun. The code that applied the limit has logged the reason."""


class CancelOnDisconnect:
    """A block that is cancelled when the client disconnects; raises ClientDisconnected then.

    For requests without a body: messages from the client are read and dropped meanwhile. A block that ends
    soon is not cancelled.
    """

    __slots__ = ("_before", "_gone", "_request", "_task", "_timer", "_watching")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._gone = False
        self._watching: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._before = self._task.cancelling() if self._task is not None else 0
        self._timer = asyncio.get_running_loop().call_later(WATCHED_AFTER_S, self._start)

    def _start(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()
            # The task has a reference to this object. Without the cycle, both are freed at once.
            self._watching = None
        # Only if nobody else cancelled the task too, such as a shutdown.
        if (
            isinstance(error, asyncio.CancelledError)
            and self._gone
            and self._task is not None
            and self._task.uncancel() <= self._before
        ):
            raise ClientDisconnected from None


async def client_disconnected(request: Request, error: Exception) -> Response:
    """The exception handler of ClientDisconnected. Nobody reads its response; the status is for the logs."""
    del request, error
    return Response(status_code=499)
