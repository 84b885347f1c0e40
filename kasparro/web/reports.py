"""Builds the reports of runs and sources for the API and the commands from the rows of the store."""

import itertools
import math
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from typing import Generic, TypeVar

import asyncpg
import msgspec

from kasparro.pipeline.call_budget import Budget, budget
from kasparro.pipeline.quality import freshness
from kasparro.pipeline.quality.anomalies import Anomaly, RunMetrics
from kasparro.pipeline.quality.drift import Drift
from kasparro.settings import Settings
from kasparro.sources import registry
from kasparro.sources.archives.source import Archives
from kasparro.sources.base import utc_now
from kasparro.store import archive_queries, run_queries
from kasparro.store.archive_queries import ArchiveFilters
from kasparro.store.pool import Connection
from kasparro.store.run_queries import Usage
from kasparro.web.schemas import (
    OUTCOMES,
    Archive,
    ArchiveTotals,
    Comparison,
    Difference,
    InvalidField,
    Prices,
    Records,
    RejectCount,
    RejectedFile,
    RejectReport,
    RunReport,
    RunStatus,
    Schedule,
    SourceComparison,
    SourceHealth,
    SourceReport,
    Stats,
    Totals,
)

T = TypeVar("T")

# The one encoder of reports, for responses and `--json`.
encode = msgspec.json.Encoder().encode

_REJECT_COUNTS = msgspec.json.Decoder(list[RejectCount])
_INVALID_FIELDS = msgspec.json.Decoder(list[InvalidField])
_REJECTED_FILES = msgspec.json.Decoder(list[RejectedFile])
_DRIFT = msgspec.json.Decoder(list[Drift])
_ANOMALIES = msgspec.json.Decoder(list[Anomaly])
_METRICS = msgspec.json.Decoder(RunMetrics)


class ReportPage(msgspec.Struct, Generic[T], frozen=True):
    """A page of a list: its items, the total, and the id of its last item (None if no item follows it)."""

    items: list[T]
    total: int
    last: int | None


class ArchivePage(msgspec.Struct, frozen=True):
    """A page of archives, with the total and the (name, id) of its last one (None if none follows it), and
    the totals of all archives."""

    items: list[Archive]
    total: int
    last: tuple[str, int] | None
    totals: ArchiveTotals


async def run_report(connection: Connection, run_id: int) -> RunReport | None:
    """One run; None if there is no such run."""
    return next(iter(_runs(await run_queries.runs(connection, [run_id]))), None)


async def run_reports(connection: Connection, run_ids: Sequence[int]) -> dict[int, RunReport]:
    """These runs by id, read at one moment. Ids of no run are left out."""
    return {run.id: run for run in _runs(await run_queries.runs(connection, run_ids))}


async def recent_runs(
    connection: Connection,
    *,
    limit: int,
    offset: int = 0,
    after: int | None = None,
    status: RunStatus | None = None,
) -> ReportPage[RunReport]:
    """A page of runs, newest first, at an offset or after (older than) the run with an id."""
    page = await run_queries.recent_runs(connection, limit=limit, offset=offset, after=after, status=status)
    return ReportPage(_runs(page.rows), page.total, page.last)


async def rejects(
    connection: Connection, run_id: int, *, limit: int, offset: int = 0, after: int | None = None
) -> ReportPage[RejectReport] | None:
    """A page of a run's rejects in their order, at an offset or after an id; None if there is no such run."""
    page = await run_queries.rejects(connection, run_id, limit=limit, offset=offset, after=after)
    if page is None:
        return None
    fields = RejectReport.__struct_fields__
    items = [RejectReport(**{name: row[name] for name in fields}) for row in page.rows]
    return ReportPage(items, page.total, page.last)


async def archives(
    connection: Connection,
    filters: ArchiveFilters,
    *,
    limit: int,
    offset: int = 0,
    after: tuple[str, int] | None = None,
) -> ArchivePage:
    """A page of archives by name, at an offset or after one of them."""
    page = await archive_queries.archives(
        connection, Archives.name, filters, limit=limit, offset=offset, after=after
    )
    return ArchivePage(
        [_archive(row, page.records.get(row["id"])) for row in page.rows],
        page.total,
        page.last,
        ArchiveTotals(**page.states, problems=page.problems, unlisted=page.unlisted),
    )


