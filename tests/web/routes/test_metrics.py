"""GET /metrics, parsed as Prometheus does."""

import asyncio
from datetime import UTC, datetime

import aiohttp
import pytest

from kasparro.settings import ApiKey, Rate, Secret, Settings
from kasparro.store.pool import Connection
from tests.support.fake_scheduler import FakeScheduler
from tests.support.metrics import metric_value, scrape
from tests.support.response_cache import cached
from tests.support.runs import add_run, add_source
from tests.web.conftest import Insert, service, serving


async def status_of(client: aiohttp.ClientSession, method: str, path: str, **headers: str) -> int:
    """The status of a response that was read to its end."""
    async with client.request(method, path, headers=headers) as response:
        await response.read()
        return response.status


@pytest.mark.slow
async def test_requests_by_route_status_and_cache(
    client: aiohttp.ClientSession,
) -> None:
    await cached(client)
    for path in ("/data", "/data?limit=0", "/nosuch", "/data/csv/x", "/health/live"):
        await status_of(client, "GET", path)
    await status_of(client, "HEAD", "/data")
    await status_of(client, "PURGE", "/data")
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


async def test_keys_appear_by_name_only(database_url: str) -> None:
    settings = Settings(
        api_keys=(ApiKey("alice", Secret("hunter2")), ApiKey("bob", Secret("hunter3"))),
        rate_limit=Rate(100, 60),
    )
    async with serving(database_url, settings) as client:
        await status_of(client, "GET", "/data", **{"X-API-Key": "hunter2"})
        await status_of(client, "GET", "/data", **{"X-API-Key": "wrong"})
        samples = await scrape(client, **{"X-API-Key": "hunter2"})
    assert metric_value(samples, "kasparro_api_key_requests_total", key="alice") == 2
    assert metric_value(samples, "kasparro_api_key_requests_total", key="bob") == 0
    assert metric_value(samples, "kasparro_http_requests_total", status="401") == 1
    assert "hunter" not in str(samples)


async def test_rejected_requests_count_for_their_route(database_url: str) -> None:
    settings = Settings(api_keys=(ApiKey("alice", Secret("hunter2")),), rate_limit=Rate(1, 3600))
    async with serving(database_url, settings) as client:
        assert await status_of(client, "GET", "/data/csv/x") == 401
        assert await status_of(client, "GET", "/nosuch") == 429
        assert await status_of(client, "HEAD", "/data") == 429
        assert await status_of(client, "POST", "/data") == 429
        samples = await scrape(client, **{"X-API-Key": "hunter2"})
    counts = {
        (label["route"], label["method"], label["status"]): value
        for (name, labels), value in samples.items()
        if name == "kasparro_http_requests_total" and (label := dict(labels))
    }
    assert counts == {
        ("/data/{source}/{source_id}", "GET", "401"): 1,
        ("other", "GET", "429"): 1,
        ("/data", "HEAD", "429"): 1,
        ("/data", "POST", "429"): 1,
    }


async def test_records_runs_and_sources(
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


async def test_leader_and_next_run(database_url: str) -> None:
    async with serving(database_url, scheduler=FakeScheduler()) as client:
        samples = await scrape(client)
    assert metric_value(samples, "kasparro_leader") == 1
    due = datetime(2030, 1, 1, tzinfo=UTC)
    assert metric_value(samples, "kasparro_next_run_timestamp_seconds") == due.timestamp()


async def test_other_metrics_without_the_database() -> None:
    async with serving("postgresql://x@127.0.0.1:1/x") as client:
        samples = await scrape(client)
    assert metric_value(samples, "kasparro_database_up") == 0
    assert metric_value(samples, "kasparro_cache_usable") == 0
    assert metric_value(samples, "kasparro_records") is None
    assert metric_value(samples, "kasparro_pool_connections_limit", pool="slow") == 2


async def test_cache_gauges(client: aiohttp.ClientSession) -> None:
    await cached(client)
    samples = await scrape(client)
    assert metric_value(samples, "kasparro_cache_answers") == 1
    assert (metric_value(samples, "kasparro_cache_bytes") or 0) > 0
    assert metric_value(samples, "kasparro_cache_limit_bytes") == 64 * 2**20
    assert metric_value(samples, "kasparro_cache_usable") == 1


async def test_openmetrics_on_request(client: aiohttp.ClientSession) -> None:
    async with client.get(
        "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    ) as response:
        assert response.content_type == "application/openmetrics-text"
        assert (await response.text()).endswith("# EOF\n")


@pytest.mark.slow
async def test_any_worker_reports_for_all(database_url: str) -> None:
    async with service(database_url, "--workers", "2") as client, asyncio.timeout(60):
        requests = 0
        workers: set[str] = set()
        while len(workers) < 2:
            async with client.get("/data/csv/nosuch") as response:
                assert response.status == 404
            requests += 1
            samples = await scrape(client)
            workers = {
                dict(labels)["worker"] for (name, labels) in samples if name == "kasparro_cache_usable"
            }
        while metric_value(await scrape(client), "kasparro_http_requests_total", status="404") != requests:
            pass
