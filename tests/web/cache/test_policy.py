"""Caching by data version: clients always get the newest data, and headers say how long it is fresh."""

import asyncio
import os
import sys
import zlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from yarl import URL

from kasparro.settings import Settings
from kasparro.store import data_version
from kasparro.store.data_version import POLL_S, DataVersion
from kasparro.store.pool import Connection, Database
from tests.support.batches import T0, load_batches, make_batch, make_record
from tests.support.locks import WAITING, locked_data
from tests.support.requests import status
from tests.support.response_cache import MOVE, NOTIFY, cached, hit, prices, wait_for_prices
from tests.web.conftest import Insert, service, serving

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda body: zlib.decompress(body, 31),
    "zstd": zstd.decompress,
}


def raw(client: aiohttp.ClientSession, target: str) -> URL:
    """The URL of a path and query that are sent without normalization."""
    return URL(f"{str(client._base_url).rstrip('/')}{target}", encoded=True)


async def test_cached_response_differs_in_three_headers(
    client: aiohttp.ClientSession, insert: Insert
) -> None:
    await insert({"source_id": "a"})
    async with client.get("/data") as first:
        body = await first.read()
        assert "db;dur=" in first.headers["Server-Timing"]
    again = await cached(client)
    async with client.get("/data") as response:
        assert await response.read() == body
    assert "db;dur=" not in again.headers["Server-Timing"]
    own = {"X-Request-ID", "Server-Timing", "Date"}
    assert {name for name in first.headers if first.headers[name] != again.headers[name]} <= own


async def test_equal_queries_share_an_entry(client: aiohttp.ClientSession) -> None:
    await cached(client, "/data?symbol=btc,eth")
    for alias in ("/data?symbol=btc&symbol=eth", "/data?limit=50&symbol=btc,eth", "/data?symbol=btc%2Ceth&"):
        async with client.get(raw(client, alias)) as response:
            assert hit(response), alias


async def test_invalid_query_is_rejected_every_time(
    client: aiohttp.ClientSession,
) -> None:
    await cached(client, "/data?limit=50")
    for path in ("/data?limit=50&x=1", "/data?limit=050", "/data?limit=50&limit=50", "/data?limit=50&%ff"):
        for _ in range(3):
            async with client.get(raw(client, path)) as response:
                assert response.status == 400, path


@pytest.mark.slow
async def test_committed_batch_is_seen_at_once(client: aiohttp.ClientSession, database: Database) -> None:
    for price in range(1, 6):
        await load_batches(
            database, make_batch(make_record("a", T0 + timedelta(hours=price), price_usd=price))
        )
        await wait_for_prices(client, [price], POLL_S / 2)
        await cached(client, "/data?sort=source_id")


@pytest.mark.slow
async def test_batch_of_another_process_is_seen_by_every_service(database_url: str, tmp_path: Path) -> None:
    archive = tmp_path / "a.csv"
    async with serving(database_url) as first, serving(database_url) as second:
        await cached(first, "/data?sort=source_id")
        await cached(second, "/data?sort=source_id")
        archive.write_text("id,symbol,price_usd,last_updated\na,A,7,1514764800\n")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kasparro", "etl", "--source", "csv", "--json"),
            env={**os.environ, "DATABASE_URL": database_url, "KASPARRO_ARCHIVES": str(archive)},
            stdout=asyncio.subprocess.DEVNULL,
        )
        assert await process.wait() == 0
        await wait_for_prices(first, [7], POLL_S)
        await wait_for_prices(second, [7], POLL_S)


@pytest.mark.slow
async def test_workers_follow_the_same_version(database_url: str, database: Database) -> None:
    async with service(database_url, "--workers", "2") as client, asyncio.timeout(60):
        for price in (1, 2):
            # Each request uses a new connection, so that both workers cache the response.
            for _ in range(20):
                await prices(client)
            await load_batches(
                database, make_batch(make_record("a", T0 + timedelta(hours=price), price_usd=price))
            )
            await wait_for_prices(client, [price], POLL_S)
            await asyncio.sleep(POLL_S)
            for _ in range(20):
                assert await prices(client) == [price]


@pytest.mark.slow
async def test_poll_finds_a_version_without_notification(
    client: aiohttp.ClientSession, connection: Connection, insert: Insert
) -> None:
    await cached(client, "/data?sort=source_id")
    await insert({"source_id": "a", "price_usd": 1})
    await connection.execute(MOVE)
    await wait_for_prices(client, [1], 2 * POLL_S)


@pytest.mark.slow
async def test_terminated_listener_is_replaced(
    client: aiohttp.ClientSession, connection: Connection, insert: Insert
) -> None:
    await cached(client, "/data?sort=source_id")
    terminated = await connection.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    assert terminated
    await insert({"source_id": "a", "price_usd": 1})
    await connection.execute(MOVE)
    await wait_for_prices(client, [1], 2 * POLL_S)
    await cached(client, "/data?sort=source_id")
    await insert({"source_id": "b", "price_usd": 2})
    await connection.execute(f"{MOVE}; {NOTIFY}")
    await wait_for_prices(client, [1, 2], POLL_S / 2)


