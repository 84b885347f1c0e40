"""Which origins may read responses."""

import aiohttp
import pytest

from kasparro.settings import Settings
from tests.support.response_cache import cached
from tests.web.conftest import serving

PREFLIGHT = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "x-api-key"}
OURS, OTHERS = "https://app.example.org", "https://evil.example"


def allowed(response: aiohttp.ClientResponse) -> str | None:
    return response.headers.get("Access-Control-Allow-Origin")


async def test_no_origin_by_default(client: aiohttp.ClientSession) -> None:
    async with client.get("/data", headers={"Origin": OURS}) as response:
        assert allowed(response) is None
        assert response.headers["Vary"] == "Accept-Encoding"
    async with client.options("/data", headers={"Origin": OURS, **PREFLIGHT}) as response:
        assert response.status == 204
        assert allowed(response) is None
        assert "Access-Control-Allow-Methods" not in response.headers


async def test_every_origin_with_a_star(database_url: str) -> None:
    async with serving(database_url, Settings(cors_origins=("*",))) as client:
        await cached(client)
        for path in ("/data", "/data?limit=0", "/nosuch", "/stats", "/health"):
            async with client.get(path, headers={"Origin": OURS}) as response:
                assert allowed(response) == "*", path
                assert "ETag" in response.headers["Access-Control-Expose-Headers"]
        async with client.options("/data", headers={"Origin": OURS, **PREFLIGHT}) as response:
            assert (response.status, allowed(response)) == (204, "*")
            assert "X-API-Key" in response.headers["Access-Control-Allow-Headers"]
            assert "GET" in response.headers["Access-Control-Allow-Methods"]


@pytest.mark.parametrize("warm", [False, True])
async def test_named_origins_only(database_url: str, warm: bool) -> None:
    async with serving(database_url, Settings(cors_origins=(OURS, "http://localhost:3000"))) as client:
        if warm:
            await cached(client)
        for origin, expected in (
            (OURS, OURS),
            (OTHERS, None),
            ("null", None),
            (OURS + ".evil.example", None),
        ):
            async with client.get("/data", headers={"Origin": origin}) as response:
                assert allowed(response) == expected
                assert response.headers["Vary"] == "Accept-Encoding, Origin"
            async with client.options("/data", headers={"Origin": origin, **PREFLIGHT}) as response:
                assert allowed(response) == expected
                assert ("Access-Control-Allow-Methods" in response.headers) is (expected is not None)
        for path in ("/data", "/data.csv"):
            async with client.get(path) as response:
                assert allowed(response) is None
                assert response.headers["Vary"] == "Accept-Encoding, Origin"
