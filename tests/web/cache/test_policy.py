"""Answers kept for the version of the data: the newest bytes always, and a query only where there is none."""

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
from kasparro.store.data_version import POLL_S
from kasparro.store.pool import Connection, Database
from tests.store.test_loader import T0, batch, load, record
from tests.support.response_cache import MOVE, NOTIFY, cached, hit, prices, wait_for_prices
from tests.web.conftest import Insert, service, serving

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda body: zlib.decompress(body, 31),
    "zstd": zstd.decompress,
}


async def status(client: aiohttp.ClientSession) -> int:
    async with client.get("/data") as answer:
        return answer.status


def raw(client: aiohttp.ClientSession, target: str) -> URL:
    """The URL of a path and query that are sent as they are."""
    return URL(f"{str(client._base_url).rstrip('/')}{target}", encoded=True)


async def gauge(client: aiohttp.ClientSession, name: str) -> float:
    """A figure of /metrics."""
    async with client.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"kasparro_{name}"))


async def test_an_answer_is_kept_and_told_apart_from_one_that_was_read(
    client: aiohttp.ClientSession, insert: Insert
) -> None:
    await insert({"source_id": "a"})
    async with client.get("/data") as first:
        body = await first.read()
        assert "db;dur=" in first.headers["Server-Timing"]
    again = await cached(client)
    async with client.get("/data") as answer:
        assert await answer.read() == body
    assert "db;dur=" not in again.headers["Server-Timing"]
    own = {"X-Request-ID", "Server-Timing", "Date"}
    assert {name for name in first.headers if first.headers[name] != again.headers[name]} <= own


async def test_a_query_spelt_otherwise_has_the_same_answer(client: aiohttp.ClientSession) -> None:
    await cached(client, "/data?symbol=btc,eth")
    for spelt in ("/data?symbol=btc&symbol=eth", "/data?limit=50&symbol=btc,eth", "/data?symbol=btc%2Ceth&"):
        async with client.get(raw(client, spelt)) as answer:
            assert hit(answer), spelt


async def test_what_is_not_allowed_is_refused_however_often_it_is_asked(
    client: aiohttp.ClientSession,
) -> None:
    await cached(client, "/data?limit=50")
    for path in ("/data?limit=50&x=1", "/data?limit=050", "/data?limit=50&limit=50", "/data?limit=50&%ff"):
        for _ in range(3):
            async with client.get(raw(client, path)) as answer:
                assert answer.status == 400, path


async def test_a_batch_that_commits_is_seen_at_once(
    client: aiohttp.ClientSession, database: Database
) -> None:
    for price in range(1, 6):
        await load(database, batch(record("a", T0 + timedelta(hours=price), price_usd=price)))
        await wait_for_prices(client, [price], POLL_S / 2)
        await cached(client, "/data?sort=source_id")


async def test_a_batch_of_another_process_is_seen_by_every_worker(database_url: str, tmp_path: Path) -> None:
    archive = tmp_path / "a.csv"
    async with serving(database_url) as one, serving(database_url) as other:
        await cached(one, "/data?sort=source_id")
        await cached(other, "/data?sort=source_id")
        archive.write_text("id,symbol,price_usd,last_updated\na,A,7,1514764800\n")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kasparro", "etl", "--source", "csv", "--json"),
            env={**os.environ, "DATABASE_URL": database_url, "KASPARRO_ARCHIVES": str(archive)},
            stdout=asyncio.subprocess.DEVNULL,
        )
        assert await process.wait() == 0
        await wait_for_prices(one, [7], POLL_S)
        await wait_for_prices(other, [7], POLL_S)


async def test_workers_of_one_service_follow_one_version(database_url: str, database: Database) -> None:
    async with service(database_url, "--workers", "2") as client, asyncio.timeout(60):
        for price in (1, 2):
            # Each on a connection of its own, so that both workers have it ready.
            for _ in range(20):
                await prices(client)
            await load(database, batch(record("a", T0 + timedelta(hours=price), price_usd=price)))
            await wait_for_prices(client, [price], POLL_S)
            await asyncio.sleep(POLL_S)
            for _ in range(20):
                assert await prices(client) == [price]


async def test_without_a_notification_the_next_poll_tells(
    client: aiohttp.ClientSession, connection: Connection, insert: Insert
) -> None:
    await cached(client, "/data?sort=source_id")
    await insert({"source_id": "a", "price_usd": 1})
    await connection.execute(MOVE)
    await wait_for_prices(client, [1], 2 * POLL_S)


async def test_a_listener_that_is_cut_off_is_replaced_and_misses_nothing(
    client: aiohttp.ClientSession, connection: Connection, insert: Insert
) -> None:
    await cached(client, "/data?sort=source_id")
    cut = await connection.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    assert cut
    await insert({"source_id": "a", "price_usd": 1})
    await connection.execute(MOVE)
    await wait_for_prices(client, [1], 2 * POLL_S)
    await cached(client, "/data?sort=source_id")
    await insert({"source_id": "b", "price_usd": 2})
    await connection.execute(f"{MOVE}; {NOTIFY}")
    await wait_for_prices(client, [1, 2], POLL_S / 2)


