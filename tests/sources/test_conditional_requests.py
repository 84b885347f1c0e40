"""Conditional requests: an unchanged page is not sent again."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest
from aiohttp import web

from kasparro.simulator import Simulator
from kasparro.simulator.faults import BadRecords
from kasparro.sources import conditional_requests
from kasparro.sources.coinpaprika import CoinPaprika
from kasparro.store.pool import Database
from tests.support.runs import BEGIN, MINUTE, QUICK, ManualClock, coingecko_source, run_and_report

pytestmark = pytest.mark.slow


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """Five pages of CoinGecko, one call of CoinPaprika."""
    async with Simulator(seed=7, coins=1_150, base=BEGIN, manual=True) as running:
        yield running


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(BEGIN)


async def test_unchanged_page_is_not_sent_again(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: ManualClock,
) -> None:
    first = await run_and_report(database, [coingecko_source(simulator)], clock=clock)
    simulator.calls.clear()
    again = await run_and_report(database, [coingecko_source(simulator)], clock=clock)
    sent = [call.status for call in simulator.calls]
    simulator.advance(1)
    moved = await run_and_report(database, [coingecko_source(simulator)], clock=clock)

    assert sent == [304] * 5
    before, after = first.sources[0], again.sources[0]
    assert (after.status, after.calls) == ("succeeded", 5)
    assert after.records.fetched == after.records.valid == after.records.unchanged
    assert after.records.fetched == before.records.fetched
    assert moved.sources[0].records.updated > 0
    assert await connection.fetchval("SELECT calls FROM api_calls") == 17


async def test_page_with_a_reject_is_fetched_in_full_again(
    database: Database, simulator: Simulator, clock: ManualClock
) -> None:
    simulator.add_fault(BadRecords(api="coingecko", page=1, records=["string-price"]))
    runs = [await run_and_report(database, [coingecko_source(simulator)], clock=clock) for _ in range(2)]

    assert [call.status for call in simulator.calls if call.query.get("page") == "1"] == [200, 200]
    assert [run.sources[0].records.rejected for run in runs] == [1, 1]


async def test_coin_on_two_pages_later_gets_the_values_of_its_page(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: ManualClock,
) -> None:
    def coin(name: str, rank: int) -> dict[str, object]:
        values = {"current_price": 1, "market_cap": 9, "total_volume": 1, "market_cap_rank": rank}
        return {"id": name, "symbol": "c", "name": "C", "last_updated": "2026-05-31T00:00:00Z", **values}

    full = [coin(f"coin-{number}", number) for number in range(1, 251)]
    ends = json.dumps([coin("slides", 251)]).encode()
    # The first page is from a moment when the coin had a rank one higher.
    simulator.replay("coingecko", [json.dumps([coin("slides", 250), *full[1:]]).encode(), ends])
    await run_and_report(database, [coingecko_source(simulator)], clock=clock)
    simulator.replay("coingecko", [json.dumps(full).encode(), ends])
    await run_and_report(database, [coingecko_source(simulator)], clock=clock)

    rank = await connection.fetchval("SELECT rank FROM unified_data WHERE source_id = 'slides'")
    assert rank == 251


async def test_new_reader_version_fetches_in_full(
    database: Database, simulator: Simulator, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run_and_report(database, [coingecko_source(simulator)], clock=clock)
    monkeypatch.setattr(conditional_requests, "READER_VERSION", "another")
    simulator.calls.clear()
    await run_and_report(database, [coingecko_source(simulator)], clock=clock)

    assert [call.status for call in simulator.calls] == [200] * 5


@pytest.mark.parametrize("later", [timedelta(days=1, seconds=1), -MINUTE])
async def test_unchanged_page_is_fetched_in_full_after_a_day(
    database: Database, simulator: Simulator, clock: ManualClock, later: timedelta
) -> None:
    await run_and_report(database, [coingecko_source(simulator)], clock=clock)
    simulator.calls.clear()
    clock.now += later
    await run_and_report(database, [coingecko_source(simulator)], clock=clock)

    # On another day, the contract list is due, too.
    assert [call.status for call in simulator.calls] == [200] * 6


async def test_uncommitted_page_has_no_validators(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: ManualClock,
) -> None:
    await connection.execute("ALTER TABLE unified_data RENAME TO hidden")
    await run_and_report(database, [coingecko_source(simulator)], clock=clock)
    await connection.execute("ALTER TABLE hidden RENAME TO unified_data")
    simulator.calls.clear()
    done = await run_and_report(database, [coingecko_source(simulator)], clock=clock)

    assert [call.status for call in simulator.calls] == [200] * 7
    assert done.sources[0].records.inserted == len(simulator.market.listing("coingecko"))


async def test_last_modified_is_sent_back_unchanged(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", clock: ManualClock
) -> None:
    seen: list[str | None] = []
    ticker = (
        b'[{"id":"a-a","name":"A","symbol":"A","last_updated":"2026-01-01T00:00:00Z",'
        b'"quotes":{"USD":{"price":1,"volume_24h":2,"market_cap":3}}}]'
    )
    changed = "Mon, 01 Jun 2026 00:00:00 GMT"

    async def tickers(request: web.Request) -> web.Response:
        since = request.headers.get("If-Modified-Since")
        seen.append(since)
        if since == changed:
            return web.Response(status=304)
        return web.Response(body=ticker, content_type="application/json", headers={"Last-Modified": changed})

    app = web.Application()
    app.router.add_get("/tickers", tickers)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    source = CoinPaprika(f"http://127.0.0.1:{runner.addresses[0][1]}", None, QUICK)

    first = await run_and_report(database, [source], clock=clock)
    again = await run_and_report(database, [source], clock=clock)
    await runner.cleanup()

    assert seen == [None, changed]
    assert (first.records.inserted, again.records.fetched, again.records.unchanged) == (1, 1, 1)
    assert await connection.fetchval("SELECT count(*) FROM unified_data") == 1
