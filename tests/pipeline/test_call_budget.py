"""What runs call upstream, and what they leave uncalled: walks that go on, a month that lasts, manners."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
import stamina
from aiohttp import web

from kasparro.pipeline import report
from kasparro.pipeline.run import Run
from kasparro.pipeline.source_run import Trigger
from kasparro.settings import Settings
from kasparro.simulator import Simulator
from kasparro.simulator.calls import Call
from kasparro.simulator.faults import BadRecords, Hang, PageShift, Slow, Status
from kasparro.sources import conditional_requests, http
from kasparro.sources.base import Source
from kasparro.sources.coingecko import CoinGecko
from kasparro.sources.coinpaprika import CoinPaprika
from kasparro.sources.http import RetryLimits
from kasparro.store.pool import Database

QUICK = RetryLimits(attempts=2, total_s=5, initial_s=0.01, longest_s=0.02)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
BEGIN = datetime(2026, 6, 1, tzinfo=UTC)


class Clock:
    """A wall clock that somebody else sets."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """Five pages of CoinGecko, one call of CoinPaprika."""
    async with Simulator(seed=7, coins=1_150, base=BEGIN, manual=True) as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock(BEGIN)


def gecko(simulator: Simulator, patience: RetryLimits = QUICK) -> Source:
    return CoinGecko(simulator.coingecko_url, "public", None, patience)


async def run(
    database: Database, sources: Sequence[Source], trigger: Trigger = "etl", **options: Any
) -> report.RunReport:
    async with Run(database, sources, trigger, **options) as one:
        await one.work(asyncio.Event())
    async with database.reading() as connection:
        told = await report.run_report(connection, one.id)
    assert told is not None
    return told


async def stopped(database: Database, simulator: Simulator, calls: int, **options: Any) -> None:
    """A run over CoinGecko that is stopped while its call of this number hangs."""
    stop = asyncio.Event()
    async with Run(database, [gecko(simulator)], "etl", **options) as one:
        working = asyncio.create_task(one.work(stop))
        await simulator.calls.reached(calls)
        stop.set()
        assert await working == "interrupted"


def asked(calls: Sequence[Call]) -> list[int]:
    """The pages that were asked for."""
    return [int(call.query["page"]) for call in calls]


# Walks


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_walk_that_is_killed_goes_on_with_the_page_it_had_not_committed(
    database_url: str,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    number: signal.Signals,
) -> None:
    async def etl() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kasparro", "etl", "--source", "coingecko", "--json"),
            env={
                **os.environ,
                "DATABASE_URL": database_url,
                "KASPARRO_COINGECKO_URL": simulator.coingecko_url,
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )

    simulator.add_fault(Hang(api="coingecko", page=3))
    dying = await etl()
    await simulator.calls.reached(3)
    async for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=20, wait_max=0.05):
        with attempt:
            assert await connection.fetchval("SELECT count(*) FROM pages") == 2
    dying.send_signal(number)
    await dying.communicate()
    simulator.clear_faults()
    simulator.calls.clear()

    out, _ = await (await etl()).communicate()

    assert asked(simulator.calls) == [3, 4, 5]
    told = json.loads(out)["sources"][0]
    assert (told["status"], told["calls"]) == ("succeeded", 3)
    assert told["note"].startswith("pages 3 to 5 of 5, going on with the walk that began at 20")
    rows = await connection.fetchval("SELECT count(*) FROM unified_data WHERE source = 'coingecko'")
    assert rows == len(simulator.market.listing("coingecko"))


@pytest.mark.parametrize(("later", "first"), [(14 * MINUTE, 3), (16 * MINUTE, 1), (-MINUTE, 1)])
async def test_a_walk_that_stopped_goes_on_while_it_is_fresh_and_else_starts_over(
    database: Database, simulator: Simulator, clock: Clock, later: timedelta, first: int
) -> None:
    simulator.add_fault(Hang(api="coingecko", page=3))
    await stopped(database, simulator, 3, clock=clock)
    simulator.clear_faults()
    simulator.calls.clear()
    clock.now += later

    told = await run(database, [gecko(simulator)], clock=clock)

    assert asked(simulator.calls) == list(range(first, 6))
    assert told.status == "succeeded"


async def test_a_walk_that_went_on_is_followed_by_a_whole_one(
    database: Database, simulator: Simulator, clock: Clock
) -> None:
    simulator.add_fault(Hang(api="coingecko", page=3))
    await stopped(database, simulator, 3, clock=clock)
    simulator.clear_faults()
    await run(database, [gecko(simulator)], clock=clock)
    simulator.calls.clear()

    told = await run(database, [gecko(simulator)], clock=clock)

    assert asked(simulator.calls) == [1, 2, 3, 4, 5]
    assert told.sources[0].note == "pages 1 to 5 of 5"


async def test_a_walk_that_its_upstream_broke_off_goes_on_with_the_first_page_that_was_lost(
    database: Database, simulator: Simulator, clock: Clock
) -> None:
    for number in (3, 4):
        simulator.add_fault(Status(api="coingecko", code=502, page=number))
    broken = await run(database, [gecko(simulator)], clock=clock)
    simulator.clear_faults()
    simulator.calls.clear()

    told = await run(database, [gecko(simulator)], clock=clock)

    assert (broken.status, told.status) == ("partial", "succeeded")
    assert asked(simulator.calls) == [3, 4, 5]


async def test_pages_that_shift_over_a_stop_double_no_coin_and_lose_none_for_longer_than_a_run(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: Clock,
) -> None:
    simulator.add_fault(PageShift(api="coingecko", by=-20))
    simulator.add_fault(Hang(api="coingecko", page=3))
    await stopped(database, simulator, 3, clock=clock)
    simulator.clear_faults()
    for _ in range(2):
        told = await run(database, [gecko(simulator)], clock=clock)

    assert told.sources[0].records.fetched == len(simulator.market.listing("coingecko"))
    rows = await connection.fetchval("SELECT count(*) FROM unified_data WHERE source = 'coingecko'")
    assert rows == len(simulator.market.listing("coingecko"))


async def test_two_processes_agree_on_where_the_walk_stands(
    database_url: str, simulator: Simulator, clock: Clock
) -> None:
    simulator.add_fault(Hang(api="coingecko", page=4))
    async with Database(database_url) as one:
        await stopped(one, simulator, 4, clock=clock)
    simulator.clear_faults()
    simulator.calls.clear()

    async with Database(database_url) as other:
        await run(other, [gecko(simulator)], clock=clock)

    assert asked(simulator.calls) == [4, 5]


# The month


async def stats(database: Database, clock: Clock, limit: int | None, interval: timedelta | None) -> Any:
    """What /stats tells of CoinGecko's budget."""
    told = Settings(coingecko_monthly_calls=limit, interval=interval)
    async with database.reading() as connection:
        return (await report.stats(connection, told, clock=clock)).budget["coingecko"]


