"""GET /stats, /runs, /compare-runs and /tables, and POST /runs."""

import asyncio
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest

from kasparro.settings import Secret, Settings
from kasparro.sources.registry import load_settings
from kasparro.store.pool import Connection
from kasparro.store.tables import TABLES
from tests.support.fake_scheduler import FakeScheduler
from tests.support.json_responses import get_json
from tests.support.runs import add_run, add_source
from tests.web.conftest import LONG_AGO, Insert, serving


@pytest.mark.slow
async def test_stats(client: aiohttp.ClientSession, connection: Connection, insert: Insert) -> None:
    await insert({"source_id": "a"})
    run_id = await add_run(connection, "succeeded")
    stats = await get_json(client, "/stats")
    assert list(stats) == ["status", "last_run", "totals", "schedule", "budget", "drift"]
    assert stats["last_run"] == await get_json(client, f"/runs/{run_id}")
    assert stats["totals"]["by_source"] == {"coinpaprika": 0, "coingecko": 1, "csv": 0}
    assert stats["schedule"] == {"interval_s": 3600.0, "next_run_at": None}


@pytest.mark.slow
async def test_runs_in_pages(client: aiohttp.ClientSession, connection: Connection) -> None:
    ids = [await add_run(connection, status) for status in ("failed", "succeeded", "failed", "failed")][::-1]
    for url in ("/runs?limit=3", "/runs?limit=3&page=1"):
        page = await get_json(client, url)
        assert [run["id"] for run in page["data"]] == ids[:3]
        assert (page["pagination"]["total"], page["pagination"]["pages"]) == (4, 2)
        assert ("page=" in page["pagination"]["next"]) == ("page=" in url)
        assert [run["id"] for run in (await get_json(client, page["pagination"]["next"]))["data"]] == ids[3:]
    cursor = page["pagination"]["next_cursor"]
    assert [run["id"] for run in (await get_json(client, f"/runs?limit=3&cursor={cursor}"))["data"]] == ids[
        3:
    ]
    failed = await get_json(client, "/runs?status=failed&limit=2")
    assert failed["pagination"]["total"] == 3
    rest = await get_json(client, f"/runs?status=failed&cursor={failed['pagination']['next_cursor']}")
    assert [run["id"] for run in rest["data"]] == ids[3:]
    assert (await get_json(client, f"/runs?cursor={failed['pagination']['next_cursor']}", 400))[
        "parameter"
    ] == "cursor"
    assert (await get_json(client, "/runs?status=bad", 400))["parameter"] == "status"


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/runs/1", "/runs/99999999999999999999999", "/runs/1/rejects", "/runs/x"])
async def test_unknown_run(client: aiohttp.ClientSession, path: str) -> None:
    assert (await get_json(client, path, 404))["status"] == 404


@pytest.mark.parametrize("run_id", ["abc", "0", "-1", "1.5", "%31x", "٣", "9" * 200])
async def test_invalid_run_id(client: aiohttp.ClientSession, run_id: str) -> None:
    for path in (f"/runs/{run_id}", f"/runs/{run_id}/rejects"):
        problem = await get_json(client, path, 404)
        assert (problem["parameter"], problem["allowed"]) == ("id", "a whole number from 1")


async def test_rejects_of_a_run(client: aiohttp.ClientSession, connection: Connection) -> None:
    run_id = await add_run(connection, "succeeded")
    for number in range(3):
        await connection.execute(
            "INSERT INTO rejects (run_id, source, reason, field, location, line, raw) "
            "VALUES ($1, 'csv', 'not a number', 'price_usd', 'a.csv', $2, '漢,\"x')",
            run_id,
            number,
        )
    page = await get_json(client, f"/runs/{run_id}/rejects?limit=2")
    first = page["data"][0]
    del first["id"]
    assert first == {
        "source": "csv",
        "reason": "not a number",
        "setting": None,
        "field": "price_usd",
        "location": "a.csv",
        "line": 0,
        "raw": '漢,"x',
    }
    cursor = page["pagination"]["next_cursor"]
    assert page["pagination"]["next"] == f"/runs/{run_id}/rejects?limit=2&cursor={cursor}"
    numbered = await get_json(client, f"/runs/{run_id}/rejects?limit=2&page=1")
    assert numbered["pagination"]["next"] == f"/runs/{run_id}/rejects?limit=2&page=2"
    rest = await get_json(client, f"/runs/{run_id}/rejects?cursor={cursor}")
    assert [reject["line"] for reject in rest["data"]] == [2]
    other = await add_run(connection, "succeeded")
    assert (await get_json(client, f"/runs/{other}/rejects?cursor={cursor}", 400))["parameter"] == "cursor"


