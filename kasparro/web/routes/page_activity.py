"""The views Sources and runs, and Run: how each source is, and what each run did."""

import statistics
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from starlette.requests import Request

from kasparro.model.record import FILE_REJECTED
from kasparro.pipeline.call_budget import Budget
from kasparro.store.data_version import version_of
from kasparro.web import reports
from kasparro.web.http.problems import not_found
from kasparro.web.openapi.pagination import PAGE_LIMIT
from kasparro.web.routes.health import HEALTH_TIMEOUT_S
from kasparro.web.routes.page import View, linker
from kasparro.web.routes.runs import run_id_of
from kasparro.web.schemas import RunReport, RunStatus, SourceHealth, SourceReport
from kasparro.web.service import Service

# Runs of the strip, of a page of the table, and rejects of a page.
STRIP = 60
ROWS = 25
REJECTS = 25
# Characters of a reject that are shown. The API has up to 2,000.
RAW_SHOWN = 400
STATUSES: tuple[RunStatus, ...] = ("succeeded", "partial", "failed", "interrupted")

# The strip in units of its view box: a slot for each run, with its duration above and its records below.
_SLOT, _BAR = 10, 7
_UP, _DOWN, _GAP = 44, 26, 2
_LEAST = 2
SLOTS_LEAST = 24
# Bars are cut at so many times the median.
OUTLYING = 4


class ActivityQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of the view: which runs the table has."""

    status: RunStatus | None = None
    page: Annotated[int, msgspec.Meta(ge=1, le=PAGE_LIMIT // ROWS)] = 1


class RunQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of a run: which page of its rejects."""

    page: Annotated[int, msgspec.Meta(ge=1, le=PAGE_LIMIT // REJECTS)] = 1


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A source as the view shows it."""

    name: str
    health: SourceHealth
    last: SourceReport | None
    last_run: int | None
    budget: Budget | None

    @property
    def state(self) -> str:
        """How the source is: `late`, `waiting` (for its first run), `bad`, `odd` or `good`."""
        if self.health.stale:
            return "late"
        if self.health.status is None:
            return "waiting"
        if self.health.status in {"failed", "interrupted"}:
            return "bad"
        return "good" if self.health.healthy else "odd"

    @property
    def words(self) -> str:
        """The same for people."""
        known = {"late": "late", "waiting": "no run yet", "good": "on time"}
        if self.state in known:
            return known[self.state]
        return "unusual" if self.health.status in {None, "succeeded", "skipped"} else self.health.status

    @property
    def used_percent(self) -> int:
        """The share of the month's calls that is used, from 0 to 100."""
        if self.budget is None or not self.budget.limit:
            return 0
        return min(100, round(100 * self.budget.calls / self.budget.limit))


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """A run in the strip: its place, and the heights of its duration and of its records."""

    run: RunReport
    x: int
    duration: int
    changed: int
    rejected: int


class Strip(msgspec.Struct, frozen=True, kw_only=True):
    """The newest runs, the newest last.

    A bar of full height has the duration `longest_s` or more, or `most` changed and rejected records or more.
    """

    bars: list[Bar]
    longest_s: float
    most: int
    counts: Sequence[tuple[str, int]]

    width: int
    bar, top, gap = _BAR, _UP, _GAP
    height = _UP + _GAP + _DOWN
    slot = _SLOT


def strip(runs: Sequence[RunReport]) -> Strip:
    """The strip of these runs, which are newest first."""
    durations = [run.duration_s or 0.0 for run in runs]
    records = [_changed(run) + run.records.rejected for run in runs]
    longest, most = _full(durations), _full(records)
    # The bars of few runs would be too wide.
    slots = max(len(runs), SLOTS_LEAST)
    bars = []
    for place, (run, duration, total) in enumerate(zip(runs, durations, records, strict=True)):
        height = _height(total, most, _DOWN)
        rejected = min(_height(run.records.rejected, most, _DOWN), height)
        bars.append(
            Bar(
                run=run,
                x=(slots - 1 - place) * _SLOT,
                duration=_height(duration, longest, _UP) or _LEAST,
                changed=height - rejected,
                rejected=rejected,
            )
        )
    statuses = [run.status for run in runs]
    counts = [(status, statuses.count(status)) for status in STATUSES if status in statuses]
    return Strip(bars=bars[::-1], longest_s=longest, most=round(most), counts=counts, width=slots * _SLOT)


def _full(values: Sequence[float]) -> float:
    # The value of a bar of full height. One run that loaded years of archives must not hide the others.
    above = [value for value in values if value]
    return min(max(above), OUTLYING * statistics.median(above)) if above else 0.0


def _height(value: float, full: float, height: int) -> int:
    return max(min(round(height * value / full), height), _LEAST) if value and full else 0


async def activity(service: Service, request: Request, query: ActivityQuery) -> dict[str, Any]:
    """What the template of Sources and runs shows."""
    async with service.read_connection(request) as connection:
        data_version = await version_of(connection)
        recent = await reports.recent_runs(connection, limit=STRIP)
        page = await reports.recent_runs(
            connection, limit=ROWS, offset=ROWS * (query.page - 1), status=query.status
        )
        budgets = await reports.budgets(connection, service.settings, service.next_run_at)
    health, _ = await service.health(HEALTH_TIMEOUT_S)
    sources = [_source(name, found, recent.items, budgets.get(name)) for name, found in health.items()]
    return {
        "title": "Sources and runs",
        "data_version": data_version,
        "query": query,
        "link": linker(query),
        "sources": sources,
        "verdict": verdict(sources),
        "newest": next(iter(recent.items), None),
        "next_run_at": service.next_run_at,
        "leads": service.scheduler is not None and service.scheduler.is_leader,
        "interval": service.settings.interval,
        "strip": strip(recent.items),
        "statuses": STATUSES,
        "runs": page.items,
        "total": page.total,
        "pages": -(-page.total // ROWS),
        "first": ROWS * (query.page - 1) + 1,
    }


async def run(service: Service, request: Request, query: RunQuery) -> dict[str, Any]:
    """What the template of a run shows."""
    run_id = run_id_of(request.path_params["run"])
    async with service.read_connection(request) as connection:
        data_version = await version_of(connection)
        found = await reports.run_reports(connection, [run_id - 1, run_id, run_id + 1])
        if run_id not in found:
            raise not_found("There is no such run.", parameter="run")
        rejects = await reports.rejects(connection, run_id, limit=REJECTS, offset=REJECTS * (query.page - 1))
    shown = found[run_id]
    return {
        "title": f"Run {run_id}",
        "data_version": data_version,
        "query": query,
        "link": linker(query),
        "run": shown,
        "older": run_id - 1 if run_id - 1 in found else None,
        "newer": run_id + 1 if run_id + 1 in found else None,
        "rejects": rejects.items if rejects else [],
        "stored": rejects.total if rejects else 0,
        "pages": -(-rejects.total // REJECTS) if rejects else 0,
        "first": REJECTS * (query.page - 1) + 1,
        "raw_shown": RAW_SHOWN,
        "unlisted_files": {source.source: _unlisted_files(source) for source in shown.sources},
    }


def _source(name: str, health: SourceHealth, runs: Sequence[RunReport], budget: Budget | None) -> Source:
    # With its newest part in a run that has ended.
    parts = ((run.id, part) for run in runs for part in run.sources if part.source == name)
    run_id, last = next((found for found in parts if found[1].status != "running"), (None, None))
    return Source(name=name, health=health, last=last, last_run=run_id, budget=budget)


def verdict(sources: Sequence[Source]) -> tuple[str, str]:
    """The worst state of the sources, and the states of all in one line, the worst first."""
    if not sources:
        return "waiting", "No source is switched on"
    found: dict[tuple[str, str], list[str]] = {}
    for state in ("bad", "late", "odd", "waiting"):
        for source in sources:
            if source.state == state:
                found.setdefault((state, source.words), []).append(source.name)
    if not found:
        return "good", "All sources are on time"
    lines = [f"{', '.join(names)}: {words}" for (_, words), names in found.items()]
    return next(iter(found))[0], " · ".join(lines)


def _changed(run: RunReport) -> int:
    return run.records.inserted + run.records.updated


def _unlisted_files(source: SourceReport) -> int:
    # The report has the first rejected files only.
    rejected = sum(count.rejects for count in source.rejects if count.reason == FILE_REJECTED)
    return max(rejected - len(source.rejected_files), 0) if source.rejected_files else 0


ACTIVITY = View(
    path="/page/activity",
    handler=activity,
    template="activity.html",
    label="Activity",
    module="activity",
    query=ActivityQuery,
    caching="revalidate",
)
RUN = View(
    path="/page/activity/{run}",
    handler=run,
    template="run.html",
    module="activity",
    query=RunQuery,
    caching="revalidate",
)
