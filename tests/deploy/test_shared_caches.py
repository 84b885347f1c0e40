"""nginx and Varnish with the configurations of docs/deploy share responses, and never wrong ones."""

import asyncio
import gzip
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import aiohttp
import msgspec
import pytest

from kasparro.settings import ApiKey, Rate, Secret, Settings
from kasparro.store.migrations import migrate
from kasparro.store.pool import Database
from kasparro.web.app import VIEWS
from kasparro.web.http.headers import UNBUFFERED
from kasparro.web.routes import asset_history, assets, data, exports, health, history, metrics, runs, stream
from tests.support.batches import load_batches, make_batch, make_record
from tests.support.event_stream import event_stream
from tests.support.metrics import metric_value, scrape
from tests.support.postgres import servers
from tests.support.proxy import Proxy
from tests.support.shared_caches import every_cache, shared_cache, shared_paths
from tests.web.conftest import serving

pytestmark = [pytest.mark.slow, every_cache]

ROWS = 200
PROXIES = Settings(trusted_proxies=("127.0.0.1/32",))


async def load(database: Database, price: int = 1) -> None:
    """Commit a version in which all rows have this price."""
    at = datetime.now(UTC) + timedelta(minutes=price)
    batch = make_batch(
        *(make_record(f"coin-{n}", at=at, rank=n, price_usd=Decimal(price)) for n in range(1, ROWS + 1))
    )
    await load_batches(database, batch)


def client_of(port: int, address: str = "127.0.0.1") -> aiohttp.ClientSession:
    """A client of a cache, from an address of the loopback network. It keeps responses compressed."""
    connector = aiohttp.TCPConnector(local_addr=(address, 0))
    return aiohttp.ClientSession(
        f"http://127.0.0.1:{port}",
        connector=connector,
        auto_decompress=False,
        headers={"Accept-Encoding": ""},
    )


