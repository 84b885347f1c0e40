"""Rate limits: the algorithm, and which requests count for which client."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.settings import ApiKey, Rate, Secret, Settings
from kasparro.web.http.rate_limit import RateLimiter
from tests.support.requests import status
from tests.web.conftest import serving

KEYS = (ApiKey("alice", Secret("first-secret")), ApiKey("bob", Secret("other-secret")))


@given(
    st.integers(1, 50),
    st.integers(1, 100),
    st.lists(st.floats(0, 30), min_size=1, max_size=200),
)
def test_at_most_twice_the_limit_in_any_period(requests: int, seconds: int, pauses: list[float]) -> None:
    limit = RateLimiter(Rate(requests, seconds))
    now, admitted = 1000.0, []
    for pause in pauses:
        now += pause
        wait, _ = limit.take("a", now)
        if wait:
            assert limit.take("a", now + wait + 1e-3)[0] == 0
            now += wait + 1e-3
        admitted.append(now)
    for start in admitted:
        # The full quota from before the period, and what came back during it.
        assert sum(start <= at < start + seconds for at in admitted) <= 2 * requests + 1


@given(st.integers(1, 1000), st.integers(1, 100_000))
def test_whole_quota_at_once(requests: int, seconds: int) -> None:
    limit = RateLimiter(Rate(requests, seconds))
    at = random.Random(requests).uniform(0, 1e6)
    assert [limit.take("a", at)[0] for _ in range(requests)] == [0] * requests
    assert limit.take("a", at)[0] >= 1


def test_idle_clients_are_forgotten_first() -> None:
    limit = RateLimiter(Rate(2, 3600), clients=10)
    for number in range(1_000):
        limit.take("busy", 0.0)
        limit.take(f"client {number}", 0.0)
    assert len(limit) == 10
    assert limit.take("busy", 0.0)[0] > 0


async def test_client_beyond_its_limit(database_url: str) -> None:
    async with serving(database_url, Settings(rate_limit=Rate(5, 3600))) as client:
        for left in range(4, -1, -1):
            async with client.get("/data") as response:
                assert response.status == 200
                assert response.headers["RateLimit-Policy"] == '"default";q=5;w=3600'
                assert response.headers["RateLimit"].startswith(f'"default";r={left};t=')
        async with client.get("/data") as response:
            problem = await response.json(content_type="application/problem+json")
            assert (response.status, problem["type"]) == (429, "urn:kasparro:problem:rate-limit")
            assert 0 < int(response.headers["Retry-After"]) <= 720
            assert response.headers["RateLimit"].startswith('"default";r=0;t=')
        assert await status(client, "/health") == 200
        assert await status(client, "/health/live") == 200


async def test_each_key_has_its_limit_and_guesses_share_one(database_url: str) -> None:
    async with serving(database_url, Settings(api_keys=KEYS, rate_limit=Rate(2, 3600))) as client:
        found = [await status(client, X_API_Key="first-secret") for _ in range(3)]
        assert found == [200, 200, 429]
        assert await status(client, X_API_Key="other-secret") == 200
        assert [await status(client, X_API_Key=f"guess{n}") for n in range(3)] == [401, 401, 429]


async def test_right_key_is_rejected_after_too_many_guesses(database_url: str) -> None:
    limit = Rate(2, 3600)
    async with serving(
        database_url, Settings(api_keys=KEYS, rate_limit=limit, trusted_proxies=("127.0.0.1",))
    ) as client:

        async def guess(secret: str, address: str) -> int:
            return await status(client, X_API_Key=secret, X_Forwarded_For=address)

        # A request without a key is not a guess.
        assert [await status(client, X_Forwarded_For="192.0.2.1") for _ in range(3)] == [401, 401, 429]
        assert [await guess(f"guess{n}", "192.0.2.1") for n in range(3)] == [401, 401, 429]
        assert await guess("first-secret", "192.0.2.1") == 429
        assert [await guess("first-secret", "192.0.2.2") for _ in range(3)] == [200, 200, 429]


@pytest.mark.slow
async def test_forwarded_address_counts_only_from_a_trusted_proxy(database_url: str) -> None:
    limit = Rate(1, 3600)
    for trusted, expected in (((), [200, 429]), (("127.0.0.0/8",), [200, 200]), (("10.0.0.1",), [200, 429])):
        async with serving(database_url, Settings(rate_limit=limit, trusted_proxies=trusted)) as client:
            found = [await status(client, X_Forwarded_For=f"192.0.2.{n}") for n in range(2)]
            assert found == expected, trusted


@pytest.mark.slow
@pytest.mark.parametrize("trusted", ["127.0.0.0/8", "*"])
async def test_forwarded_junk_is_no_client(database_url: str, trusted: str) -> None:
    """Entries that are no addresses count as the proxy. Forms of one address count as one client."""
    settings = Settings(rate_limit=Rate(3, 3600), trusted_proxies=(trusted,))
    async with serving(database_url, settings) as client:
        junk = ["x" * 10_000, "unknown", "<script>", "1.2.3", "", "203.0.113.7, junk"]
        found = [await status(client, X_Forwarded_For=value) for value in junk]
        assert found == [200] * 3 + [429] * 3
        same = ["192.0.2.1", "::ffff:192.0.2.1", "[::ffff:192.0.2.1]:80", "198.51.100.1, 192.0.2.1:90"]
        assert [await status(client, X_Forwarded_For=value) for value in same] == [200] * 3 + [429]
        network = [f"2001:db8::{number:x}" for number in range(4)]
        assert [await status(client, X_Forwarded_For=value) for value in network] == [200] * 3 + [429]


@pytest.mark.slow
async def test_own_claims_of_a_client_do_not_count(database_url: str) -> None:
    settings = Settings(rate_limit=Rate(2, 3600), trusted_proxies=("*",))
    async with serving(database_url, settings) as client:
        found = [await status(client, X_Forwarded_For=f"192.0.2.{n}, 203.0.113.7") for n in range(4)]
        assert found == [200, 200, 429, 429]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("OPTIONS", "/data"),
        ("OPTIONS", "/docs"),
        ("GET", "/docs/swagger-ui.css"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
        ("GET", "/docs/nosuch"),
        ("OPTIONS", "/nosuch"),
    ],
)
async def test_paths_without_a_key_are_limited_too(database_url: str, method: str, path: str) -> None:
    settings = Settings(api_keys=KEYS, rate_limit=Rate(2, 3600), cors_origins=("*",))
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
    async with serving(database_url, settings) as client:
        found = []
        for _ in range(3):
            async with client.request(method, path, headers=preflight, allow_redirects=False) as response:
                found.append(response.status)
                assert response.headers["RateLimit"].startswith('"default";r=')
        assert found[2] == 429
        assert not {401, 429} & set(found[:2])
        # Health checks are not limited, and each key has its own limit.
        assert [await status(client, "/health/live") for _ in range(5)] == [200] * 5
        assert await status(client, X_API_Key="first-secret") == 200


@pytest.mark.slow
async def test_concurrent_requests_of_two_keys(database_url: str) -> None:
    async with serving(database_url, Settings(api_keys=KEYS, rate_limit=Rate(20, 3600))) as client:
        found = await asyncio.gather(
            *(status(client, X_API_Key=secret) for secret in ("first-secret", "other-secret") * 30)
        )
    assert found.count(200) == 40
    assert found.count(429) == 20
