"""Problem documents, and what is logged with them."""

import asyncio

import aiohttp
import pytest

from kasparro.settings import Secret, Settings
from tests.conftest import LogEvents
from tests.support.fake_scheduler import FakeScheduler
from tests.support.raw_http import NO_DATABASE
from tests.web.conftest import serving

pytestmark = pytest.mark.slow

REQUESTS = 300


async def test_unknown_path_is_a_problem(client: aiohttp.ClientSession) -> None:
    for path in ("/nosuch", "/data/", "/data/csv", "/runs/x", "/DATA", "/%3Cscript%3E"):
        async with client.get(path) as response:
            problem = await response.json(content_type="application/problem+json")
        assert (response.status, problem["title"]) == (404, "Not Found"), path


async def test_wrong_method_names_the_allowed_ones(client: aiohttp.ClientSession) -> None:
    for method in ("POST", "DELETE", "PUT", "PATCH"):
        async with client.request(method, "/data") as response:
            problem = await response.json(content_type="application/problem+json")
        assert response.status == 405
        assert response.headers["Allow"] == problem["allowed"] == "GET, HEAD, OPTIONS"


async def test_options_names_the_methods_of_a_path(database_url: str) -> None:
    async with serving(database_url, Settings(admin_token=Secret("x")), FakeScheduler()) as client:
        for path, allowed in {
            "/data": "GET, HEAD, OPTIONS",
            "/runs": "GET, HEAD, OPTIONS, POST",
            "/docs": "GET, HEAD, OPTIONS",
        }.items():
            async with client.options(path) as response:
                assert (response.status, response.headers["Allow"]) == (204, allowed)
                assert await response.read() == b""
                assert "X-Request-ID" in response.headers
        async with client.options("/nosuch") as response:
            assert response.status == 404


async def test_unreachable_database_logs_few_lines(
    logged: LogEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A request that waits for a connection in vain has no query that is slow.
    monkeypatch.setattr("kasparro.web.service.SLOW_QUERY_S", 0.0)
    async with serving(NO_DATABASE) as client:

        async def status(number: int) -> int:
            async with client.get(f"/data/csv/{number}") as response:
                return response.status

        statuses = await asyncio.gather(*map(status, range(REQUESTS)))
    lines = [event for event in logged.seen if event["level"] != "debug"]
    assert statuses == [503] * REQUESTS
    assert {event["event"] for event in lines} == {"database_unreachable"}
    assert {event["level"] for event in lines} == {"warning"}
    # One line at once, and one for each period that the requests took.
    assert len(lines) < REQUESTS / 10
