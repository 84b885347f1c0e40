"""GET /metrics: the state of the service and its runs, for Prometheus."""

import asyncio
from collections.abc import Awaitable, Iterator
from typing import Any, TypeVar

import asyncpg
import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from kasparro import __version__
from kasparro.errors import KasparroError
from kasparro.store.asset_queries import AssetTotals
from kasparro.store.run_queries import RunTotals
from kasparro.store.server_state import ServerState
from kasparro.web.http.request_metrics import BUCKETS_S, Counts, ProcessReport
from kasparro.web.openapi.endpoint import Endpoint
from kasparro.web.schemas import OUTCOMES, SourceHealth, Stats
from kasparro.web.service import Service

# By default, Prometheus gives up after 10 s. Without a database, it gets the other metrics well before that.
DATABASE_TIMEOUT_S = 3.0

T = TypeVar("T")

_GAUGES = {
    "cache_answers": "Responses in the cache.",
    "cache_bytes": "Bytes of the responses in the cache.",
    "cache_limit_bytes": "The most bytes that the cache may hold.",
    "cache_usable": "1 while the data version is known, so that the cache can answer.",
    "pool_connections_limit": "The most connections of a pool for reads.",
    "pool_connections_busy": "Connections of the pool that are in use.",
    "pool_waiting": "Requests that wait for a connection of the pool.",
    "streams": "Open streams of events.",
    "leader": "1 while this process is the leader of all processes that share the database.",
    "process_resident_memory_bytes": "Resident memory of the process.",
    "process_open_fds": "Open file descriptors of the process.",
    "process_max_fds": "The most file descriptors that the process may open.",
}

# Every status from the first scrape on: Prometheus sees no increase in a series that begins with 1.
_ENDED = ("succeeded", "partial", "failed", "interrupted")


class _Found(msgspec.Struct, frozen=True, kw_only=True):
    """What the database answered; None where it did not answer."""

    health: tuple[dict[str, SourceHealth], AssetTotals] | None
    stats: Stats | None
    totals: RunTotals | None
    server: ServerState | None
    ready: bool