async def test_pages_are_planned_so_that_the_month_lasts(
    database: Database, simulator: Simulator, clock: Clock
) -> None:
    plan: dict[str, Any] = {"budget": lambda _: 2_400, "interval": HOUR, "clock": clock}
    runs = [await run(database, [gecko(simulator)], **plan)]
    told = await stats(database, clock, 2_400, HOUR)
    for _ in range(2):
        clock.now += HOUR
        runs.append(await run(database, [gecko(simulator)], **plan))

    assert {one.status for one in runs} == {"succeeded"}
    assert asked(simulator.calls) == [1, 2, 3, 4, 5, 1, 1, 2, 3, 4, 5]
    assert runs[1].sources[0].note == "page 1 of 5, as planned for the month's calls to last"
    assert (told.month, told.calls, told.limit, told.remaining) == ("2026-06", 5, 2_400, 2_395)
    assert (told.pages, told.pages_every_run, told.pages_in_rotation, told.rotation_runs) == (5, 1, 4, 2)
    assert told.covered_by == BEGIN + 2 * HOUR
    assert (told.age_s, told.promised_age_s) == (0, 5 * 3_600)


async def test_without_a_limit_the_whole_list_is_promised_with_every_run(
    database: Database, simulator: Simulator, clock: Clock
) -> None:
    await run(database, [gecko(simulator)], clock=clock, interval=HOUR)
    told = await stats(database, clock, None, HOUR)
    off = await stats(database, clock, None, None)

    assert (told.pages, told.pages_every_run, told.pages_in_rotation) == (5, 5, 0)
    assert (told.covered_by, told.promised_age_s) == (BEGIN + HOUR, 3 * 3_600)
    assert (off.pages, off.covered_by, off.promised_age_s) == (5, None, None)


