"""API keys and rate limits: who is admitted, how often, and what they are told."""

import asyncio
import random

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.settings import ApiKey, Rate, Secret, Settings
from kasparro.web.http import auth
from kasparro.web.http.rate_limit import RateLimiter
from tests.conftest import LogEvents
from tests.support.response_cache import cached
from tests.web.conftest import serving
from tests.web.routes.test_runs import Loop

KEYS = (ApiKey("alice", Secret("first-secret")), ApiKey("bob", Secret("other-secret")))
LOCKED = Settings(api_keys=KEYS)


async def status(client: aiohttp.ClientSession, path: str = "/data", **headers: str) -> int:
    async with client.get(
        path, headers={name.replace("_", "-"): told for name, told in headers.items()}
    ) as answer:
        return answer.status


async def test_with_keys_set_only_their_holders_read(database_url: str) -> None:
    async with serving(database_url, LOCKED) as client:
        assert await status(client, X_API_Key="first-secret") == 200
        assert await status(client, Authorization="Bearer other-secret") == 200
        assert await status(client, authorization="bearer other-secret") == 200
        await cached(client, **{"X-API-Key": "first-secret"})
        for wrong in (
            {},
            {"X_API_Key": "wrong"},
            {"X_API_Key": ""},
            {"X_API_Key": "first-secret2"},
            {"X_API_Key": "ünïcödé"},
            {"Authorization": "Basic first-secret"},
            {"Authorization": "first-secret"},
            {"X_API_Key": "alice"},
        ):
            # Also of an answer that is ready.
            assert await status(client, **wrong) == 401, wrong
        for path in ("/stats", "/runs", "/metrics", "/tables", "/nosuch", "/data?limit=0"):
            assert await status(client, path) == 401, path


async def test_what_is_refused_says_how_to_be_admitted_and_not_what_was_wrong(database_url: str) -> None:
    async with (
        serving(database_url, LOCKED) as client,
        client.get("/data", headers={"X-API-Key": "x"}) as answer,
    ):
        problem = await answer.json(content_type="application/problem+json")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert answer.headers["Cache-Control"] == "no-store"
        assert "X-Request-ID" in answer.headers
    assert problem["type"] == "urn:kasparro:problem:api-key"
    assert "X-API-Key" in problem["detail"]
    assert "secret" not in str(problem)


async def test_health_and_the_description_need_no_key(database_url: str) -> None:
    async with serving(database_url, LOCKED) as client:
        for path in ("/health", "/health/live", "/docs", "/openapi.json", "/docs/swagger-ui.css", "/"):
            assert await status(client, path) == 200, path


async def test_what_only_key_holders_may_have_is_not_for_shared_caches(database_url: str) -> None:
    async with serving(database_url, LOCKED) as client:
        for path in ("/data", "/stats"):
            async with client.get(path, headers={"X-API-Key": "first-secret"}) as answer:
                assert answer.headers["Cache-Control"].startswith("private, ")


async def test_the_admin_token_is_a_key_too(database_url: str) -> None:
    settings = Settings(api_keys=KEYS, admin_token=Secret("root-token-of-16"))
    async with serving(database_url, settings, Loop()) as client:
        assert await status(client, Authorization="Bearer root-token-of-16") == 200
        async with client.post("/runs", headers={"Authorization": "Bearer first-secret"}) as answer:
            assert answer.status == 401
        async with client.post("/runs", headers={"Authorization": "Bearer root-token-of-16"}) as answer:
            assert answer.status == 202


async def test_a_client_beyond_its_limit_is_told_when_to_come_back(database_url: str) -> None:
    async with serving(database_url, Settings(rate_limit=Rate(5, 3600))) as client:
        for left in range(4, -1, -1):
            async with client.get("/data") as answer:
                assert answer.status == 200
                assert answer.headers["RateLimit-Policy"] == '"default";q=5;w=3600'
                assert answer.headers["RateLimit"].startswith(f'"default";r={left};t=')
        async with client.get("/data") as answer:
            problem = await answer.json(content_type="application/problem+json")
            assert (answer.status, problem["type"]) == (429, "urn:kasparro:problem:rate-limit")
            assert 0 < int(answer.headers["Retry-After"]) <= 720
            assert answer.headers["RateLimit"].startswith('"default";r=0;t=')
        assert await status(client, "/health") == 200
        assert await status(client, "/health/live") == 200


