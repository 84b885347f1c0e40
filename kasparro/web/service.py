"""What the handlers work with, for as long as the app lives."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self

from starlette.requests import Request

from kasparro.errors import DatabaseUnavailable
from kasparro.pipeline import report
from kasparro.pipeline.report import SourceHealth
from kasparro.settings import Settings
from kasparro.store import reading
from kasparro.store.database import Connection, Database
from kasparro.web.caching import Caching


class SchedulerLike(Protocol):
    """The background loop, as the web sees it: at work while it is entered."""

    @property
    def next_run_at(self) -> datetime | None:
        """When the next run is due; None where none is."""

    async def trigger(self) -> int:
        """Start a run at once and give its id. Raises RunInProgress while another works."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...


class Service:
    """The settings, the database, the answers kept, and the loop, where there is one."""

    def __init__(self, settings: Settings, database: Database, scheduler: SchedulerLike | None) -> None:
        self.settings = settings
        self.database = database
        self.scheduler = scheduler
        self.caching = Caching(settings, database)
        self._signing_key: bytes | None = None
        self._probing: asyncio.Task[dict[str, SourceHealth]] | None = None

    async def __aenter__(self) -> Self:
        await self.caching.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.caching.__aexit__(kind, error, trace)
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait({self._probing}, timeout=1)

    @asynccontextmanager
    async def reading(self, request: Request) -> AsyncIterator[Connection]:
        """A connection to read with; the time until it is given back is the request's `db`."""
        exchange = request.scope["kasparro.exchange"]
        began = time.perf_counter()
        try:
            async with self.database.reading(wide=exchange.wide) as connection:
                if not exchange.current:
                    exchange.current = await self.caching.version.holds(connection)
                yield connection
        finally:
            exchange.database_s = (exchange.database_s or 0.0) + time.perf_counter() - began

    async def signing_key(self, connection: Connection) -> bytes:
        """The key of the database's cursors, read once."""
        if self._signing_key is None:
            self._signing_key = await reading.cursor_key(connection)
        return self._signing_key

    async def probe(self, timeout_s: float) -> dict[str, SourceHealth]:
        """How the sources fare, as the database tells within this time.

        Raises DatabaseUnavailable where it does not. A probe that hangs, for a dead line takes long to be
        seen as such, is waited for by later callers in place of a connection each.
        """
        probing = self._probing
        if probing is None or probing.done():
            probing = self._probing = asyncio.create_task(self._probe())
            # One that nobody waits for any more has told its callers already what it came to.
            probing.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        done, _ = await asyncio.wait({probing}, timeout=timeout_s)
        if not done:
            raise DatabaseUnavailable(f"PostgreSQL did not answer within {timeout_s:g} s")
        return probing.result()

    async def _probe(self) -> dict[str, SourceHealth]:
        async with self.database.probing() as connection:
            return await report.health(connection, self.settings.sources, self.settings.interval)

    @property
    def next_run_at(self) -> datetime | None:
        """When the next run is due by this process's loop."""
        return self.scheduler.next_run_at if self.scheduler else None
