"""The operators' routes over HTTP: statistics, runs, health, tables, and a run on demand."""

import asyncio
import time
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


async def test_stats(client: aiohttp.ClientSession, connection: Connection, insert: Insert) -> None:
    await insert({"source_id": "a"})
    run_id = await add_run(connection, "succeeded")
    stats = await get_json(client, "/stats")
    assert list(stats) == ["status", "last_run", "totals", "schedule", "budget", "drift"]
    assert stats["last_run"] == await get_json(client, f"/runs/{run_id}")
    assert stats["totals"]["by_source"] == {"coinpaprika": 0, "coingecko": 1, "csv": 0}
    assert stats["schedule"] == {"interval_s": 3600.0, "next_run_at": None}


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


@pytest.mark.parametrize("path", ["/runs/1", "/runs/99999999999999999999999", "/runs/1/rejects", "/runs/x"])
async def test_a_run_that_is_not_there_is_a_problem(client: aiohttp.ClientSession, path: str) -> None:
    assert (await get_json(client, path, 404))["status"] == 404


@pytest.mark.parametrize("told", ["abc", "0", "-1", "1.5", "%31x", "٣", "9" * 200])
async def test_an_id_that_no_run_can_have_is_named(client: aiohttp.ClientSession, told: str) -> None:
    for path in (f"/runs/{told}", f"/runs/{told}/rejects"):
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


async def test_two_runs_side_by_side(client: aiohttp.ClientSession, connection: Connection) -> None:
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
    figures = '{"at":"2024-06-01T12:00:00Z","fetched":9,"compared":8,"move":0.0,"shift":0.1,"gap_s":60}'
    judged = {"drift": drift, "anomalies": anomaly, "metrics": figures}
    await add_source(connection, b, "coingecko", "failed", fetched=9, rejected=9, calls=1, **judged)
    await add_source(connection, b, "coinpaprika", "succeeded")

    told = await get_json(client, f"/compare-runs?a={a}&b={b}")

    assert (told["a"], told["b"]) == (
        await get_json(client, f"/runs/{a}"),
        await get_json(client, f"/runs/{b}"),
    )
    assert (told["only_a"], told["only_b"]) == (["csv"], ["coinpaprika"])
    assert told["difference"]["duration_s"] == -5.5
    assert told["difference"]["records"] == {
        "fetched": -98,
        "valid": -107,
        "rejected": 9,
        "inserted": -107,
        "updated": 0,
        "unchanged": 0,
    }
    gecko, paprika, csv = told["sources"]
    assert (gecko["status_a"], gecko["status_b"]) == ("succeeded", "failed")
    assert (gecko["difference"]["calls"], gecko["difference"]["records"]["fetched"]) == (-1, -91)
    assert (gecko["drift_begun"], gecko["drift_over"]) == (["price"], [])
    assert (gecko["anomalies_begun"], gecko["anomalies_over"]) == (["few-records"], [])
    assert (paprika["status_a"], csv["status_b"], csv["difference"]) == (None, None, None)
    prices = told["b"]["sources"][0]["prices"]
    assert prices == {"coins": 8, "size_percent": 0.0, "change_percent": 10.5171, "after_s": 60.0}
    back = await get_json(client, f"/compare-runs?a={b}&b={a}")
    assert back["difference"]["records"]["valid"] == 107
    assert back["sources"][0]["drift_over"] == ["price"]


async def test_runs_that_cannot_be_compared_are_named(
    client: aiohttp.ClientSession, connection: Connection
) -> None:
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


async def test_health_before_the_first_run_is_ok(client: aiohttp.ClientSession) -> None:
    health = await get_json(client, "/health")
    assert health["status"] == health["database"]["status"] == "ok"
    assert health["database"]["latency_ms"] > 0
    assert list(health["sources"]) == ["coinpaprika", "coingecko", "csv"]
    assert health["sources"]["csv"] == {
        "status": None,
        "last_success_at": None,
        "age_s": None,
        "expected_age_s": 7500.0,
        "stale": False,
        "error": None,
        "reasons": [],
    }


async def test_a_failed_source_degrades_health_and_says_why(
    database_url: str, connection: Connection
) -> None:
    run_id = await add_run(connection, "partial")
    await add_source(connection, run_id, "coingecko", "failed", error="HTTP 429 from /coins/markets")
    async with serving(database_url, Settings(sources=("coingecko", "csv"))) as client:
        health = await get_json(client, "/health")
        assert health["status"] == "degraded"
        assert health["sources"]["coingecko"]["error"] == "HTTP 429 from /coins/markets"
        assert health["sources"]["coingecko"]["reasons"][0] == "failed: HTTP 429 from /coins/markets"
        assert list(health["sources"]) == ["coingecko", "csv"]
    async with serving(database_url, Settings(sources=("csv",))) as client:
        assert (await get_json(client, "/health"))["status"] == "ok"


async def test_without_a_database_health_is_unavailable_and_data_a_problem() -> None:
    nowhere = "postgresql://someone:hunter2@127.0.0.1:1/nosuch"
    async with serving(nowhere) as client:
        health = await get_json(client, "/health", 503)
        assert (health["status"], health["database"]["status"]) == ("unavailable", "unreachable")
        assert health["database"]["error"]
        assert "hunter2" not in str(health)
        assert await get_json(client, "/health/live") == {"status": "ok"}
        for path in ("/data", "/data/csv/x", "/stats", "/runs", "/runs/1", "/tables"):
            async with client.get(path) as answer:
                problem = await answer.json(content_type="application/problem+json")
            assert (answer.status, problem["title"]) == (503, "Database unreachable")
            assert answer.headers["Retry-After"] == "5"
            assert "127.0.0.1" not in str(problem)
        assert (await get_json(client, "/data?limit=0", 400))["parameter"] == "limit"