async def test_each_key_has_a_limit_of_its_own_and_guesses_share_one(database_url: str) -> None:
    async with serving(database_url, Settings(api_keys=KEYS, rate_limit=Rate(2, 3600))) as client:
        found = [await status(client, X_API_Key="first-secret") for _ in range(3)]
        assert found == [200, 200, 429]
        assert await status(client, X_API_Key="other-secret") == 200
        assert [await status(client, X_API_Key=f"guess{n}") for n in range(3)] == [401, 401, 429]


async def test_who_guesses_too_often_is_not_told_which_guess_was_right(database_url: str) -> None:
    limit = Rate(2, 3600)
    async with serving(
        database_url, Settings(api_keys=KEYS, rate_limit=limit, trusted_proxies=("127.0.0.1",))
    ) as client:

        async def guess(secret: str, address: str) -> int:
            return await status(client, X_API_Key=secret, X_Forwarded_For=address)

        # Who brings no key at all guesses nothing.
        assert [await status(client, X_Forwarded_For="192.0.2.1") for _ in range(3)] == [401, 401, 429]
        assert [await guess(f"guess{n}", "192.0.2.1") for n in range(3)] == [401, 401, 429]
        assert await guess("first-secret", "192.0.2.1") == 429
        assert [await guess("first-secret", "192.0.2.2") for _ in range(3)] == [200, 200, 429]


async def test_whom_a_proxy_speaks_for_counts_only_where_the_proxy_is_trusted(database_url: str) -> None:
    limit = Rate(1, 3600)
    for trusted, found in (((), [200, 429]), (("127.0.0.0/8",), [200, 200]), (("10.0.0.1",), [200, 429])):
        async with serving(database_url, Settings(rate_limit=limit, trusted_proxies=trusted)) as client:
            told = [await status(client, X_Forwarded_For=f"192.0.2.{n}") for n in range(2)]
            assert told == found, trusted


@pytest.mark.parametrize("trusted", ["127.0.0.0/8", "*"])
async def test_junk_that_a_proxy_passes_on_is_no_client_of_its_own(database_url: str, trusted: str) -> None:
    """Entries that are no addresses count as the proxy; different spellings of an address as one client."""
    settings = Settings(rate_limit=Rate(3, 3600), trusted_proxies=(trusted,))
    async with serving(database_url, settings) as client:
        junk = ["x" * 10_000, "unknown", "<script>", "1.2.3", "", "203.0.113.7, junk"]
        found = [await status(client, X_Forwarded_For=value) for value in junk]
        assert found == [200] * 3 + [429] * 3
        same = ["192.0.2.1", "::ffff:192.0.2.1", "[::ffff:192.0.2.1]:80", "198.51.100.1, 192.0.2.1:90"]
        assert [await status(client, X_Forwarded_For=value) for value in same] == [200] * 3 + [429]
        network = [f"2001:db8::{number:x}" for number in range(4)]
        assert [await status(client, X_Forwarded_For=value) for value in network] == [200] * 3 + [429]


async def test_what_a_client_claims_to_the_left_of_its_proxy_is_not_believed(database_url: str) -> None:
    settings = Settings(rate_limit=Rate(2, 3600), trusted_proxies=("*",))
    async with serving(database_url, settings) as client:
        found = [await status(client, X_Forwarded_For=f"192.0.2.{n}, 203.0.113.7") for n in range(4)]
        assert found == [200, 200, 429, 429]


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
async def test_what_needs_no_key_is_limited_too(database_url: str, method: str, path: str) -> None:
    settings = Settings(api_keys=KEYS, rate_limit=Rate(2, 3600), cors_origins=("*",))
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
    async with serving(database_url, settings) as client:
        found = []
        for _ in range(3):
            async with client.request(method, path, headers=preflight, allow_redirects=False) as answer:
                found.append(answer.status)
                assert answer.headers["RateLimit"].startswith('"default";r=')
        assert found[2] == 429
        assert not {401, 429} & set(found[:2])
        # Health is open, and a key has a limit of its own.
        assert [await status(client, "/health/live") for _ in range(5)] == [200] * 5
        assert await status(client, X_API_Key="first-secret") == 200


