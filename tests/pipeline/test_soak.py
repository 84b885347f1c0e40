"""The soak of the benchmarks, for a day instead of a year."""

import sys

import pytest

from tests.bench.soak import report, soak


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
async def test_a_day_of_hourly_runs_leaves_memory_and_files_as_they_were() -> None:
    seen = await soak(24)

    assert seen.statuses == {"succeeded": 24}
    # In the first week, some tables fill until their rows are old enough to be deleted.
    assert not {name for name in report(seen) if name.startswith("the ")}
    # Statements of runs and of reads were explained early and late.
    for text in ("INSERT INTO unified_history", "FROM unified_data"):
        assert any(text in statement for statement in seen.earlier.keys() & seen.later.keys())
