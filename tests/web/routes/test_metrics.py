"""What /metrics tells, read as Prometheus reads it."""

import asyncio
from datetime import UTC, datetime

import aiohttp

from kasparro.settings import ApiKey, Rate, Secret, Settings
from kasparro.store.pool import Connection
from tests.support.fake_scheduler import FakeScheduler
from tests.support.metrics import metric_value, scrape
from tests.support.response_cache import cached
from tests.support.runs import add_run, add_source
from tests.web.conftest import Insert, service, serving


async def asked(client: aiohttp.ClientSession, method: str, path: str, **headers: str) -> int:
    """Ask, and read the answer to its end; gives its status."""
    async with client.request(method, path, headers=headers) as answer:
        await answer.read()
        return answer.status


async def test_requests_are_counted_by_route_status_and_whether_they_were_kept(
    client: aiohttp.ClientSession,
) -> None:
    await cached(client)
    for path in ("/data", "/data?limit=0", "/nosuch", "/data/csv/x", "/health/live"):
        await asked(client, "GET", path)
    await asked(client, "HEAD", "/data")
    await asked(client, "PURGE", "/data")
    samples = await scrape(client)

    def requests(**labels: str) -> float | None:
        return metric_value(samples, "kasparro_http_requests_total", **labels)

    assert (requests(route="/data", method="GET", status="200", cache="hit") or 0) >= 2
    assert (requests(route="/data", status="200", cache="miss") or 0) >= 1
    assert requests(route="/data", method="HEAD", cache="hit") == 1
    assert requests(route="/data", status="400") == 1
    assert requests(route="/data/{source}/{source_id}", status="404") == 1
    assert requests(route="other", status="404") == 1
    assert requests(method="other", status="405") == 1
    assert requests(method="PURGE") is None
    total = metric_value(samples, "kasparro_http_request_duration_seconds_count")
    assert (
        total
        == requests()
        == metric_value(samples, "kasparro_http_request_duration_seconds_bucket", le="+Inf")
    )


async def test_keys_are_told_by_name_and_never_by_value(database_url: str) -> None:
    settings = Settings(
        api_keys=(ApiKey("alice", Secret("hunter2")), ApiKey("bob", Secret("hunter3"))),
        rate_limit=Rate(100, 60),
    )
    async with serving(database_url, settings) as client:
        await asked(client, "GET", "/data", **{"X-API-Key": "hunter2"})
        await asked(client, "GET", "/data", **{"X-API-Key": "wrong"})
        samples = await scrape(client, **{"X-API-Key": "hunter2"})
    assert metric_value(samples, "kasparro_api_key_requests_total", key="alice") == 2
    assert metric_value(samples, "kasparro_api_key_requests_total", key="bob") == 0
    assert metric_value(samples, "kasparro_http_requests_total", status="401") == 1
    assert "hunter" not in str(samples)


async def test_refusals_are_counted_under_the_route_that_was_asked(database_url: str) -> None:
    settings = Settings(api_keys=(ApiKey("alice", Secret("hunter2")),), rate_limit=Rate(1, 3600))
    async with serving(database_url, settings) as client:
        assert await asked(client, "GET", "/data/csv/x") == 401
        assert await asked(client, "GET", "/nosuch") == 429
        assert await asked(client, "HEAD", "/data") == 429
        assert await asked(client, "POST", "/data") == 429
        samples = await scrape(client, **{"X-API-Key": "hunter2"})
    told = {
        (its["route"], its["method"], its["status"]): value
        for (name, labels), value in samples.items()
        if name == "kasparro_http_requests_total" and (its := dict(labels))
    }
    assert told == {
        ("/data/{source}/{source_id}", "GET", "401"): 1,
        ("other", "GET", "429"): 1,
        ("/data", "HEAD", "429"): 1,
        ("/data", "POST", "429"): 1,
    }


async def test_the_database_tells_of_records_runs_and_sources(
    client: aiohttp.ClientSession, connection: Connection, insert: Insert
) -> None:
    await insert({"source_id": "a"}, {"source_id": "b"})
    run_id = await add_run(connection, "partial")
    await add_source(connection, run_id, "coingecko", "succeeded", fetched=7, rejected=2, valid=5)
    await add_source(connection, run_id, "csv", "failed", error="no")
    samples = await scrape(client)
    assert metric_value(samples, "kasparro_database_up") == 1
    assert metric_value(samples, "kasparro_records", source="coingecko") == 2
    assert metric_value(samples, "kasparro_runs_total", status="partial") == 1
    assert metric_value(samples, "kasparro_runs_total") == 1
    assert metric_value(samples, "kasparro_run_duration_seconds_sum", status="partial") == 9.5
    assert metric_value(samples, "kasparro_run_duration_seconds_count", status="partial") == 1
    assert metric_value(samples, "kasparro_run_records_total", source="coingecko", outcome="fetched") == 7
    assert metric_value(samples, "kasparro_run_records_total", source="coingecko", outcome="rejected") == 2
    assert metric_value(samples, "kasparro_run_records_total", source="csv") == 0
    assert metric_value(samples, "kasparro_upstream_calls_limit", source="coinpaprika") == 20_000
    assert metric_value(samples, "kasparro_upstream_calls_limit", source="coingecko") is None
    assert metric_value(samples, "kasparro_source_healthy", source="csv") == 0
    assert (metric_value(samples, "kasparro_source_age_seconds", source="coingecko") or 0) > 0
    assert metric_value(samples, "kasparro_source_age_seconds", source="csv") is None


async def test_the_loop_tells_whether_it_leads_and_when_it_runs(database_url: str) -> None:
    async with serving(database_url, scheduler=FakeScheduler()) as client:
        samples = await scrape(client)
    assert metric_value(samples, "kasparro_leader") == 1
    due = datetime(2030, 1, 1, tzinfo=UTC)
    assert metric_value(samples, "kasparro_next_run_timestamp_seconds") == due.timestamp()


async def test_without_the_database_the_rest_is_told_all_the_same() -> None:
    async with serving("postgresql://x@127.0.0.1:1/x") as client:
        samples = await scrape(client)
    assert metric_value(samples, "kasparro_database_up") == 0
    assert metric_value(samples, "kasparro_cache_usable") == 0
    assert metric_value(samples, "kasparro_records") is None
    assert metric_value(samples, "kasparro_pool_connections_limit", pool="slow") == 2


async def test_the_cache_is_shown(client: aiohttp.ClientSession) -> None:
    await cached(client)
    samples = await scrape(client)
    assert metric_value(samples, "kasparro_cache_answers") == 1
    assert (metric_value(samples, "kasparro_cache_bytes") or 0) > 0
    assert metric_value(samples, "kasparro_cache_limit_bytes") == 64 * 2**20
    assert metric_value(samples, "kasparro_cache_usable") == 1


async def test_scrapers_get_the_format_they_ask_for(client: aiohttp.ClientSession) -> None:
    async with client.get(
        "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    ) as answer:
        assert answer.content_type == "application/openmetrics-text"
        assert (await answer.text()).endswith("# EOF\n")


async def test_any_worker_tells_for_all(database_url: str) -> None:
    async with service(database_url, "--workers", "2") as client, asyncio.timeout(60):
        asked = 0
        workers: set[str] = set()
        while len(workers) < 2:
            async with client.get("/data/csv/nosuch") as answer:
                assert answer.status == 404
            asked += 1
            samples = await scrape(client)
            workers = {dict(its)["worker"] for (name, its) in samples if name == "kasparro_cache_usable"}
        while metric_value(await scrape(client), "kasparro_http_requests_total", status="404") != asked:
            pass
