"""The control API does over HTTP what the simulator's methods do."""

from typing import Any

import pytest

from kasparro.simulator import Simulator
from tests.simulator.client import Client

EXACT = b'[{"id":"a","current_price":1.2e-11},{"id":"b","current_price":123456789012345678.123456789}]'


async def test_faults_are_added_listed_and_removed(simulator: Simulator, client: Client) -> None:
    added = await client.control(
        "POST",
        "faults",
        json=[
            {"api": "coingecko", "kind": "status", "code": 429, "retry_after": 119, "body": "plain"},
            {"api": "coinpaprika", "kind": "bad-records", "records": ["null-id"], "times": 2},
        ],
    )
    assert (added.status, [fault["id"] for fault in added.json()]) == (201, ["1", "2"])
    assert (await client.markets()).status == 429
    listed = (await client.control("GET", "faults")).json()
    assert listed[0]["hits"] == "1"
    assert listed[1]["fault"]["kind"] == "bad-records"
    assert (await client.control("DELETE", "faults?id=1")).status == 204
    assert [fault.id for fault in simulator.faults] == [2]
    assert (await client.control("DELETE", "faults")).status == 204
    assert simulator.faults == []


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        ({"api": "coingecko", "kind": "explode"}, "explode"),
        ({"api": "kraken", "kind": "hang"}, "kraken"),
        ({"api": "coingecko", "kind": "hang", "often": True}, "often"),
        ({"api": "coingecko", "kind": "status"}, "code"),
        ({"api": "coingecko", "kind": "status", "code": 42}, "code"),
        ({"api": "coingecko", "kind": "hang", "times": 0}, "times"),
        ({"api": "coingecko", "kind": "bad-records", "records": ["ugly"]}, "ugly"),
    ],
)
async def test_invalid_fault_is_rejected_with_the_reason(
    simulator: Simulator, client: Client, fault: dict[str, Any], names: str
) -> None:
    reply = await client.control("POST", "faults", json=fault)
    assert reply.status == 400
    assert names in reply.json()["error"]
    assert simulator.faults == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "faults?x=1"),
        ("DELETE", "faults?id=one"),
        ("GET", "calls?api=kraken"),
        ("PUT", "payload?page=1"),
        ("PUT", "payload?api=coingecko&page=0"),
        ("POST", "reset?hard=yes"),
    ],
)
async def test_invalid_parameter_is_rejected(client: Client, method: str, path: str) -> None:
    assert (await client.control(method, path)).status == 400


async def test_removing_an_inactive_fault_is_404(client: Client) -> None:
    assert (await client.control("DELETE", "faults?id=9")).status == 404


async def test_calls_are_listed_with_request_and_status(simulator: Simulator, client: Client) -> None:
    await client.markets(page=2, headers={"x-cg-demo-api-key": "k"})
    await client.tickers()
    calls = (await client.control("GET", "calls")).json()
    assert [(call["api"], call["status"]) for call in calls] == [("coingecko", "401"), ("coinpaprika", "200")]
    assert calls[0]["query"]["page"] == "2"
    assert calls[0]["headers"]["x-cg-demo-api-key"] == "k"
    assert calls[0]["path"] == "/coingecko/api/v3/coins/markets"
    assert calls[0]["at"] == "2026-06-01T12:00:00Z"
    assert len((await client.control("GET", "calls?api=coingecko")).json()) == 1
    assert (await client.control("GET", "calls?after=1")).json() == calls[1:]
    assert (await client.control("GET", "calls?api=coingecko&after=1")).json() == []


async def test_time_advances(simulator: Simulator, client: Client) -> None:
    reply = await client.control("POST", "advance", json={"ticks": 5})
    assert reply.json() == {"tick": "5", "now": "2026-06-01T12:05:00Z"}
    await client.control("POST", "advance")
    assert simulator.clock.tick == 6
    assert (await client.control("POST", "advance", json={"ticks": -1})).status == 400


async def test_reset_returns_to_the_start(simulator: Simulator, client: Client) -> None:
    first = await client.markets()
    await client.control("PUT", "payload?api=coingecko", data=b"[]")
    await client.control("POST", "faults", json={"api": "coinpaprika", "kind": "hang"})
    await client.control("POST", "advance")
    assert (await client.control("POST", "reset")).status == 204
    assert (simulator.faults, len(simulator.calls), simulator.clock.tick) == ([], 0, 0)
    assert (await client.markets()).body == first.body


async def test_fixed_page_is_served_exactly(client: Client) -> None:
    await client.control("PUT", "payload?api=coingecko&page=1", data=EXACT)
    assert (await client.markets(page=1)).body == EXACT
    assert len((await client.markets(page=2)).json()) == 250
    await client.control("DELETE", "payload")
    assert len((await client.markets(page=1)).json()) == 250


async def test_payload_without_a_page_is_the_whole_list(client: Client) -> None:
    await client.control("PUT", "payload?api=coingecko", data=EXACT)
    assert [(await client.markets(page=page)).body for page in (1, 2)] == [EXACT, b"[]"]


async def test_replayed_bodies_are_followed_by_empty_pages(simulator: Simulator, client: Client) -> None:
    simulator.replay("coingecko", [EXACT, b'[{"id":"c"}]'])
    assert [(await client.markets(page=page)).body for page in (1, 2, 3)] == [EXACT, b'[{"id":"c"}]', b"[]"]
    simulator.replay("coinpaprika", [b"not even JSON"])
    assert (await client.tickers()).body == b"not even JSON"
