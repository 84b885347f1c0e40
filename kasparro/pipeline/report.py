"""What a run says of itself, and what the runs together say of the service: read from the run tables."""

import math
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

import asyncpg
import msgspec

from kasparro.pipeline.call_budget import Budget, budget
from kasparro.pipeline.quality import freshness
from kasparro.pipeline.quality.anomalies import Anomaly, RunMetrics
from kasparro.pipeline.quality.drift import Drift
from kasparro.settings import Settings
from kasparro.sources import registry
from kasparro.sources.base import utc_now
from kasparro.store.loader import known_pages
from kasparro.store.pool import Connection
from kasparro.store.sql import templates

_SQL = templates("read/runs.sql")

# Every answer and `etl --json` write a report with this one encoder.
encode = msgspec.json.Encoder().encode

RunStatus = Literal["running", "succeeded", "partial", "failed", "interrupted"]
SourceStatus = Literal["running", "succeeded", "partial", "failed", "interrupted", "skipped"]
if TYPE_CHECKING:
    SourceName = str
else:
    # The OpenAPI document lists the installed sources, and a parameter takes no other.
    SourceName = Literal[registry.names()]
# A time with its offset, which is what RFC 3339 writes and descriptions call a date-time.
Moment = Annotated[datetime, msgspec.Meta(tz=True)]

_BIGINT_LIMIT = 2**63 - 1


