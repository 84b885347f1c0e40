"""GET /data.csv and /data.ndjson."""

import asyncio
import csv
import io
import json
import sys
import zlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any

import aiohttp
import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from kasparro.settings import Settings
from kasparro.store import exports
from kasparro.store.exports import PART_BYTES, Form
from kasparro.store.pool import Connection, Database
from kasparro.store.selection import FIELDS, Selection
from kasparro.web.http.export_queue import ExportQueue
from kasparro.web.http.protocol import LimitedProtocol, Limits
from tests.conftest import LogEvents
from tests.support.exports import (
    MANY_ROWS,
    export_pids,
    insert_many_rows,
    unfinished_export,
    wait_until_no_export,
)
from tests.support.json_responses import get_exact
from tests.support.metrics import metric_value, scrape
from tests.web.conftest import Insert, insert_rows, serving

pytestmark = pytest.mark.slow

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


ENCODINGS = ("identity", "gzip", "zstd")


def decoded(body: bytes, coding: str) -> tuple[bytes, bool]:
    """The decoded part of a body, and whether the body is complete."""
    if coding == "identity":
        return body, True
    decoder = zlib.decompressobj(wbits=31) if coding == "gzip" else zstd.ZstdDecompressor()
    return decoder.decompress(body), decoder.eof


async def text(client: aiohttp.ClientSession, url: str) -> str:
    async with client.get(url) as response:
        assert response.status == 200, await response.text()
        return (await response.read()).decode()


def rows_of_csv(text: str) -> list[list[str]]:
    """The rows of CSV, each with the texts of its cells."""
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?sort=-price_usd",
        "?source=csv&sort=name",
        "?q=o&rank_max=3",
        "?fields=price_usd,source_id&symbol=a",
        "?fields=source_id,rank_observed_at,listed_at,quoted_in",
        "?as_of=2024-06-01T12:00:00Z",
        "?id=nosuch",
    ],
)
async def test_has_the_rows_of_all_pages(client: aiohttp.ClientSession, insert: Insert, query: str) -> None:
    await insert(
        *(
            {
                "source_id": f"c{n}",
                "source": "csv" if n % 2 else "coingecko",
                "name": f'name "{n % 3}", 比特币\nand so on' if n % 4 else None,
                "symbol": "A" if n % 5 else "",
                "rank": n % 6 or None,
                "price_usd": Decimal(n - 4) / 7,
            }
            for n in range(9)
        )
    )
    rows = (await get_exact(client, f"/data{query}{'&' if query else '?'}limit=1000"))["data"]

    lines = (await text(client, f"/data.ndjson{query}")).splitlines()
    table = rows_of_csv(await text(client, f"/data.csv{query}"))

    assert [json.loads(line, parse_float=Decimal, parse_int=Decimal) for line in lines] == rows
    fields = list(rows[0]) if rows else list(FIELDS)
    assert table[0] == fields
    assert table[1:] == [["" if value is None else str(value) for value in row.values()] for row in rows]


@pytest.mark.parametrize("query", ["", "?diverging=true&sort=-price_usd"])
async def test_assets_have_the_rows_of_all_pages(
    client: aiohttp.ClientSession, connection: Connection, query: str
) -> None:
    await connection.execute(
        "INSERT INTO unified_assets (asset, symbol, name, rank, price_usd, source_count, diverging,"
        " observed_at, listing_state, version)"
        " SELECT 'a-' || n, 'A', CASE WHEN n > 2 THEN 'name \"' || n END, n, n / 7.0, n, n % 2 = 0,"
        " CASE WHEN n > 2 THEN timestamptz '2025-06-01 12:00:00.5Z' END, 0, 1 FROM generate_series(1, 6) AS n"
    )
    rows = (await get_exact(client, f"/assets{query}"))["data"]

    lines = (await text(client, f"/assets.ndjson{query}")).splitlines()
    table = rows_of_csv(await text(client, f"/assets.csv{query}"))

    assert [json.loads(line, parse_float=Decimal, parse_int=Decimal) for line in lines] == rows

    def cell(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)

    assert table == [[*rows[0]], *(list(map(cell, row.values())) for row in rows)]


# Texts that a spreadsheet takes for formulas, and texts that only look like them.
FORMULAS = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "＝1",
    "＋1",
    "－1",
    "＠1",
    '="a"',
    '=",=1',
]
TEXTS = ["a=1", "'", "'=1", "", ",=1", ',"=1', '","=1","', '"', '"=1', ",", "a,\n=1", " =1", "é漢\U0001f680"]