async def test_before_the_first_walk_nothing_is_promised(database: Database, clock: Clock) -> None:
    told = await stats(database, clock, 10_000, HOUR)

    assert (told.remaining, told.pages, told.covered_by, told.promised_age_s) == (10_000, None, None, None)


async def test_a_month_whose_calls_are_spent_says_so_and_calls_nobody(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: Clock,
) -> None:
    await connection.execute("INSERT INTO api_calls VALUES ('coingecko', '2026-06-01', 100)")

    told = await run(database, [gecko(simulator)], budget=lambda _: 100, interval=HOUR, clock=clock)

    assert told.status == "failed"
    assert told.sources[0].error == (
        "the budget of 100 calls for June 2026 is spent; it begins anew on the first"
    )
    assert len(simulator.calls) == 0


async def test_where_calls_are_fewer_than_runs_a_run_is_skipped_and_says_when_the_next_is_due(
    database: Database, simulator: Simulator, clock: Clock
) -> None:
    plan: dict[str, Any] = {"budget": lambda _: 72, "interval": HOUR, "clock": clock}
    first = await run(database, [gecko(simulator)], **plan)
    clock.now += HOUR
    second = await run(database, [gecko(simulator)], **plan)

    assert (first.sources[0].status, first.sources[0].calls) == ("succeeded", 3)
    assert (second.status, second.sources[0].status) == ("partial", "skipped")
    assert second.sources[0].error == (
        "of the 72 calls of June 2026 69 are left, spread over the rest of it; "
        "the next is due at 2026-06-01 10:53:38 UTC"
    )


async def test_a_month_that_ends_in_mid_walk_has_each_call_booked_where_it_was_made(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: Clock,
) -> None:
    clock.now = datetime(2026, 6, 30, 23, 59, tzinfo=UTC)
    simulator.add_fault(Hang(api="coingecko", page=3, times=1))
    source = gecko(simulator)
    async with Run(database, [source], "etl", budget=lambda _: 10_000, interval=HOUR, clock=clock) as one:
        working = asyncio.create_task(one.work(asyncio.Event()))
        await simulator.calls.reached(3)
        clock.now += 2 * MINUTE
        simulator.clear_faults()
        for hanging in list(simulator._listener._state.connections):
            hanging.transport.abort()
        assert await working == "succeeded"

    booked = await connection.fetch("SELECT month::text, calls FROM api_calls ORDER BY month")
    assert [tuple(row) for row in booked] == [("2026-06-01", 3), ("2026-07-01", 3)]


async def test_cron_with_the_interval_off_has_its_share_of_the_month(
    database: Database, simulator: Simulator, clock: Clock
) -> None:
    plan: dict[str, Any] = {"budget": lambda _: 1_500, "interval": None, "clock": clock}
    calls = []
    for _ in range(60):
        calls.append((await run(database, [gecko(simulator)], **plan)).sources[0].calls)
        clock.now += HOUR

    assert calls[:5] == [5] * 5
    assert set(calls[30:]) == {1, 2}


# Manners


async def test_a_dead_source_is_asked_once_a_run_and_recovers_with_the_first_answer(
    database: Database, simulator: Simulator, clock: Clock
) -> None:
    simulator.add_fault(Status(api="coingecko", code=500))
    calls = [(await run(database, [gecko(simulator)], clock=clock)).sources[0].calls for _ in range(5)]
    simulator.clear_faults()

    told = await run(database, [gecko(simulator)], clock=clock)

    assert calls == [2, 2, 2, 1, 1]
    assert (told.status, told.sources[0].calls) == ("succeeded", 5)


async def test_a_pass_that_asked_nobody_says_nothing_of_an_upstream(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: Clock,
) -> None:
    simulator.add_fault(Status(api="coingecko", code=500))
    for _ in range(3):
        await run(database, [gecko(simulator)], clock=clock)
    await connection.execute(
        "WITH run AS ("
        "  INSERT INTO runs (trigger, status, started_at) VALUES ('etl', 'succeeded', $1) RETURNING id"
        ") INSERT INTO run_sources (run_id, source, status, started_at, finished_at) "
        "SELECT id, 'coingecko', 'succeeded', $1, $1 FROM run",
        BEGIN,
    )

    assert (await run(database, [gecko(simulator)], clock=clock)).sources[0].calls == 1


