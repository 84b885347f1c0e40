"""Reads runs, their rejects and the state of the sources, as rows."""

from collections.abc import Sequence
from datetime import date
from typing import Any

import asyncpg
import msgspec

from kasparro.model.batch import CrawledPage
from kasparro.store.loader import known_pages
from kasparro.store.pool import Connection
from kasparro.store.sql import templates

_SQL = templates("read/runs.sql")
_BIGINT_LIMIT = 2**63 - 1


class RowPage(msgspec.Struct, frozen=True):
    """A page of a list: its rows, the total, and the id of its last row (None if no row follows it)."""

    rows: list[asyncpg.Record]
    total: int
    last: int | None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """The upstream calls of one month, and the known pages of each paged source, by source."""

    calls: dict[str, int]
    pages: dict[str, list[CrawledPage]]


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """What the service holds and has done, read in one snapshot.

    `totals` is the row of the statement `totals`, `last_run` the rows of the newest run. `drift` is
    JSON by source.
    """

    totals: asyncpg.Record
    last_run: list[asyncpg.Record]
    records: dict[str, int]
    usage: Usage
    drift: dict[str, str]


class RunTotals(msgspec.Struct, frozen=True):
    """Finished runs by status (`status`, `runs`, `seconds`), and the record counts of all runs by source."""

    ended: list[asyncpg.Record]
    records: list[asyncpg.Record]


async def runs(connection: Connection, ids: Sequence[int]) -> list[asyncpg.Record]:
    """These runs, newest first, with one row for each of their sources; ids of no run are left out."""
    return await _fetch(connection, "runs", {"ids": [run_id for run_id in ids if _may_exist(run_id)]})


async def recent_runs(
    connection: Connection,
    *,
    limit: int,
    offset: int = 0,
    after: int | None = None,
    status: str | None = None,
) -> RowPage:
    """A page of runs, newest first, at an offset or after (older than) the run with an id.

    `rows` are those of `runs`: a run has several.
    """
    (row,) = await _fetch(
        connection,
        "page",
        {"limit": limit, "offset": offset, "last_id": after, "status": status},
        after=after is not None,
        status=status is not None,
    )
    ids = row["ids"]
    last = ids[limit - 1] if len(ids) > limit else None
    return RowPage(await runs(connection, ids[:limit]), row["total"], last)


async def rejects(
    connection: Connection, run_id: int, *, limit: int, offset: int = 0, after: int | None = None
) -> RowPage | None:
    """A page of a run's rejects in the order of their ids, at an offset or after an id; None if there is no
    such run.
    """
    if not _may_exist(run_id):
        return None
    rows = await _fetch(
        connection,
        "rejects",
        {"run_id": run_id, "limit": limit, "offset": offset, "last_id": after},
        after=after is not None,
    )
    if not rows:
        return None
    # A run without rejects is one row without a reject.
    found = [row for row in rows[:limit] if row["id"] is not None]
    return RowPage(found, rows[0]["total"], found[-1]["id"] if len(rows) > limit else None)


async def overview(
    connection: Connection, *, month: date, drift_of: Sequence[str], pages_of: Sequence[str]
) -> Overview:
    """The overview, with the calls of a month, the drift of these sources and the pages of those."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        (totals,) = await _fetch(connection, "totals")
        return Overview(
            totals=totals,
            last_run=await runs(connection, [totals["last_run"] or 0]),
            records=_by_source(await _fetch(connection, "rows_by_source")),
            usage=await usage(connection, month=month, pages_of=pages_of),
            drift=_by_source(await _fetch(connection, "drift", {"sources": drift_of})),
        )


async def usage(connection: Connection, *, month: date, pages_of: Sequence[str]) -> Usage:
    """The calls of a month, and the pages of these sources."""
    return Usage(
        calls=_by_source(await _fetch(connection, "calls_in_month", {"month": month})),
        pages={source: await known_pages(connection, source) for source in pages_of},
    )


async def source_states(
    connection: Connection, sources: Sequence[str], *, successes: int
) -> list[asyncpg.Record]:
    """The state of each source, in this order; `starts` has the starts of at most `successes` last ones."""
    return await _fetch(connection, "health", {"sources": sources, "rhythm": successes})


async def run_totals(connection: Connection) -> RunTotals:
    """The totals over all runs."""
    return RunTotals(
        await _fetch(connection, "ended_by_status"), await _fetch(connection, "records_by_source")
    )


async def _fetch(
    connection: Connection, name: str, values: dict[str, Any] | None = None, **variables: bool
) -> list[asyncpg.Record]:
    statement = _SQL[name].compose(**variables)
    return await connection.fetch(statement.text, *statement.values(values or {}))


def _by_source(rows: list[asyncpg.Record]) -> dict[str, Any]:
    return {row[0]: row[1] for row in rows}


def _may_exist(run_id: int) -> bool:
    return 0 < run_id <= _BIGINT_LIMIT
