"""Sums over all runs, for /metrics: how they ended, how long they took, what became of their records."""

import msgspec

from kasparro.pipeline.report import FIGURES, Records
from kasparro.store.pool import Connection
from kasparro.store.sql import templates

_SQL = templates("read/runs.sql")


class Ended(msgspec.Struct, frozen=True):
    """The runs that ended with one status: how many, and the seconds that they took together."""

    runs: int
    seconds: float


class RunTotals(msgspec.Struct, frozen=True):
    """The finished runs by status, and the records of all runs by source."""

    ended: dict[str, Ended]
    records: dict[str, Records]


async def run_totals(connection: Connection) -> RunTotals:
    """The sums as they are now."""
    ended = await connection.fetch(_SQL["ended_by_status"].compose().text)
    records = await connection.fetch(_SQL["records_by_source"].compose().text)
    return RunTotals(
        {row["status"]: Ended(row["runs"], row["seconds"]) for row in ended},
        {row["source"]: Records(**{name: row[name] for name in FIGURES}) for row in records},
    )
