"""Which pages of other origins may read the answers."""

import aiohttp
import pytest

from kasparro.settings import Settings
from tests.support.response_cache import cached
from tests.web.conftest import serving

PREFLIGHT = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "x-api-key"}
OURS, OTHERS = "https://app.example.org", "https://evil.example"


def allowed(answer: aiohttp.ClientResponse) -> str | None:
    return answer.headers.get("Access-Control-Allow-Origin")


async def test_unless_told_no_other_origin_reads(client: aiohttp.ClientSession) -> None:
    async with client.get("/data", headers={"Origin": OURS}) as answer:
        assert allowed(answer) is None
        assert answer.headers["Vary"] == "Accept-Encoding"
    async with client.options("/data", headers={"Origin": OURS, **PREFLIGHT}) as answer:
        assert answer.status == 204
        assert allowed(answer) is None
        assert "Access-Control-Allow-Methods" not in answer.headers


async def test_every_origin_may_read_where_told_so(database_url: str) -> None:
    async with serving(database_url, Settings(cors_origins=("*",))) as client:
        await cached(client)
        for path in ("/data", "/data?limit=0", "/nosuch", "/stats", "/health"):
            async with client.get(path, headers={"Origin": OURS}) as answer:
                assert allowed(answer) == "*", path
                assert "ETag" in answer.headers["Access-Control-Expose-Headers"]
        async with client.options("/data", headers={"Origin": OURS, **PREFLIGHT}) as answer:
            assert (answer.status, allowed(answer)) == (204, "*")
            assert "X-API-Key" in answer.headers["Access-Control-Allow-Headers"]
            assert "GET" in answer.headers["Access-Control-Allow-Methods"]


@pytest.mark.parametrize("warm", [False, True])
async def test_named_origins_may_read_and_no_others(database_url: str, warm: bool) -> None:
    async with serving(database_url, Settings(cors_origins=(OURS, "http://localhost:3000"))) as client:
        if warm:
            await cached(client)
        for origin, told in ((OURS, OURS), (OTHERS, None), ("null", None), (OURS + ".evil.example", None)):
            async with client.get("/data", headers={"Origin": origin}) as answer:
                assert allowed(answer) == told
                assert answer.headers["Vary"] == "Accept-Encoding, Origin"
            async with client.options("/data", headers={"Origin": origin, **PREFLIGHT}) as answer:
                assert allowed(answer) == told
                assert ("Access-Control-Allow-Methods" in answer.headers) is (told is not None)
        for path in ("/data", "/data.csv"):
            async with client.get(path) as answer:
                assert allowed(answer) is None
                assert answer.headers["Vary"] == "Accept-Encoding, Origin"