async def stats(
    connection: Connection,
    settings: Settings,
    next_run_at: datetime | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> Stats:
    """The service at a glance, read at one moment. Only a scheduler knows `next_run_at`."""
    now = clock()
    apis = registry.api_names()
    found = await run_queries.overview(connection, month=_month(now), drift_of=apis, pages_of=_paged())
    # The table may have rows of a source whose package is not installed here.
    by_source = dict.fromkeys(registry.names(), 0) | found.records
    return Stats(
        status="running" if found.totals["running"] else "idle",
        last_run=next(iter(_runs(found.last_run)), None),
        totals=Totals(
            records=sum(by_source.values()),
            by_source=by_source,
            runs=found.totals["runs"],
            last_success_at=found.totals["last_success_at"],
            last_failure_at=found.totals["last_failure_at"],
        ),
        schedule=Schedule(
            interval_s=settings.interval.total_seconds() if settings.interval else None,
            next_run_at=next_run_at,
        ),
        budget=_budgets(found.usage, settings, next_run_at, now),
        drift={source: _DRIFT.decode(drift) for source, drift in found.drift.items()},
    )


async def budgets(
    connection: Connection,
    settings: Settings,
    next_run_at: datetime | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> dict[str, Budget]:
    """The call budget of each API, as `stats` has it, without counting rows."""
    now = clock()
    usage = await run_queries.usage(connection, month=_month(now), pages_of=_paged())
    return _budgets(usage, settings, next_run_at, now)


async def health(
    connection: Connection, sources: Sequence[str], interval: timedelta | None, up_s: float = 0.0
) -> dict[str, SourceHealth]:
    """The health of each source, for a process that has been running for `up_s` seconds."""
    rows = await run_queries.source_states(connection, sources, successes=freshness.RHYTHM)
    return {row["source"]: _source_health(row, interval, up_s) for row in rows}


def compare(a: RunReport, b: RunReport) -> Comparison:
    """How run b differs from run a, in total and by source."""
    in_a, in_b = ({source.source: source for source in run.sources} for run in (a, b))
    names = sorted(in_a.keys() | in_b.keys())
    return Comparison(
        a=a,
        b=b,
        difference=Difference(
            duration_s=_minus(b.duration_s, a.duration_s),
            calls=sum(source.calls for source in b.sources) - sum(source.calls for source in a.sources),
            records=b.records - a.records,
        ),
        only_a=sorted(in_a.keys() - in_b.keys()),
        only_b=sorted(in_b.keys() - in_a.keys()),
        sources=[_compare_sources(name, in_a.get(name), in_b.get(name)) for name in names],
    )


def _month(now: datetime) -> date:
    return now.date().replace(day=1)


def _paged() -> list[str]:
    return [source for source in registry.api_names() if registry.is_paged(source)]


def _budgets(
    usage: Usage, settings: Settings, next_run_at: datetime | None, now: datetime
) -> dict[str, Budget]:
    return {
        source: budget(
            usage.calls.get(source, 0),
            registry.monthly_calls(settings, source),
            usage.pages.get(source, []),
            now=now,
            interval=settings.interval,
            next_run_at=next_run_at,
            max_pages=registry.max_pages(settings, source),
        )
        for source in registry.api_names()
    }


def _archive(file: asyncpg.Record, records: asyncpg.Record | None) -> Archive:
    return Archive(
        file=file["file"],
        state=file["state"],
        loaded_at=file["loaded_at"],
        rows=records["records"] if records else 0,
        coin=records["coin"] if records else None,
        asset=records["asset"] if records else None,
        coins=records["coins"] if records else 0,
        quoted_in=file["quoted_in"],
        first_observed_at=records["first_observed_at"] if records else None,
        last_observed_at=records["last_observed_at"] if records else None,
        problem=file["problem"],
        setting=file["setting"],
        rejected_in=file["rejected_in"],
    )


def _runs(rows: list[asyncpg.Record]) -> list[RunReport]:
    return [_run(list(of_run)) for _, of_run in itertools.groupby(rows, lambda row: row["id"])]


def _run(rows: list[asyncpg.Record]) -> RunReport:
    run = rows[0]
    sources = [_source(row) for row in rows if row["source"] is not None]
    return RunReport(
        id=run["id"],
        trigger=run["trigger"],
        status=run["status"],
        started_at=run["started_at"],
        finished_at=run["finished_at"],
        duration_s=_seconds(run["duration_s"]),
        records=sum((source.records for source in sources), Records()),
        sources=sources,
        error=run["error"],
    )


def _source(row: asyncpg.Record) -> SourceReport:
    return SourceReport(
        source=row["source"],
        status=row["source_status"],
        started_at=row["source_started_at"],
        finished_at=row["source_finished_at"],
        duration_s=_seconds(row["source_duration_s"]),
        records=Records(**{name: row[name] for name in OUTCOMES}),
        corrected=row["corrected"],
        rejects=_REJECT_COUNTS.decode(row["rejects"]),
        invalid_fields=_INVALID_FIELDS.decode(row["invalid_fields"]),
        rejected_files=_REJECTED_FILES.decode(row["rejected_files"]),
        calls=row["calls"],
        note=row["note"],
        payloads=row["payloads"],
        payload_bytes=row["payload_bytes"],
        drift=_DRIFT.decode(row["drift"]),
        anomalies=_ANOMALIES.decode(row["anomalies"]),
        prices=None if row["metrics"] is None else _prices(_METRICS.decode(row["metrics"])),
        error=row["source_error"],
    )


def _prices(metrics: RunMetrics) -> Prices | None:
    if metrics.move is None or metrics.shift is None or metrics.gap_s is None:
        return None
    return Prices(
        coins=metrics.compared,
        size_percent=round(100 * math.expm1(metrics.move), 4),
        change_percent=round(100 * math.expm1(metrics.shift), 4),
        after_s=round(metrics.gap_s, 3),
    )


def _source_health(row: asyncpg.Record, interval: timedelta | None, up_s: float) -> SourceHealth:
    expected = freshness.expected_age(interval, row["starts"])
    overdue = freshness.overdue(row["without_s"], up_s, expected)
    ended_well = row["status"] in {None, "succeeded", "skipped"}
    outcome = None if ended_well else f"{row['status']}: {row['error'] or 'no reason given'}"
    anomalies = [f"{anomaly.kind}: {anomaly.detail}" for anomaly in _ANOMALIES.decode(row["anomalies"])]
    clock_set_back = (row["age_s"] or 0.0) < -freshness.PATIENCE.total_seconds()
    return SourceHealth(
        status=row["status"],
        last_success_at=row["last_success_at"],
        age_s=None if clock_set_back else _seconds(row["age_s"]),
        expected_age_s=expected.total_seconds() if expected else None,
        stale=overdue is not None,
        error=row["error"],
        reasons=[reason for reason in (outcome, overdue, *anomalies, _rejected_coins(row)) if reason],
    )


def _rejected_coins(row: asyncpg.Record) -> str | None:
    count, first = row["rejected_coins"], row["first_rejected_coins"]
    if not count:
        return None
    more = f" and {count - len(first):,} more" if count > len(first) else ""
    return f"coins rejected in the last 3 runs or more: {', '.join(first)}{more}"


def _compare_sources(name: str, a: SourceReport | None, b: SourceReport | None) -> SourceComparison:
    drift_a, drift_b = ({drift.field for drift in run.drift} if run else set() for run in (a, b))
    kinds_a, kinds_b = ({str(found.kind) for found in run.anomalies} if run else set() for run in (a, b))
    difference = None
    if a and b:
        difference = Difference(
            duration_s=_minus(b.duration_s, a.duration_s),
            calls=b.calls - a.calls,
            records=b.records - a.records,
        )
    return SourceComparison(
        source=name,
        status_a=a.status if a else None,
        status_b=b.status if b else None,
        difference=difference,
        drift_begun=sorted(drift_b - drift_a),
        drift_over=sorted(drift_a - drift_b),
        anomalies_begun=sorted(kinds_b - kinds_a),
        anomalies_over=sorted(kinds_a - kinds_b),
    )


def _minus(b: float | None, a: float | None) -> float | None:
    return None if a is None or b is None else round(b - a, 3)


def _seconds(seconds: float | None) -> float | None:
    # The clocks of two hosts may differ. A run that has just started did not end earlier.
    return None if seconds is None else max(round(seconds, 3), 0.0)
