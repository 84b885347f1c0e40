"""Which coins the sources list: listed_at, delisted rows, and coins that a list has lost."""

import json
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest

from kasparro.simulator import Simulator
from kasparro.simulator.faults import LostCoins, PageShift
from kasparro.sources.coinpaprika import CoinPaprika
from kasparro.store.pool import Database
from kasparro.web import reports
from kasparro.web.schemas import SourceReport
from tests.support.runs import BEGIN, HOUR, QUICK, ManualClock, coingecko_source, run_and_report

pytestmark = pytest.mark.slow

DAY = timedelta(days=1)


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(seed=7, coins=700, base=BEGIN, manual=True) as running:
        yield running


class Hourly:
    """Hourly runs over one source."""

    def __init__(self, database: Database, simulator: Simulator) -> None:
        self.database = database
        self.simulator = simulator
        self.clock = ManualClock(BEGIN)

    async def coingecko(self, after: timedelta = HOUR) -> SourceReport:
        """A run over CoinGecko."""
        self.clock.now += after
        sources = [coingecko_source(self.simulator)]
        return (await run_and_report(self.database, sources, clock=self.clock)).sources[0]

    async def coinpaprika(self, items: Sequence[Any] | None = None, after: timedelta = HOUR) -> SourceReport:
        """A run over CoinPaprika, which sends these items; without them, the simulated market."""
        self.clock.now += after
        if items is not None:
            self.simulator.put_payload("coinpaprika", json.dumps(items).encode())
        sources = [CoinPaprika(self.simulator.coinpaprika_url, None, QUICK)]
        return (await run_and_report(self.database, sources, clock=self.clock)).sources[0]

    async def reasons(self, source: str) -> list[str]:
        """Why /health is degraded, without the age of these runs, which happen in a simulated June."""
        async with self.database.reading() as connection:
            found = (await reports.health(connection, [source], None))[source].reasons
        return [reason for reason in found if not reason.startswith("overdue")]


@pytest.fixture
def hourly(database: Database, simulator: Simulator) -> Hourly:
    return Hourly(database, simulator)


def tickers(*numbers: int, **changes: Any) -> list[dict[str, Any]]:
    """Tickers of CoinPaprika with these ranks."""
    return [
        {
            "id": f"c{number}-coin",
            "symbol": f"C{number}",
            "name": f"Coin {number}",
            "rank": number,
            "last_updated": "2026-06-01T00:00:00Z",
            "quotes": {"USD": {"price": 1.5, "volume_24h": 2, "market_cap": 3}},
            **changes,
        }
        for number in numbers
    ]


async def listings(connection: "asyncpg.Connection[asyncpg.Record]") -> dict[str, tuple[datetime, int]]:
    rows = await connection.fetch(
        "SELECT source_id, listed_at, listing_state FROM unified_data JOIN listings USING (source, source_id)"
    )
    return {row["source_id"]: (row["listed_at"], row["listing_state"]) for row in rows}