async def test_health_says_that_the_primary_is_out_of_reach_while_reads_are_answered(
    database_url: str, insert: Insert
) -> None:
    await insert({"source_id": "a"})
    async with serving("postgresql://x@127.0.0.1:1/x", read_url=database_url) as client:
        health = await get_json(client, "/health")
        assert (health["status"], health["database"]["status"]) == ("degraded", "ok")
        assert health["database"]["unreachable"] == ["primary"]
        (reason,) = health["reasons"]
        assert reason.startswith("the primary (DATABASE_URL) is out of reach: PostgreSQL is unreachable: ")
        assert (await get_json(client, "/data"))["data"]


async def test_health_says_that_the_database_for_reads_is_out_of_reach(database_url: str) -> None:
    async with serving(database_url, read_url="postgresql://x@127.0.0.1:1/x") as client:
        health = await get_json(client, "/health", 503)
        assert (health["status"], health["database"]["status"]) == ("unavailable", "unreachable")
        assert health["database"]["unreachable"] == ["read"]
        assert health["reasons"] == []


async def test_health_names_both_databases_where_both_are_out_of_reach() -> None:
    nowhere = "postgresql://x@127.0.0.1:1/x"
    async with serving(nowhere, read_url=nowhere) as client:
        health = await get_json(client, "/health", 503)
        assert health["database"]["unreachable"] == ["primary", "read"]
    async with serving(nowhere) as client:
        assert (await get_json(client, "/health", 503))["database"]["unreachable"] == ["primary"]


async def test_a_database_that_does_not_exist_or_lets_nobody_in_is_unavailable(server_url: str) -> None:
    for url in (server_url.rsplit("/", 1)[0] + "/nosuch", server_url.replace("//kasparro", "//stranger")):
        async with serving(url) as client:
            assert (await get_json(client, "/health", 503))["database"]["status"] == "unreachable"
            assert (await get_json(client, "/data", 503))["title"] == "Database unreachable"


async def test_health_answers_soon_where_the_database_says_nothing() -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with silent, serving(f"postgresql://x@127.0.0.1:{port}/x") as client:
        began = time.perf_counter()
        answers = await asyncio.gather(*(get_json(client, "/health", 503) for _ in range(20)))
        assert time.perf_counter() - began < 3
        assert {answer["database"]["status"] for answer in answers} == {"unreachable"}
        assert answers[0]["database"]["error"] == "PostgreSQL did not answer within 2 s"


async def test_before_the_migrations_the_database_is_being_prepared(empty_database_url: str) -> None:
    async with serving(empty_database_url) as client:
        assert (await get_json(client, "/health", 503))["database"]["status"] == "preparing"
        for path in ("/data", "/stats", "/runs", "/runs/1"):
            assert (await get_json(client, path, 503))["title"] == "Database being prepared"


async def test_a_query_that_takes_too_long_is_a_problem(
    client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sleep(connection: Connection) -> None:
        await connection.execute("SET LOCAL statement_timeout = 10; SELECT pg_sleep(5)")

    monkeypatch.setattr("kasparro.store.tables.tables", sleep)
    async with client.get("/tables") as answer:
        assert answer.status == 503
        assert answer.headers["Retry-After"]
        assert (await answer.json(content_type=None))["title"] == "Query took too long"


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
    assert {row["relname"] for row in rows} == set(TABLES)


async def test_the_loop_works_while_the_service_does(database_url: str) -> None:
    loop = FakeScheduler()
    async with serving(database_url, scheduler=loop) as client:
        assert loop.entered
        assert (await get_json(client, "/stats"))["schedule"]["next_run_at"] == "2030-01-01T00:00:00Z"
    assert not loop.entered


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
            async with client.post("/runs", headers=headers) as answer:
                assert answer.status == 401
                assert answer.headers["WWW-Authenticate"].startswith("Bearer")
                assert "s3cret" not in await answer.text()
        async with client.post("/runs", headers={"Authorization": "bearer s3cret"}) as answer:
            assert answer.status == 202
            assert answer.headers["Location"] == "/runs/7"
            assert await answer.json() == {"id": 7, "status": "running"}
        async with client.post("/runs", headers={"Authorization": "Bearer s3cret"}) as answer:
            assert answer.status == 409
            assert (await answer.json(content_type=None))["title"] == "Run in progress"
        async with client.delete("/runs") as answer:
            assert answer.headers["Allow"] == "GET, HEAD, OPTIONS, POST"


async def test_without_a_token_nothing_can_be_started(database_url: str) -> None:
    async with (
        serving(database_url, load_settings({}), FakeScheduler()) as client,
        client.post("/runs") as answer,
    ):
        assert answer.status == 405
        assert answer.headers["Allow"] == "GET, HEAD, OPTIONS"


async def test_the_service_recovers_when_its_connections_are_cut(
    client: aiohttp.ClientSession, connection: Connection
) -> None:
    await get_json(client, "/data")
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    for _ in range(20):
        async with client.get("/data") as answer:
            assert answer.status in {200, 503}
        if answer.status == 200:
            break
        await asyncio.sleep(0.1)
    assert answer.status == 200
