"""Reports of runs and sources, read from the run tables."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kasparro.settings import Settings
from kasparro.sources.registry import load_settings
from kasparro.store.pool import Connection
from kasparro.web import reports
from kasparro.web.schemas import Records
from tests.support.runs import NOON, add_run, add_source


async def test_run_sums_its_sources(connection: Connection) -> None:
    run_id = await add_run(connection, "partial", error="coingecko: 429")
    await add_source(
        connection,
        run_id,
        "csv",
        "succeeded",
        fetched=10,
        valid=8,
        rejected=2,
        inserted=3,
        updated=4,
        unchanged=1,
    )
    await add_source(connection, run_id, "coingecko", "failed", fetched=5, valid=5, calls=7, error="429")
    run = await reports.run_report(connection, run_id)
    assert run is not None
    assert (run.id, run.trigger, run.status, run.error) == (run_id, "schedule", "partial", "coingecko: 429")
    assert (run.started_at, run.finished_at, run.duration_s) == (NOON, NOON + timedelta(seconds=9.5), 9.5)
    assert run.records == Records(fetched=15, valid=13, rejected=2, inserted=3, updated=4, unchanged=1)
    gecko, csv = run.sources
    assert (gecko.source, gecko.status, gecko.calls, gecko.error) == ("coingecko", "failed", 7, "429")
    assert (csv.source, csv.duration_s, csv.records.inserted) == ("csv", 4.0, 3)


async def test_run_report_json(connection: Connection) -> None:
    run_id = await add_run(connection, "succeeded")
    await add_source(connection, run_id, "csv", "succeeded")
    run = await reports.run_report(connection, run_id)
    records = '{"fetched":0,"valid":0,"rejected":0,"inserted":0,"updated":0,"unchanged":0}'
    assert reports.encode(run).decode() == (
        f'{{"id":{run_id},"trigger":"schedule","status":"succeeded","started_at":"2024-06-01T12:00:00Z",'
        f'"finished_at":"2024-06-01T12:00:09.500000Z","duration_s":9.5,"records":{records},"sources":['
        '{"source":"csv","status":"succeeded","started_at":"2024-06-01T12:00:00Z",'
        f'"finished_at":"2024-06-01T12:00:04Z","duration_s":4.0,"records":{records},"corrected":0,"rejects":[],'
        '"invalid_fields":[],"rejected_files":[],"calls":0,"note":null,"payloads":0,"payload_bytes":0,"drift":[],"anomalies":[],"prices":null,"error":null}],'
        '"error":null}'
    )


@pytest.mark.slow
async def test_running_run_lasts_until_now(connection: Connection) -> None:
    began = datetime.now(UTC) - timedelta(minutes=2)
    run_id = await add_run(connection, "running", started_at=began)
    await add_source(connection, run_id, "csv", "running", started_at=began)
    run = await reports.run_report(connection, run_id)
    assert run is not None
    assert run.duration_s == pytest.approx(120, abs=5)
    assert run.sources[0].duration_s == pytest.approx(120, abs=5)
    assert run.finished_at is None


@pytest.mark.slow
@pytest.mark.parametrize("run_id", [0, -1, 1, 2**63 - 1, 2**63, 10**30])
async def test_unknown_run_is_none(connection: Connection, run_id: int) -> None:
    assert await reports.run_report(connection, run_id) is None
    assert await reports.rejects(connection, run_id, limit=1) is None


async def test_recent_runs_newest_first(connection: Connection) -> None:
    ids = [await add_run(connection, status) for status in ("succeeded", "failed", "succeeded", "running")]
    first = await reports.recent_runs(connection, limit=2)
    assert ([run.id for run in first.items], first.total, first.last) == ([ids[3], ids[2]], 4, ids[2])
    second = await reports.recent_runs(connection, limit=2, after=first.last)
    assert ([run.id for run in second.items], second.total, second.last) == ([ids[1], ids[0]], 4, None)
    assert [run.id for run in (await reports.recent_runs(connection, limit=2, offset=3)).items] == [ids[0]]
    succeeded = await reports.recent_runs(connection, limit=9, status="succeeded")
    assert ([run.id for run in succeeded.items], succeeded.total) == ([ids[2], ids[0]], 2)


async def test_rejects_in_order(connection: Connection) -> None:
    run_id = await add_run(connection, "succeeded")
    other = await add_run(connection, "succeeded")
    for number in range(5):
        await connection.execute(
            "INSERT INTO rejects (run_id, source, reason, raw, line) VALUES ($1, 'csv', 'empty', 'a,b', $2)",
            run_id,
            number,
        )
    first = await reports.rejects(connection, run_id, limit=3)
    assert first is not None
    assert ([reject.line for reject in first.items], first.total) == ([0, 1, 2], 5)
    second = await reports.rejects(connection, run_id, limit=3, after=first.last)
    assert second is not None
    assert ([reject.line for reject in second.items], second.total, second.last) == ([3, 4], 5, None)
    by_number = await reports.rejects(connection, run_id, limit=3, offset=3)
    assert by_number == second
    none = await reports.rejects(connection, other, limit=3)
    assert none is not None
    assert (none.items, none.total) == ([], 0)
    beyond = await reports.rejects(connection, run_id, limit=3, offset=300)
    assert beyond is not None
    assert (beyond.items, beyond.total) == ([], 5)


async def test_stats_of_a_new_database(connection: Connection) -> None:
    stats = await reports.stats(connection, Settings(interval=None))
    assert (stats.status, stats.last_run) == ("idle", None)
    assert stats.totals.by_source == {"coinpaprika": 0, "coingecko": 0, "csv": 0}
    assert (stats.totals.records, stats.totals.runs, stats.totals.last_success_at) == (0, 0, None)
    assert (stats.schedule.interval_s, stats.schedule.next_run_at) == (None, None)


async def test_stats_count_the_rows_of_a_source_that_is_not_installed(connection: Connection) -> None:
    await connection.execute(
        "INSERT INTO unified_data "
        "(source, source_id, observed_at, first_seen_at, updated_at, content_hash) "
        "VALUES ('tide', 'a', now(), now(), now(), gen_random_uuid())"
    )
    stats = await reports.stats(connection, Settings())
    assert stats.totals.by_source == {"coinpaprika": 0, "coingecko": 0, "csv": 0, "tide": 1}
    assert stats.totals.records == 1


async def test_stats_count_rows_runs_and_calls(connection: Connection) -> None:
    for source, number in (("csv", 3), ("coingecko", 1)):
        await connection.execute(
            "INSERT INTO unified_data "
            "(source, source_id, observed_at, first_seen_at, updated_at, content_hash) "
            "SELECT $1, n::text, now(), now(), now(), gen_random_uuid() "
            "FROM generate_series(1, $2::int) AS n",
            source,
            number,
        )
    await connection.execute(
        "INSERT INTO api_calls VALUES ('coingecko', date_trunc('month', now())::date, 10003), "
        "('coinpaprika', '2020-01-01', 5)"
    )
    await add_run(connection, "succeeded", finished_at=NOON)
    await add_run(connection, "partial", finished_at=NOON + timedelta(hours=1))
    last = await add_run(connection, "running")
    due = NOON + timedelta(days=1)
    stats = await reports.stats(connection, load_settings({"KASPARRO_COINGECKO_KEY": "k"}), due)
    assert stats.status == "running"
    assert stats.last_run is not None
    assert stats.last_run.id == last
    assert (stats.totals.records, stats.totals.runs) == (4, 3)
    assert stats.totals.by_source == {"coinpaprika": 0, "coingecko": 1, "csv": 3}
    assert (stats.totals.last_success_at, stats.totals.last_failure_at) == (NOON, NOON + timedelta(hours=1))
    assert (stats.schedule.interval_s, stats.schedule.next_run_at) == (3600.0, due)
    gecko, paprika = stats.budget["coingecko"], stats.budget["coinpaprika"]
    assert (gecko.calls, gecko.limit, gecko.remaining) == (10_003, 10_000, 0)
    assert (paprika.calls, paprika.limit, paprika.remaining) == (0, 20_000, 20_000)
    assert gecko.month == f"{datetime.now(UTC):%Y-%m}"


HOUR = timedelta(hours=1)


async def test_source_is_healthy_before_its_first_run(connection: Connection) -> None:
    health = await reports.health(connection, ["csv", "coingecko"], HOUR)
    assert list(health) == ["csv", "coingecko"]
    csv = health["csv"]
    assert (csv.status, csv.last_success_at, csv.age_s, csv.stale, csv.error) == (
        None,
        None,
        None,
        False,
        None,
    )
    assert csv.healthy


@pytest.mark.parametrize(
    ("status", "healthy"),
    [("succeeded", True), ("skipped", True), ("partial", False), ("failed", False), ("interrupted", False)],
)
async def test_health_follows_the_last_finished_run(
    connection: Connection, status: str, healthy: bool
) -> None:
    now = datetime.now(UTC)
    error = None if healthy else "coingecko: 429"
    for outcome, message in (("succeeded", None), (status, error), ("running", None)):
        run_id = await add_run(connection, "succeeded")
        finished = None if outcome == "running" else now
        await add_source(
            connection, run_id, "csv", outcome, started_at=now, finished_at=finished, error=message
        )
    csv = (await reports.health(connection, ["csv"], HOUR))["csv"]
    assert (csv.status, csv.error, csv.healthy, csv.stale) == (status, error, healthy, False)
    assert csv.last_success_at == now
    assert csv.age_s == pytest.approx(0, abs=5)


@pytest.mark.parametrize(
    ("ago", "interval", "stale"),
    [
        (timedelta(minutes=124), HOUR, False),
        (timedelta(minutes=126), HOUR, True),
        (timedelta(days=900), None, False),
    ],
)
@pytest.mark.parametrize("succeeded", [True, False])
async def test_stale_after_two_intervals_without_success(
    connection: Connection, ago: timedelta, interval: timedelta | None, stale: bool, succeeded: bool
) -> None:
    then = datetime.now(UTC) - ago
    run_id = await add_run(connection, "succeeded" if succeeded else "running")
    finished = then if succeeded else None
    await add_source(
        connection,
        run_id,
        "csv",
        "succeeded" if succeeded else "running",
        started_at=then,
        finished_at=finished,
    )
    csv = (await reports.health(connection, ["csv"], interval))["csv"]
    assert (csv.stale, csv.healthy) == (stale, not stale)


@pytest.mark.slow
async def test_success_in_the_future_does_not_count(connection: Connection) -> None:
    now = datetime.now(UTC)
    ahead = await add_run(connection, "succeeded")
    await add_source(connection, ahead, "csv", "succeeded", finished_at=now + timedelta(days=400))
    during = (await reports.health(connection, ["csv"], HOUR))["csv"]
    after = await add_run(connection, "succeeded")
    await add_source(connection, after, "csv", "succeeded", started_at=now, finished_at=now)
    later = (await reports.health(connection, ["csv"], HOUR))["csv"]

    assert (during.stale, during.healthy, during.age_s) == (True, False, None)
    assert during.reasons[0].endswith("ahead of the database's clock: a clock was set back")
    assert (later.stale, later.healthy, later.last_success_at) == (False, True, now)


@pytest.mark.slow
async def test_source_without_runs_becomes_stale(connection: Connection) -> None:
    assert (await reports.health(connection, ["csv"], HOUR, up_s=7_400))["csv"].healthy
    (reason,) = (await reports.health(connection, ["csv"], HOUR, up_s=7_600))["csv"].reasons
    assert reason == "overdue: no run has included it for 2:06:40, expected within 2:05:00"
    assert (await reports.health(connection, ["csv"], None, up_s=9e9))["csv"].healthy


@pytest.mark.slow
async def test_skipped_runs_do_not_count_as_success(connection: Connection) -> None:
    now = datetime.now(UTC)
    for ago, outcome in ((timedelta(hours=3), "succeeded"), (timedelta(0), "skipped")):
        run_id = await add_run(connection, "succeeded")
        await add_source(
            connection, run_id, "csv", outcome, started_at=now - ago, finished_at=now - ago, error=None
        )
    csv = (await reports.health(connection, ["csv"], HOUR))["csv"]
    assert (csv.status, csv.stale, csv.expected_age_s) == ("skipped", True, 7_500.0)
    assert csv.reasons[0].startswith("overdue: no success for 3:00:0")


async def test_interval_off_expects_the_rhythm(
    connection: Connection,
) -> None:
    now = datetime.now(UTC)
    for hour in range(14, 5, -1):
        run_id = await add_run(connection, "succeeded")
        began = now - timedelta(hours=hour)
        await add_source(connection, run_id, "csv", "succeeded", started_at=began, finished_at=began)
    csv = (await reports.health(connection, ["csv"], None))["csv"]
    assert (csv.expected_age_s, csv.stale) == (7_500.0, True)


async def test_anomalies_last_while_later_runs_fail(connection: Connection) -> None:
    anomalies = (
        '[{"kind":"stuck","detail":"stands still","value":9,"usual":1,"lasting":false,"since_run":1,'
        '"since":"2026-06-01T12:00:00Z"}]'
    )
    now = datetime.now(UTC)
    assessment: dict[str, Any] = {
        "drift": "[]",
        "anomalies": anomalies,
        "metrics": '{"at":"2024-06-01T12:00:00Z","fetched":1}',
    }
    for status, values in (("succeeded", assessment), ("failed", {"drift": "[]"}), ("failed", {})):
        values = {"started_at": now, "finished_at": now, "error": "429"} | values  # noqa: PLW2901
        run_id = await add_run(connection, "partial")
        await add_source(connection, run_id, "coingecko", status, **values)
    gecko = (await reports.health(connection, ["coingecko"], HOUR))["coingecko"]
    assert gecko.reasons == ["failed: 429", "stuck: stands still"]
