"""Each fault affects the calls that it names, and no others."""

import gzip
import json
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from fractions import Fraction
from typing import Any

import aiohttp
import msgspec
import pytest

from kasparro.simulator import Simulator
from kasparro.simulator.faults import (
    AnyFault,
    BadRecord,
    BadRecords,
    ContentType,
    Empty,
    GzipGarbage,
    Hang,
    Html,
    Huge,
    NotAnArray,
    Redirect,
    Reset,
    ScaledPrices,
    SchemaDrift,
    ShortList,
    Slow,
    Status,
    Truncated,
)
from tests.simulator.client import Client


async def test_fault_ends_after_its_times(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(Status(api="coingecko", code=503, times=2))
    assert [(await client.markets()).status for _ in range(3)] == [503, 503, 200]
    assert simulator.faults == []


async def test_fault_without_times_stays_until_removed(simulator: Simulator, client: Client) -> None:
    fault = simulator.add_fault(Status(api="coingecko", code=500))
    assert [(await client.markets()).status for _ in range(3)] == [500] * 3
    assert simulator.faults[0].hits == 3
    assert simulator.remove_fault(fault.id)
    assert (await client.markets()).status == 200


async def test_fault_affects_only_its_api_and_page(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(Status(api="coingecko", code=500, page=2))
    assert [(await client.markets(page=page)).status for page in (1, 2, 3)] == [200, 500, 200]
    assert (await client.tickers()).status == 200


@pytest.mark.slow
async def test_probability_repeats_with_the_seed(session: aiohttp.ClientSession) -> None:
    async def statuses() -> list[int]:
        async with Simulator(seed=5, coins=10, manual=True) as simulator:
            simulator.add_fault(Status(api="coinpaprika", code=500, probability=0.5))
            client = Client(simulator, session)
            return [(await client.tickers()).status for _ in range(20)]

    first = await statuses()
    assert set(first) == {200, 500}
    assert await statuses() == first


async def test_delivery_faults_apply_in_order(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(Status(api="coingecko", code=500, times=1))
    simulator.add_fault(Status(api="coingecko", code=429, times=1))
    assert [(await client.markets()).status for _ in range(3)] == [500, 429, 200]


@pytest.mark.parametrize(
    ("body", "content_type", "holds"),
    [
        ("json", "application/json", b"error_code"),
        ("plain", "text/plain", b"Throttled"),
        ("html", "text/html", b"<html>"),
        ("cdn-1020", "text/html", b"1020"),
    ],
)
async def test_status_fault_has_the_chosen_body(
    simulator: Simulator, client: Client, body: str, content_type: str, holds: bytes
) -> None:
    simulator.add_fault(
        msgspec.convert({"api": "coingecko", "kind": "status", "code": 403, "body": body}, Status)
    )
    reply = await client.markets()
    assert reply.status == 403
    assert reply.headers["content-type"].startswith(content_type)
    assert holds in reply.body


async def test_coinpaprika_errors_have_their_own_shape(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(Status(api="coinpaprika", code=429))
    assert set((await client.tickers()).json()) == {"error"}


async def test_retry_after_in_seconds_or_as_date(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(Status(api="coingecko", code=429, retry_after=119, times=1))
    simulator.add_fault(Status(api="coingecko", code=429, retry_after=119, retry_after_as="date"))
    assert (await client.markets()).headers["retry-after"] == "119"
    when = parsedate_to_datetime((await client.markets()).headers["retry-after"])
    assert timedelta(seconds=100) < when - datetime.now(UTC) < timedelta(seconds=120)


async def test_html_page_with_status_200(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(Html(api="coingecko"))
    reply = await client.markets()
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=UTF-8")
    assert b"<html>" in reply.body


async def test_truncated_body_is_shorter_than_its_length(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(Truncated(api="coinpaprika"))
    with pytest.raises(aiohttp.ClientPayloadError):
        await client.tickers()
    assert simulator.calls[0].status == 200


async def test_slow_body_arrives_completely(simulator: Simulator, client: Client) -> None:
    simulator.put_payload("coinpaprika", b"[" + b" " * 98 + b"]")
    simulator.add_fault(Slow(api="coinpaprika", bytes_per_second=400))
    started = datetime.now(UTC)
    assert len((await client.tickers()).body) == 100
    assert datetime.now(UTC) - started > timedelta(seconds=0.2)


@pytest.mark.parametrize("fault", [Hang(api="coinpaprika"), Slow(api="coinpaprika", bytes_per_second=1)])
async def test_endless_call_times_out_in_the_client(
    simulator: Simulator, client: Client, fault: AnyFault
) -> None:
    simulator.add_fault(fault)
    with pytest.raises(TimeoutError):
        await client.tickers(timeout=aiohttp.ClientTimeout(total=0.1))


async def test_reset_connection_has_no_response(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(Reset(api="coinpaprika"))
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.tickers()
    assert (simulator.calls[0].fault, simulator.calls[0].status) == ("reset", None)


async def test_empty_body(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(Empty(api="coinpaprika"))
    reply = await client.tickers()
    assert (reply.status, reply.body) == (200, b"")


async def test_json_object_instead_of_array(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(NotAnArray(api="coinpaprika"))
    assert isinstance((await client.tickers()).json(), dict)


async def test_other_content_type(simulator: Simulator, client: Client) -> None:
    good = await client.tickers()
    simulator.add_fault(ContentType(api="coinpaprika", value="text/plain"))
    wrong = await client.tickers()
    assert (wrong.headers["content-type"], wrong.body) == ("text/plain", good.body)


async def test_invalid_gzip(simulator: Simulator, session: aiohttp.ClientSession) -> None:
    simulator.add_fault(GzipGarbage(api="coinpaprika"))
    url = f"{simulator.coinpaprika_url}/tickers"
    async with aiohttp.ClientSession(auto_decompress=False) as raw, raw.get(url) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        with pytest.raises((OSError, EOFError, zlib.error)):
            gzip.decompress(await response.read())


async def test_huge_body(simulator: Simulator, session: aiohttp.ClientSession) -> None:
    simulator.add_fault(Huge(api="coinpaprika", megabytes=3))
    async with session.get(f"{simulator.coinpaprika_url}/tickers") as response:
        assert response.content_length is None
        assert 2_900_000 < sum([len(chunk) async for chunk in response.content.iter_any()]) < 3_000_010


async def test_redirect(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(Redirect(api="coinpaprika", location="http://elsewhere.invalid/v1/tickers"))
    reply = await client.tickers(allow_redirects=False)
    assert (reply.status, reply.headers["location"]) == (302, "http://elsewhere.invalid/v1/tickers")


async def bad(simulator: Simulator, client: Client, *kinds: BadRecord) -> bytes:
    simulator.add_fault(BadRecords(api="coinpaprika", records=list(kinds), times=1))
    return (await client.tickers()).body


async def test_bad_records_leave_good_records_unchanged(simulator: Simulator, client: Client) -> None:
    good = (await client.tickers()).json()
    mixed = json.loads(
        await bad(simulator, client, "string-price", "not-an-object", "long-name"),
        parse_float=str,
        parse_int=str,
    )
    assert len(mixed) == len(good) + 3
    assert [record for record in mixed if record in good] == good


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("string-price", ("quotes", "USD", "price"), "not a number"),
        ("negative-price", ("quotes", "USD", "price"), -1.5),
        ("long-number", ("quotes", "USD", "price"), int("7" * 400)),
        ("future", ("last_updated",), "2026-06-11T12:00:00Z"),
        ("long-name", ("name",), "A" * 1_000_000),
        ("lone-surrogate", ("name",), "lone \ud800 surrogate"),
        ("nul", ("name",), "nul \0 inside"),
    ],
)
async def test_bad_record_of_each_kind(
    simulator: Simulator, client: Client, kind: BadRecord, path: tuple[str, ...], value: object
) -> None:
    records = json.loads(await bad(simulator, client, kind))
    found: Any = next(record for record in records if record["id"] == f"bad-{kind}")
    for step in path:
        found = found[step]
    assert found == value


async def test_bad_records_without_id_or_repeated(simulator: Simulator, client: Client) -> None:
    records = json.loads(await bad(simulator, client, "missing-id", "null-id", "duplicate"))
    assert sum("id" not in record for record in records) == 1
    assert sum(record.get("id", "") is None for record in records) == 1
    assert records.count(records[0]) == 2


async def test_bad_record_with_nan_is_no_json(simulator: Simulator, client: Client) -> None:
    body = await bad(simulator, client, "nan")
    assert b'"price":NaN' in body
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(body)


async def test_bad_records_of_coingecko(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(BadRecords(api="coingecko", records=["negative-price"], page=2))
    assert "bad-negative-price" not in (await client.markets(page=1)).ids
    records = {record["id"]: record for record in (await client.markets(page=2)).json()}
    assert records["bad-negative-price"]["current_price"] == "-1.5"


async def test_schema_drift_renames_drops_and_retypes(simulator: Simulator, client: Client) -> None:
    before = (await client.tickers()).json()
    simulator.add_fault(SchemaDrift(api="coinpaprika", field="quotes.USD.price", change="rename", to="last"))
    simulator.add_fault(SchemaDrift(api="coinpaprika", field="symbol", change="drop"))
    simulator.add_fault(SchemaDrift(api="coinpaprika", field="total_supply", change="retype"))
    simulator.add_fault(SchemaDrift(api="coinpaprika", field="name", change="retype"))
    body = (await client.tickers()).body
    for old, new in zip(before, json.loads(body, parse_float=str, parse_int=str), strict=True):
        assert new["quotes"]["USD"].get("price") is None
        assert new["quotes"]["USD"]["last"] == old["quotes"]["USD"]["price"]
        assert "symbol" not in new
        assert new["total_supply"] == old["total_supply"]
        assert new["name"] == {"value": old["name"]}


async def test_schema_drift_nulls_and_copies(simulator: Simulator, client: Client) -> None:
    before = (await client.markets()).json()
    simulator.add_fault(SchemaDrift(api="coingecko", field="ath", change="null"))
    simulator.add_fault(SchemaDrift(api="coingecko", field="atl", change="copy", to="low"))
    for old, new in zip(before, (await client.markets()).json(), strict=True):
        assert (new["ath"], new["atl"], new["low"]) == (None, old["atl"], old["atl"])


@pytest.mark.parametrize("factor", ["0.92", "1000"])
async def test_prices_are_scaled_exactly(simulator: Simulator, client: Client, factor: str) -> None:
    async def prices() -> list[tuple[str, str, str | None]]:
        tickers, markets = (await client.tickers()).json(), (await client.markets()).json()
        return [
            *((coin["id"], coin["last_updated"], coin["quotes"]["USD"]["price"]) for coin in tickers),
            *((coin["id"], coin["last_updated"], coin["current_price"]) for coin in markets),
        ]

    before = await prices()
    simulator.add_fault(ScaledPrices(api="coinpaprika", factor=factor))
    simulator.add_fault(ScaledPrices(api="coingecko", factor=factor))

    for old, new in zip(before, await prices(), strict=True):
        assert new[:2] == old[:2]
        assert new[2] is old[2] is None or Fraction(str(new[2])) == Fraction(str(old[2])) * Fraction(factor)


async def test_short_list(simulator: Simulator, client: Client) -> None:
    pages = [(await client.markets(page=page)).ids for page in (1, 2, 3)]
    simulator.add_fault(ShortList(api="coingecko", coins=300))
    assert [(await client.markets(page=page)).ids for page in (1, 2, 3)] == [pages[0], pages[1][:50], []]
    whole = (await client.tickers()).ids
    simulator.add_fault(ShortList(api="coinpaprika", coins=7))
    short = (await client.tickers()).ids
    assert len(short) == 7
    assert set(short) < set(whole)