async def test_clients_never_see_older_data_again(
    client: aiohttp.ClientSession, connection: Connection, insert: Insert
) -> None:
    await insert({"source_id": "a", "price_usd": 0})
    newest = 0.0

    async def watch() -> None:
        nonlocal newest
        while newest < 100:
            before = newest
            (price,) = await prices(client)
            assert price >= before
            newest = max(newest, price)

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(watch())
        for price in range(1, 101):
            async with connection.transaction():
                await connection.execute("UPDATE unified_data SET price_usd = $1", price)
                await connection.execute(f"{MOVE}; {NOTIFY}")


@pytest.mark.slow
async def test_equal_requests_share_one_query(
    client: aiohttp.ClientSession, connection: Connection, database: Database
) -> None:
    async def fetch(encoding: str) -> tuple[int, bytes]:
        async with client.get("/data?symbol=x", headers={"Accept-Encoding": encoding}) as response:
            return response.status, await response.read()

    async with asyncio.timeout(10):
        async with locked_data(database):
            tasks = [asyncio.create_task(fetch(encoding)) for encoding in ("identity", "gzip", "zstd") * 20]
            while await connection.fetchval(WAITING) == 0:
                pass
            # The first client disconnects. One of the others asks again, and all get its response. The new
            # statement may begin before the first one has ended.
            tasks.pop(0).cancel()
            for _ in range(50):
                assert await connection.fetchval(WAITING) <= 2
        responses = await asyncio.gather(*tasks)
    assert len(set(responses)) == 1
    assert responses[0][0] == 200


@pytest.mark.slow
async def test_nothing_is_served_from_the_cache_without_the_database(
    client: aiohttp.ClientSession, server_url: str, database_url: str
) -> None:
    name = urlsplit(database_url).path[1:]
    await cached(client)
    async with Database(server_url) as server, server.writing() as administrator:
        await administrator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await administrator.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
        )
        async with asyncio.timeout(5):
            while await status(client) != 503:
                pass
        for _ in range(10):
            assert await status(client) == 503
        await administrator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await cached(client)


async def test_body_is_compressed_as_the_client_prefers(
    client: aiohttp.ClientSession, insert: Insert
) -> None:
    await insert(*({"source_id": f"{n:03}", "name": "x" * 50} for n in range(50)))
    async with client.get("/data", headers={"Accept-Encoding": "identity"}) as response:
        plain, tag = await response.read(), response.headers["ETag"]
        assert "Content-Encoding" not in response.headers
        assert response.headers["Vary"] == "Accept-Encoding"
    tags = {tag}
    for accepted, encoding in (
        ("gzip", "gzip"),
        ("gzip;q=0.5, zstd", "zstd"),
        ("br, gzip;q=0.9, zstd;q=0.2", "gzip"),
    ):
        for _ in range(2):
            async with client.get(
                "/data", headers={"Accept-Encoding": accepted}, auto_decompress=False
            ) as response:
                assert response.headers["Content-Encoding"] == encoding
                assert response.headers["Vary"] == "Accept-Encoding"
                assert len(await response.read()) == int(response.headers["Content-Length"]) < len(plain) / 4
                assert DECOMPRESS[encoding](await response.read()) == plain
                tags.add(response.headers["ETag"])
    assert len(tags) == 3
    async with client.get("/data?limit=1", headers={"Accept-Encoding": "gzip"}) as response:
        assert "Content-Encoding" not in response.headers


@pytest.mark.parametrize("path", ["/data", "/data/coingecko/a", "/runs", "/tables", "/openapi.json", "/docs"])
async def test_known_entity_tag_gets_a_304(client: aiohttp.ClientSession, insert: Insert, path: str) -> None:
    await insert({"source_id": "a"})
    async with client.get(path) as response:
        tag = response.headers["ETag"]
        headers = response.headers
    for condition in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        for _ in range(2):
            async with client.get(path, headers={"If-None-Match": condition}) as response:
                assert response.status == 304, condition
                assert await response.read() == b""
                for name in ("ETag", "Cache-Control", "Vary"):
                    assert response.headers[name] == headers[name]
                assert "X-Request-ID" in response.headers
    for condition in ('"other"', tag.strip('"'), ""):
        async with client.get(path, headers={"If-None-Match": condition}) as response:
            assert response.status == 200, condition


async def test_entity_tag_survives_a_version_that_changes_nothing(
    client: aiohttp.ClientSession, connection: Connection, insert: Insert
) -> None:
    await insert({"source_id": "a", "price_usd": 1})
    tag = (await cached(client, "/data?symbol=btc")).headers["ETag"]
    await insert({"source_id": "b", "symbol": "eth", "price_usd": 2})
    await connection.execute(f"{MOVE}; {NOTIFY}")
    await wait_for_prices(client, [1, 2], 5)
    async with client.get("/data?symbol=btc", headers={"If-None-Match": tag}) as response:
        assert response.status == 304


