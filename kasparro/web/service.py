"""The objects that request handlers share while the application runs."""

import asyncio
import contextvars
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar

import structlog
from prometheus_client import ProcessCollector
from starlette.requests import Request

from kasparro.errors import DatabaseUnavailable, MigrationError
from kasparro.log_rate import RateLimitedLog
from kasparro.settings import Settings
from kasparro.store import asset_queries, cursors, queries, run_queries
from kasparro.store.asset_queries import AssetTotals
from kasparro.store.data_version import version_of
from kasparro.store.migrations import pending
from kasparro.store.pool import Connection, Database
from kasparro.store.row_counts import Totals
from kasparro.store.selection import ASSETS, DATA, Selection
from kasparro.store.server_state import ServerState, lag_s, server_state
from kasparro.store.shared_limits import SharedLimits
from kasparro.supervision import Supervisor
from kasparro.web import reports
from kasparro.web.cache.policy import CachePolicy
from kasparro.web.http.auth import AccessControl
from kasparro.web.http.context import context_of, shown_query
from kasparro.web.http.export_queue import ExportQueue
from kasparro.web.http.rate_limit import client_id
from kasparro.web.http.request_metrics import RequestMetrics
from kasparro.web.schemas import SourceHealth, Stats
from kasparro.web.stream import Streams

client_log = RateLimitedLog(structlog.get_logger())

T = TypeVar("T")

# A request whose query takes longer is logged. Pages take milliseconds, the slowest filters a few hundred.
SLOW_QUERY_S = 1.0

# Memory and file descriptors of this process. With a registry, it would report nothing of other workers.
_PROCESS = ProcessCollector(registry=None)