async def test_listed_at_moves_although_nothing_changed(
    hourly: Hourly, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await hourly.coinpaprika(tickers(1, 2))
    before = await connection.fetch("SELECT * FROM unified_data ORDER BY source_id")
    done = await hourly.coinpaprika(tickers(1, 2))

    assert done.records.unchanged == 2
    assert await connection.fetch("SELECT * FROM unified_data ORDER BY source_id") == before
    assert {at >= hourly.clock.now for at, _ in (await listings(connection)).values()} == {True}


async def test_unchanged_pages_confirm_their_coins(
    hourly: Hourly, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await hourly.coingecko()
    hourly.simulator.calls.clear()
    await hourly.coingecko()

    assert {call.status for call in hourly.simulator.calls} == {304}
    assert set((await listings(connection)).values()) == {(hourly.clock.now, 0)}


async def test_a_coin_that_left_an_unchanged_page_is_not_confirmed_by_it(
    hourly: Hourly, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await hourly.coingecko()
    hourly.simulator.add_fault(LostCoins(api="coingecko", page=2, first=200))
    for _ in range(2):
        await hourly.coingecko()

    gone = {at for at, state in (await listings(connection)).values() if state == 1}
    assert gone == {BEGIN + HOUR}


async def test_coins_that_a_page_repeats_stay_listed_by_the_unchanged_page_before_it(
    hourly: Hourly, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await hourly.coingecko()
    hourly.simulator.add_fault(PageShift(api="coingecko", by=5))
    await hourly.coingecko()
    hourly.simulator.clear_faults()
    repeated = {at for at, _ in (await listings(connection)).values()}
    rows = await connection.fetch("SELECT number, etag FROM pages WHERE source = 'coingecko' ORDER BY number")
    hourly.simulator.calls.clear()
    done = await hourly.coingecko()

    assert repeated == {hourly.clock.now - HOUR}
    # A page that repeats coins has no validators, so it cannot be unchanged without listing them.
    assert [(row["number"], row["etag"] is None) for row in rows] == [(1, False), (2, True), (3, True)]
    assert [call.status for call in hourly.simulator.calls] == [304, 200, 200]
    assert done.anomalies == []
    assert set((await listings(connection)).values()) == {(hourly.clock.now, 0)}


async def test_a_coin_that_the_list_lacks_is_delisted_until_it_returns(
    hourly: Hourly, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await hourly.coinpaprika(tickers(1, 2, 150))
    first = hourly.clock.now
    await hourly.coinpaprika(tickers(1, 2))
    left = await listings(connection)
    await hourly.coinpaprika(tickers(1, 2, 150))

    assert (left["c150-coin"][0] - first < HOUR, left["c150-coin"][1], left["c1-coin"][1]) == (True, 1, 0)
    assert (await listings(connection))["c150-coin"][1] == 0


async def test_a_rejected_coin_is_listed(
    hourly: Hourly, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await hourly.coinpaprika(tickers(1, 2))
    bad = tickers(2, quotes={"USD": {"price": "soon", "volume_24h": 2, "market_cap": 3}})
    await hourly.coinpaprika([*tickers(1), *bad])

    assert {state for _, state in (await listings(connection)).values()} == {0}


async def test_a_lost_page_delists_no_coin(
    hourly: Hourly, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await hourly.coingecko()
    hourly.simulator.add_fault(LostCoins(api="coingecko", page=2, coins=250))
    done = await hourly.coingecko()

    assert (done.status, done.anomalies) == ("partial", [])
    assert {state for _, state in (await listings(connection)).values()} == {0}


async def test_missing_leading_coins_are_an_anomaly_that_does_not_fade(hourly: Hourly) -> None:
    """Case 21: CoinPaprika without its first 15 ranks."""
    for _ in range(2):
        await hourly.coinpaprika(tickers(*range(1, 2_001)))
    for _ in range(8):
        done = await hourly.coinpaprika(tickers(*range(16, 2_001)))

    (found,) = done.anomalies
    assert done.status == "succeeded"
    assert (found.kind, found.value, found.usual) == ("missing-coins", 15, 2_000)
    assert found.detail == (
        "15 of 2,000 coins that all recent lists had are missing, 15 of them from the first 100: "
        "Coin 1 (c1-coin), Coin 2 (c2-coin), Coin 3 (c3-coin), Coin 4 (c4-coin), Coin 5 (c5-coin) and 10 more"
    )
    assert found.coins[-1] == "c15-coin"
    assert await hourly.reasons("coinpaprika") == [f"missing-coins: {found.detail}"]

    back = await hourly.coinpaprika(tickers(*range(1, 2_001)))
    assert back.anomalies == []


async def test_missing_leading_coins_of_a_page_are_an_anomaly(hourly: Hourly) -> None:
    """Case 21: page 1 begins with rank 16."""
    await hourly.coingecko()
    hourly.simulator.add_fault(LostCoins(api="coingecko", page=1, coins=15))
    done = await hourly.coingecko()

    assert [(found.kind, found.value) for found in done.anomalies] == [("missing-coins", 15)]
    assert done.note is not None
    assert done.note.endswith("15 missing on page 1")


@pytest.mark.parametrize(("lost", "anomalies"), [(18, []), (19, ["missing-coins"])])
async def test_one_percent_of_the_usual_coins_is_an_anomaly(
    hourly: Hourly, lost: int, anomalies: list[str]
) -> None:
    await hourly.coinpaprika(tickers(*range(1, 1_901)))
    done = await hourly.coinpaprika(tickers(*range(1, 501), *range(501 + lost, 1_901)))

    assert [found.kind for found in done.anomalies] == anomalies


async def test_coins_that_come_and_go_are_not_usual(hourly: Hourly) -> None:
    steady, others = [*range(1, 1_001)], {*range(1_001, 1_041)}
    for run in range(5):
        away = range(1_001 + 8 * run, 1_009 + 8 * run)
        done = await hourly.coinpaprika(tickers(*steady, *sorted(others.difference(away))))
        assert done.anomalies == []
    done = await hourly.coinpaprika(tickers(*steady))

    assert done.anomalies == []


async def test_missing_coins_are_accepted_after_a_week(hourly: Hourly) -> None:
    await hourly.coinpaprika(tickers(*range(1, 101)))
    for _ in range(7):
        done = await hourly.coinpaprika(tickers(*range(2, 101)), after=DAY)
        assert [found.kind for found in done.anomalies] == ["missing-coins"]
    done = await hourly.coinpaprika(tickers(*range(2, 101)), after=DAY)

    assert done.anomalies == []


async def test_a_run_of_some_pages_keeps_the_anomaly(database: Database, hourly: Hourly) -> None:
    """Only a whole list shows that the coins are back."""
    await hourly.coingecko()
    hourly.simulator.add_fault(LostCoins(api="coingecko", page=1, coins=15))
    lost = await hourly.coingecko()
    hourly.simulator.clear_faults()
    hourly.clock.now += HOUR
    part = await run_and_report(
        database,
        [coingecko_source(hourly.simulator)],
        clock=hourly.clock,
        budget=lambda _: 2_000,
        interval=HOUR,
    )
    whole = await hourly.coingecko()

    assert part.sources[0].note is not None
    assert "call budget" in part.sources[0].note
    assert part.sources[0].anomalies == lost.anomalies
    assert whole.anomalies == []


async def test_a_retired_coin_keeps_its_row_without_anomaly(
    hourly: Hourly, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Case 20: a coin without a price in one list, and without an item in the next."""
    await hourly.coinpaprika([*tickers(*range(1, 201)), *tickers(240)])
    retired = tickers(
        240,
        rank=0,
        last_updated=None,
        circulating_supply=0,
        quotes={"USD": {"price": None, "volume_24h": None, "market_cap": 0}},
    )
    second = await hourly.coinpaprika([*tickers(*range(1, 201)), *retired])
    row = await connection.fetchrow("SELECT * FROM unified_data WHERE source_id = 'c240-coin'")
    third = await hourly.coinpaprika(tickers(*range(1, 201)))
    later = await connection.fetchrow("SELECT * FROM unified_data WHERE source_id = 'c240-coin'")

    assert row is not None
    assert later is not None
    assert (row["price_usd"], row["market_cap_usd"], row["circulating_supply"]) == (None, None, None)
    assert (second.anomalies, third.anomalies) == ([], [])
    assert (later["observed_at"], later["listing_state"]) == (row["observed_at"], 1)


async def test_a_coin_rejected_in_three_runs_shows_in_health(hourly: Hourly) -> None:
    bad = tickers(7, quotes={"USD": {"price": "soon", "volume_24h": 2, "market_cap": 3}})
    reasons = []
    for _ in range(3):
        await hourly.coinpaprika([*tickers(1, 2), *bad])
        reasons.append(await hourly.reasons("coinpaprika"))
    await hourly.coinpaprika(tickers(1, 2, 7))

    assert reasons == [
        [],
        [],
        ["coins rejected in the last 3 runs or more: c7-coin (quotes.USD.price: not a number: 'soon')"],
    ]
    assert await hourly.reasons("coinpaprika") == []


async def test_invalid_values_cost_no_record(
    hourly: Hourly, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Cases 10 and 25."""
    huge = tickers(
        3,
        total_supply=1.1579208923731619e77,
        circulating_supply=-1,
        name=None,
        symbol=7,
        quotes={"USD": {"price": 4.1e-27, "volume_24h": 2, "market_cap": -1, "percent_change_24h": 2.5e32}},
    )
    done = await hourly.coinpaprika([*tickers(1, 2), *huge])
    row = await connection.fetchrow("SELECT * FROM unified_data WHERE source_id = 'c3-coin'")

    assert row is not None
    assert (done.status, done.records.rejected) == ("succeeded", 0)
    assert str(row["price_usd"]) == "4.1E-27"
    assert (row["market_cap_usd"], row["circulating_supply"], row["total_supply"]) == (None, None, None)
    assert (row["name"], row["symbol"], row["percent_change_24h"]) == (None, None, 25 * 10**31)
    assert {(found.field, found.reason, found.records) for found in done.invalid_fields} == {
        ("market_cap_usd", "below zero", 1),
        ("circulating_supply", "below zero", 1),
        ("total_supply", "number out of bounds", 1),
        ("symbol", "not a text", 1),
    }
    assert next(found for found in done.invalid_fields if found.field == "market_cap_usd").samples == [
        "c3-coin: below zero: '-1'"
    ]