async def test_compare_runs(client: aiohttp.ClientSession, connection: Connection) -> None:
    drift = (
        '[{"field":"price","change":"vanished","records":9,"of":9,"before":"","after":"","samples":[],'
        '"nearest":"cost","confidence":0.7,"since_run":2}]'
    )
    anomaly = (
        '[{"kind":"few-records","detail":"9 records, usually 100","value":9,"usual":100,"lasting":false,'
        '"since_run":2,"since":"2024-06-01T12:00:00Z"}]'
    )
    a = await add_run(connection, "succeeded")
    b = await add_run(connection, "partial", finished_at=LONG_AGO + timedelta(seconds=4))
    await add_source(connection, a, "coingecko", "succeeded", fetched=100, valid=100, inserted=100, calls=2)
    await add_source(connection, a, "csv", "succeeded", fetched=7, valid=7, inserted=7)
    metrics = '{"at":"2024-06-01T12:00:00Z","fetched":9,"compared":8,"move":0.0,"shift":0.1,"gap_s":60}'
    assessment = {"drift": drift, "anomalies": anomaly, "metrics": metrics}
    await add_source(connection, b, "coingecko", "failed", fetched=9, rejected=9, calls=1, **assessment)
    await add_source(connection, b, "coinpaprika", "succeeded")

    comparison = await get_json(client, f"/compare-runs?a={a}&b={b}")

    assert (comparison["a"], comparison["b"]) == (
        await get_json(client, f"/runs/{a}"),
        await get_json(client, f"/runs/{b}"),
    )
    assert (comparison["only_a"], comparison["only_b"]) == (["csv"], ["coinpaprika"])
    assert comparison["difference"]["duration_s"] == -5.5
    assert comparison["difference"]["records"] == {
        "fetched": -98,
        "valid": -107,
        "rejected": 9,
        "inserted": -107,
        "updated": 0,
        "unchanged": 0,
    }
    gecko, paprika, csv = comparison["sources"]
    assert (gecko["status_a"], gecko["status_b"]) == ("succeeded", "failed")
    assert (gecko["difference"]["calls"], gecko["difference"]["records"]["fetched"]) == (-1, -91)
    assert (gecko["drift_begun"], gecko["drift_over"]) == (["price"], [])
    assert (gecko["anomalies_begun"], gecko["anomalies_over"]) == (["few-records"], [])
    assert (paprika["status_a"], csv["status_b"], csv["difference"]) == (None, None, None)
    prices = comparison["b"]["sources"][0]["prices"]
    assert prices == {"coins": 8, "size_percent": 0.0, "change_percent": 10.5171, "after_s": 60.0}
    reverse = await get_json(client, f"/compare-runs?a={b}&b={a}")
    assert reverse["difference"]["records"]["valid"] == 107
    assert reverse["sources"][0]["drift_over"] == ["price"]


async def test_compare_invalid_runs(client: aiohttp.ClientSession, connection: Connection) -> None:
    run_id = await add_run(connection, "succeeded")
    for query, status, parameter in (
        ("", 400, "a"),
        (f"?a={run_id}", 400, "b"),
        (f"?a={run_id}&b=x", 400, "b"),
        (f"?a=0&b={run_id}", 400, "a"),
        (f"?a={run_id}&b={run_id}&c=1", 400, "c"),
        (f"?a={run_id + 1}&b={run_id}", 404, "a"),
        (f"?a={run_id}&b={2**53 - 1}", 404, "b"),
    ):
        assert (await get_json(client, f"/compare-runs{query}", status))["parameter"] == parameter, query
    missing = await get_json(client, "/compare-runs?b=1", 400)
    assert missing["detail"] == f"a is missing; allowed: {missing['allowed']}."
    same = await get_json(client, f"/compare-runs?a={run_id}&b={run_id}")
    assert not any(same["difference"]["records"].values())