async def test_csv_round_trip(client: aiohttp.ClientSession, insert: Insert) -> None:
    names = [*FORMULAS, *TEXTS]
    await insert(*({"source_id": f"{n:02}", "symbol": name, "name": name} for n, name in enumerate(names)))
    for query in ("", "&spreadsheet=false"):
        body = await text(client, f"/data.csv?fields=symbol,name&sort=source_id{query}")
        assert rows_of_csv(body) == [
            ["symbol", "name"],
            *([name, name] for name in names),
        ]


# What CSV, JSON and COPY treat in a special way, and any other character.
SPECIAL = [*"\"\\,\r\n\t\b\x01\x02\x1f\x7f'=.;{}:$%", "\\.", ',"\r"\n', "null", "\ufeff", "é漢"]
ANY_TEXT = st.lists(
    st.sampled_from(SPECIAL) | st.characters(codec="utf-8", exclude_characters="\0"), max_size=12
).map("".join)


@hypothesis.given(st.lists(st.none() | ANY_TEXT, min_size=1, max_size=30))
def test_any_text_comes_back(
    runner: asyncio.Runner, shared_database: Database, names: list[str | None]
) -> None:
    selection = Selection(fields=("symbol", "name"), sort="source_id")

    async def export(form: Form, **options: bool) -> str:
        async with shared_database.exporting() as connection:
            parts = exports.export(connection, selection, form, **options)
            return b"".join([part async for part in parts]).decode()

    async def export_all() -> list[str]:
        async with shared_database.writing() as connection:
            await connection.execute("TRUNCATE unified_data")
            rows = ({"source_id": f"{n:02}", "symbol": name, "name": name} for n, name in enumerate(names))
            await insert_rows(connection, rows)
        return [await export("csv"), await export("csv", spreadsheet=True), await export("ndjson")]

    plain, spreadsheet, lines = runner.run(export_all())

    # To Python's reader of CSV, null is an empty text.
    assert rows_of_csv(plain) == [[name or ""] * 2 for name in names]
    assert rows_of_csv(spreadsheet) == [[escaped(name or "")] * 2 for name in names]
    assert lines.endswith("\n")
    assert [json.loads(line) for line in lines[:-1].split("\n")] == [
        {"symbol": name, "name": name} for name in names
    ]


def escaped(text: str) -> str:
    """A text as it is shown to spreadsheets."""
    return f"'{text}" if text.startswith(tuple("-=+@\t\r\n\uff0b\uff0d\uff1d\uff20")) else text


async def test_csv_for_spreadsheets(client: aiohttp.ClientSession, insert: Insert) -> None:
    names = [*FORMULAS, *TEXTS]
    await insert(*({"source_id": f"{n:02}", "symbol": name, "name": name} for n, name in enumerate(names)))
    body = await text(client, "/data.csv?fields=symbol,name&sort=source_id&spreadsheet=true")
    assert body.startswith("\ufeffsymbol,name\r\n")
    shown = [*(f"'{name}" for name in FORMULAS), *TEXTS]
    assert rows_of_csv(body)[1:] == [[name, name] for name in shown]
    # Also without rows.
    assert await text(client, "/data.csv?fields=name&id=nosuch&spreadsheet=true") == "\ufeffname\r\n"


async def test_csv_null_and_empty_text(client: aiohttp.ClientSession, insert: Insert) -> None:
    await insert(
        {"source_id": "a", "name": "", "rank": 1, "percent_change_1h": Decimal("-1.5")},
        {"source_id": "b", "symbol": "NULL", "price_usd": Decimal("118142961.899676295445666961")},
    )
    for query in ("", "&spreadsheet=true"):
        body = await text(client, f"/data.csv?fields=symbol,name,rank,price_usd,percent_change_1h{query}")
        assert body.removeprefix("\ufeff") == (
            "symbol,name,rank,price_usd,percent_change_1h\r\n"
            ',"",1,,-1.5\r\n'
            '"NULL",,,118142961.899676295445666961,\r\n'
        )


@pytest.mark.parametrize("value", ["True", "1", "yes", "", "true,false"])
async def test_invalid_boolean(client: aiohttp.ClientSession, value: str) -> None:
    problem = await get_exact(client, f"/data.csv?spreadsheet={value}", 400)
    assert (problem["parameter"], problem["allowed"]) == ("spreadsheet", "true or false")


async def test_ndjson_has_no_spreadsheet_parameter(client: aiohttp.ClientSession) -> None:
    assert (await get_exact(client, "/data.ndjson?spreadsheet=true", 400))["parameter"] == "spreadsheet"


