"""GET /metrics: how the service fares, for Prometheus."""

import asyncio
from collections.abc import Awaitable, Iterator
from typing import Any, TypeVar

import asyncpg
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
from kasparro.pipeline.report import FIGURES, SourceHealth, Stats
from kasparro.pipeline.totals import RunTotals
from kasparro.web.http.request_metrics import BUCKETS_S, Counts, ProcessReport
from kasparro.web.openapi.endpoint import Endpoint
from kasparro.web.service import Service

# A scrape gives up after ten seconds by default; without a database it has the rest well before that.
DATABASE_TIMEOUT_S = 3.0

T = TypeVar("T")

_GAUGES = {
    "cache_answers": "Rendered answers kept for this version of the data.",
    "cache_bytes": "Bytes that they take.",
    "cache_limit_bytes": "Bytes that they may take.",
    "cache_usable": "1 while the version of the data is known, and kept answers are served.",
    "pool_connections_limit": "Connections for reading that a worker may have.",
    "pool_connections_busy": "Those that are at work.",
    "pool_waiting": "Requests that wait for one.",
    "leader": "1 while this process runs the loop, of all that share the database.",
}


class _Scrape(Collector):
    """The metrics of one moment."""

    def __init__(
        self,
        reports: list[ProcessReport],
        health: dict[str, SourceHealth] | None,
        stats: Stats | None,
        totals: RunTotals | None,
    ) -> None:
        self._reports = reports
        self._health = health
        self._stats = stats
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        """All of them, family by family."""
        yield InfoMetricFamily("kasparro_build", "Which version of the service.", {"version": __version__})
        yield from self._requests()
        yield from self._gauges()
        yield from self._database()

    def _requests(self) -> Iterator[Metric]:
        counts = Counts({}, {})
        for report in self._reports:
            counts.add(report.counts)
        requests = CounterMetricFamily(
            "kasparro_http_requests",
            "Requests answered; cache is hit where the answer was kept, miss where it is kept from now on.",
            labels=("route", "method", "status", "cache"),
        )
        taken: dict[tuple[str, str], list[float]] = {}
        for (route, method, status, cache), line in counts.requests.items():
            requests.add_metric((route, method, str(status), cache), sum(line[1:]))
            told = taken.setdefault((route, cache), [0.0] * len(line))
            told[:] = map(sum, zip(told, line, strict=True))
        yield requests
        durations = HistogramMetricFamily(
            "kasparro_http_request_duration_seconds",
            "From a request's headers to its answer's last byte handed over.",
            labels=("route", "cache"),
        )
        for labels, (seconds, *under) in taken.items():
            total = 0.0
            buckets = []
            for bound, requests_under in zip((*map(str, BUCKETS_S), "+Inf"), under, strict=True):
                total += requests_under
                buckets.append((bound, total))
            durations.add_metric(labels, buckets, seconds)
        yield durations
        keys = CounterMetricFamily("kasparro_api_key_requests", "Requests by API key.", labels=("key",))
        for name, used in counts.keys.items():
            keys.add_metric((name,), used)
        yield keys
        exits = CounterMetricFamily(
            "kasparro_worker_exits",
            "Worker processes that ended before the stop, by signal or exit code.",
            labels=("exit",),
        )
        for how, times in counts.worker_exits.items():
            exits.add_metric((how,), times)
        yield exits

    def _gauges(self) -> Iterator[Metric]:
        for name, text in _GAUGES.items():
            pooled = name.startswith("pool")
            labels = ("worker", "pool") if pooled else ("worker",)
            family = GaugeMetricFamily(f"kasparro_{name}", text, labels=labels)
            for report in self._reports:
                for told, value in report.gauges.items():
                    gauge, _, pool = told.partition(":")
                    if gauge == name:
                        family.add_metric((report.worker, pool) if pooled else (report.worker,), value)
            yield family

    def _database(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "kasparro_database_up", "1 while PostgreSQL answers.", int(self._health is not None)
        )
        if self._health is not None:
            yield from self._sources(self._health)
        if self._stats is not None:
            yield from self._now(self._stats)
        if self._totals is not None:
            yield from self._runs(self._totals)

    def _sources(self, health: dict[str, SourceHealth]) -> Iterator[Metric]:
        age = GaugeMetricFamily(
            "kasparro_source_age_seconds", "Since a source's last success.", labels=("source",)
        )
        sound = GaugeMetricFamily(
            "kasparro_source_healthy",
            "1 while a source's last pass did not fail and its data is no staler than it should be.",
            labels=("source",),
        )
        for source, told in health.items():
            if told.age_s is not None:
                age.add_metric((source,), told.age_s)
            sound.add_metric((source,), int(told.sound))
        yield age
        yield sound

    def _runs(self, totals: RunTotals) -> Iterator[Metric]:
        runs = CounterMetricFamily("kasparro_runs", "Runs that ended, by status.", labels=("status",))
        durations = SummaryMetricFamily(
            "kasparro_run_duration_seconds", "From a run's start to its end.", labels=("status",)
        )
        for status, ended in totals.ended.items():
            runs.add_metric((status,), ended.runs)
            durations.add_metric((status,), ended.runs, ended.seconds)
        yield runs
        yield durations
        records = CounterMetricFamily(
            "kasparro_run_records",
            "Records of all runs: fetched, of these valid or rejected, and what became of the valid ones.",
            labels=("source", "outcome"),
        )
        for source, figures in totals.records.items():
            for outcome in FIGURES:
                records.add_metric((source, outcome), getattr(figures, outcome))
        yield records

    def _now(self, stats: Stats) -> Iterator[Metric]:
        records = GaugeMetricFamily("kasparro_records", "Rows of unified_data.", labels=("source",))
        for source, rows in stats.totals.by_source.items():
            records.add_metric((source,), rows)
        yield records
        yield GaugeMetricFamily(
            "kasparro_run_active", "1 while a run is at work.", int(stats.status == "running")
        )
        calls = GaugeMetricFamily(
            "kasparro_upstream_calls_this_month", "Calls booked with a source this month.", labels=("source",)
        )
        limits = GaugeMetricFamily(
            "kasparro_upstream_calls_limit",
            "Calls that a source may be asked a month; none where nothing limits them.",
            labels=("source",),
        )
        for source, budget in stats.budget.items():
            calls.add_metric((source,), budget.calls)
            if budget.limit is not None:
                limits.add_metric((source,), budget.limit)
        yield calls
        yield limits
        if (due := stats.schedule.next_run_at) is not None:
            yield GaugeMetricFamily(
                "kasparro_next_run_timestamp_seconds", "When the next run is due.", due.timestamp()
            )


async def metrics(service: Service, request: Request, query: Any) -> Response:
    """GET /metrics."""
    health, stats, totals = await asyncio.gather(
        _told(service.source_health(DATABASE_TIMEOUT_S)),
        _told(service.stats(DATABASE_TIMEOUT_S)),
        _told(service.run_totals(DATABASE_TIMEOUT_S)),
    )
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape(await service.request_metrics.reports(), health, stats, totals))
    write, media_type = choose_encoder(request.headers.get("Accept", ""))
    return Response(write(registry), media_type=None, headers={"Content-Type": media_type})


async def _told(asked: Awaitable[T]) -> T | None:
    try:
        return await asked
    except (KasparroError, asyncpg.PostgresError):
        return None


ENDPOINT = Endpoint(
    path="/metrics",
    handler=metrics,
    summary="Metrics for Prometheus",
    description="Requests by route, status and API key, latencies, the cache, the pools, runs and sources; "
    "counts are of all workers together, gauges of each. Text in the format that the scraper accepts.",
    area="operations",
    answer=str,
    media_type="text/plain",
    problems=(400, 500),
    caching="never",
)