async def test_query_timeout(client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch) -> None:
    async def sleep(connection: Connection) -> None:
        await connection.execute("SET LOCAL statement_timeout = 10; SELECT pg_sleep(5)")

    monkeypatch.setattr("kasparro.store.tables.tables", sleep)
    async with client.get("/tables") as response:
        assert response.status == 503
        assert response.headers["Retry-After"]
        assert (await response.json(content_type=None))["title"] == "Query took too long"


async def test_tables_are_counted_and_summed(
    client: aiohttp.ClientSession, connection: Connection, insert: Insert
) -> None:
    await insert(*({"source_id": str(n)} for n in range(10)))
    for month in (1, 2):
        await connection.execute("SELECT create_history_partition($1)", datetime(2024, month, 1, tzinfo=UTC))
        await connection.execute(
            "INSERT INTO unified_history (source, source_id, observed_at, recorded_at, content_hash) "
            "VALUES ('csv', 'a', $1, now(), gen_random_uuid())",
            datetime(2024, month, 5, tzinfo=UTC),
        )
    tables = {table.pop("name"): table for table in (await get_json(client, "/tables"))["tables"]}
    assert tuple(tables) == TABLES
    assert tables["unified_data"]["rows"] == 10
    assert tables["unified_data"]["estimated"] is False
    history = tables["unified_history"]
    assert history["rows"] == 2
    assert history["bytes"] == await connection.fetchval(
        "SELECT pg_total_relation_size('unified_history_2024_01') + "
        "pg_total_relation_size('unified_history_2024_02')"
    )


async def test_large_tables_are_estimated(
    client: aiohttp.ClientSession, insert: Insert, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kasparro.store.tables.COUNTED_BYTES", 0)
    await insert(*({"source_id": str(n)} for n in range(100)))
    await connection.execute("ANALYZE unified_data")
    (table,) = (t for t in (await get_json(client, "/tables"))["tables"] if t["name"] == "unified_data")
    assert (table["rows"], table["estimated"]) == (100, True)


async def test_every_table_of_the_schema_is_listed(connection: Connection) -> None:
    rows = await connection.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace "
        "AND relkind IN ('r', 'p') AND NOT relispartition"
    )
    # A standby cannot read an unlogged table.
    assert {row["relname"] for row in rows} == {*TABLES, "shared_quotas"}


async def test_the_loop_works_while_the_service_does(database_url: str) -> None:
    loop = FakeScheduler()
    async with serving(database_url, scheduler=loop) as client:
        assert loop.entered
        assert (await get_json(client, "/stats"))["schedule"]["next_run_at"] == "2030-01-01T00:00:00Z"
    assert not loop.entered


@pytest.mark.slow
async def test_a_run_is_started_with_the_token_alone(database_url: str) -> None:
    token = Settings(admin_token=Secret("s3cret"))
    async with serving(database_url, token, FakeScheduler()) as client:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer s3cretx"},
            {"Authorization": "Bearer é"},
            {"Authorization": "Basic s3cret"},
            {"Authorization": "s3cret"},
        ):
            async with client.post("/runs", headers=headers) as response:
                assert response.status == 401
                assert response.headers["WWW-Authenticate"].startswith("Bearer")
                assert "s3cret" not in await response.text()
        async with client.post("/runs", headers={"Authorization": "bearer s3cret"}) as response:
            assert response.status == 202
            assert response.headers["Location"] == "/runs/7"
            assert await response.json() == {"id": 7, "status": "running"}
        async with client.post("/runs", headers={"Authorization": "Bearer s3cret"}) as response:
            assert response.status == 409
            assert (await response.json(content_type=None))["title"] == "Run in progress"
        async with client.delete("/runs") as response:
            assert response.headers["Allow"] == "GET, HEAD, OPTIONS, POST"


async def test_no_post_without_admin_token(database_url: str) -> None:
    async with (
        serving(database_url, load_settings({}), FakeScheduler()) as client,
        client.post("/runs") as response,
    ):
        assert response.status == 405
        assert response.headers["Allow"] == "GET, HEAD, OPTIONS"


async def test_recovers_after_its_connections_are_terminated(
    client: aiohttp.ClientSession, connection: Connection
) -> None:
    await get_json(client, "/data")
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    for _ in range(20):
        async with client.get("/data") as response:
            assert response.status in {200, 503}
        if response.status == 200:
            break
        await asyncio.sleep(0.1)
    assert response.status == 200