async def test_file_name_and_media_type(client: aiohttp.ClientSession) -> None:
    for form, media_type in (("csv", "text/csv; charset=utf-8"), ("ndjson", "application/x-ndjson")):
        for method in ("GET", "HEAD"):
            async with client.request(method, f"/data.{form}") as response:
                assert response.status == 200
                assert response.headers["Content-Type"] == media_type
                assert (
                    response.headers["Content-Disposition"] == f'attachment; filename="kasparro-data.{form}"'
                )
                assert response.headers["Cache-Control"] == "no-store"
                assert response.headers["X-Accel-Buffering"] == "no"
                # The length of a stream is not known in advance.
                assert "Content-Length" not in response.headers
                header = ",".join(FIELDS) + "\r\n" if form == "csv" and method == "GET" else ""
                assert await response.text() == header


async def test_compression(client: aiohttp.ClientSession, insert: Insert) -> None:
    await insert(*({"source_id": f"c{n:03}", "rank": n, "name": "é" * 20} for n in range(1, 700)))
    for path in ("/data.csv", "/data.ndjson", "/data.csv?id=nosuch", "/data.ndjson?id=nosuch"):
        plain = await text(client, path)
        for accepted, coding in {
            "": "identity",
            "gzip": "gzip",
            "zstd": "zstd",
            "gzip, deflate, br, zstd": "zstd",
            "gzip, zstd;q=0.5": "gzip",
            "gzip;q=0, zstd;q=0": "identity",
            "br": "identity",
        }.items():
            headers = {"Accept-Encoding": accepted}
            async with client.get(path, headers=headers, auto_decompress=False) as response:
                body = await response.read()
            async with client.head(path, headers=headers) as head:
                pass
            for given in (response, head):
                assert given.headers.get("Content-Encoding", "identity") == coding
                assert given.headers["Vary"] == "Accept-Encoding"
                assert "Content-Length" not in given.headers
            assert decoded(body, coding) == (plain.encode(), True)
            if coding != "identity" and "nosuch" not in path:
                assert len(body) < len(plain) / 5


@pytest.mark.parametrize("coding", ENCODINGS)
async def test_rows_arrive_as_a_stream(
    client: aiohttp.ClientSession, connection: Connection, coding: str
) -> None:
    await insert_many_rows(connection)
    headers = {"Accept-Encoding": coding}
    async with client.get("/data.ndjson", headers=headers, auto_decompress=False) as response:
        body, lines = b"", b""
        # PostgreSQL still has most of the rows.
        while len(lines) < PART_BYTES:
            body += await response.content.readany()
            lines, _ = decoded(body, coding)
        assert len(await export_pids(connection)) == 1
    ranks = [json.loads(line)["rank"] for line in lines.split(b"\n")[:-1]]
    assert ranks == list(range(1, len(ranks) + 1))


@pytest.mark.parametrize("parameter", ["limit=5", "page=1", "cursor=x", "nosuch=1"])
async def test_no_pages(client: aiohttp.ClientSession, parameter: str) -> None:
    assert (await get_exact(client, f"/data.csv?{parameter}", 400))["parameter"] == parameter.partition("=")[
        0
    ]


async def test_rows_of_one_moment(client: aiohttp.ClientSession, connection: Connection) -> None:
    await insert_many_rows(connection)
    async with unfinished_export(client, "/data.ndjson?fields=name,price_usd,source_id") as response:
        await connection.execute(
            "UPDATE unified_data SET price_usd = -1; DELETE FROM unified_data WHERE rank = 9"
        )
        rest = await response.read()
    prices = [json.loads(line)["price_usd"] for line in rest.splitlines()[1:]]
    assert prices == list(range(2, MANY_ROWS + 1))


@pytest.mark.parametrize("coding", ENCODINGS)
async def test_disconnect_ends_the_query(
    client: aiohttp.ClientSession, connection: Connection, logged: LogEvents, coding: str
) -> None:
    await insert_many_rows(connection)
    async with unfinished_export(client, coding=coding) as response:
        assert len(await export_pids(connection)) == 1
        response.close()
    await wait_until_no_export(connection)
    assert [event for event in logged.seen if event["level"] in {"warning", "error", "exception"}] == []


@pytest.mark.parametrize("coding", ENCODINGS)
async def test_client_that_never_reads_is_disconnected(
    database_url: str, connection: Connection, coding: str
) -> None:
    class ShortLimits(LimitedProtocol):
        limits = Limits(drain_s=0.3)

    await insert_many_rows(connection)
    async with (
        serving(database_url, http=ShortLimits) as client,
        unfinished_export(client, coding=coding) as response,
    ):
        await wait_until_no_export(connection)
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


