"""Runs assessed against earlier runs, over real HTTP servers and a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest

from kasparro.pipeline.quality.anomalies import HISTORY
from kasparro.pipeline.quality.drift import ACCEPTED_AFTER
from kasparro.pipeline.run import Run
from kasparro.settings import Settings
from kasparro.simulator import Simulator
from kasparro.simulator.coins import Api
from kasparro.simulator.faults import BadRecords, ScaledPrices, SchemaDrift, ShortList, Status
from kasparro.sources.base import Source
from kasparro.sources.coingecko import CoinGecko
from kasparro.sources.coinpaprika import CoinPaprika
from kasparro.sources.http import RetryLimits
from kasparro.store.pool import Connection, Database
from kasparro.web import reports
from kasparro.web.schemas import SourceReport
from tests.conftest import LogEvents

pytestmark = pytest.mark.slow

QUICK = RetryLimits(attempts=1, total_s=5)
BASE = datetime(2026, 6, 1, 12, tzinfo=UTC)
TICKS = 60


class Upstreams:
    """A simulated market and a service that fetches it every hour, on the same clock."""

    def __init__(self, simulator: Simulator, database: Database) -> None:
        self.simulator = simulator
        self._database = database
        self.clock_ahead = timedelta(0)
        self.monthly_calls: int | None = None

    def now(self) -> datetime:
        return self.simulator.clock.now() + self.clock_ahead

    async def run(self, *names: str) -> dict[str, SourceReport]:
        """Run the sources an hour after the last run; returns their reports."""
        self.simulator.advance(TICKS)
        return await self.run_at_once(*names)

    async def run_at_once(self, *names: str) -> dict[str, SourceReport]:
        """Run the sources without moving the clock."""
        sources: dict[str, Source] = {
            "coinpaprika": CoinPaprika(self.simulator.coinpaprika_url, None, QUICK),
            "coingecko": CoinGecko(self.simulator.coingecko_url, "public", None, QUICK),
        }
        chosen = [sources[name] for name in names or sources]
        async with Run(
            self._database,
            chosen,
            "schedule",
            clock=self.now,
            budget=lambda source: self.monthly_calls if source == "coingecko" else None,
            interval=timedelta(minutes=TICKS),
        ) as run:
            await run.work(asyncio.Event())
        async with self._database.reading() as connection:
            done = await reports.run_report(connection, run.id)
        assert done is not None
        return {source.source: source for source in done.sources}

    async def history(self, *names: str, runs: int = HISTORY + 1) -> None:
        """As many hourly runs as anomalies need."""
        for _ in range(runs):
            await self.run(*names)


@pytest.fixture
async def upstreams(database: Database) -> AsyncIterator[Upstreams]:
    async with Simulator(seed=7, coins=600, base=BASE, manual=True) as running:
        yield Upstreams(running, database)


async def health_reasons(connection: Connection, source: str) -> list[str]:
    """Why /health is degraded, without the age of these runs, which happen in a simulated June."""
    reasons = (await reports.health(connection, [source], None))[source].reasons
    return [reason for reason in reasons if not reason.startswith("overdue: ")]


def changes(source: SourceReport) -> list[tuple[str, str]]:
    return [(drift.change, drift.field) for drift in source.drift]


async def test_healthy_feed_has_no_drift_and_no_anomaly(upstreams: Upstreams, logged: LogEvents) -> None:
    for run in range(ACCEPTED_AFTER + 2):
        for source in (await upstreams.run()).values():
            assert (source.status, source.drift, source.anomalies) == ("succeeded", [], []), run

    assert not [event for event in logged.seen if event["level"] != "info"]


async def test_changed_ranks_are_no_stuck_feed(
    database: Database,
) -> None:
    """Ranks change while most prices do not."""
    async with Simulator(seed=5, coins=300, base=BASE, manual=True) as simulator:
        upstreams = Upstreams(simulator, database)
        # In a minute, fewer than half of the coins of this market get a new price, but more get a new rank.
        for run in range(16):
            simulator.advance(1)
            found = await upstreams.run_at_once("coinpaprika")
            assert found["coinpaprika"].anomalies == [], run


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("null", [("null", "high_24h")]),
        ("retype", [("type", "high_24h")]),
        ("rename", [("vanished", "high_24h"), ("appeared", "renamed")]),
        ("copy", [("appeared", "renamed")]),
        ("drop", [("vanished", "high_24h")]),
    ],
)
async def test_drift_is_reported_and_logged_once(
    upstreams: Upstreams,
    logged: LogEvents,
    change: Literal["rename", "drop", "null", "retype", "copy"],
    expected: list[tuple[str, str]],
) -> None:
    first = await upstreams.run("coingecko")
    upstreams.simulator.add_fault(SchemaDrift(api="coingecko", field="high_24h", change=change))
    runs = [(await upstreams.run("coingecko"))["coingecko"] for _ in range(3)]
    upstreams.simulator.clear_faults()
    healed = (await upstreams.run("coingecko"))["coingecko"]

    assert first["coingecko"].drift == healed.drift == []
    for source in runs:
        assert source.status == "succeeded"
        assert changes(source) == expected
        assert {drift.since_run for drift in source.drift} == {2}
        assert all(drift.of == source.records.fetched <= drift.records + 1 for drift in source.drift)
    assert len([event for event in logged.seen if event["event"] == "drift_found"]) == 1
    (ended,) = [event for event in logged.seen if event["event"] == "drift_ended"]
    assert ended["run"] == 5
    assert len(ended["changes"]) == len(expected)


async def test_renamed_field_is_recognised_by_its_values(upstreams: Upstreams) -> None:
    await upstreams.run()
    field = "quotes.USD.ath_price"
    upstreams.simulator.add_fault(SchemaDrift(api="coingecko", field="high_24h", change="rename", to="x"))
    upstreams.simulator.add_fault(SchemaDrift(api="coinpaprika", field=field, change="rename", to="x"))

    gecko, paprika = (await upstreams.run()).values()

    vanished, appeared = gecko.drift
    assert (vanished.field, vanished.nearest, appeared.nearest) == ("high_24h", "x", "high_24h")
    assert vanished.confidence is not None
    assert vanished.confidence > 0.5
    assert vanished.samples
    assert appeared.samples
    vanished, appeared = paprika.drift
    assert (vanished.field, vanished.nearest) == ("quotes.USD.ath_price", "quotes.USD.x")


async def test_lasting_drift_is_accepted(upstreams: Upstreams, logged: LogEvents) -> None:
    """The end of an accepted change is drift again."""
    await upstreams.run("coinpaprika")
    upstreams.simulator.add_fault(SchemaDrift(api="coinpaprika", field="beta_value", change="drop"))
    drifting = [
        bool((await upstreams.run("coinpaprika"))["coinpaprika"].drift) for _ in range(ACCEPTED_AFTER + 1)
    ]
    upstreams.simulator.clear_faults()
    back = (await upstreams.run("coinpaprika"))["coinpaprika"]

    assert drifting == [True] * ACCEPTED_AFTER + [False]
    assert changes(back) == [("appeared", "beta_value")]
    events = [event["event"] for event in logged.seen if event["event"].startswith("drift_")]
    assert events == ["drift_found", "drift_accepted", "drift_found"]


async def test_stats_show_open_drift(upstreams: Upstreams, connection: Connection) -> None:
    assert (await reports.stats(connection, Settings())).drift == {}
    await upstreams.run()
    assert (await reports.stats(connection, Settings())).drift == {"coinpaprika": [], "coingecko": []}
    upstreams.simulator.add_fault(SchemaDrift(api="coingecko", field="ath", change="null"))
    await upstreams.run()
    upstreams.simulator.add_fault(Status(api="coingecko", code=500))
    await upstreams.run()

    (found,) = (await reports.stats(connection, Settings())).drift["coingecko"]

    assert (found.field, found.change, found.since_run) == ("ath", "null", 2)


@pytest.mark.parametrize(
    ("api", "field"),
    [("coingecko", "current_price"), ("coinpaprika", "quotes.USD.price"), ("coingecko", "id")],
)
async def test_vanished_required_field_is_named_and_nothing_is_written(
    upstreams: Upstreams, connection: Connection, api: Api, field: str
) -> None:
    """The error also names the field that took its place."""
    await upstreams.run(api)
    before = await connection.fetch("SELECT * FROM unified_data ORDER BY source_id")
    upstreams.simulator.add_fault(SchemaDrift(api=api, field=field, change="rename", to="last"))
    calls = len(upstreams.simulator.calls)

    source = (await upstreams.run(api))[api]

    path = field.replace("price", "last") if "." in field else "last"
    assert source.status == "failed"
    assert source.error is not None
    assert "records were rejected, most often: " in source.error
    assert f"`{field.rpartition('.')[2]}`" in source.error
    assert f"; {field} vanished: missing in " in source.error
    assert f"nearest is {path} (confidence 0." in source.error
    assert "\n" not in source.error
    assert await connection.fetch("SELECT * FROM unified_data ORDER BY source_id") == before
    # No further page is fetched, except one that was fetched ahead.
    assert len(upstreams.simulator.calls) - calls <= 2
    lasting = (await upstreams.run(api))[api]
    assert lasting.drift[0].since_run == 2


async def test_vanished_required_field_is_never_accepted(upstreams: Upstreams) -> None:
    await upstreams.run("coinpaprika")
    upstreams.simulator.add_fault(SchemaDrift(api="coinpaprika", field="quotes", change="drop"))
    for _ in range(ACCEPTED_AFTER + 2):
        source = (await upstreams.run("coinpaprika"))["coinpaprika"]

    assert source.status == "failed"
    assert changes(source) == [("vanished", "quotes")]


async def test_vanished_required_field_ends_the_crawl(upstreams: Upstreams, connection: Connection) -> None:
    """Earlier pages stay loaded."""
    upstreams.simulator.add_fault(SchemaDrift(api="coingecko", field="current_price", change="drop", page=2))

    source = (await upstreams.run("coingecko"))["coingecko"]

    assert (source.status, source.records.valid, source.records.rejected) == ("partial", 250, 250)
    assert source.error is not None
    assert source.error.startswith("250 of 250 records were rejected, most often: ")
    assert "`current_price`" in source.error
    assert await connection.fetchval("SELECT count(*) FROM unified_data") == 250


@pytest.mark.parametrize(
    ("page", "note"), [(1, "pages 1 to 3 of 3"), (2, "pages 2 to 3 of 3, resuming the crawl")]
)
async def test_next_run_resumes_with_the_unusable_page(upstreams: Upstreams, page: int, note: str) -> None:
    await upstreams.run("coingecko")
    upstreams.simulator.add_fault(
        SchemaDrift(api="coingecko", field="current_price", change="rename", page=page)
    )
    await upstreams.run("coingecko")
    upstreams.simulator.clear_faults()

    source = (await upstreams.run_at_once("coingecko"))["coingecko"]

    assert source.status == "succeeded"
    assert source.note is not None
    assert source.note.startswith(note)
    whole = (await upstreams.run_at_once("coingecko"))["coingecko"]
    assert (whole.records.fetched, whole.records.unchanged) == (whole.records.valid, whole.records.valid)


async def test_lost_page_and_bad_records_are_no_drift(upstreams: Upstreams) -> None:
    await upstreams.run()
    upstreams.simulator.add_fault(Status(api="coingecko", code=502, page=2))
    upstreams.simulator.add_fault(
        BadRecords(api="coingecko", records=["null-id", "string-price", "not-an-object", "missing-id"])
    )

    gecko, paprika = (await upstreams.run()).values()

    assert gecko.status == "partial"
    assert (gecko.drift, gecko.anomalies, paprika.drift) == ([], [], [])


async def test_recordings_of_one_year_have_no_drift(database: Database, shared_data: Path) -> None:
    """Recordings of another year may have some."""
    recorded = shared_data / "coingecko_markets"
    async with Simulator(coins=1, manual=True) as simulator:
        upstreams = Upstreams(simulator, database)

        async def run(name: str) -> SourceReport:
            simulator.replay("coingecko", [(recorded / name).read_bytes()])
            return (await upstreams.run_at_once("coingecko"))["coingecko"]

        assert (await run("Shahar-Mamok__Crypto-ETL__markets_1758966220.json")).drift == []
        assert (await run("Shahar-Mamok__Crypto-ETL__markets_1758986042.json")).drift == []
        earlier = await run("rciminera__Crypto-Pricing__Notebooks_coingecko.json")
        assert (await run("rciminera__Crypto-Pricing__cryptocurenccy_coingecko.json")).drift == earlier.drift

    assert ("vanished", "price_change_percentage_7d_in_currency") in changes(earlier)
    assert ("appeared", "price_change_percentage_1y_in_currency") in changes(earlier)


async def test_far_fewer_records_are_an_anomaly(
    upstreams: Upstreams, connection: Connection, logged: LogEvents
) -> None:
    await upstreams.history()
    upstreams.simulator.add_fault(ShortList(api="coinpaprika", coins=200))
    upstreams.simulator.add_fault(ShortList(api="coingecko", coins=572))

    gecko, paprika = (await upstreams.run()).values()
    again = (await upstreams.run())["coinpaprika"]

    assert gecko.anomalies == []
    found, missing = paprika.anomalies
    assert (missing.kind, missing.value > 300) == ("missing-coins", True)
    assert (found.kind, found.value, found.since_run) == ("few-records", 200, HISTORY + 2)
    assert found.detail.startswith("200 records, usually 5")
    assert paprika.status == "succeeded"
    assert again.anomalies[0].since_run == found.since_run
    assert len([event for event in logged.seen if event["event"] == "anomaly_found"]) == 2
    assert await health_reasons(connection, "coinpaprika") == [
        f"{anomaly.kind}: {anomaly.detail}" for anomaly in again.anomalies
    ]
    assert await health_reasons(connection, "coingecko") == []


async def test_page_rotation_is_neither_drift_nor_anomaly(
    database: Database,
) -> None:
    async with Simulator(seed=7, coins=1_700, base=BASE, manual=True) as simulator:
        upstreams = Upstreams(simulator, database)
        fetched = [(await upstreams.run("coingecko"))["coingecko"].records.fetched for _ in range(HISTORY)]
        upstreams.monthly_calls = 6 * 24 * 31
        for _ in range(2 * HISTORY):
            source = (await upstreams.run("coingecko"))["coingecko"]
            assert (source.status, source.drift, source.anomalies) == ("succeeded", [], [])
            fetched.append(source.records.fetched)
        simulator.add_fault(SchemaDrift(api="coingecko", field="ath", change="null"))
        nulls = [(await upstreams.run("coingecko"))["coingecko"] for _ in range(3)]
        simulator.add_fault(ShortList(api="coingecko", coins=300))
        cut = [(await upstreams.run("coingecko"))["coingecko"] for _ in range(3)]

    # Some runs fetch the whole list, the others its first pages.
    assert min(fetched[:HISTORY]) > 1_500
    assert min(fetched[HISTORY:]) <= 1_000
    assert max(fetched[HISTORY:]) > 1_500
    assert [("null", "ath")] in map(changes, nulls)
    # The runs that fetch only the first page miss nothing.
    assert {anomaly.kind for run in cut for anomaly in run.anomalies} == {"few-records", "missing-coins"}


async def test_lost_page_is_no_few_records_anomaly(upstreams: Upstreams) -> None:
    await upstreams.history("coingecko")
    upstreams.simulator.add_fault(Status(api="coingecko", code=502, page=2))

    source = (await upstreams.run("coingecko"))["coingecko"]

    assert (source.status, source.anomalies) == ("partial", [])


@pytest.mark.parametrize("factor", ["0.92", "1000"])
async def test_scaled_prices_are_an_anomaly_until_undone(
    upstreams: Upstreams, connection: Connection, logged: LogEvents, factor: str
) -> None:
    """Prices in another currency are written and marked."""
    await upstreams.history("coingecko")
    upstreams.simulator.add_fault(ScaledPrices(api="coingecko", factor=factor))
    scaled = [(await upstreams.run("coingecko"))["coingecko"] for _ in range(3)]
    during = await health_reasons(connection, "coingecko")
    upstreams.simulator.clear_faults()
    right = (await upstreams.run("coingecko"))["coingecko"]

    for source in scaled:
        (found,) = source.anomalies
        assert (found.kind, found.since_run, found.lasting) == ("price-jump", HISTORY + 2, True)
        assert found.value == pytest.approx(float(factor), rel=0.03)
        assert source.status == "succeeded"
    assert scaled[0].records.updated > 300
    assert [reason.partition(" of ")[0] for reason in during] == ["price-jump: prices"]
    assert right.anomalies == []
    assert await health_reasons(connection, "coingecko") == []
    events = [event["event"] for event in logged.seen if event["event"].startswith("anomaly_")]
    assert events == ["anomaly_found", "anomaly_ended"]


async def test_stuck_feed_is_an_anomaly(upstreams: Upstreams, connection: Connection) -> None:
    """Every run succeeds all the same."""
    await upstreams.history("coingecko")
    for _ in range(2):
        upstreams.clock_ahead += timedelta(hours=1)
        source = (await upstreams.run_at_once("coingecko"))["coingecko"]

    (found,) = source.anomalies
    assert source.status == "succeeded"
    assert found.kind == "stuck"
    assert found.detail.startswith("nine in ten records are older than 2:0")
    assert await health_reasons(connection, "coingecko") == [f"stuck: {found.detail}"]


async def test_run_report_summarises_price_moves(upstreams: Upstreams) -> None:
    first = (await upstreams.run("coinpaprika"))["coinpaprika"]
    second = (await upstreams.run("coinpaprika"))["coinpaprika"]

    assert first.prices is None
    assert second.prices is not None
    assert 0 < second.prices.coins <= second.records.updated
    assert 0 < second.prices.size_percent < 3
    assert abs(second.prices.change_percent) <= second.prices.size_percent
    assert second.prices.after_s == pytest.approx(3600, abs=240)
