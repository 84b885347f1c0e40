"""API keys and the admin token: who is admitted, and what others get."""

import aiohttp
import pytest

from kasparro.settings import ApiKey, Rate, Secret, Settings
from kasparro.web.http import auth
from tests.conftest import LogEvents
from tests.support.fake_scheduler import FakeScheduler
from tests.support.requests import status
from tests.support.response_cache import cached
from tests.web.conftest import serving

KEYS = (ApiKey("alice", Secret("first-secret")), ApiKey("bob", Secret("other-secret")))
LOCKED = Settings(api_keys=KEYS)


async def test_keys_are_needed_if_set(database_url: str) -> None:
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
            # Also for a cached response.
            assert await status(client, **wrong) == 401, wrong
        for path in ("/stats", "/runs", "/metrics", "/tables", "/nosuch", "/data?limit=0"):
            assert await status(client, path) == 401, path


async def test_rejection_says_how_to_send_a_key(database_url: str) -> None:
    async with (
        serving(database_url, LOCKED) as client,
        client.get("/data", headers={"X-API-Key": "x"}) as response,
    ):
        problem = await response.json(content_type="application/problem+json")
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
        assert response.headers["Cache-Control"] == "no-store"
        assert "X-Request-ID" in response.headers
    assert problem["type"] == "urn:kasparro:problem:api-key"
    assert "X-API-Key" in problem["detail"]
    assert "secret" not in str(problem)


async def test_health_and_docs_need_no_key(database_url: str) -> None:
    async with serving(database_url, LOCKED) as client:
        for path in ("/health", "/health/live", "/docs", "/openapi.json", "/docs/swagger-ui.css", "/"):
            assert await status(client, path) == 200, path


async def test_responses_with_keys_are_private(database_url: str) -> None:
    async with serving(database_url, LOCKED) as client:
        for path in ("/data", "/stats"):
            async with client.get(path, headers={"X-API-Key": "first-secret"}) as response:
                assert response.headers["Cache-Control"].startswith("private, ")


async def test_admin_token_is_a_key_too(database_url: str) -> None:
    settings = Settings(api_keys=KEYS, admin_token=Secret("root-token-of-16"))
    async with serving(database_url, settings, FakeScheduler()) as client:
        assert await status(client, Authorization="Bearer root-token-of-16") == 200
        async with client.post("/runs", headers={"Authorization": "Bearer first-secret"}) as response:
            assert response.status == 401
        async with client.post("/runs", headers={"Authorization": "Bearer root-token-of-16"}) as response:
            assert response.status == 202


TOKEN = "token-of-16-characters"


async def start(client: aiohttp.ClientSession, token: str, **headers: str) -> int:
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.post("/runs", headers={"Authorization": f"Bearer {token}", **more}) as response:
        return response.status


async def test_wrong_admin_tokens_are_limited_without_a_rate_limit(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "WRONG_SECRETS", Rate(3, 3600))
    settings = Settings(admin_token=Secret(TOKEN), trusted_proxies=("127.0.0.1",))
    async with serving(database_url, settings, FakeScheduler()) as client:
        assert await start(client, TOKEN) == 202
        found = [await start(client, f"guess {number}") for number in range(5)]
        assert found == [401, 401, 401, 429, 429]
        # The right token is rejected from here now, and accepted from another address.
        assert await start(client, TOKEN) == 429
        assert await start(client, TOKEN, X_Forwarded_For="192.0.2.1") == 409
        assert await status(client) == 200


async def test_wrong_admin_tokens_share_the_limit_of_wrong_keys(database_url: str) -> None:
    settings = Settings(api_keys=KEYS, admin_token=Secret(TOKEN), rate_limit=Rate(3, 3600))
    async with serving(database_url, settings, FakeScheduler()) as client:
        assert await status(client, X_API_Key="guess") == 401
        assert [await start(client, "guess") for _ in range(3)] == [401, 401, 429]
        assert await start(client, TOKEN) == 429


async def test_admin_token_cannot_be_guessed_as_a_key(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a rate limit, too many wrong secrets block the admin token from their address, and no key."""
    monkeypatch.setattr(auth, "WRONG_SECRETS", Rate(3, 3600))
    settings = Settings(api_keys=KEYS, admin_token=Secret(TOKEN), trusted_proxies=("127.0.0.1",))
    async with serving(database_url, settings, FakeScheduler()) as client:
        assert await status(client, X_API_Key=TOKEN) == 200
        assert [await start(client, f"guess {number}") for number in range(2)] == [401, 401]
        assert await status(client, X_API_Key="guess") == 401
        assert await start(client, TOKEN) == 401
        assert await status(client, X_API_Key=TOKEN) == 401
        assert await status(client, X_API_Key="first-secret") == 200
        assert await start(client, TOKEN, X_Forwarded_For="192.0.2.1") == 202


async def test_api_key_in_place_of_the_admin_token_is_no_guess(
    database_url: str, monkeypatch: pytest.MonkeyPatch, logged: LogEvents
) -> None:
    monkeypatch.setattr(auth, "WRONG_SECRETS", Rate(1, 3600))
    settings = Settings(api_keys=KEYS, admin_token=Secret(TOKEN))
    async with serving(database_url, settings, FakeScheduler()) as client:
        assert [await start(client, "first-secret") for _ in range(4)] == [401] * 4
        async with client.post("/runs", headers={"X-API-Key": "first-secret"}) as response:
            assert response.status == 401
        assert await start(client, TOKEN) == 202
    assert [event for event in logged.seen if event["level"] == "info"] == []


@pytest.mark.parametrize("keyed", [True, False])
async def test_wrong_secrets_are_logged_rarely_and_never_shown(
    database_url: str, keyed: bool, logged: LogEvents
) -> None:
    settings = Settings(api_keys=KEYS if keyed else (), admin_token=Secret(TOKEN))
    async with serving(database_url, settings, FakeScheduler()) as client:
        for number in range(50):
            await start(client, f"guess-{number}")
    (line,) = [event for event in logged.seen if event["level"] != "debug"]
    assert line.pop("request_id")
    assert line == {"level": "info", "event": "wrong_secret", "address": "127.0.0.1", "path": "/runs"}
    assert "guess" not in str(logged.seen)