@pytest.mark.parametrize("coding", ENCODINGS)
async def test_failed_export_looks_incomplete(
    client: aiohttp.ClientSession, connection: Connection, coding: str
) -> None:
    await insert_many_rows(connection)
    headers = {"Accept-Encoding": coding}
    async with client.get("/data.ndjson", headers=headers, auto_decompress=False) as response:
        body = await response.content.readany()

        async def read_rest() -> None:
            nonlocal body
            async for chunk in response.content.iter_any():
                body += chunk

        (pid,) = await export_pids(connection)
        await connection.execute("SELECT pg_terminate_backend($1::integer)", pid)
        with pytest.raises(aiohttp.ClientPayloadError):
            await read_rest()
    # A client that ignores the missing last chunk finds no end mark of the encoding either.
    assert coding == "identity" or not decoded(body, coding)[1]


@pytest.fixture
def set_limits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Changes some limits of exports."""

    def change(**limits: Any) -> None:
        monkeypatch.setattr(ExportQueue, "limits", msgspec.structs.replace(ExportQueue.limits, **limits))

    return change


async def test_running_exports_delay_only_exports_of_the_same_client(
    client: aiohttp.ClientSession, connection: Connection
) -> None:
    await insert_many_rows(connection)
    async with AsyncExitStack() as stack:
        running = [
            await stack.enter_async_context(unfinished_export(client))
            for _ in range(ExportQueue.limits.per_client)
        ]
        third = asyncio.create_task(text(client, "/data.csv?symbol=nosuch"))
        assert (await get_exact(client, "/data?limit=1"))["pagination"]["total"] == MANY_ROWS
        assert len(await export_pids(connection)) == ExportQueue.limits.per_client
        assert not third.done()
        running[0].close()
        async with asyncio.timeout(20):
            assert (await third).startswith("source,")


async def test_too_many_waiting_exports_of_a_client(
    database_url: str, connection: Connection, set_limits: Callable[..., None]
) -> None:
    set_limits(queued_per_client=1)
    await insert_many_rows(connection)
    settings = Settings(trusted_proxies=("127.0.0.1",))
    async with (
        serving(database_url, settings) as client,
        unfinished_export(client),
        unfinished_export(client),
    ):
        waiting = asyncio.create_task(text(client, "/data.csv?symbol=nosuch"))
        samples = await scrape(client)
        while metric_value(samples, "kasparro_pool_waiting", pool="export") != 1:
            samples = await scrape(client)
        async with client.get("/data.csv") as beyond:
            problem: Any = await beyond.json(content_type="application/problem+json")
            assert (beyond.status, problem["type"]) == (429, "urn:kasparro:problem:too-many-exports")
            assert int(beyond.headers["Retry-After"]) > 0
        other = {"X-Forwarded-For": "192.0.2.1"}
        async with client.get("/data.csv?symbol=nosuch", headers=other) as response:
            assert response.status == 200
        assert not waiting.done()
        waiting.cancel()


async def test_export_waits_too_long(
    client: aiohttp.ClientSession, connection: Connection, set_limits: Callable[..., None]
) -> None:
    set_limits(queue_timeout_s=0.1)
    await insert_many_rows(connection)
    async with unfinished_export(client), unfinished_export(client), client.get("/data.csv") as third:
        assert third.status == 503
        assert "Retry-After" in third.headers
        problem: Any = await third.json(content_type="application/problem+json")
        assert problem["type"] == "urn:kasparro:problem:too-busy"
    # The place in the queue is free again.
    await wait_until_no_export(connection)
    assert await text(client, "/data.csv?symbol=nosuch")


async def test_slow_reader_is_aborted_while_others_wait(
    database_url: str, connection: Connection, set_limits: Callable[..., None]
) -> None:
    # Faster than any client reads, so that this one soon counts as slow.
    set_limits(window_s=0.2, min_bytes_per_s=1 << 30)
    await insert_many_rows(connection)
    settings = Settings(trusted_proxies=("127.0.0.1",))
    async with serving(database_url, settings, exporters=1) as client, unfinished_export(client) as slow:
        headers = {"X-Forwarded-For": "192.0.2.1"}
        async with asyncio.timeout(20), client.get("/data.csv?symbol=nosuch", headers=headers) as response:
            assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await slow.read()


async def test_slow_reader_continues_if_no_other_client_waits(
    client: aiohttp.ClientSession, connection: Connection, set_limits: Callable[..., None]
) -> None:
    set_limits(window_s=0.01)
    await insert_many_rows(connection)
    async with unfinished_export(client), unfinished_export(client) as slow:
        third = asyncio.create_task(text(client, "/data.csv?symbol=nosuch"))
        # Only a further export of the same client waits.
        assert (await get_exact(client, "/data?limit=1"))["pagination"]["total"] == MANY_ROWS
        assert (await slow.read()).count(b"\n") == MANY_ROWS
        await third