class SchedulerLike(Protocol):
    """The scheduler, as the web layer needs it. It works while it is entered."""

    @property
    def next_run_at(self) -> datetime | None:
        """When the next run starts; None if none is planned."""

    @property
    def is_leader(self) -> bool:
        """Whether this process is the leader of all processes that share the database."""

    async def trigger(self) -> int:
        """Start a run at once and return its id. Raises RunInProgress while another one works."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...


class Service:
    """Settings, database, caches, limits, metrics and scheduler of one application."""

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
        self._started = time.monotonic()
        self.totals = {rows.name: Totals(rows) for rows in (DATA, ASSETS)}
        self._signing_key: bytes | None = None
        self.shared_limits = SharedLimits(database, supervisor) if settings.shared_limits else None
        self.cache_policy.version.subscribe(self._forget_signing_key)
        self.access = AccessControl(settings, self.shared_limits)
        self.export_queue = ExportQueue(database.exporters, self.shared_limits)
        self.request_metrics = RequestMetrics(self._gauges, self.access.names, metrics_folder, supervisor)
        self.streams = Streams(database, self.cache_policy.version, self.request_metrics.counts, supervisor)
        self._probes: dict[str, asyncio.Task[Any]] = {}

    async def __aenter__(self) -> Self:
        await self.cache_policy.__aenter__()
        await self.request_metrics.__aenter__()
        await self.streams.__aenter__()
        if self.shared_limits is not None:
            await self.shared_limits.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.shared_limits is not None:
            await self.shared_limits.__aexit__(kind, error, trace)
        await self.streams.__aexit__(kind, error, trace)
        await self.request_metrics.__aexit__(kind, error, trace)
        await self.cache_policy.__aexit__(kind, error, trace)
        for probe in self._probes.values():
            probe.cancel()
        if self._probes:
            await asyncio.wait(self._probes.values(), timeout=1)

    @asynccontextmanager
    async def read_connection(self, request: Request) -> AsyncIterator[Connection]:
        """A connection for reading, to a server that has the data version which the client has seen.

        It adds to the context what the connection was used for. A block that knows the data version of what
        it read sets it in the context. Raises DatabaseUnavailable, DatabaseBusy.
        """
        context = context_of(request.scope)
        followed = self.cache_policy.version
        before, context.data_version = context.data_version, None
        client = client_id(context.key_name, request.scope)
        # Without a connection, there is no query that could be slow.
        began, got = time.perf_counter(), float("inf")
        try:
            pool: Literal["slow", "short"] = "slow" if context.slow else "short"
            if context.if_none_match is not None:
                tokens = followed.tokens
                if tokens is None:
                    async with self.database.reading(pool=pool, client=client) as connection:
                        tokens = await followed.read_tokens(connection)
                context.at_least = max(context.at_least, tokens.newest(context.if_none_match))
            async with followed.reading(context.at_least, pool=pool, client=client) as connection:
                got = time.perf_counter()
                if followed.tokens is None:
                    # The entity tag names the version of what is read here.
                    await followed.read_tokens(connection)
                context.postgres_pid = self.database.server_process(connection)
                seen = followed.seen
                # One server has at least the version that was seen. One of several may lag behind.
                first = seen if self.database.one_server else await version_of(connection)
                yield connection
                if context.data_version is None:
                    context.data_version = await version_of(connection)
                context.fresh &= first == seen == context.data_version
                context.data_version = max(context.data_version, before or 0)
                context.oldest_version = min(first or 0, context.oldest_version or first or 0)
        finally:
            ended = time.perf_counter()
            context.database_s = (context.database_s or 0.0) + ended - began
            if ended - got > SLOW_QUERY_S:
                client_log.warning(
                    "query_slow",
                    path=request.scope["path"],
                    query=shown_query(request.scope),
                    waited_ms=round((got - began) * 1e3, 1),
                    ms=round((ended - got) * 1e3, 1),
                    **context.database_fields(),
                )

    async def signing_key(self, connection: Connection) -> bytes:
        """The key that signs cursors. It is stored in the database, and read again when its data may be other
        data, restored from a backup."""
        if self._signing_key is None:
            self._signing_key = await cursors.signing_key(connection)
        return self._signing_key

    def _forget_signing_key(self) -> None:
        self._signing_key = None

    async def problems(self) -> list[str]:
        """Problems of all background tasks and worker processes of the service, one line each."""
        try:
            processes = await self.request_metrics.reports()
        except OSError as error:
            return [f"cannot read the metrics of the other processes: {error.strerror}"]
        return list(dict.fromkeys(line for process in processes for line in process.problems))

    async def probe_primary(self, timeout_s: float) -> None:
        """Return if the primary answers in time. Raises DatabaseUnavailable."""
        await self._probe("primary", self._primary, timeout_s)

    async def _primary(self) -> None:
        async with self.database.probing_primary() as connection:
            await version_of(connection)

    async def health(self, timeout_s: float) -> tuple[dict[str, SourceHealth], AssetTotals]:
        """The health of each source, and the assets in figures.

        Raises DatabaseUnavailable if the database does not answer in time.
        """
        return await self._probe("health", self._health, timeout_s)

    async def replica_lag_s(self, timeout_s: float) -> float | None:
        """How far the replica for reads is behind; None if it is no replica. Raises DatabaseUnavailable."""
        return await self._probe("replica_lag", self._replica_lag_s, timeout_s)

    async def _replica_lag_s(self) -> float | None:
        async with self.database.probing() as connection:
            return await lag_s(connection)

    async def check_ready(self, timeout_s: float) -> None:
        """Return if /data can be answered now.

        Raises KasparroError or asyncpg.PostgresError, with the reason, if it cannot or if the database does
        not answer in time.
        """
        await self._probe("ready", self._read_first_page, timeout_s)

    async def _read_first_page(self) -> None:
        # An older process keeps answering while a newer one migrates. Reading the page shows whether it can.
        with suppress(MigrationError):
            if missing := await pending(self.database):
                raise DatabaseUnavailable(f"the database is being prepared: {missing[0]} is not applied yet")
        async with self.database.reading() as connection:
            await queries.page(connection, self.totals["data"], Selection(), limit=1)

    async def stats(self, timeout_s: float) -> Stats:
        """The answer of /stats. Raises DatabaseUnavailable if the database does not answer in time."""
        return await self._probe("stats", self._stats, timeout_s)

    async def run_totals(self, timeout_s: float) -> run_queries.RunTotals:
        """Sums over all runs. Raises DatabaseUnavailable if the database does not answer in time."""
        return await self._probe("run_totals", self._run_totals, timeout_s)

    async def _run_totals(self) -> run_queries.RunTotals:
        async with self.database.reading(pool="slow") as connection:
            return await run_queries.run_totals(connection)

    async def server_state(self, timeout_s: float) -> ServerState:
        """The state of the server for reads. Raises DatabaseUnavailable if it does not answer in time."""
        return await self._probe("server_state", self._server_state, timeout_s)

    async def _server_state(self) -> ServerState:
        # The size of a database is read from the disk, file by file.
        async with self.database.reading(pool="slow") as connection:
            return await server_state(connection)

    async def _probe(self, name: str, probe: Callable[[], Coroutine[Any, Any, T]], timeout_s: float) -> T:
        # A probe may hang, because it takes long to notice that a connection is dead. Later callers wait for
        # the same probe and do not take another connection.
        task = self._probes.get(name)
        if task is None or task.done():
            # In a context of its own, because it works for several requests.
            task = self._probes[name] = asyncio.create_task(probe(), context=contextvars.Context())
            # If no caller waits any more, asyncio must not log its exception as never retrieved.
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        if not done:
            raise DatabaseUnavailable(f"PostgreSQL did not answer within {timeout_s:g} s")
        result: T = task.result()
        return result

    async def _health(self) -> tuple[dict[str, SourceHealth], AssetTotals]:
        async with self.database.probing() as connection:
            up_s = time.monotonic() - self._started
            return (
                await reports.health(connection, self.settings.sources, self.settings.interval, up_s),
                await asset_queries.totals(connection),
            )

    async def _stats(self) -> Stats:
        # This counts rows, which may take long. The connection of the health checks must stay free.
        async with self.database.reading(pool="slow") as connection:
            return await reports.stats(connection, self.settings, self.next_run_at)

    def _gauges(self) -> dict[str, float]:
        gauges = self.cache_policy.gauges()
        for pool, (limit, busy, waiting) in self.database.usage().items():
            gauges |= {
                f"pool_connections_limit:{pool}": limit,
                f"pool_connections_busy:{pool}": busy,
                f"pool_waiting:{pool}": waiting,
            }
        # Exports wait in their queue. An export that has a slot gets a connection at once.
        gauges["pool_waiting:export"] = self.export_queue.waiting
        gauges["streams"] = len(self.streams)
        for family in _PROCESS.collect():
            gauges[family.name] = family.samples[0].value
        if self.scheduler is not None:
            gauges["leader"] = int(self.scheduler.is_leader)
        return gauges

    @property
    def next_run_at(self) -> datetime | None:
        """When this process's scheduler starts the next run."""
        return self.scheduler.next_run_at if self.scheduler else None