TOKEN = "token-of-16-characters"


async def start(client: aiohttp.ClientSession, token: str, **headers: str) -> int:
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.post("/runs", headers={"Authorization": f"Bearer {token}", **more}) as answer:
        return answer.status


async def test_wrong_admin_tokens_are_limited_also_without_a_rate_limit(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "WRONG_SECRETS", Rate(3, 3600))
    settings = Settings(admin_token=Secret(TOKEN), trusted_proxies=("127.0.0.1",))
    async with serving(database_url, settings, Loop()) as client:
        assert await start(client, TOKEN) == 202
        found = [await start(client, f"guess {number}") for number in range(5)]
        assert found == [401, 401, 401, 429, 429]
        # Nobody learns which guess was right. From another address the token still is.
        assert await start(client, TOKEN) == 429
        assert await start(client, TOKEN, X_Forwarded_For="192.0.2.1") == 409
        # Everything else is answered as before.
        assert await status(client) == 200


async def test_wrong_admin_tokens_share_the_limit_of_wrong_keys(database_url: str) -> None:
    settings = Settings(api_keys=KEYS, admin_token=Secret(TOKEN), rate_limit=Rate(3, 3600))
    async with serving(database_url, settings, Loop()) as client:
        assert await status(client, X_API_Key="guess") == 401
        assert [await start(client, "guess") for _ in range(3)] == [401, 401, 429]
        assert await start(client, TOKEN) == 429


