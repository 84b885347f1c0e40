"""Prints run reports for people, within 80 columns."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from rich.table import Table

from kasparro.cli.common import FAILED
from kasparro.cli.terminal import out, print_problem, write_json
from kasparro.model.record import FILE_REJECTED, Reject
from kasparro.pipeline.quality.drift import Drift
from kasparro.web import reports, schemas

_COUNTS = ("fetched", "valid", "rejected", "inserted", "updated", "unchanged")


def exit_with_report(run: schemas.RunReport, *, as_json: bool) -> NoReturn:
    """Print the report of a run, and exit with the code of its status."""
    if as_json:
        write_json(reports.encode(run))
    else:
        print_run(run)
    sys.exit(0 if run.status == "succeeded" else FAILED)


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
        out.print(f"{source.source}: {counted(more, 'more file')} rejected")


def _invalid(source: schemas.SourceReport) -> list[str]:
    """The values that became null, in one line."""
    counts: dict[str, int] = {}
    for found in source.invalid_fields:
        counts[found.field] = counts.get(found.field, 0) + found.records
    fields = ", ".join(f"{field} in {counted(count, 'record')}" for field, count in counts.items())
    return [f"invalid values, stored as null: {fields}"] if fields else []


def _quality(source: schemas.SourceReport) -> list[str]:
    """The anomalies and the drift of a source, one line each."""
    lines = [f"{anomaly.kind}: {anomaly.detail}" for anomaly in source.anomalies]
    return [*lines, drift_line(source.drift)] if source.drift else lines


def drift_line(changes: Sequence[Drift]) -> str:
    """The first change of the fields of a source, in one line."""
    more = f" (and {counted(len(changes) - 1, 'more change')})" if len(changes) > 1 else ""
    return f"drift: {changes[0].summary}{more}"


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural if needed."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
