"""Prints run reports and the state of the database for people, within 80 columns."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from rich.table import Table

from kasparro.cli.terminal import out, print_problem
from kasparro.model.record import FILE_REJECTED, Reject
from kasparro.pipeline.quality.drift import Drift
from kasparro.pipeline.quality.freshness import format_duration
from kasparro.web import schemas

_COUNTS = ("fetched", "valid", "rejected", "inserted", "updated", "unchanged")


def print_status(stats: schemas.Stats, interval: timedelta | None, due: datetime | None) -> None:
    """Print what the database contains, the last run, and when the next run is due."""
    now = datetime.now(UTC)
    records, runs = _counted(stats.totals.records, "record"), _counted(stats.totals.runs, "run")
    out.print(f"{stats.status}; {records} after {runs}")
    for line in (*_last_run(stats.last_run, now), _next_run(interval, due, now)):
        out.print(line)
    table = Table("source", "records")
    for source, count in stats.totals.by_source.items():
        table.add_row(source, f"{count:,}")
    out.print(table)
    with_drift: set[str] = set()
    if stats.last_run is not None:
        print_run(stats.last_run, wrapped=True)
        with_drift = {source.source for source in stats.last_run.sources if source.drift}
    for name, found in stats.drift.items():
        if found and name not in with_drift:
            out.print(f"{name}: {_drift(found)}")


def print_run(run: schemas.RunReport, *, wrapped: bool = False) -> None:
    """Print the report of a run. Lines of text are wrapped only if `wrapped`."""
    # Without a frame the table fits into 80 columns, which is also the width of a pipe.
    title = f"run {run.id}: {run.status}"
    table = Table("source", "status", *_COUNTS, title=title, title_justify="left", box=None, pad_edge=False)
    table.collapse_padding = True
    for column in table.columns[2:]:
        column.justify = "right"
    for source in run.sources:
        table.add_row(
            source.source, source.status, *(f"{getattr(source.records, name):,}" for name in _COUNTS)
        )
    out.print(table)
    if any(source.rejects for source in run.sources):
        _print_rejects(run)
    for source in run.sources:
        # If only one file was rejected, the error of the source already says all of it.
        if len(source.rejected_files) > 1:
            _print_rejected_files(source, wrapped=wrapped)
        for line in filter(None, [source.note, source.error, *_invalid(source), *_quality(source)]):
            out.print(f"{source.source}: {line}", soft_wrap=not wrapped)


def _last_run(run: schemas.RunReport | None, now: datetime) -> list[str]:
    if run is None:
        return ["last run: none so far"]
    age = format_duration((now - run.started_at).total_seconds())
    return [
        f"last run: {run.id} by {run.trigger}, {run.status}",
        f"          started {_time(run.started_at)}, {age} ago",
    ]


def _next_run(interval: timedelta | None, due: datetime | None, now: datetime) -> str:
    if interval is None:
        return "next run: none, because KASPARRO_INTERVAL is off"
    if due is None:
        return "next run: when kasparro serve starts"
    left = (due - now).total_seconds()
    distance = (
        f"in {format_duration(left)}"
        if left > 0
        else f"{format_duration(-left)} ago; is kasparro serve running?"
    )
    return f"next run: due {_time(due)}, {distance}"


def _time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _print_rejects(run: schemas.RunReport) -> None:
    table = Table("rejected", "by", "field", "reason", title="rejects", title_justify="left", box=None)
    table.columns[0].justify = "right"
    for source in run.sources:
        for count in source.rejects:
            by = f"{source.source}: {count.location}" if count.location else source.source
            table.add_row(f"{count.rejects:,}", by, count.field or "", count.reason)
    out.print(table)
    out.print(f"GET /runs/{run.id}/rejects has them with their raw text")


def _print_rejected_files(source: schemas.SourceReport, *, wrapped: bool) -> None:
    """Print why each file is rejected, with the lines of its overrides that would make it loadable."""
    total = sum(count.rejects for count in source.rejects if count.reason == FILE_REJECTED)
    for file in source.rejected_files:
        reject = Reject(reason=file.reason, location=file.file, setting=file.setting)
        print_problem(out, f"{source.source}: {reject.summary}", reject.setting, soft_wrap=not wrapped)
    if (more := total - len(source.rejected_files)) > 0:
        out.print(f"{source.source}: {_counted(more, 'more file')} rejected")


def _invalid(source: schemas.SourceReport) -> list[str]:
    """The values that became null, in one line."""
    counts: dict[str, int] = {}
    for found in source.invalid_fields:
        counts[found.field] = counts.get(found.field, 0) + found.records
    fields = ", ".join(f"{field} in {_counted(count, 'record')}" for field, count in counts.items())
    return [f"invalid values, stored as null: {fields}"] if fields else []


def _quality(source: schemas.SourceReport) -> list[str]:
    """The anomalies and the drift of a source, one line each."""
    lines = [f"{anomaly.kind}: {anomaly.detail}" for anomaly in source.anomalies]
    return [*lines, _drift(source.drift)] if source.drift else lines


def _drift(changes: Sequence[Drift]) -> str:
    more = f" (and {_counted(len(changes) - 1, 'more change')})" if len(changes) > 1 else ""
    return f"drift: {changes[0].summary}{more}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