class _Scrape(Collector):
    """The metrics of one scrape."""

    def __init__(self, reports: list[ProcessReport], found: _Found) -> None:
        self._reports = reports
        self._found = found

    def collect(self) -> Iterator[Metric]:
        """Collect all metrics."""
        yield InfoMetricFamily("kasparro_build", "The version of the service.", {"version": __version__})
        yield from self._requests()
        yield from self._gauges()
        yield from self._database()

    def _requests(self) -> Iterator[Metric]:
        counts = Counts({}, {})
        for report in self._reports:
            counts.add(report.counts)
        requests = CounterMetricFamily(
            "kasparro_http_requests",
            "Responses. The label cache is hit if the response was in the cache, miss if it is from now on.",
            labels=("route", "method", "status", "cache"),
        )
        by_route: dict[tuple[str, str], list[float]] = {}
        for (route, method, status, cache), figures in counts.requests.items():
            requests.add_metric((route, method, str(status), cache), sum(figures[1:]))
            sums = by_route.setdefault((route, cache), [0.0] * len(figures))
            sums[:] = map(sum, zip(sums, figures, strict=True))
        yield requests
        durations = HistogramMetricFamily(
            "kasparro_http_request_duration_seconds",
            "Time from a request's headers to the last byte of its response.",
            labels=("route", "cache"),
        )
        for labels, (seconds, *in_bucket) in by_route.items():
            total = 0.0
            buckets = []
            for bound, requests_in_bucket in zip((*map(str, BUCKETS_S), "+Inf"), in_bucket, strict=True):
                total += requests_in_bucket
                buckets.append((bound, total))
            durations.add_metric(labels, buckets, seconds)
        yield durations
        keys = CounterMetricFamily("kasparro_api_key_requests", "Requests by API key.", labels=("key",))
        for name, requests_of_key in counts.keys.items():
            keys.add_metric((name,), requests_of_key)
        yield keys
        exits = CounterMetricFamily(
            "kasparro_worker_exits",
            "Worker processes that ended before the service was stopped, by signal or exit code.",
            labels=("exit",),
        )
        for reason, times in counts.worker_exits.items():
            exits.add_metric((reason,), times)
        yield exits
        yield CounterMetricFamily(
            "kasparro_streams_dropped",
            "Streams that ended because their clients did not read.",
            counts.streams_dropped,
        )

    def _gauges(self) -> Iterator[Metric]:
        for name, text in _GAUGES.items():
            of_pool = name.startswith("pool")
            labels = ("worker", "pool") if of_pool else ("worker",)
            family = GaugeMetricFamily(f"kasparro_{name}", text, labels=labels)
            for report in self._reports:
                for gauge, value in report.gauges.items():
                    gauge_name, _, pool = gauge.partition(":")
                    if gauge_name == name:
                        family.add_metric((report.worker, pool) if of_pool else (report.worker,), value)
            yield family

    def _database(self) -> Iterator[Metric]:
        found = self._found
        yield GaugeMetricFamily(
            "kasparro_database_up", "1 while PostgreSQL answers.", int(found.health is not None)
        )
        yield GaugeMetricFamily("kasparro_ready", "1 while /data can be answered.", int(found.ready))
        if found.server is not None:
            yield from _server(found.server)
        if found.health is not None:
            sources, assets = found.health
            yield from self._sources(sources)
            yield from _assets(assets)
        if found.stats is not None:
            yield from self._now(found.stats)
        if found.totals is not None:
            yield from self._runs(found.totals)

    def _sources(self, health: dict[str, SourceHealth]) -> Iterator[Metric]:
        age = GaugeMetricFamily(
            "kasparro_source_age_seconds", "Seconds since a source's last success.", labels=("source",)
        )
        healthy = GaugeMetricFamily(
            "kasparro_source_healthy",
            "1 while a source's last run succeeded and its data has a normal age and no anomalies.",
            labels=("source",),
        )
        stale = GaugeMetricFamily(
            "kasparro_source_stale",
            "1 while a source's last success is longer ago than the interval between runs explains.",
            labels=("source",),
        )
        for name, source in health.items():
            if source.age_s is not None:
                age.add_metric((name,), source.age_s)
            healthy.add_metric((name,), int(source.healthy))
            stale.add_metric((name,), int(source.stale))
        yield age
        yield healthy
        yield stale

    def _runs(self, totals: RunTotals) -> Iterator[Metric]:
        runs = CounterMetricFamily("kasparro_runs", "Finished runs by status.", labels=("status",))
        durations = SummaryMetricFamily(
            "kasparro_run_duration_seconds", "Time from the start to the end of a run.", labels=("status",)
        )
        figures = {ended["status"]: (ended["runs"], ended["seconds"]) for ended in totals.ended}
        for status, (count, seconds) in (dict.fromkeys(_ENDED, (0, 0.0)) | figures).items():
            runs.add_metric((status,), count)
            durations.add_metric((status,), count, seconds)
        yield runs
        yield durations
        records = CounterMetricFamily(
            "kasparro_run_records",
            "Records of all runs: fetched, then valid or rejected, and the outcome of the valid ones.",
            labels=("source", "outcome"),
        )
        for source in totals.records:
            for outcome in OUTCOMES:
                records.add_metric((source["source"], outcome), source[outcome])
        yield records

    def _now(self, stats: Stats) -> Iterator[Metric]:
        records = GaugeMetricFamily("kasparro_records", "Rows of unified_data.", labels=("source",))
        for source, rows in stats.totals.by_source.items():
            records.add_metric((source,), rows)
        yield records
        yield GaugeMetricFamily(
            "kasparro_run_active", "1 while a run is in progress.", int(stats.status == "running")
        )
        calls = GaugeMetricFamily(
            "kasparro_upstream_calls_this_month", "Calls to an upstream this month.", labels=("source",)
        )
        limits = GaugeMetricFamily(
            "kasparro_upstream_calls_limit",
            "Calls to an upstream that a month allows; absent if there is no limit.",
            labels=("source",),
        )
        for source, budget in stats.budget.items():
            calls.add_metric((source,), budget.calls)
            if budget.limit is not None:
                limits.add_metric((source,), budget.limit)
        yield calls
        yield limits
        yield GaugeMetricFamily(
            "kasparro_run_interval_seconds",
            "KASPARRO_INTERVAL, the time between runs; absent if it is off.",
            stats.schedule.interval_s,
        )
        for name, text, moment in (
            ("next_run", "When the next run starts.", stats.schedule.next_run_at),
            ("last_success", "When the newest run that succeeded ended.", stats.totals.last_success_at),
            (
                "last_failure",
                "When the newest run that failed, was partial or was interrupted ended.",
                stats.totals.last_failure_at,
            ),
        ):
            yield GaugeMetricFamily(
                f"kasparro_{name}_timestamp_seconds", text, moment.timestamp() if moment else None
            )


