"""Each fault does to a call what its name says, to the calls it names and no others."""

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
    ListCut,
    NotAnArray,
    Redirect,
    Reset,
    ScaledPrices,
    SchemaDrift,
    Slow,
    Status,
    Truncated,
)
from tests.simulator.client import Client


async def test_a_fault_strikes_so_many_calls_and_is_gone(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(Status(api="coingecko", code=503, times=2))
    assert [(await client.markets()).status for _ in range(3)] == [503, 503, 200]
    assert simulator.faults == []


async def test_a_fault_without_a_number_of_times_stays_until_removed(
    simulator: Simulator, client: Client
) -> None:
    armed = simulator.add_fault(Status(api="coingecko", code=500))
    assert [(await client.markets()).status for _ in range(3)] == [500] * 3
    assert simulator.faults[0].struck == 3
    assert simulator.remove_fault(armed.id)
    assert (await client.markets()).status == 200


async def test_a_fault_strikes_its_api_and_its_page_only(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(Status(api="coingecko", code=500, page=2))
    assert [(await client.markets(page=page)).status for page in (1, 2, 3)] == [200, 500, 200]
    assert (await client.tickers()).status == 200


async def test_chances_repeat_with_the_seed(session: aiohttp.ClientSession) -> None:
    async def struck() -> list[int]:
        async with Simulator(seed=5, coins=10, manual=True) as simulator:
            simulator.add_fault(Status(api="coinpaprika", code=500, probability=0.5))
            client = Client(simulator, session)
            return [(await client.tickers()).status for _ in range(20)]

    first = await struck()
    assert set(first) == {200, 500}
    assert await struck() == first


async def test_faults_strike_one_after_the_other(simulator: Simulator, client: Client) -> None:
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
async def test_a_status_comes_with_any_of_the_recorded_bodies(
    simulator: Simulator, client: Client, body: str, content_type: str, holds: bytes
) -> None:
    simulator.add_fault(
        msgspec.convert({"api": "coingecko", "kind": "status", "code": 403, "body": body}, Status)
    )
    reply = await client.markets()
    assert reply.status == 403
    assert reply.headers["content-type"].startswith(content_type)
    assert holds in reply.body


async def test_coinpaprikas_errors_have_its_own_shape(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(Status(api="coinpaprika", code=429))
    assert set((await client.tickers()).json()) == {"error"}


async def test_a_caller_is_told_when_to_come_back_in_seconds_or_by_date(
    simulator: Simulator, client: Client
) -> None:
    simulator.add_fault(Status(api="coingecko", code=429, retry_after=119, times=1))
    simulator.add_fault(Status(api="coingecko", code=429, retry_after=119, retry_after_as="date"))
    assert (await client.markets()).headers["retry-after"] == "119"
    when = parsedate_to_datetime((await client.markets()).headers["retry-after"])
    assert timedelta(seconds=100) < when - datetime.now(UTC) < timedelta(seconds=120)


async def test_a_page_of_html_comes_with_status_200(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(Html(api="coingecko"))
    reply = await client.markets()
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=UTF-8")
    assert b"<html>" in reply.body


async def test_a_truncated_body_ends_before_its_length(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(Truncated(api="coinpaprika"))
    with pytest.raises(aiohttp.ClientPayloadError):
        await client.tickers()
    assert simulator.calls[0].status == 200


async def test_a_slow_body_drips_and_arrives_whole(simulator: Simulator, client: Client) -> None:
    simulator.put_payload("coinpaprika", b"[" + b" " * 98 + b"]")
    simulator.add_fault(Slow(api="coinpaprika", bytes_per_second=400))
    started = datetime.now(UTC)
    assert len((await client.tickers()).body) == 100
    assert datetime.now(UTC) - started > timedelta(seconds=0.2)


@pytest.mark.parametrize("fault", [Hang(api="coinpaprika"), Slow(api="coinpaprika", bytes_per_second=1)])
async def test_a_call_that_never_ends_runs_into_the_callers_timeout(
    simulator: Simulator, client: Client, fault: AnyFault
) -> None:
    simulator.add_fault(fault)
    with pytest.raises(TimeoutError):
        await client.tickers(timeout=aiohttp.ClientTimeout(total=0.1))


async def test_a_reset_connection_gives_no_answer(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(Reset(api="coinpaprika"))
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.tickers()
    assert (simulator.calls[0].fault, simulator.calls[0].status) == ("reset", None)


async def test_a_body_can_be_empty(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(Empty(api="coinpaprika"))
    reply = await client.tickers()
    assert (reply.status, reply.body) == (200, b"")


async def test_json_can_be_no_array(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(NotAnArray(api="coinpaprika"))
    assert isinstance((await client.tickers()).json(), dict)


async def test_a_good_body_can_come_as_another_content_type(simulator: Simulator, client: Client) -> None:
    good = await client.tickers()
    simulator.add_fault(ContentType(api="coinpaprika", value="text/plain"))
    wrong = await client.tickers()
    assert (wrong.headers["content-type"], wrong.body) == ("text/plain", good.body)


async def test_a_body_can_claim_to_be_gzip(simulator: Simulator, session: aiohttp.ClientSession) -> None:
    simulator.add_fault(GzipGarbage(api="coinpaprika"))
    url = f"{simulator.coinpaprika_url}/tickers"
    async with aiohttp.ClientSession(auto_decompress=False) as raw, raw.get(url) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        with pytest.raises((OSError, EOFError, zlib.error)):
            gzip.decompress(await response.read())


async def test_a_body_can_be_huge(simulator: Simulator, session: aiohttp.ClientSession) -> None:
    simulator.add_fault(Huge(api="coinpaprika", megabytes=3))
    async with session.get(f"{simulator.coinpaprika_url}/tickers") as response:
        assert response.content_length is None
        assert 2_900_000 < sum([len(chunk) async for chunk in response.content.iter_any()]) < 3_000_010


async def test_a_call_can_be_sent_elsewhere(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(Redirect(api="coinpaprika", location="http://elsewhere.invalid/v1/tickers"))
    reply = await client.tickers(allow_redirects=False)
    assert (reply.status, reply.headers["location"]) == (302, "http://elsewhere.invalid/v1/tickers")


async def bad(simulator: Simulator, client: Client, *kinds: BadRecord) -> bytes:
    simulator.add_fault(BadRecords(api="coinpaprika", records=list(kinds), times=1))
    return (await client.tickers()).body


async def test_bad_records_stand_among_the_good_ones_which_stay_as_they_are(
    simulator: Simulator, client: Client
) -> None:
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
async def test_a_bad_record_is_bad_in_the_way_its_kind_says(
    simulator: Simulator, client: Client, kind: BadRecord, path: tuple[str, ...], value: object
) -> None:
    records = json.loads(await bad(simulator, client, kind))
    found: Any = next(record for record in records if record["id"] == f"bad-{kind}")
    for step in path:
        found = found[step]
    assert found == value


async def test_a_bad_record_can_lack_its_id_or_repeat_one(simulator: Simulator, client: Client) -> None:
    records = json.loads(await bad(simulator, client, "missing-id", "null-id", "duplicate"))
    assert sum("id" not in record for record in records) == 1
    assert sum(record.get("id", "") is None for record in records) == 1
    assert records.count(records[0]) == 2


async def test_a_bad_record_can_hold_what_json_does_not_know(simulator: Simulator, client: Client) -> None:
    body = await bad(simulator, client, "nan")
    assert b'"price":NaN' in body
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(body)


async def test_bad_records_reach_coingecko_too(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(BadRecords(api="coingecko", records=["negative-price"], page=2))
    assert "bad-negative-price" not in (await client.markets(page=1)).ids
    records = {record["id"]: record for record in (await client.markets(page=2)).json()}
    assert records["bad-negative-price"]["current_price"] == "-1.5"


async def test_a_field_can_be_renamed_dropped_or_retyped_in_every_record(
    simulator: Simulator, client: Client
) -> None:
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


async def test_a_field_can_turn_null_or_stand_there_twice(simulator: Simulator, client: Client) -> None:
    before = (await client.markets()).json()
    simulator.add_fault(SchemaDrift(api="coingecko", field="ath", change="null"))
    simulator.add_fault(SchemaDrift(api="coingecko", field="atl", change="copy", to="low"))
    for old, new in zip(before, (await client.markets()).json(), strict=True):
        assert (new["ath"], new["atl"], new["low"]) == (None, old["atl"], old["atl"])


@pytest.mark.parametrize("factor", ["0.92", "1000"])
async def test_prices_can_be_scaled_exactly(simulator: Simulator, client: Client, factor: str) -> None:
    async def told() -> list[tuple[str, str, str | None]]:
        tickers, markets = (await client.tickers()).json(), (await client.markets()).json()
        prices = [(one["id"], one["last_updated"], one["quotes"]["USD"]["price"]) for one in tickers]
        return prices + [(one["id"], one["last_updated"], one["current_price"]) for one in markets]

    before = await told()
    simulator.add_fault(ScaledPrices(api="coinpaprika", factor=factor))
    simulator.add_fault(ScaledPrices(api="coingecko", factor=factor))

    for old, new in zip(before, await told(), strict=True):
        assert new[:2] == old[:2]
        assert new[2] is old[2] is None or Fraction(str(new[2])) == Fraction(str(old[2])) * Fraction(factor)


async def test_a_list_can_end_early(simulator: Simulator, client: Client) -> None:
    pages = [(await client.markets(page=page)).ids for page in (1, 2, 3)]
    simulator.add_fault(ListCut(api="coingecko", keep=300))
    assert [(await client.markets(page=page)).ids for page in (1, 2, 3)] == [pages[0], pages[1][:50], []]
    whole = (await client.tickers()).ids
    simulator.add_fault(ListCut(api="coinpaprika", keep=7))
    cut = (await client.tickers()).ids
    assert len(cut) == 7
    assert set(cut) < set(whole)