async def test_what_was_seen_once_is_never_unseen(
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


async def test_many_who_ask_for_the_same_share_one_query(
    client: aiohttp.ClientSession, connection: Connection, database: Database
) -> None:
    waiting = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    async def ask(coding: str) -> tuple[int, bytes]:
        async with client.get("/data?symbol=x", headers={"Accept-Encoding": coding}) as answer:
            return answer.status, await answer.read()

    async with database.writing() as other, asyncio.timeout(10):
        async with other.transaction():
            await other.execute("LOCK TABLE unified_data IN ACCESS EXCLUSIVE MODE")
            asked = [asyncio.create_task(ask(coding)) for coding in ("identity", "gzip", "zstd") * 20]
            while await connection.fetchval(waiting) == 0:
                pass
            # The first one hangs up; the others have their answer all the same.
            asked.pop(0).cancel()
            for _ in range(50):
                assert await connection.fetchval(waiting) == 1
        answers = await asyncio.gather(*asked)
    assert len(set(answers)) == 1
    assert answers[0][0] == 200


async def test_without_its_database_nothing_kept_is_passed_off_as_the_newest(
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


async def test_bodies_are_packed_as_the_client_likes_best(
    client: aiohttp.ClientSession, insert: Insert
) -> None:
    await insert(*({"source_id": f"{n:03}", "name": "x" * 50} for n in range(50)))
    async with client.get("/data", headers={"Accept-Encoding": "identity"}) as answer:
        plain, tag = await answer.read(), answer.headers["ETag"]
        assert "Content-Encoding" not in answer.headers
        assert answer.headers["Vary"] == "Accept-Encoding"
    tags = {tag}
    for accepted, coding in (
        ("gzip", "gzip"),
        ("gzip;q=0.5, zstd", "zstd"),
        ("br, gzip;q=0.9, zstd;q=0.2", "gzip"),
    ):
        for _ in range(2):
            async with client.get(
                "/data", headers={"Accept-Encoding": accepted}, auto_decompress=False
            ) as answer:
                assert answer.headers["Content-Encoding"] == coding
                assert answer.headers["Vary"] == "Accept-Encoding"
                assert len(await answer.read()) == int(answer.headers["Content-Length"]) < len(plain) / 4
                assert UNPACK[coding](await answer.read()) == plain
                tags.add(answer.headers["ETag"])
    assert len(tags) == 3
    async with client.get("/data?limit=1", headers={"Accept-Encoding": "gzip"}) as answer:
        assert "Content-Encoding" not in answer.headers


@pytest.mark.parametrize("path", ["/data", "/data/coingecko/a", "/runs", "/tables", "/openapi.json", "/docs"])
async def test_who_has_the_answer_already_is_told_so(
    client: aiohttp.ClientSession, insert: Insert, path: str
) -> None:
    await insert({"source_id": "a"})
    async with client.get(path) as answer:
        tag = answer.headers["ETag"]
        told = answer.headers
    for asked in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        for _ in range(2):
            async with client.get(path, headers={"If-None-Match": asked}) as answer:
                assert answer.status == 304, asked
                assert await answer.read() == b""
                for name in ("ETag", "Cache-Control", "Vary"):
                    assert answer.headers[name] == told[name]
                assert "X-Request-ID" in answer.headers
    for asked in ('"other"', tag.strip('"'), ""):
        async with client.get(path, headers={"If-None-Match": asked}) as answer:
            assert answer.status == 200, asked


async def test_a_new_version_that_leaves_an_answer_as_it_was_leaves_its_tag(
    client: aiohttp.ClientSession, connection: Connection, insert: Insert
) -> None:
    await insert({"source_id": "a", "price_usd": 1})
    tag = (await cached(client, "/data?symbol=btc")).headers["ETag"]
    await insert({"source_id": "b", "symbol": "eth", "price_usd": 2})
    await connection.execute(f"{MOVE}; {NOTIFY}")
    await wait_for_prices(client, [1, 2], 5)
    async with client.get("/data?symbol=btc", headers={"If-None-Match": tag}) as answer:
        assert answer.status == 304


async def test_each_route_says_how_long_its_answer_is_good(
    client: aiohttp.ClientSession, insert: Insert
) -> None:
    await insert({"source_id": "a"})
    for path, told in {
        "/data": "public, max-age=1, stale-while-revalidate=10, stale-if-error=300",
        "/data/coingecko/a": "public, max-age=1, stale-while-revalidate=10, stale-if-error=300",
        "/stats": "no-cache",
        "/runs": "no-cache",
        "/docs": "no-cache",
        "/docs/swagger-ui.css": "public, max-age=86400",
        "/health": "no-store",
        "/health/live": "no-store",
        "/nosuch": "no-store",
        "/data?limit=0": "no-store",
    }.items():
        async with client.get(path) as answer:
            assert answer.headers["Cache-Control"] == told, path
            assert ("ETag" in answer.headers) is (told != "no-store"), path


async def test_head_of_a_kept_answer_is_its_headers(client: aiohttp.ClientSession) -> None:
    whole = await cached(client)
    async with client.head("/data") as head:
        assert hit(head)
        assert await head.read() == b""
        assert head.headers["Content-Length"] == whole.headers["Content-Length"]


async def test_without_memory_for_them_no_answers_are_kept(database_url: str) -> None:
    async with serving(database_url, Settings(cache_mb=0)) as client:
        for _ in range(20):
            async with client.get("/data") as answer:
                assert answer.status == 200
                assert not hit(answer)