def _server(server: ServerState) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "kasparro_database_size_bytes", "Size of the database on its disk.", server.database_bytes
    )
    yield GaugeMetricFamily(
        "kasparro_replica_lag_seconds",
        "How far the replica that this process reads from is behind; absent if it reads from a primary, "
        "and if unknown.",
        server.lag_s,
    )


def _assets(totals: AssetTotals) -> Iterator[Metric]:
    yield GaugeMetricFamily("kasparro_assets", "Assets with a quote.", totals.assets)
    yield GaugeMetricFamily(
        "kasparro_assets_diverging",
        "Assets whose fresh prices differ by more than KASPARRO_DIVERGENCE_PERCENT.",
        totals.diverging,
    )
    candidates = GaugeMetricFamily(
        "kasparro_asset_candidates",
        "Rows whose coin is uncertain (candidate), and links that became uncertain (conflict).",
        labels=("kind",),
    )
    candidates.add_metric(("candidate",), totals.candidates)
    candidates.add_metric(("conflict",), totals.conflicts)
    yield candidates
    yield GaugeMetricFamily(
        "kasparro_assets_resolved",
        "1 if the rows were linked to assets after the last run; 0 if the resolver failed.",
        int(totals.problem is None),
    )


async def metrics(service: Service, request: Request, query: Any) -> Response:
    """GET /metrics."""
    health, stats, totals, server, ready = await asyncio.gather(
        _or_none(service.health(DATABASE_TIMEOUT_S)),
        _or_none(service.stats(DATABASE_TIMEOUT_S)),
        _or_none(service.run_totals(DATABASE_TIMEOUT_S)),
        _or_none(service.server_state(DATABASE_TIMEOUT_S)),
        _is_ready(service),
    )
    found = _Found(health=health, stats=stats, totals=totals, server=server, ready=ready)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape(await service.request_metrics.reports(), found))
    write, media_type = choose_encoder(request.headers.get("Accept", ""))
    return Response(write(registry), media_type=None, headers={"Content-Type": media_type})


async def _or_none(probe: Awaitable[T]) -> T | None:
    # None if the database does not answer.
    try:
        return await probe
    except (KasparroError, asyncpg.PostgresError):
        return None


async def _is_ready(service: Service) -> bool:
    try:
        await service.check_ready(DATABASE_TIMEOUT_S)
    except (KasparroError, asyncpg.PostgresError):
        return False
    return True


ENDPOINT = Endpoint(
    path="/metrics",
    handler=metrics,
    summary="Metrics for Prometheus",
    description="Requests by route, status and API key, latencies, the cache, the pools, runs and sources. "
    "Counts are of all workers together, gauges of each. The text format is one that the scraper accepts.",
    tag="operations",
    response=str,
    media_type="text/plain",
    problems=(400, 500),
    caching="never",
)
