"""What the handlers work with, for as long as the app lives."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from starlette.requests import Request

from kasparro.errors import DatabaseUnavailable
from kasparro.pipeline import report
from kasparro.pipeline.report import SourceHealth, Stats
from kasparro.pipeline.totals import RunTotals, run_totals
from kasparro.settings import Settings
from kasparro.store import cursors
from kasparro.store.data_version import version_of
from kasparro.store.pool import Connection, Database
from kasparro.store.row_counts import Totals
from kasparro.supervision import Supervisor
from kasparro.web.cache.policy import CachePolicy
from kasparro.web.http.auth import AccessControl
from kasparro.web.http.context import context_of
from kasparro.web.http.export_queue import ExportQueue
from kasparro.web.http.rate_limit import client_id
from kasparro.web.http.request_metrics import RequestMetrics

T = TypeVar("T")


class SchedulerLike(Protocol):
    """The background loop, as the web sees it: at work while it is entered."""

    @property
    def next_run_at(self) -> datetime | None:
        """When the next run is due; None where none is."""

    @property
    def leads(self) -> bool:
        """Whether this process runs the loop, of all that share the database."""

    async def trigger(self) -> int:
        """Start a run at once and give its id. Raises RunInProgress while another works."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...


class Service:
    """The settings, the database, the answers kept, and the loop, where there is one."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        scheduler: SchedulerLike | None,
        metrics_folder: Path | None = None,
        supervisor: Supervisor | None = None,
    ) -> None:
        self.settings = settings
        self.database = database
        self.scheduler = scheduler
        supervisor = supervisor or Supervisor()
        self.cache_policy = CachePolicy(settings, database, supervisor)
        self._began = time.monotonic()
        self.totals = Totals()
        self._signing_key: bytes | None = None
        self.access = AccessControl(settings)
        self.export_queue = ExportQueue(database.exporters)
        self.request_metrics = RequestMetrics(self._gauges, self.access.names, metrics_folder, supervisor)
        self._probing: dict[str, asyncio.Task[Any]] = {}

    async def __aenter__(self) -> Self:
        await self.cache_policy.__aenter__()
        await self.request_metrics.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.request_metrics.__aexit__(kind, error, trace)
        await self.cache_policy.__aexit__(kind, error, trace)
        for probing in self._probing.values():
            probing.cancel()
        if self._probing:
            await asyncio.wait(self._probing.values(), timeout=1)

    @asynccontextmanager
    async def read_connection(self, request: Request) -> AsyncIterator[Connection]:
        """A connection to read with; the time until it is given back is the request's `db`."""
        context = context_of(request.scope)
        client = client_id(context.key_name, request.scope)
        began = time.perf_counter()
        try:
            async with self.database.reading(slow=context.slow, client=client) as connection:
                if not context.fresh:
                    context.fresh = await self.cache_policy.version.holds(connection)
                yield connection
        finally:
            context.database_s = (context.database_s or 0.0) + time.perf_counter() - began

    async def signing_key(self, connection: Connection) -> bytes:
        """The key of the database's cursors, read once."""
        if self._signing_key is None:
            self._signing_key = await cursors.signing_key(connection)
        return self._signing_key

    async def problems(self) -> list[str]:
        """What is wrong with the background tasks and worker processes of the service, a line each."""
        try:
            reports = await self.request_metrics.reports()
        except OSError as error:
            return [f"the figures of the other processes cannot be read: {error.strerror}"]
        return list(dict.fromkeys(line for report in reports for line in report.problems))

    async def probe_primary(self, timeout_s: float) -> None:
        """Return where the primary answers within this time; raises DatabaseUnavailable."""
        await self._probe("primary", self._primary, timeout_s)

    async def _primary(self) -> None:
        async with self.database.probing_primary() as connection:
            await version_of(connection)

    async def source_health(self, timeout_s: float) -> dict[str, SourceHealth]:
        """How the sources fare, as the database tells within this time; raises DatabaseUnavailable."""
        return await self._probe("health", self._health, timeout_s)

    async def stats(self, timeout_s: float) -> Stats:
        """The service at a glance, as the database tells within this time; raises DatabaseUnavailable."""
        return await self._probe("stats", self._stats, timeout_s)

    async def run_totals(self, timeout_s: float) -> RunTotals:
        """Sums over all runs, as the database tells within this time; raises DatabaseUnavailable."""
        return await self._probe("run_totals", self._run_totals, timeout_s)

    async def _run_totals(self) -> RunTotals:
        async with self.database.reading(slow=True) as connection:
            return await run_totals(connection)

    async def _probe(self, name: str, ask: Callable[[], Coroutine[Any, Any, T]], timeout_s: float) -> T:
        # A probe that hangs, for a dead line takes long to be seen as such, is waited for by later callers
        # in place of a connection each.
        probing = self._probing.get(name)
        if probing is None or probing.done():
            probing = self._probing[name] = asyncio.create_task(ask())
            # One that nobody waits for any more has told its callers already what it came to.
            probing.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        done, _ = await asyncio.wait({probing}, timeout=timeout_s)
        if not done:
            raise DatabaseUnavailable(f"PostgreSQL did not answer within {timeout_s:g} s")
        found: T = probing.result()
        return found

    async def _health(self) -> dict[str, SourceHealth]:
        async with self.database.probing() as connection:
            up_s = time.monotonic() - self._began
            return await report.health(connection, self.settings.sources, self.settings.interval, up_s)

    async def _stats(self) -> Stats:
        # It counts rows, which may take long: not on the connection that health checks need.
        async with self.database.reading(slow=True) as connection:
            return await report.stats(connection, self.settings, self.next_run_at)

    def _gauges(self) -> dict[str, float]:
        found = self.cache_policy.gauges()
        for pool, (most, busy, waiting) in self.database.figures().items():
            found |= {
                f"pool_connections_limit:{pool}": most,
                f"pool_connections_busy:{pool}": busy,
                f"pool_waiting:{pool}": waiting,
            }
        # Who exports has a connection as soon as it has its turn.
        found["pool_waiting:export"] = self.export_queue.waiting
        if self.scheduler is not None:
            found["leader"] = int(self.scheduler.leads)
        return found

    @property
    def next_run_at(self) -> datetime | None:
        """When the next run is due by this process's loop."""
        return self.scheduler.next_run_at if self.scheduler else None