async def test_the_loop_leaves_a_dead_source_alone_for_a_minute_and_says_so(
    database: Database, simulator: Simulator, clock: Clock
) -> None:
    simulator.add_fault(Status(api="coinpaprika", code=500))
    sources = [CoinPaprika(simulator.coinpaprika_url, None, QUICK), gecko(simulator)]
    for _ in range(3):
        await run(database, sources, "schedule", clock=clock)
    simulator.calls.clear()
    clock.now += 30 * timedelta(seconds=1)
    rested = await run(database, sources, "schedule", clock=clock)
    left_alone = [call for call in simulator.calls if call.api == "coinpaprika"]
    simulator.clear_faults()
    clock.now += 30 * timedelta(seconds=1)
    recovered = await run(database, sources, "schedule", clock=clock)

    paprika = next(source for source in rested.sources if source.source == "coinpaprika")
    assert (rested.status, paprika.status, left_alone) == ("partial", "skipped", [])
    assert paprika.error == "its last 3 passes failed; it is asked again after 00:01:00 UTC"
    assert recovered.status == "succeeded"


@pytest.mark.parametrize(
    ("trigger", "later"), [("etl", timedelta()), ("api", timedelta()), ("schedule", -MINUTE)]
)
async def test_nobody_who_asks_for_a_run_is_put_off_nor_is_the_loop_by_a_clock_set_back(
    database: Database, simulator: Simulator, clock: Clock, trigger: Trigger, later: timedelta
) -> None:
    simulator.add_fault(Status(api="coingecko", code=500))
    for _ in range(3):
        await run(database, [gecko(simulator)], "schedule", clock=clock)
    simulator.clear_faults()
    clock.now += later

    assert (await run(database, [gecko(simulator)], trigger, clock=clock)).status == "succeeded"


async def test_passes_that_failed_by_what_they_said_or_by_us_do_not_open_the_circuit(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: Clock,
) -> None:
    await connection.execute("ALTER TABLE unified_data RENAME TO hidden")
    for _ in range(3):
        assert (await run(database, [gecko(simulator)], clock=clock)).status == "failed"
    await connection.execute("ALTER TABLE hidden RENAME TO unified_data")

    assert (await run(database, [gecko(simulator)], "schedule", clock=clock)).status == "succeeded"


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_an_upstream_that_asks_for_a_day_is_not_waited_for(
    database: Database, simulator: Simulator, form: Any
) -> None:
    simulator.add_fault(Status(api="coingecko", code=429, retry_after=86_400, retry_after_as=form, page=1))

    told = await run(database, [gecko(simulator)])

    assert (told.status, told.sources[0].calls) == ("failed", 1)
    assert told.sources[0].error is not None
    assert told.sources[0].error.endswith(" s, and a run waits 5 s at most")


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_an_upstream_that_asks_for_a_second_is_waited_for(
    database: Database, simulator: Simulator, form: Any
) -> None:
    simulator.add_fault(
        Status(api="coingecko", code=429, retry_after=1, retry_after_as=form, page=1, times=1)
    )

    told = await run(database, [gecko(simulator)])

    assert (told.status, told.sources[0].calls) == ("succeeded", 6)


async def test_an_upstream_that_drips_holds_up_a_run_for_a_limited_time(
    database: Database, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "TIME_LIMIT_S", 6)
    simulator.add_fault(Slow(api="coingecko", page=2, bytes_per_second=10))

    async with asyncio.timeout(20):
        told = await run(database, [CoinPaprika(simulator.coinpaprika_url, None, QUICK), gecko(simulator)])

    dripping, other = told.sources
    assert (dripping.status, dripping.records.fetched, other.status) == ("partial", 250, "succeeded")
    assert dripping.error == "page 2: CoinGecko took longer than the 0.1 min that a run gives it"


# Conditional requests