class _Report(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How all reports are built."""


class Records(_Report, frozen=True, kw_only=True):
    """What became of the records of a run or of one of its sources."""

    fetched: Annotated[
        int, msgspec.Meta(description="Records that the sources told; a refused file counts as one.")
    ] = 0
    valid: Annotated[int, msgspec.Meta(description="Of these, accepted.")] = 0
    rejected: Annotated[int, msgspec.Meta(description="Of these, refused; GET /runs/{id}/rejects.")] = 0
    inserted: Annotated[int, msgspec.Meta(description="Rows of unified_data that were new.")] = 0
    updated: Annotated[int, msgspec.Meta(description="Rows that changed.")] = 0
    unchanged: Annotated[int, msgspec.Meta(description="Records that changed no row.")] = 0

    def __add__(self, other: "Records") -> "Records":
        return Records(**{name: getattr(self, name) + getattr(other, name) for name in FIGURES})

    def __sub__(self, other: "Records") -> "Records":
        return Records(**{name: getattr(self, name) - getattr(other, name) for name in FIGURES})


FIGURES = Records.__struct_fields__


class RejectCount(_Report, frozen=True, kw_only=True):
    """How many records were refused for one reason."""

    location: Annotated[
        str | None,
        msgspec.Meta(description="The archive's file; null for an API and for refused files together."),
    ]
    field: str | None
    reason: str
    rejects: int


class RefusedFile(_Report, frozen=True, kw_only=True):
    """A file that was refused, whole or from some row on."""

    file: str
    reason: str
    setting: Annotated[
        str | None, msgspec.Meta(description="The line of its description that would settle it.")
    ]


class Prices(_Report, frozen=True, kw_only=True):
    """How far an API's prices moved, over the coins that came with news of a price that was known."""

    coins: int
    size_percent: Annotated[float, msgspec.Meta(description="The median move, up and down alike.")]
    change_percent: Annotated[float, msgspec.Meta(description="The median move, ups against downs.")]
    after_s: Annotated[float, msgspec.Meta(description="The median time that it took, in seconds.")]


class SourceReport(_Report, frozen=True, kw_only=True):
    """One source's part in a run."""

    source: str
    status: SourceStatus
    started_at: Moment
    finished_at: Moment | None
    duration_s: float | None
    records: Records
    corrected: Annotated[
        int,
        msgspec.Meta(description="Of the updated: moments that had been told before, with other values."),
    ]
    rejects: Annotated[
        list[RejectCount],
        msgspec.Meta(
            description="Refused files together, then what was refused most, by file and reason; 50 at most."
        ),
    ]
    refused_files: Annotated[
        list[RefusedFile],
        msgspec.Meta(
            description="The first 50 files that were refused, whole or from some row on, while their "
            "rejects are kept. `rejects` counts them all as `file rejected`."
        ),
    ]
    calls: Annotated[int, msgspec.Meta(description="Calls made upstream.")]
    note: Annotated[
        str | None, msgspec.Meta(description="What is to be known of it that is no error: the pages fetched.")
    ]
    payloads: Annotated[int, msgspec.Meta(description="Of what they were answered, still kept.")]
    payload_bytes: Annotated[int, msgspec.Meta(description="Bytes of these, compressed.")]
    drift: Annotated[
        list[Drift], msgspec.Meta(description="Fields that are not what the source used to send.")
    ]
    anomalies: Annotated[
        list[Anomaly], msgspec.Meta(description="What is far from usual, by the source's own history.")
    ]
    prices: Annotated[Prices | None, msgspec.Meta(description="Null where there was nothing to compare.")]
    error: Annotated[str | None, msgspec.Meta(description="Why it did not succeed, in one line.")]


class RunReport(_Report, frozen=True, kw_only=True):
    """One pass over the sources: what each came to, and the sum."""

    id: int
    trigger: Literal["startup", "schedule", "retry", "api", "etl", "replay"]
    status: RunStatus
    started_at: Moment
    finished_at: Moment | None
    duration_s: Annotated[
        float | None, msgspec.Meta(description="Seconds from start to end; of a running one, until now.")
    ]
    records: Annotated[Records, msgspec.Meta(description="The sum of its sources'.")]
    sources: list[SourceReport]
    error: Annotated[str | None, msgspec.Meta(description="Why it did not succeed, in one line.")]


class RejectReport(_Report, frozen=True, kw_only=True):
    """One record refused, or one file."""

    id: int
    source: str
    reason: str
    setting: Annotated[
        str | None,
        msgspec.Meta(description="Of a file: the line of its description that would settle it."),
    ]
    field: str | None
    location: Annotated[str | None, msgspec.Meta(description="The file or page where it stood.")]
    line: Annotated[
        int | None,
        msgspec.Meta(description="Where in the file; null with a `location`: the file itself was refused."),
    ]
    raw: Annotated[str, msgspec.Meta(description="The record as the source wrote it.")]


class Part(msgspec.Struct, frozen=True):
    """A part of a list: its items, how many there are in all, and the id of the last item here, None where
    none follows it.
    """

    items: list[Any]
    total: int
    last: int | None


class Totals(_Report, frozen=True, kw_only=True):
    """Sums over all runs and rows."""

    records: Annotated[int, msgspec.Meta(description="Rows of unified_data.")]
    by_source: dict[str, int]
    runs: int
    last_success_at: Annotated[
        Moment | None, msgspec.Meta(description="When a run last ended with every source succeeded.")
    ]
    last_failure_at: Annotated[
        Moment | None,
        msgspec.Meta(description="When a run last ended otherwise: partial, failed, interrupted."),
    ]


class Schedule(_Report, frozen=True, kw_only=True):
    """When runs start by themselves."""

    interval_s: Annotated[float | None, msgspec.Meta(description="Null: they do not.")]
    next_run_at: Moment | None


class Stats(_Report, frozen=True, kw_only=True):
    """The service at a glance."""

    status: Literal["running", "idle"]
    last_run: Annotated[RunReport | None, msgspec.Meta(description="The newest run, finished or running.")]
    totals: Totals
    schedule: Schedule
    budget: dict[str, Budget]
    drift: Annotated[
        dict[str, list[Drift]],
        msgspec.Meta(description="Of each API source: fields that are not what it used to send."),
    ]


class SourceHealth(_Report, frozen=True, kw_only=True):
    """How one source fares."""

    status: Annotated[SourceStatus | None, msgspec.Meta(description="What its last finished pass came to.")]
    last_success_at: Moment | None
    age_s: Annotated[
        float | None, msgspec.Meta(description="Seconds since its last success; null where that is to come.")
    ]
    expected_age_s: Annotated[
        float | None,
        msgspec.Meta(
            description="How old that may be: two steps between runs and 5 minutes; null: nothing expected."
        ),
    ]
    stale: Annotated[bool, msgspec.Meta(description="It is older, or a clock was set back.")]
    error: Annotated[str | None, msgspec.Meta(description="Why its last pass did not succeed.")]
    reasons: Annotated[
        list[str], msgspec.Meta(description="Why it is not well, a line each: outcome, age, anomalies.")
    ]

    @property
    def sound(self) -> bool:
        """Whether there is nothing to say against it."""
        return not self.reasons


async def run_report(connection: Connection, run_id: int) -> RunReport | None:
    """One run; None where there is no such run."""
    if not 0 < run_id <= _BIGINT_LIMIT:
        return None
    return next(iter(await _runs(connection, [run_id])), None)


async def two_runs(connection: Connection, a: int, b: int) -> dict[int, RunReport]:
    """These runs by their ids, as of one moment; those that are not there are left out."""
    ids = [run_id for run_id in {a, b} if 0 < run_id <= _BIGINT_LIMIT]
    return {run.id: run for run in await _runs(connection, ids)}


async def recent_runs(
    connection: Connection,
    *,
    limit: int,
    offset: int = 0,
    after: int | None = None,
    status: RunStatus | None = None,
) -> Part:
    """Runs, newest first, after an offset or after (older than) the run of an id."""
    statement = _SQL["page"].compose(after=after is not None, status=status is not None)
    (row,) = await connection.fetch(
        statement.text,
        *statement.values({"limit": limit, "offset": offset, "last_id": after, "status": status}),
    )
    ids = row["ids"]
    return Part(
        await _runs(connection, ids[:limit]), row["total"], ids[limit - 1] if len(ids) > limit else None
    )


async def rejects_of(
    connection: Connection, run_id: int, *, limit: int, offset: int = 0, after: int | None = None
) -> Part | None:
    """A run's rejects in the order they were met, after an offset or an id; None for no such run."""
    if not 0 < run_id <= _BIGINT_LIMIT:
        return None
    statement = _SQL["rejects"].compose(after=after is not None)
    rows = await connection.fetch(
        statement.text,
        *statement.values({"run_id": run_id, "limit": limit, "offset": offset, "last_id": after}),
    )
    if not rows:
        return None
    rejects = [
        RejectReport(
            id=row["id"],
            source=row["source"],
            reason=row["reason"],
            setting=row["setting"],
            field=row["field"],
            location=row["location"],
            line=row["line"],
            raw=row["raw"],
        )
        for row in rows[:limit]
        if row["id"] is not None
    ]
    return Part(rejects, rows[0]["total"], rejects[-1].id if len(rows) > limit else None)


async def stats(
    connection: Connection,
    settings: Settings,
    next_run_at: datetime | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> Stats:
    """The service at a glance, all of it of one moment; only a running loop knows when it runs next."""
    now = clock()
    calls_in = _SQL["calls_in_month"].compose()
    apis = registry.api_names()
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        (totals,) = await connection.fetch(_SQL["totals"].compose().text)
        rows = {
            row["source"]: row["rows"]
            for row in await connection.fetch(_SQL["rows_by_source"].compose().text)
        }
        booked = await connection.fetch(calls_in.text, *calls_in.values({"month": now.date().replace(day=1)}))
        paged = [source for source in apis if registry.is_paged(source)]
        pages = {source: await known_pages(connection, source) for source in paged}
        last_run = await run_report(connection, totals["last_run"] or 0)
        drift = _SQL["drift"].compose()
        drifts = await connection.fetch(drift.text, *drift.values({"sources": apis}))
    calls = {row["source"]: row["calls"] for row in booked}
    by_source = {source: rows.get(source, 0) for source in registry.names()}
    return Stats(
        status="running" if totals["running"] else "idle",
        last_run=last_run,
        totals=Totals(
            records=sum(by_source.values()),
            by_source=by_source,
            runs=totals["runs"],
            last_success_at=totals["last_success_at"],
            last_failure_at=totals["last_failure_at"],
        ),
        schedule=Schedule(
            interval_s=settings.interval.total_seconds() if settings.interval else None,
            next_run_at=next_run_at,
        ),
        budget={
            source: budget(
                calls.get(source, 0),
                registry.monthly_calls(settings, source),
                pages.get(source, []),
                now=now,
                interval=settings.interval,
                next_run_at=next_run_at,
                max_pages=registry.max_pages(settings, source),
            )
            for source in apis
        },
        drift={row["source"]: _DRIFT.decode(row["drift"]) for row in drifts},
    )


async def health(
    connection: Connection, sources: Sequence[str], interval: timedelta | None, up_s: float = 0.0
) -> dict[str, SourceHealth]:
    """How each of these sources fares, to a process that has been looking for `up_s` seconds."""
    statement = _SQL["health"].compose()
    values = {"sources": sources, "rhythm": freshness.RHYTHM}
    rows = await connection.fetch(statement.text, *statement.values(values))
    return {row["source"]: _health(row, interval, up_s) for row in rows}


def _health(row: asyncpg.Record, interval: timedelta | None, up_s: float) -> SourceHealth:
    expected = freshness.expected_age(interval, row["starts"])
    late = freshness.overdue(row["without_s"], up_s, expected)
    ended_well = row["status"] in {None, "succeeded", "skipped"}
    outcome = None if ended_well else f"{row['status']}: {row['error'] or 'no reason given'}"
    found = [f"{one.kind}: {one.detail}" for one in _ANOMALIES.decode(row["anomalies"])]
    return SourceHealth(
        status=row["status"],
        last_success_at=row["last_success_at"],
        age_s=None if (row["age_s"] or 0.0) < -freshness.PATIENCE.total_seconds() else _rounded(row["age_s"]),
        expected_age_s=expected.total_seconds() if expected else None,
        stale=late is not None,
        error=row["error"],
        reasons=[reason for reason in (outcome, late, *found) if reason],
    )


async def _runs(connection: Connection, ids: list[int]) -> list[RunReport]:
    statement = _SQL["runs"].compose()
    lines: dict[int, list[asyncpg.Record]] = {}
    for row in await connection.fetch(statement.text, *statement.values({"ids": ids})):
        lines.setdefault(row["id"], []).append(row)
    return [_run(rows) for rows in lines.values()]


def _run(rows: list[asyncpg.Record]) -> RunReport:
    run = rows[0]
    sources = [_source(row) for row in rows if row["source"] is not None]
    return RunReport(
        id=run["id"],
        trigger=run["trigger"],
        status=run["status"],
        started_at=run["started_at"],
        finished_at=run["finished_at"],
        duration_s=_rounded(run["duration_s"]),
        records=sum((source.records for source in sources), Records()),
        sources=sources,
        error=run["error"],
    )


_REJECTS = msgspec.json.Decoder(list[RejectCount])
_REFUSED_FILES = msgspec.json.Decoder(list[RefusedFile])
_DRIFT = msgspec.json.Decoder(list[Drift])
_ANOMALIES = msgspec.json.Decoder(list[Anomaly])
_FIGURES = msgspec.json.Decoder(RunMetrics)


def _source(row: asyncpg.Record) -> SourceReport:
    return SourceReport(
        source=row["source"],
        status=row["source_status"],
        started_at=row["source_started_at"],
        finished_at=row["source_finished_at"],
        duration_s=_rounded(row["source_duration_s"]),
        records=Records(
            fetched=row["fetched"],
            valid=row["valid"],
            rejected=row["rejected"],
            inserted=row["inserted"],
            updated=row["updated"],
            unchanged=row["unchanged"],
        ),
        corrected=row["corrected"],
        rejects=_REJECTS.decode(row["rejects"]),
        refused_files=_REFUSED_FILES.decode(row["refused_files"]),
        calls=row["calls"],
        note=row["note"],
        payloads=row["payloads"],
        payload_bytes=row["payload_bytes"],
        drift=_DRIFT.decode(row["drift"]),
        anomalies=_ANOMALIES.decode(row["anomalies"]),
        prices=_prices(row["metrics"]),
        error=row["source_error"],
    )


def _prices(told: str | None) -> Prices | None:
    if told is None:
        return None
    figures = _FIGURES.decode(told)
    if figures.move is None or figures.shift is None or figures.gap_s is None:
        return None
    return Prices(
        coins=figures.compared,
        size_percent=round(100 * math.expm1(figures.move), 4),
        change_percent=round(100 * math.expm1(figures.shift), 4),
        after_s=round(figures.gap_s, 3),
    )


def _rounded(seconds: float | None) -> float | None:
    # Clocks of two hosts may differ: what just began did not end before it.
    return None if seconds is None else max(round(seconds, 3), 0.0)
