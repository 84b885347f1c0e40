"""Totals over all runs for /metrics: by status and by source."""

import msgspec

from kasparro.pipeline.report import FIGURES, Records
from kasparro.store.pool import Connection
from kasparro.store.sql import templates

_SQL = templates("read/runs.sql")


class Ended(msgspec.Struct, frozen=True):
    """Number of runs with one status, and their total duration in seconds."""

    runs: int
    seconds: float


class RunTotals(msgspec.Struct, frozen=True):
    """Finished runs by status, and records of all runs by source."""

    ended: dict[str, Ended]
    records: dict[str, Records]


async def run_totals(connection: Connection) -> RunTotals:
    """Read the current totals."""
    ended = await connection.fetch(_SQL["ended_by_status"].compose().text)
    records = await connection.fetch(_SQL["records_by_source"].compose().text)
    return RunTotals(
        {row["status"]: Ended(row["runs"], row["seconds"]) for row in ended},
        {row["source"]: Records(**{name: row[name] for name in FIGURES}) for row in records},
    )