async def test_a_page_that_has_not_changed_is_not_sent_again_and_counts_as_unchanged(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: Clock,
) -> None:
    first = await run(database, [gecko(simulator)], clock=clock)
    simulator.calls.clear()
    again = await run(database, [gecko(simulator)], clock=clock)
    sent = [call.status for call in simulator.calls]
    simulator.advance(1)
    moved = await run(database, [gecko(simulator)], clock=clock)

    assert sent == [304] * 5
    one, two = first.sources[0], again.sources[0]
    assert (two.status, two.calls) == ("succeeded", 5)
    assert two.records.fetched == two.records.valid == two.records.unchanged == one.records.fetched
    assert moved.sources[0].records.updated > 0
    assert await connection.fetchval("SELECT calls FROM api_calls") == 15


async def test_a_page_of_which_something_was_refused_is_asked_for_whole_again(
    database: Database, simulator: Simulator, clock: Clock
) -> None:
    simulator.add_fault(BadRecords(api="coingecko", page=1, records=["string-price"]))
    told = [await run(database, [gecko(simulator)], clock=clock) for _ in range(2)]

    assert [call.status for call in simulator.calls if call.query["page"] == "1"] == [200, 200]
    assert [one.sources[0].records.rejected for one in told] == [1, 1]


async def test_a_coin_that_came_up_twice_in_a_walk_gets_the_word_of_the_page_that_keeps_it(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: Clock,
) -> None:
    def coin(name: str, rank: int) -> dict[str, object]:
        values = {"current_price": 1, "market_cap": 9, "total_volume": 1, "market_cap_rank": rank}
        return {"id": name, "symbol": "c", "name": "C", "last_updated": "2026-05-31T00:00:00Z", **values}

    full = [coin(f"coin-{number}", number) for number in range(1, 251)]
    ends = json.dumps([coin("slides", 251)]).encode()
    # The first page is of a moment in which the coin was one place higher.
    simulator.replay("coingecko", [json.dumps([coin("slides", 250), *full[1:]]).encode(), ends])
    await run(database, [gecko(simulator)], clock=clock)
    simulator.replay("coingecko", [json.dumps(full).encode(), ends])
    await run(database, [gecko(simulator)], clock=clock)

    rank = await connection.fetchval("SELECT rank FROM unified_data WHERE source_id = 'slides'")
    assert rank == 251


async def test_what_another_program_read_is_asked_for_whole_again(
    database: Database, simulator: Simulator, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(database, [gecko(simulator)], clock=clock)
    monkeypatch.setattr(conditional_requests, "READING", "another")
    simulator.calls.clear()
    await run(database, [gecko(simulator)], clock=clock)

    assert [call.status for call in simulator.calls] == [200] * 5


@pytest.mark.parametrize("later", [timedelta(days=1, seconds=1), -MINUTE])
async def test_an_upstream_is_not_believed_for_longer_than_a_day_that_nothing_changed(
    database: Database, simulator: Simulator, clock: Clock, later: timedelta
) -> None:
    await run(database, [gecko(simulator)], clock=clock)
    simulator.calls.clear()
    clock.now += later
    await run(database, [gecko(simulator)], clock=clock)

    assert [call.status for call in simulator.calls] == [200] * 5


async def test_a_page_whose_batch_was_not_committed_leaves_nothing_to_ask_with(
    database: Database,
    connection: "asyncpg.Connection[asyncpg.Record]",
    simulator: Simulator,
    clock: Clock,
) -> None:
    await connection.execute("ALTER TABLE unified_data RENAME TO hidden")
    await run(database, [gecko(simulator)], clock=clock)
    await connection.execute("ALTER TABLE hidden RENAME TO unified_data")
    simulator.calls.clear()
    told = await run(database, [gecko(simulator)], clock=clock)

    assert [call.status for call in simulator.calls] == [200] * 5
    assert told.sources[0].records.inserted == len(simulator.market.listing("coingecko"))


async def test_last_modified_is_sent_back_as_it_came(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", clock: Clock
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

    first = await run(database, [source], clock=clock)
    again = await run(database, [source], clock=clock)
    await runner.cleanup()

    assert seen == [None, changed]
    assert (first.records.inserted, again.records.fetched, again.records.unchanged) == (1, 1, 1)
    assert await connection.fetchval("SELECT count(*) FROM unified_data") == 1
