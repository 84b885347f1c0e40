"""What upstreams do on their bad days, and what a person on call reads of it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import asyncpg
import pytest
import stamina.instrumentation
from aiohttp import web
from stamina.instrumentation import RetryDetails

from kasparro.model.payload import Retention
from kasparro.pipeline import report
from kasparro.settings import Secret
from kasparro.simulator import Simulator
from kasparro.simulator.faults import (
    AnyFault,
    ContentType,
    Empty,
    GzipGarbage,
    Hang,
    Html,
    Huge,
    ListCut,
    NotAnArray,
    Redirect,
    Reset,
    Slow,
    Status,
    Truncated,
)
from kasparro.simulator.market import Api
from kasparro.sources import coingecko, http
from kasparro.sources.base import Source
from kasparro.sources.coingecko import CoinGecko
from kasparro.sources.coinpaprika import CoinPaprika
from kasparro.sources.http import RetryLimits
from kasparro.store.pool import Database
from tests.support.runs import (
    BEGIN,
    QUICK,
    apis,
    coingecko_source,
    run_and_report,
    run_sources,
    source_outcomes,
)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(seed=7, coins=40, manual=True) as running:
        yield running


async def told_on_call(connection: Connection, source: str) -> str:
    """Why /health is degraded."""
    found = (await report.health(connection, [source], None))[source]
    assert found.error is not None
    assert found.reasons == [f"failed: {found.error}"]
    assert "\n" not in found.error
    return found.error.removeprefix("page 1: ")


# What an upstream does; how often it is called then; what is told of it, of which * stands for a detail.
BAD: dict[str, tuple[AnyFault, int, str]] = {
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
    "503 of a CDN": (Status(api="coingecko", code=503, body="html"), 2, "CoinGecko answered 503"),
    "400": (
        Status(api="coinpaprika", code=400),
        1,
        "CoinPaprika answered 400: The simulator answers 400 here.",
    ),
    "401": (
        Status(api="coingecko", code=401),
        1,
        "CoinGecko answered 401 (the key is missing or not accepted): The simulator answers 401 here.",
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
        "CoinGecko answered 403 (access denied: a wrong key, or this address is blocked)",
    ),
    "404": (
        Status(api="coinpaprika", code=404),
        1,
        "CoinPaprika answered 404 (no such path; check the base URL): The simulator answers 404 here.",
    ),
    "429 in words": (
        Status(api="coingecko", code=429, body="plain"),
        2,
        "CoinGecko answered 429 (too many requests): Throttled",
    ),
    "429 for long": (
        Status(api="coingecko", code=429, retry_after=119),
        1,
        "CoinGecko answered 429 (too many requests): The simulator answers 429 here.; asks to wait 119 s, "
        "and a run waits 5 s at most",
    ),
    "a web page": (Html(api="coingecko"), 2, "CoinGecko answered an HTML page"),
    "half an answer": (
        Truncated(api="coinpaprika"),
        2,
        "CoinPaprika sent an answer that breaks off or is damaged: *",
    ),
    "damaged gzip": (
        GzipGarbage(api="coinpaprika"),
        2,
        "CoinPaprika sent an answer that breaks off or is damaged: * Can not decode content-encoding: gzip",
    ),
    "an empty body": (Empty(api="coingecko"), 2, "CoinGecko answered with an empty body"),
    "an object for a list": (
        NotAnArray(api="coingecko"),
        2,
        "CoinGecko answered no JSON list (Expected `array`, got `object`)",
    ),
    "an answer without end": (
        Huge(api="coinpaprika", megabytes=5),
        2,
        "CoinPaprika could not be read: the answer is longer than 4 MiB",
    ),
    "a redirect": (
        Redirect(api="coingecko", location="/coinpaprika/v1/tickers", code=301),
        1,
        "CoinGecko answered 301 (redirects are not followed; set the base URL to where the API is)",
    ),
    "a reset": (Reset(api="coingecko"), 2, "CoinGecko could not be read: * Connection reset by peer"),
    "silence": (Hang(api="coinpaprika"), 2, "CoinPaprika did not answer in time"),
    "an answer that drips": (
        Slow(api="coinpaprika", bytes_per_second=100),
        2,
        "CoinPaprika did not answer in time",
    ),
}


@pytest.mark.parametrize("bad", BAD)
async def test_what_an_upstream_does_is_told_in_a_line_and_repaired_by_the_next_run(
    database: Database,
    connection: Connection,
    simulator: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    bad: str,
) -> None:
    fault, calls, line = BAD[bad]
    monkeypatch.setattr(http, "SILENCE_S", 0.2)
    monkeypatch.setattr(http, "CALL_S", 1.0)
    monkeypatch.setattr(http, "BODY_LIMIT", 4 << 20)
    simulator.add_fault(fault)
    source = [one for one in apis(simulator) if one.name == fault.api]

    assert await run_sources(database, source) == "failed"

    told, (begins, _, ends) = await told_on_call(connection, fault.api), line.partition("*")
    assert told == line or ("*" in line and told.startswith(begins) and told.endswith(ends)), told
    assert [call.api for call in simulator.calls] == [fault.api] * calls
    assert await connection.fetchval("SELECT count(*) FROM unified_data") == 0
    simulator.clear_faults()
    assert await run_sources(database, source) == "succeeded"
    assert (await report.health(connection, [fault.api], None))[fault.api].reasons == []


@pytest.mark.parametrize(
    ("body", "told"),
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
async def test_an_error_under_a_200_is_told_in_the_upstreams_words(
    database: Database, connection: Connection, simulator: Simulator, body: str, told: str
) -> None:
    simulator.replay("coingecko", [body.encode()])

    assert await run_sources(database, apis(simulator)[1:]) == "failed"

    assert (await told_on_call(connection, "coingecko")).endswith(told)


@pytest.mark.parametrize(
    ("host", "told"),
    [("127.0.0.1:1", "Connect call failed ('127.0.0.1', 1)"), ("nowhere.invalid", "nowhere.invalid:80")],
)
async def test_an_upstream_that_is_not_there_is_told_with_its_address(
    database: Database, connection: Connection, host: str, told: str
) -> None:
    assert await run_sources(database, [CoinPaprika(f"http://{host}", None, QUICK)]) == "failed"

    error = await told_on_call(connection, "coinpaprika")
    assert error.startswith("CoinPaprika cannot be reached: Cannot connect to host ")
    assert told in error
    assert (await source_outcomes(connection))["coinpaprika"]["calls"] == 0


async def test_what_an_answer_is_called_does_not_matter(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    for api in ("coinpaprika", "coingecko"):
        simulator.add_fault(ContentType(api=api))

    assert await run_sources(database, apis(simulator)) == "succeeded"


@pytest.mark.parametrize(("keep", "pages"), [(250, [1, 2]), (251, [1, 2]), (499, [1, 2]), (500, [1, 2, 3])])
async def test_a_list_ends_with_a_short_page_or_an_empty_one(
    database: Database, connection: Connection, keep: int, pages: list[int]
) -> None:
    async with Simulator(seed=7, coins=600, manual=True) as simulator:
        simulator.add_fault(ListCut(api="coingecko", keep=keep))
        assert await run_sources(database, apis(simulator)[1:]) == "succeeded"
        asked = [int(call.query["page"]) for call in simulator.calls]

    assert asked == pages
    assert (await source_outcomes(connection))["coingecko"]["inserted"] == keep


async def test_a_list_without_end_is_left_at_some_page_and_told(
    database: Database, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coingecko, "PAGES_LIMIT", 2)
    async with Simulator(seed=7, coins=600, manual=True) as simulator:
        assert await run_sources(database, apis(simulator)[1:]) == "partial"

    told = (await source_outcomes(connection))["coingecko"]
    assert (told["calls"], told["inserted"]) == (2, 500)
    assert told["error"] == "stopped after 2 pages: the upstream never sent a short one"


@pytest.mark.parametrize(
    ("api", "line"),
    [
        ("coinpaprika", "CoinPaprika answered an empty list"),
        ("coingecko", "CoinGecko answered an empty list"),
    ],
)
async def test_an_empty_list_is_no_list(
    database: Database, connection: Connection, simulator: Simulator, api: Api, line: str
) -> None:
    simulator.add_fault(ListCut(api=api, keep=0))

    assert await run_sources(database, [one for one in apis(simulator) if one.name == api]) == "failed"

    assert await told_on_call(connection, api) == line


@asynccontextmanager
async def answering(*, status: int, body: str = "[]", **headers: str) -> AsyncIterator[tuple[str, list[Any]]]:
    """An upstream that answers so; gives its URL and the headers of its calls."""
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
async def test_a_key_that_an_upstream_repeats_is_not_told(
    database: Database, connection: Connection, status: int
) -> None:
    body = '{"error":"the key hunter2hunter2 is not known"}'
    async with answering(status=status, body=body) as (url, _):
        await run_sources(database, [CoinGecko(url, "demo", Secret("hunter2hunter2"), QUICK)])

    assert (await told_on_call(connection, "coingecko")).endswith(": the key *** is not known")


async def test_each_key_travels_in_the_header_that_its_vendor_reads(database: Database) -> None:
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
    assert [{name for name in names if one.get(name) == key.reveal()} for one in seen] == [
        {names[0]},
        {names[1]},
        {names[2]},
        set(),
    ]


@pytest.mark.parametrize("told", ["soon", "", "-5", "1e9", "9" * 10, "Thu, 99 Foo 2026 00:00:00 GMT"])
async def test_a_retry_after_that_says_nothing_is_as_none(
    database: Database, connection: Connection, told: str
) -> None:
    async with answering(status=503, Retry_After=told) as (url, seen):
        await run_sources(database, [CoinPaprika(url, None, QUICK)])

    assert await told_on_call(connection, "coinpaprika") == "CoinPaprika answered 503"
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("header", "kept"),
    [(b'"v1"', '"v1"'), (b"\xffold", "\\udcffold"), (b"a\x01b", "a\x01b"), (b"v" * 600, "v" * 500)],
)
async def test_a_header_that_is_no_plain_text_is_kept_as_far_as_it_can_be_and_never_sent_back(
    database: Database, connection: Connection, header: bytes, kept: str
) -> None:
    ticker = (
        b'[{"id":"a-a","name":"A","symbol":"A","last_updated":"2026-01-01T00:00:00Z",'
        b'"quotes":{"USD":{"price":1,"volume_24h":2,"market_cap":3}}}]'
    )
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nETag: %b\r\nConnection: close\r\n\r\n"
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
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
    } == {kept}
    assert [b"If-None-Match" in one for one in asked] == [False, header == b'"v1"']


@pytest.fixture
def retries() -> Iterator[list[RetryDetails]]:
    """What is tried again."""
    seen: list[RetryDetails] = []

    def remember(details: RetryDetails) -> None:
        seen.append(details)

    before = stamina.instrumentation.get_on_retry_hooks()
    stamina.instrumentation.set_on_retry_hooks([remember])
    yield seen
    stamina.instrumentation.set_on_retry_hooks(before)


async def test_waits_between_calls_begin_as_told_and_are_bounded(
    database: Database, simulator: Simulator, retries: list[RetryDetails]
) -> None:
    simulator.add_fault(Status(api="coinpaprika", code=500))
    patience = RetryLimits(attempts=3, total_s=9, initial_s=1.05, longest_s=1.1)

    await run_sources(database, [CoinPaprika(simulator.coinpaprika_url, None, patience)])

    first, second = [one.wait_for for one in retries]
    assert 1.05 <= first <= 1.1
    # What was waited so far is taken off a sum of floats.
    assert second == pytest.approx(1.1)


async def test_waits_between_calls_are_not_of_one_length(
    database: Database, simulator: Simulator, retries: list[RetryDetails]
) -> None:
    simulator.add_fault(Status(api="coinpaprika", code=500))
    patience = RetryLimits(attempts=2, total_s=9, initial_s=0.01, longest_s=9)

    await run_sources(database, [CoinPaprika(simulator.coinpaprika_url, None, patience)])

    assert 0.01 < retries[0].wait_for < 1.01


@pytest.fixture
async def long_list() -> AsyncIterator[Simulator]:
    """Five pages of CoinGecko, one call of CoinPaprika."""
    async with Simulator(seed=7, coins=1_150, base=BEGIN, manual=True) as running:
        yield running


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_an_upstream_that_asks_for_a_day_is_not_waited_for(
    database: Database, long_list: Simulator, form: Any
) -> None:
    long_list.add_fault(Status(api="coingecko", code=429, retry_after=86_400, retry_after_as=form, page=1))

    told = await run_and_report(database, [coingecko_source(long_list)])

    assert (told.status, told.sources[0].calls) == ("failed", 1)
    assert told.sources[0].error is not None
    assert told.sources[0].error.endswith(" s, and a run waits 5 s at most")


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_an_upstream_that_asks_for_a_second_is_waited_for(
    database: Database, long_list: Simulator, form: Any
) -> None:
    long_list.add_fault(
        Status(api="coingecko", code=429, retry_after=1, retry_after_as=form, page=1, times=1)
    )

    told = await run_and_report(database, [coingecko_source(long_list)])

    assert (told.status, told.sources[0].calls) == ("succeeded", 6)


async def test_an_upstream_that_drips_holds_up_a_run_for_a_limited_time(
    database: Database, long_list: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "TIME_LIMIT_S", 6)
    long_list.add_fault(Slow(api="coingecko", page=2, bytes_per_second=10))

    async with asyncio.timeout(20):
        told = await run_and_report(
            database, [CoinPaprika(long_list.coinpaprika_url, None, QUICK), coingecko_source(long_list)]
        )

    dripping, other = told.sources
    assert (dripping.status, dripping.records.fetched, other.status) == ("partial", 250, "succeeded")
    assert dripping.error == "page 2: CoinGecko took longer than the 0.1 min that a run gives it"