class Cache:
    """A shared cache in front of a service, its clients, and the network between the two."""

    def __init__(self, port: int, client: aiohttp.ClientSession, network: Proxy) -> None:
        self.port = port
        self.client = client
        self.network = network

    async def get(self, path: str = "/data", **headers: str) -> tuple[aiohttp.ClientResponse, bytes]:
        """A response, and its body as it came."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.get(path, headers=sent) as response:
            return response, await response.read()

    async def price(self) -> float:
        """The price of the first row, which has to be there."""
        response, body = await self.get("/data?limit=1")
        assert response.status == 200
        price: float = msgspec.json.decode(body)["data"][0]["price_usd"]
        return price


@asynccontextmanager
async def cached_service(
    name: str, folder: Path, database_url: str, settings: Settings = PROXIES
) -> AsyncIterator[Cache]:
    """A service behind a shared cache."""
    async with serving(database_url, settings) as direct:
        assert direct._base_url is not None
        assert direct._base_url.port is not None
        async with (
            Proxy(direct._base_url.port) as network,
            shared_cache(name, folder, network.port) as port,
            client_of(port) as client,
        ):
            yield Cache(port, client, network)


def stored(response: aiohttp.ClientResponse) -> bool:
    """Whether a response came from the shared cache."""
    headers = response.headers
    return headers.get("X-Cache-Status") in {"HIT", "STALE", "UPDATING"} or int(headers.get("Age", 0)) > 0


async def test_clients_share_responses_but_no_ids_or_quotas(
    name: str, tmp_path: Path, database: Database, database_url: str
) -> None:
    await load(database)
    limited = msgspec.structs.replace(PROXIES, rate_limit=Rate(1_000, 60))
    async with cached_service(name, tmp_path, database_url, limited) as cache:
        first, body = await cache.get(X_Request_ID="mine")
        assert first.headers["X-Request-ID"] == "mine"
        async with asyncio.timeout(20):
            while not stored((answer := await cache.get())[0]):
                pass
        second, again = answer
        assert again == body
        assert second.headers["ETag"] == first.headers["ETag"]
        assert second.headers["X-Request-ID"] not in {"mine", ""}
        assert {"RateLimit", "RateLimit-Policy", "Server-Timing"}.isdisjoint(second.headers)
        third, nothing = await cache.get(If_None_Match=first.headers["ETag"])
        assert (third.status, nothing) == (304, b"")


async def test_update_of_the_same_content_costs_a_304(
    name: str, tmp_path: Path, database: Database, database_url: str
) -> None:
    await load(database)
    async with cached_service(name, tmp_path, database_url) as cache:
        async with asyncio.timeout(20):
            while not await unchanged(cache):
                await cache.get()


async def unchanged(cache: Cache) -> float | None:
    """How many responses of /data were a 304. Only the cache requested them."""
    samples = await scrape(cache.client)
    return metric_value(samples, "kasparro_http_requests_total", route="/data", status="304")


async def test_each_client_gets_its_encoding(
    name: str, tmp_path: Path, database: Database, database_url: str
) -> None:
    await load(database)
    async with cached_service(name, tmp_path, database_url) as cache:
        plain, body = await cache.get()
        assert "Content-Encoding" not in plain.headers
        for _ in range(2):
            for accepted in ("gzip, deflate, br", "gzip;q=0.5", "GZIP"):
                response, packed = await cache.get(Accept_Encoding=accepted)
                assert response.headers["Content-Encoding"] == "gzip"
                assert gzip.decompress(packed) == body
                unchanged, _ = await cache.get(
                    Accept_Encoding=accepted, If_None_Match=response.headers["ETag"]
                )
                assert unchanged.status == 304
            for refused in ("", "gzip;q=0", "br"):
                response, same = await cache.get(Accept_Encoding=refused)
                assert "Content-Encoding" not in response.headers
                assert same == body


async def test_new_version_shows_through_the_cache(
    name: str, tmp_path: Path, database: Database, database_url: str
) -> None:
    async with cached_service(name, tmp_path, database_url) as cache:
        for price in (1, 2):
            await load(database, price)
            async with asyncio.timeout(20):
                while await seen(cache) != price:
                    pass


async def seen(cache: Cache) -> float | None:
    """The price of the first row, if there is one."""
    _, body = await cache.get("/data?limit=1")
    found = msgspec.json.decode(body)["data"]
    return found[0]["price_usd"] if found else None


async def test_stored_responses_outlive_the_service(
    name: str, tmp_path: Path, database: Database, database_url: str
) -> None:
    await load(database)
    async with cached_service(name, tmp_path, database_url) as cache:
        await cache.price()
        cache.network.reject()
        # First because of stale-while-revalidate, which ends 11 s after the response was stored, and then
        # because of stale-if-error.
        loop = asyncio.get_running_loop()
        ends = loop.time() + 12
        while loop.time() < ends:
            assert await cache.price() == 1
            await asyncio.sleep(0.1)
        for path in ("/data?limit=2", "/stats"):
            missing, body = await cache.get(path, X_Request_ID="mine")
            assert missing.status == 503
            assert missing.content_type == "application/problem+json"
            assert missing.headers["Retry-After"] == "5"
            assert msgspec.json.decode(body)["request_id"] == missing.headers["X-Request-ID"] == "mine"
        await load(database, 2)
        cache.network.forward()
        async with asyncio.timeout(20):
            while await cache.price() != 2:
                pass


async def test_stored_responses_outlive_the_database(name: str, tmp_path: Path) -> None:
    async with servers() as made:
        server = await made.primary()
        async with Database(server.url()) as database:
            await migrate(database)
            await load(database)
            async with cached_service(name, tmp_path, server.url()) as cache:
                await cache.price()
                await server.end(signal.SIGQUIT)
                # Kasparro serves what it has for up to 3 s, and then 503.
                async with asyncio.timeout(20):
                    while (await cache.get("/data?limit=2"))[0].status != 503:
                        assert await cache.price() == 1
                assert await cache.price() == 1
                health, body = await cache.get("/health")
                assert health.status == 503
                assert msgspec.json.decode(body)["database"]["status"] == "unreachable"
                await server.start()
                await load(database, 2)
                async with asyncio.timeout(20):
                    while await cache.price() != 2:
                        pass


async def test_keyed_responses_are_for_holders_of_keys(
    name: str, tmp_path: Path, database: Database, database_url: str
) -> None:
    await load(database)
    keys = (ApiKey("reader", Secret("a-key-of-the-tests")),)
    async with cached_service(
        name, tmp_path, database_url, msgspec.structs.replace(PROXIES, api_keys=keys)
    ) as cache:
        for _ in range(2):
            for right in (
                {"X_API_Key": "a-key-of-the-tests"},
                {"Authorization": "Bearer a-key-of-the-tests"},
            ):
                response, _ = await cache.get(**right)
                assert response.status == 200
                assert not stored(response)
            for wrong in ({}, {"X_API_Key": "another-key-of-the-tests"}):
                response, _ = await cache.get(**wrong)
                assert response.status == 401


async def test_limits_count_the_client_and_not_the_cache(
    name: str, tmp_path: Path, database: Database, database_url: str
) -> None:
    limited = msgspec.structs.replace(PROXIES, rate_limit=Rate(2, 3_600))
    async with (
        cached_service(name, tmp_path, database_url, limited) as cache,
        client_of(cache.port, "127.0.0.2") as other,
    ):
        forged = {"X-Forwarded-For": "192.0.2.1"}
        for expected in (200, 200, 429):
            async with other.get("/stats", headers=forged) as response:
                assert response.status == expected
        assert (await cache.get("/stats"))[0].status == 200


async def test_events_and_exports_pass_at_once(
    name: str, tmp_path: Path, database: Database, database_url: str
) -> None:
    await load(database)
    async with cached_service(name, tmp_path, database_url) as cache:
        async with event_stream(cache.client) as events:
            version = (await events.next("version")).data["data_version"]
            await load(database, 2)
            assert (await events.next("version")).data["data_version"] > version
        response, body = await cache.get("/data.csv")
        assert response.status == 200
        assert not stored(response)
        assert body.count(b"\r\n") == ROWS + 1
        again, packed = await cache.get("/data.csv", Accept_Encoding="gzip")
        assert not stored(again)
        assert gzip.decompress(packed) == body


async def test_broken_export_does_not_look_complete(name: str, tmp_path: Path) -> None:
    part = asyncio.Event()

    async def export(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # An export of Kasparro that is aborted after its first rows.
        request = await reader.readuntil(b"\r\n\r\n")
        if b"/data.csv" in request:
            head = "".join(f"{key}: {value}\r\n" for key, value in UNBUFFERED.items())
            head = f"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nTransfer-Encoding: chunked\r\n{head}\r\n"
            writer.write(head.encode() + b"4\r\nrow\n\r\n")
            await part.wait()
        writer.transport.abort()

    upstream = await asyncio.start_server(export, "127.0.0.1", 0)
    async with (
        upstream,
        shared_cache(name, tmp_path, upstream.sockets[0].getsockname()[1]) as port,
        client_of(port) as client,
        client.get("/data.csv") as response,
    ):
        # The rows arrive while the export still works.
        assert await response.content.readexactly(4) == b"row\n"
        part.set()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


def test_every_response_of_a_data_version_is_shared(name: str) -> None:
    shared = shared_paths(name)
    endpoints = [each for module in (assets, asset_history, data, history) for each in module.ENDPOINTS]
    paths = [each.template for each in endpoints if each.caching == "version"]
    paths += [path for view in VIEWS for path in (view.path, view.fragment_path) if view.caching == "version"]
    assert len(paths) > 6
    for path in paths:
        assert shared.search(path), path
    for endpoint in (
        *exports.ENDPOINTS,
        *runs.ENDPOINTS,
        *health.ENDPOINTS,
        stream.ENDPOINT,
        metrics.ENDPOINT,
    ):
        assert not shared.search(endpoint.template) or endpoint.template.endswith((".csv", ".ndjson"))
