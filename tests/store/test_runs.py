"""Years of runs do not slow down the statements that each run and each look at runs send."""

from collections.abc import Sequence
from typing import Any

import pytest

from kasparro.store.pool import Connection
from kasparro.store.sql import statements

_SQL = statements("operations/runs.sql") | statements("operations/quality.sql")
RUNS = 5_000


@pytest.fixture
async def many_runs(connection: Connection) -> None:
    """Months of hourly runs. In most of them, a source showed no anomaly."""
    await connection.execute(
        "INSERT INTO runs (trigger, status, started_at, finished_at)"
        " SELECT 'schedule', 'succeeded', moment, moment"
        " FROM generate_series(1, $1::int) AS number,"
        " LATERAL (SELECT '2026-01-01Z'::timestamptz + number * interval '1 hour' AS moment) AS moments",
        RUNS,
    )
    await connection.execute(
        "INSERT INTO run_sources (run_id, source, status, started_at, metrics, anomalies)"
        " SELECT id, source, 'succeeded', started_at, '{}',"
        " CASE WHEN id % 20 = 0 THEN '[{}]' ELSE '[]' END::json"
        " FROM runs CROSS JOIN unnest(ARRAY['coingecko', 'coinpaprika']) AS source"
    )
    await connection.execute("ANALYZE runs, run_sources")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("baseline", ("coingecko", RUNS, 30)),
        ("newest_assessment", ("coingecko", RUNS)),
        ("interrupt_sources", (None,)),
        ("interrupt_runs", (None,)),
    ],
)
@pytest.mark.usefixtures("many_runs")
async def test_statements_read_a_part_of_the_runs(
    connection: Connection, name: str, values: Sequence[Any]
) -> None:
    rows = await connection.fetch(f"EXPLAIN {_SQL[name]}", *values)
    plan = "\n".join(row[0] for row in rows)
    assert "Seq Scan" not in plan, plan
    assert "Sort" not in plan, plan
