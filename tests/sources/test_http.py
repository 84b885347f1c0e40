"""Faults of upstreams: retries, limits, and the error that a person reads."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import asyncpg
import pytest
import stamina.instrumentation
from aiohttp import web
from stamina.instrumentation import RetryDetails

from kasparro.model.payload import Retention
from kasparro.settings import Secret
from kasparro.simulator import Simulator
from kasparro.simulator.coins import Api
from kasparro.simulator.faults import (
    AnyFault,
    ContentType,
    Empty,
    GzipGarbage,
    Hang,
    Html,
    Huge,
    NotAnArray,
    Redirect,
    Reset,
    ShortList,
    Slow,
    Status,
    Truncated,
)
from kasparro.sources import coingecko, http
from kasparro.sources.base import Source
from kasparro.sources.coingecko import CoinGecko
from kasparro.sources.coinpaprika import CoinPaprika
from kasparro.sources.http import RetryLimits
from kasparro.store.pool import Database
from kasparro.web import reports
from tests.support.runs import (
    BEGIN,
    QUICK,
    apis,
    coingecko_source,
    requested_pages,
    run_and_report,
    run_sources,
    source_outcomes,
)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(seed=7, coins=40, manual=True) as running:
        yield running


async def health_error(connection: Connection, source: str) -> str:
    """The error of a source in /health."""
    found = (await reports.health(connection, [source], None))[source]
    assert found.error is not None
    assert found.reasons == [f"failed: {found.error}"]
    assert "\n" not in found.error
    return found.error.removeprefix("page 1: ")


# The fault, the number of calls, and the error, in which * stands for a detail.
FAULTS: dict[str, tuple[AnyFault, int, str]] = {
    "500 of CoinGecko": (
        Status(api="coingecko", code=500),
        2,
        "CoinGecko answered 500: The simulator answers 500 here.",
    ),
    "500 of CoinPaprika": (
        Status(api="coinpaprika", code=500),
        2,
        "CoinPaprika answered 500: The simulator answers 500 here.",
    ),
    "503 of a CDN": (
        Status(api="coingecko", code=503, body="html"),
        2,
        "CoinGecko answered 503: 503 from the CDN",
    ),
    "400": (
        Status(api="coinpaprika", code=400),
        1,
        "CoinPaprika answered 400: The simulator answers 400 here.; we called * without a key "
        "(KASPARRO_COINPAPRIKA_KEY, KASPARRO_COINPAPRIKA_URL)",
    ),
    "401": (
        Status(api="coingecko", code=401),
        1,
        "CoinGecko answered 401 (the key is missing or not accepted): The simulator answers 401 here.; "
        "we called * with the plan public (KASPARRO_COINGECKO_PLAN, KASPARRO_COINGECKO_URL)",
    ),
    "402": (
        Status(api="coinpaprika", code=402),
        1,
        "CoinPaprika answered 402 (the month's quota is used up, or the plan does not include this): "
        "The simulator answers 402 here.",
    ),
    "403 of a CDN": (
        Status(api="coingecko", code=403, body="cdn-1020"),
        1,
        "CoinGecko answered 403 (access denied: a wrong key, or this address is blocked): Access denied. "
        "Error code: 1020; we called * with the plan public "
        "(KASPARRO_COINGECKO_PLAN, KASPARRO_COINGECKO_URL)",
    ),
    "404": (
        Status(api="coinpaprika", code=404),
        1,
        "CoinPaprika answered 404 (no such path; check the base URL): The simulator answers 404 here.",
    ),
    "429 as text": (
        Status(api="coingecko", code=429, body="plain"),
        2,
        "CoinGecko answered 429 (too many requests): Throttled",
    ),
    "429 with a long wait": (
        Status(api="coingecko", code=429, retry_after=119),
        1,
        "CoinGecko answered 429 (too many requests): The simulator answers 429 here.; asks to wait 119 s, "
        "and a run waits 5 s at most",
    ),
    "a web page": (
        Html(api="coingecko"),
        2,
        "CoinGecko sent an HTML page; it says: Just a moment...",
    ),
    "half a response": (
        Truncated(api="coinpaprika"),
        2,
        "CoinPaprika sent an incomplete or damaged response: *",
    ),
    "damaged gzip": (
        GzipGarbage(api="coinpaprika"),
        2,
        "CoinPaprika sent an incomplete or damaged response: * Can not decode content-encoding: gzip",
    ),
    "an empty body": (Empty(api="coingecko"), 2, "CoinGecko sent an empty body"),
    "an object for a list": (
        NotAnArray(api="coingecko"),
        2,
        "CoinGecko sent a body that is not a JSON list (Expected `array`, got `object`); "
        'it says: {"data":[]}',
    ),
    "an endless response": (
        Huge(api="coinpaprika", megabytes=5),
        2,
        "CoinPaprika could not be read: the response is longer than 4 MiB",
    ),
    "a redirect": (
        Redirect(api="coingecko", location="/coinpaprika/v1/tickers", code=301),
        1,
        "CoinGecko answered 301 (redirects are not followed; set the base URL to where the API is)",
    ),
    "a reset": (Reset(api="coingecko"), 2, "CoinGecko could not be read: * Connection reset by peer"),
    "no response": (Hang(api="coinpaprika"), 2, "CoinPaprika did not answer in time"),
    "a slow response": (
        Slow(api="coinpaprika", bytes_per_second=100),
        2,
        "CoinPaprika did not answer in time",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault_name", FAULTS)
async def test_fault_is_reported_in_one_line_and_the_next_run_recovers(
    database: Database,
    connection: Connection,
    simulator: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    fault_name: str,
) -> None:
    fault, calls, line = FAULTS[fault_name]
    monkeypatch.setattr(http, "SILENCE_S", 0.2)
    monkeypatch.setattr(http, "CALL_S", 1.0)
    monkeypatch.setattr(http, "BODY_LIMIT", 4 << 20)
    simulator.add_fault(fault)
    sources = [source for source in apis(simulator) if source.name == fault.api]

    assert await run_sources(database, sources) == "failed"

    error, (begins, _, ends) = await health_error(connection, fault.api), line.partition("*")
    assert error == line or ("*" in line and error.startswith(begins) and error.endswith(ends)), error
    assert [call.api for call in simulator.calls] == [fault.api] * calls
    assert await connection.fetchval("SELECT count(*) FROM unified_data") == 0
    simulator.clear_faults()
    assert await run_sources(database, sources) == "succeeded"
    assert (await reports.health(connection, [fault.api], None))[fault.api].reasons == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error":"Missing parameter"}', "Expected `array`, got `object`); it says: Missing parameter"),
        (
            '{"status":{"error_code":10005,"error_message":"For PRO\\nonly"}}',
            "got `object`); it says: For PRO only",
        ),
        (
            '{"error_code":10010,"status":{"error_message":"host"}}',
            "Expected `array`, got `object`); it says: host",
        ),
        ("Throttled", "invalid character (byte 0)); it says: Throttled"),
    ],
)
async def test_error_with_status_200_is_reported_in_the_words_of_the_upstream(
    database: Database, connection: Connection, simulator: Simulator, body: str, message: str
) -> None:
    simulator.replay("coingecko", [body.encode()])

    assert await run_sources(database, apis(simulator)[1:]) == "failed"

    assert (await health_error(connection, "coingecko")).endswith(message)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "detail"),
    [("127.0.0.1:1", "Connect call failed ('127.0.0.1', 1)"), ("nowhere.invalid", "nowhere.invalid:80")],
)
async def test_unreachable_upstream_is_reported_with_its_address(
    database: Database, connection: Connection, host: str, detail: str
) -> None:
    assert await run_sources(database, [CoinPaprika(f"http://{host}", None, QUICK)]) == "failed"

    error = await health_error(connection, "coinpaprika")
    assert error.startswith("CoinPaprika cannot be reached: Cannot connect to host ")
    assert detail in error
    assert (await source_outcomes(connection))["coinpaprika"]["calls"] == 0


@pytest.mark.slow
async def test_content_type_does_not_matter(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    for api in ("coinpaprika", "coingecko"):
        simulator.add_fault(ContentType(api=api))

    assert await run_sources(database, apis(simulator)) == "succeeded"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("coins", "pages"), [(250, [1, 2]), (251, [1, 2, 3]), (499, [1, 2, 3]), (500, [1, 2, 3])]
)
async def test_new_list_ends_with_an_empty_page(
    database: Database, connection: Connection, coins: int, pages: list[int]
) -> None:
    async with Simulator(seed=7, coins=600, manual=True) as simulator:
        simulator.add_fault(ShortList(api="coingecko", coins=coins))
        assert await run_sources(database, apis(simulator)[1:]) == "succeeded"
        requested = requested_pages(simulator.calls)

    assert requested == pages
    assert (await source_outcomes(connection))["coingecko"]["inserted"] == coins


async def test_endless_list_stops_and_is_reported(
    database: Database, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coingecko, "PAGES_LIMIT", 2)
    async with Simulator(seed=7, coins=600, manual=True) as simulator:
        assert await run_sources(database, apis(simulator)[1:]) == "partial"

    outcome = (await source_outcomes(connection))["coingecko"]
    assert (outcome["calls"], outcome["inserted"]) == (3, 500)
    assert outcome["error"] == "stopped after 2 pages: the upstream's list does not end"


@pytest.mark.parametrize(
    ("api", "line"),
    [
        ("coinpaprika", "CoinPaprika sent an empty list"),
        ("coingecko", "CoinGecko sent an empty list"),
    ],
)
async def test_empty_list_is_an_error(
    database: Database, connection: Connection, simulator: Simulator, api: Api, line: str
) -> None:
    simulator.add_fault(ShortList(api=api, coins=0))

    assert (
        await run_sources(database, [source for source in apis(simulator) if source.name == api]) == "failed"
    )

    assert await health_error(connection, api) == line


@asynccontextmanager
async def answering(*, status: int, body: str = "[]", **headers: str) -> AsyncIterator[tuple[str, list[Any]]]:
    """An upstream that always sends this response; gives its URL and the headers of its calls."""
    seen: list[Any] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        seen.append(request.headers)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, text=body, headers=sent)

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield "http://{}:{}".format(*runner.addresses[0][:2]), seen
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("status", [200, 401])
async def test_repeated_key_is_redacted(database: Database, connection: Connection, status: int) -> None:
    key = "hunter2hunter2"
    async with answering(status=status, body=f'{{"error":"the key {key} is not known"}}') as (url, _):
        await run_sources(database, [CoinGecko(url, "demo", Secret(key), QUICK)])

    error = await health_error(connection, "coingecko")
    assert ": the key *** is not known" in error
    assert key not in error


LONG = "Your key belongs to another plan than the address that was called. " * 3


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_rejected_key_is_reported_with_plan_host_and_settings(
    database: Database, connection: Connection, status: int
) -> None:
    body = f'{{"error_code":10011,"status":{{"error_message":"{LONG}Use api.coingecko.example for it."}}}}'
    async with answering(status=status, body=body) as (url, _):
        with_account = url.replace("http://", "http://me:hunter1@")
        await run_sources(database, [CoinGecko(with_account, "pro", Secret("hunter2hunter2"), QUICK)])

    error = await health_error(connection, "coingecko")
    assert error.endswith(
        "Use api.coingecko.example for it.; we called "
        f"{urlsplit(url).netloc} with the plan pro (KASPARRO_COINGECKO_PLAN, KASPARRO_COINGECKO_URL)"
    )
    assert "hunter" not in error


async def test_rejected_key_of_coinpaprika_is_reported_with_its_settings(
    database: Database, connection: Connection
) -> None:
    async with answering(status=403, body='{"error":"wrong key"}') as (url, _):
        await run_sources(database, [CoinPaprika(url, Secret("hunter2hunter2"), QUICK)])

    assert (await health_error(connection, "coinpaprika")).endswith(
        f": wrong key; we called {urlsplit(url).netloc} with a key "
        "(KASPARRO_COINPAPRIKA_KEY, KASPARRO_COINPAPRIKA_URL)"
    )


async def test_key_is_sent_in_the_header_of_the_vendor(database: Database) -> None:
    key = Secret("hunter2hunter2")
    async with answering(status=404) as (url, seen):
        sources: list[Source] = [
            CoinPaprika(url, key, QUICK),
            CoinGecko(url, "demo", key, QUICK),
            CoinGecko(url, "pro", key, QUICK),
            CoinGecko(url, "public", key, QUICK),
        ]
        for source in sources:
            await run_sources(database, [source])

    names = ("Authorization", "x-cg-demo-api-key", "x-cg-pro-api-key")
    assert [{name for name in names if headers.get(name) == key.reveal()} for headers in seen] == [
        {names[0]},
        {names[1]},
        {names[2]},
        set(),
    ]


@pytest.mark.parametrize("header", ["soon", "", "-5", "1e9", "9" * 10, "Thu, 99 Foo 2026 00:00:00 GMT"])
async def test_invalid_retry_after_is_ignored(
    database: Database, connection: Connection, header: str
) -> None:
    async with answering(status=503, Retry_After=header) as (url, seen):
        await run_sources(database, [CoinPaprika(url, None, QUICK)])

    assert await health_error(connection, "coinpaprika") == "CoinPaprika answered 503"
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("header", "stored"),
    [(b'"v1"', '"v1"'), (b"\xffold", "\\udcffold"), (b"a\x01b", "a\x01b"), (b"v" * 600, "v" * 500)],
)
async def test_header_that_is_no_plain_text_is_stored_but_never_sent_back(
    database: Database, connection: Connection, header: bytes, stored: str
) -> None:
    ticker = (
        b'[{"id":"a-a","name":"A","symbol":"A","last_updated":"2026-01-01T00:00:00Z",'
        b'"quotes":{"USD":{"price":1,"volume_24h":2,"market_cap":3}}}]'
    )
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nETag: %b\r\nConnection: close\r\n\r\n"
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(head % (len(ticker), header) + ticker)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        for _ in range(2):
            source = CoinPaprika(url, None, QUICK)
            assert await run_sources(database, [source], retention=Retention()) == "succeeded"

    assert {
        row["etag"] for row in await connection.fetch("SELECT headers ->> 'etag' AS etag FROM payloads")
    } == {stored}
    lists = [request for request in requests if request.startswith(b"GET /tickers")]
    assert [b"If-None-Match" in request for request in lists] == [False, header == b'"v1"']


@pytest.fixture
def retries() -> Iterator[list[RetryDetails]]:
    """The retries that stamina reports."""
    seen: list[RetryDetails] = []

    def remember(details: RetryDetails) -> None:
        seen.append(details)

    before = stamina.instrumentation.get_on_retry_hooks()
    stamina.instrumentation.set_on_retry_hooks([remember])
    yield seen
    stamina.instrumentation.set_on_retry_hooks(before)


@pytest.mark.slow
async def test_waits_start_with_the_initial_wait_and_are_limited(
    database: Database, simulator: Simulator, retries: list[RetryDetails]
) -> None:
    simulator.add_fault(Status(api="coinpaprika", code=500))
    limits = RetryLimits(attempts=3, total_s=9, initial_s=1.05, longest_s=1.1)

    await run_sources(database, [CoinPaprika(simulator.coinpaprika_url, None, limits)])

    first, second = [retry.wait_for for retry in retries]
    assert 1.05 <= first <= 1.1
    # stamina subtracts the time waited so far from a sum of floats.
    assert second == pytest.approx(1.1)


@pytest.mark.slow
async def test_waits_have_jitter(
    database: Database, simulator: Simulator, retries: list[RetryDetails]
) -> None:
    simulator.add_fault(Status(api="coinpaprika", code=500))
    limits = RetryLimits(attempts=2, total_s=9, initial_s=0.01, longest_s=9)

    await run_sources(database, [CoinPaprika(simulator.coinpaprika_url, None, limits)])

    assert 0.01 < retries[0].wait_for < 1.01


@pytest.fixture
async def long_list() -> AsyncIterator[Simulator]:
    """Five pages of CoinGecko, one call of CoinPaprika."""
    async with Simulator(seed=7, coins=1_150, base=BEGIN, manual=True) as running:
        yield running


async def test_limit_of_a_cdn_costs_a_page_and_counts_its_calls(
    database: Database, long_list: Simulator
) -> None:
    long_list.add_fault(Status(api="coingecko", code=429, body="cdn-1015", page=2))

    done = await run_and_report(database, [coingecko_source(long_list)])

    (source,) = done.sources
    assert (done.status, source.status, source.calls) == ("partial", "partial", len(long_list.calls))
    assert source.error is not None
    assert "page 2: CoinGecko answered 429 (too many requests): error code: 1015" in source.error
    # After a lost page only an empty page shows the end of the list.
    assert requested_pages(long_list.calls) == [1, 2, 2, 3, 4, 5, 6]


async def test_limit_of_a_cdn_never_exceeds_the_call_budget(database: Database, long_list: Simulator) -> None:
    long_list.add_fault(Status(api="coingecko", code=429, body="cdn-1015"))

    done = [
        await run_and_report(database, [coingecko_source(long_list)], budget=lambda source: 5)
        for _ in range(4)
    ]

    assert len(long_list.calls) <= 5
    assert sum(run.sources[0].calls for run in done) == len(long_list.calls)


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_of_a_day_is_not_waited_for(
    database: Database, long_list: Simulator, form: Any
) -> None:
    long_list.add_fault(Status(api="coingecko", code=429, retry_after=86_400, retry_after_as=form, page=1))

    done = await run_and_report(database, [coingecko_source(long_list)])

    assert (done.status, done.sources[0].calls) == ("failed", 1)
    assert done.sources[0].error is not None
    assert done.sources[0].error.endswith(" s, and a run waits 5 s at most")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_of_a_second_is_waited_for(
    database: Database, long_list: Simulator, form: Any
) -> None:
    long_list.add_fault(
        Status(api="coingecko", code=429, retry_after=1, retry_after_as=form, page=1, times=1)
    )

    done = await run_and_report(database, [coingecko_source(long_list)])

    assert (done.status, done.sources[0].calls) == ("succeeded", 8)


@pytest.mark.slow
async def test_slow_upstream_holds_up_a_run_for_a_limited_time(
    database: Database, long_list: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "TIME_LIMIT_S", 6)
    long_list.add_fault(Slow(api="coingecko", page=2, bytes_per_second=10))

    async with asyncio.timeout(20):
        done = await run_and_report(
            database, [CoinPaprika(long_list.coinpaprika_url, None, QUICK), coingecko_source(long_list)]
        )

    slow, other = done.sources
    assert (slow.status, slow.records.fetched, other.status) == ("partial", 250, "succeeded")
    assert slow.error == "page 2: CoinGecko took longer than the 0.1 min that a run gives it"