async def test_304_has_the_tag_that_the_client_named(
    client: aiohttp.ClientSession, connection: Connection, insert: Insert
) -> None:
    """A cache updates only the response whose tag is in the 304."""
    await insert({"source_id": "a", "price_usd": 1})
    tag = (await cached(client, "/data?symbol=btc")).headers["ETag"]
    await connection.execute(f"{MOVE}; {NOTIFY}")
    newer = await tag_of_another_version(client, "/data?symbol=btc", tag)
    assert newer.partition("-")[0] == tag.partition("-")[0]
    for named in (tag, f'"other", W/{tag}'):
        async with client.get("/data?symbol=btc", headers={"If-None-Match": named}) as response:
            assert response.status == 304
            assert response.headers["ETag"] == tag
    async with client.get("/data?symbol=btc", headers={"If-None-Match": f"{tag}, {newer}"}) as response:
        assert response.headers["ETag"] == newer


async def tag_of_another_version(client: aiohttp.ClientSession, path: str, tag: str) -> str:
    async with asyncio.timeout(5):
        while (found := (await cached(client, path)).headers["ETag"]) == tag:
            pass
    return found


async def test_no_process_shows_an_older_version_than_the_client_has_seen(
    database_url: str, connection: Connection, insert: Insert, monkeypatch: pytest.MonkeyPatch
) -> None:
    await insert({"source_id": "a", "symbol": "BTC", "price_usd": 1})
    path = "/data?symbol=btc"
    async with serving(database_url) as first, serving(database_url) as second:
        for client in (first, second):
            await cached(client, path)
        monkeypatch.setattr(data_version, "POLL_S", 60)
        await asyncio.sleep(POLL_S)
        for client in (first, second):
            await cached(client, path)
        await connection.execute("UPDATE unified_data SET price_usd = 2")
        await connection.execute(MOVE)
        # No notification tells the first process of the commit.
        async with second.get(f"{path}&limit=7") as response:
            newer = response.headers["ETag"]
        async with first.get(path) as response:
            assert hit(response)
        async with first.get(path, headers={"If-None-Match": newer}) as response:
            assert not hit(response)
            assert (await response.json())["data"][0]["price_usd"] == 2


async def test_client_of_a_lost_version_gets_the_tag_of_this_one(
    client: aiohttp.ClientSession, connection: Connection, insert: Insert
) -> None:
    await insert({"source_id": "a", "price_usd": 1})
    older = (await cached(client, "/data?symbol=btc")).headers["ETag"]
    await connection.execute(f"{MOVE}; {NOTIFY}")
    lost = await tag_of_another_version(client, "/data?symbol=btc", older)
    await connection.execute("UPDATE instance SET data_version = data_version - 1")
    await tag_of_another_version(client, "/data?symbol=btc", lost)
    async with client.get("/data?symbol=btc", headers={"If-None-Match": lost}) as response:
        assert response.status == 200
        assert response.headers["ETag"] == older


async def test_first_response_of_a_process_names_its_version(
    database_url: str, insert: Insert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that answers next may read a replica that lacks this version."""
    await insert({"source_id": "a"})
    async with serving(database_url) as client:
        tag = (await cached(client)).headers["ETag"]

    async def follow_later(self: DataVersion) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(DataVersion, "_follow", follow_later)
    async with serving(database_url) as client, client.get("/data") as response:
        assert response.headers["ETag"] == tag


async def test_invented_versions_are_ignored(client: aiohttp.ClientSession, insert: Insert) -> None:
    await insert({"source_id": "a"})
    tag = (await cached(client)).headers["ETag"]
    content, _, token = tag.strip('"').partition("-")
    for other in (f"{content}-vfffff.{token[-12:]}", f"{content}-v1.000000000000", content):
        async with client.get("/data", headers={"If-None-Match": f'"{other}"'}) as response:
            assert hit(response)
            assert response.status == 304


async def test_cache_control_of_each_route(client: aiohttp.ClientSession, insert: Insert) -> None:
    await insert({"source_id": "a"})
    for path, expected in {
        "/data": "public, max-age=1, stale-while-revalidate=10, stale-if-error=300",
        "/data/coingecko/a": "public, max-age=1, stale-while-revalidate=10, stale-if-error=300",
        "/stats": "no-cache",
        "/runs": "no-cache",
        "/docs": "no-cache",
        "/docs/swagger-ui.css": "public, max-age=86400",
        "/health": "no-store",
        "/health/live": "no-store",
        "/health/ready": "no-store",
        "/nosuch": "no-store",
        "/data?limit=0": "no-store",
    }.items():
        async with client.get(path) as response:
            assert response.headers["Cache-Control"] == expected, path
            assert ("ETag" in response.headers) is (expected != "no-store"), path


async def test_head_of_a_cached_response(client: aiohttp.ClientSession) -> None:
    whole = await cached(client)
    async with client.head("/data") as head:
        assert hit(head)
        assert await head.read() == b""
        assert head.headers["Content-Length"] == whole.headers["Content-Length"]


async def test_no_caching_without_memory(database_url: str) -> None:
    async with serving(database_url, Settings(cache_mb=0)) as client:
        for _ in range(20):
            async with client.get("/data") as response:
                assert response.status == 200
                assert not hit(response)
