"""Renders the next page for a client that follows cursors, before the client asks for it."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from contextlib import suppress

from kasparro.store.pool import Database

# The longest wait for PostgreSQL to end the statement of a call when the service stops.
CLOSE_S = 1.0


class ReadAhead:
    """Reads one page at a time, and only while no other request uses the connections for short queries.

    So a page that nobody asks for costs other clients no connection, and only its place in the cache.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._task: asyncio.Task[None] | None = None

    def start(self, render: Callable[[], Awaitable[object]]) -> None:
        """Call `render` in the background, unless the database or an earlier call is at work."""
        if self._database.idle and (self._task is None or self._task.done()):
            # In a context of its own: its log lines are not those of the request before.
            self._task = asyncio.create_task(_attempt(render), context=contextvars.Context())

    async def close(self) -> None:
        """Cancel the call that is at work."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CLOSE_S)


async def _attempt(render: Callable[[], Awaitable[object]]) -> None:
    # If the page cannot be read, the client that asks for it gets the reason.
    with suppress(Exception):
        await render()