async def test_the_admin_token_is_not_guessed_as_a_key_either(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no rate limit is set, wrong secrets shut out the admin token from their address, and no key."""
    monkeypatch.setattr(auth, "WRONG_SECRETS", Rate(3, 3600))
    settings = Settings(api_keys=KEYS, admin_token=Secret(TOKEN), trusted_proxies=("127.0.0.1",))
    async with serving(database_url, settings, Loop()) as client:
        assert await status(client, X_API_Key=TOKEN) == 200
        assert [await start(client, f"guess {number}") for number in range(2)] == [401, 401]
        assert await status(client, X_API_Key="guess") == 401
        # Nobody learns which guess was right.
        assert await start(client, TOKEN) == 401
        assert await status(client, X_API_Key=TOKEN) == 401
        assert await status(client, X_API_Key="first-secret") == 200
        assert await start(client, TOKEN, X_Forwarded_For="192.0.2.1") == 202


async def test_a_right_key_where_the_token_is_needed_is_no_guess(
    database_url: str, monkeypatch: pytest.MonkeyPatch, logged: LogEvents
) -> None:
    monkeypatch.setattr(auth, "WRONG_SECRETS", Rate(1, 3600))
    settings = Settings(api_keys=KEYS, admin_token=Secret(TOKEN))
    async with serving(database_url, settings, Loop()) as client:
        assert [await start(client, "first-secret") for _ in range(4)] == [401] * 4
        async with client.post("/runs", headers={"X-API-Key": "first-secret"}) as answer:
            assert answer.status == 401
        assert await start(client, TOKEN) == 202
    assert [event for event in logged.seen if event["level"] == "info"] == []


@pytest.mark.parametrize("keyed", [True, False])
async def test_wrong_secrets_are_logged_at_a_bounded_rate_and_never_shown(
    database_url: str, keyed: bool, logged: LogEvents
) -> None:
    settings = Settings(api_keys=KEYS if keyed else (), admin_token=Secret(TOKEN))
    async with serving(database_url, settings, Loop()) as client:
        for number in range(50):
            await start(client, f"guess-{number}")
    lines = [event for event in logged.seen if event["level"] != "debug"]
    assert lines == [{"level": "info", "event": "wrong_secret", "address": "127.0.0.1", "path": "/runs"}]
    assert "guess" not in str(logged.seen)


@given(
    st.integers(1, 50),
    st.integers(1, 100),
    st.lists(st.floats(0, 30), min_size=1, max_size=200),
)
def test_in_no_stretch_of_time_are_more_admitted_than_twice_the_limit_and_waiting_helps(
    requests: int, seconds: int, pauses: list[float]
) -> None:
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
        # What was saved up before, and what came back meanwhile.
        assert sum(start <= at < start + seconds for at in admitted) <= 2 * requests + 1


@given(st.integers(1, 1000), st.integers(1, 100_000))
def test_all_at_once_exactly_as_many_as_allowed_are_admitted(requests: int, seconds: int) -> None:
    limit = RateLimiter(Rate(requests, seconds))
    at = random.Random(requests).uniform(0, 1e6)
    assert [limit.take("a", at)[0] for _ in range(requests)] == [0] * requests
    assert limit.take("a", at)[0] >= 1


def test_the_memory_of_clients_is_bounded_and_the_busy_stay_in_it() -> None:
    limit = RateLimiter(Rate(2, 3600), clients=10)
    for number in range(1_000):
        limit.take("busy", 0.0)
        limit.take(f"client {number}", 0.0)
    assert len(limit) == 10
    assert limit.take("busy", 0.0)[0] > 0


async def test_many_keys_and_clients_at_once(database_url: str) -> None:
    async with serving(database_url, Settings(api_keys=KEYS, rate_limit=Rate(20, 3600))) as client:
        found = await asyncio.gather(
            *(status(client, X_API_Key=secret) for secret in ("first-secret", "other-secret") * 30)
        )
    assert found.count(200) == 40
    assert found.count(429) == 20


async def test_the_access_log_says_who_asked_for_what(database_url: str, logged: LogEvents) -> None:
    settings = Settings(api_keys=KEYS, trusted_proxies=("127.0.0.1",))
    async with serving(database_url, settings) as client:
        alice = {"X-API-Key": "first-secret", "X-Forwarded-For": "192.0.2.7"}
        url = "/data?symbol=btc&q=%C3%A9%0A"
        # Read from the database, then sent from the cache.
        assert await status(client, url, **alice) == 200
        await cached(client, url, **alice)
        assert await status(client, "/data?nosuch=1", **alice) == 400
        assert await status(client, "/data?limit=2") == 401
        assert await status(client, "/health/live") == 200
    seen = [event for event in logged.seen if event["event"] == "request_answered"]
    assert {event["level"] for event in seen} == {"debug"}
    fields = ("address", "key", "method", "path", "query", "status")
    found = [tuple(event[field] for field in fields) for event in seen]
    ready = ("192.0.2.7", "alice", "GET", "/data", "symbol=btc&q=%C3%A9%0A", 200)
    count = found.count(ready)
    assert count >= 2
    assert found == [
        *(ready for _ in range(count)),
        ("192.0.2.7", "alice", "GET", "/data", "nosuch=1", 400),
        ("127.0.0.1", None, "GET", "/data", "limit=2", 401),
        ("127.0.0.1", None, "GET", "/health/live", "", 200),
    ]
    for event in seen:
        assert event["ms"] >= 0
        assert event["request_id"]


async def test_the_access_log_has_no_secret(database_url: str, logged: LogEvents) -> None:
    async with serving(database_url, LOCKED) as client:
        query = "limit=2&x_cg_demo_api_key=first-secret&ACCESS-TOKEN=first-secret&client_secret=a%26b&q=key"
        await status(client, f"/data?{query}", X_API_Key="first-secret")
        await status(client, "/data?key=", Authorization="Bearer first-secret")
    queries = [event["query"] for event in logged.seen if event["event"] == "request_answered"]
    assert queries == ["limit=2&x_cg_demo_api_key=***&ACCESS-TOKEN=***&client_secret=***&q=key", "key="]
    assert "first-secret" not in str(logged.seen)
