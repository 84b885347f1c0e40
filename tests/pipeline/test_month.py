"""A simulated month of runs: eight pages, two runs a day.

`python -m tests.bench month` simulates hourly runs over the 72 pages of 2026."""

from datetime import timedelta

import pytest

from kasparro.simulator import Account, Simulator
from kasparro.store.pool import Database
from tests.support.simulated_month import BEGIN, simulated_runs

pytestmark = pytest.mark.slow

LIMIT = 400
INTERVAL = timedelta(hours=12)
RUNS = 31 * 2
# Eight pages.
COINS = 2_000


async def test_month_of_runs_keeps_budget_and_promised_age(
    database: Database,
) -> None:
    account = Account(key="k", per_month=LIMIT)
    async with Simulator(
        coins=COINS, base=BEGIN, tick=INTERVAL.total_seconds(), manual=True, coingecko=account
    ) as simulator:
        runs = await simulated_runs(database, simulator, LIMIT, INTERVAL, RUNS)

    assert {run.status for run in runs} == {"succeeded"}
    assert {run.pages for run in runs} == {8}
    assert 360 < runs[-1].calls <= LIMIT
    for run in runs:
        assert run.promised_after is not None
        assert run.age_after <= run.promised_after
        assert run.promised_before is None or run.age_before <= run.promised_before
