"""A month of hourly runs lived through on a moved clock, at an eighth of the size of 2026; at full size it is
`python -m tests.bench month`."""

from kasparro.simulator import Account, Simulator
from kasparro.store.database import Database
from tests.bench.month import BEGIN, HOURS, lived

LIMIT = 1_100
# Eight pages.
COINS = 2_000


async def test_a_month_of_hourly_runs_keeps_to_its_calls_and_shows_no_coin_older_than_promised(
    database: Database,
) -> None:
    account = Account(key="k", per_month=LIMIT)
    async with Simulator(coins=COINS, base=BEGIN, tick=3_600, manual=True, coingecko=account) as simulator:
        hours = await lived(database, simulator, LIMIT, HOURS)

    assert {hour.status for hour in hours} == {"succeeded"}
    assert {hour.pages for hour in hours} == {8}
    assert 1_000 < hours[-1].calls <= LIMIT
    for hour in hours:
        assert hour.promised is not None
        assert hour.after <= hour.promised
        assert hour.promised_before is None or hour.before <= hour.promised_before
