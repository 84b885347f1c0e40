"""Runs for tests: start them, read their outcomes, or insert finished runs directly."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from kasparro.pipeline.run import Run
from kasparro.pipeline.source_run import Trigger
from kasparro.simulator import Simulator
from kasparro.simulator.calls import Call
from kasparro.sources.base import Source
from kasparro.sources.coingecko import CoinGecko
from kasparro.sources.coinpaprika import CoinPaprika
from kasparro.sources.http import RetryLimits
from kasparro.store.pool import Connection, Database
from kasparro.web import reports, schemas
from kasparro.web.schemas import Records

QUICK = RetryLimits(attempts=2, total_s=5, initial_s=0.01, longest_s=0.02)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
BEGIN = datetime(2026, 6, 1, tzinfo=UTC)
NOON = datetime(2024, 6, 1, 12, 0, tzinfo=UTC)

_TABLES = {
    "unified_data": "source, source_id",
    "unified_history": "source, source_id, observed_at",
    "archive_files": "source, key",
    "shared_records": "source_id, observed_at, content_hash",
}
# Columns that differ between two loads of the same input.
_WRITE_TIMES = {"first_seen_at", "updated_at", "recorded_at", "fetched_at", "version", "loading_since"}


class ManualClock:
    """A wall clock that shows `now`; the test sets it."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def apis(simulator: Simulator) -> list[Source]:
    """CoinPaprika and CoinGecko, in this order."""
    return [
        CoinPaprika(simulator.coinpaprika_url, None, QUICK),
        CoinGecko(simulator.coingecko_url, "public", None, QUICK),
    ]


def coingecko_source(simulator: Simulator, limits: RetryLimits = QUICK) -> Source:
    """CoinGecko alone."""
    return CoinGecko(simulator.coingecko_url, "public", None, limits)


async def run_sources(
    database: Database, sources: Sequence[Source], trigger: Trigger = "etl", **options: Any
) -> str:
    """One run; returns its status."""
    async with Run(database, sources, trigger, **options) as run:
        return await run.work(asyncio.Event())


async def run_and_report(
    database: Database, sources: Sequence[Source], trigger: Trigger = "etl", **options: Any
) -> schemas.RunReport:
    """One run; returns its report, as `/runs/{id}` has it."""
    async with Run(database, sources, trigger, **options) as run:
        await run.work(asyncio.Event())
    async with database.reading() as connection:
        found = await reports.run_report(connection, run.id)
    assert found is not None
    return found


async def source_outcomes(connection: "asyncpg.Connection[asyncpg.Record]") -> dict[str, Any]:
    """The rows of `run_sources` of the newest run, by source."""
    rows = await connection.fetch(
        "SELECT * FROM run_sources WHERE run_id = (SELECT max(id) FROM runs) ORDER BY source"
    )
    return {row["source"]: dict(row) for row in rows}


def requested_pages(calls: Sequence[Call]) -> list[int]:
    """The page numbers of these calls, without those that request no page."""
    return [int(call.query["page"]) for call in calls if "page" in call.query]


async def table_contents(url: str) -> dict[str, list[dict[str, object]]]:
    """The rows of the data tables, without the columns that say when a row was written. Ids of files are
    replaced by their names."""
    connection = await asyncpg.connect(url)
    try:
        files = {
            row["id"]: row["name"] for row in await connection.fetch("SELECT id, name FROM archive_files")
        }
        return {
            table: [
                {
                    column: files.get(value) if column in {"id", "file_id"} else value
                    for column, value in row.items()
                    if column not in _WRITE_TIMES
                }
                for row in await connection.fetch(f"SELECT * FROM {table} ORDER BY {order}")
            ]
            for table, order in _TABLES.items()
        }
    finally:
        await connection.close()


async def add_run(connection: Connection, status: str, **values: Any) -> int:
    """Insert a run as the pipeline would; returns its id."""
    run_id: int = await connection.fetchval(
        "INSERT INTO runs (trigger, status, started_at, finished_at, error) VALUES ($1, $2, $3, $4, $5) "
        "RETURNING id",
        values.get("trigger", "schedule"),
        status,
        values.get("started_at", NOON),
        values.get("finished_at", None if status == "running" else NOON + timedelta(seconds=9.5)),
        values.get("error"),
    )
    return run_id


async def add_source(connection: Connection, run_id: int, source: str, status: str, **values: Any) -> None:
    """Insert a source run as the pipeline would."""
    figures = dict.fromkeys((*Records.__struct_fields__, "calls"), 0) | {"error": None}
    given = {
        "run_id": run_id,
        "source": source,
        "status": status,
        "started_at": NOON,
        "finished_at": None if status == "running" else NOON + timedelta(seconds=4),
        **figures,
        **values,
    }
    await connection.execute(
        f"INSERT INTO run_sources ({', '.join(given)}) VALUES "
        f"({', '.join(f'${n}' for n in range(1, len(given) + 1))})",
        *given.values(),
    )
