"""What was served whole can be asked for, to compare with what became of it."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from kasparro.simulator import Simulator
from kasparro.simulator.faults import AnyFault, ContentType, Empty, Html, Slow, Status, Truncated
from tests.simulator.client import Client
from tests.simulator.conftest import BASE


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(seed=7, coins=600, base=BASE, manual=True, keep_answers=True) as running:
        yield running


async def answers(client: Client, query: str = "") -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = (await client.control("GET", f"answers{query}")).json()
    return told


async def test_each_answer_is_kept_with_its_call_and_its_bytes(client: Client) -> None:
    tickers = await client.tickers()
    page = await client.markets(page=2)

    kept = await answers(client)

    assert [(one["number"], one["api"], one["page"]) for one in kept] == [
        ("1", "coinpaprika", "1"),
        ("2", "coingecko", "2"),
    ]
    assert [base64.b64decode(one["body"]) for one in kept] == [tickers.body, page.body]
    assert [one["number"] for one in await answers(client, "?after=1")] == ["2"]


async def test_a_304_tells_the_body_that_the_caller_has(client: Client) -> None:
    first = await client.markets()
    again = await client.markets(headers={"If-None-Match": first.headers["etag"]})

    assert (again.status, again.body) == (304, b"")
    assert base64.b64decode((await answers(client, "?after=1"))[0]["body"]) == first.body


@pytest.mark.parametrize(
    ("fault", "whole"),
    [
        (Status(api="coingecko", code=500), False),
        (Html(api="coingecko"), False),
        (Empty(api="coingecko"), False),
        (Truncated(api="coingecko"), False),
        (ContentType(api="coingecko"), True),
        (Slow(api="coingecko", bytes_per_second=10_000_000), True),
    ],
)
async def test_what_did_not_arrive_whole_was_not_told(
    simulator: Simulator, client: Client, fault: AnyFault, whole: bool
) -> None:
    simulator.add_fault(fault)
    try:
        await client.markets()
    except aiohttp.ClientError:
        assert isinstance(fault, Truncated)

    assert bool(await answers(client)) == whole


async def test_they_are_forgotten_on_request_and_not_kept_unasked(
    client: Client, session: aiohttp.ClientSession
) -> None:
    await client.tickers()
    await client.tickers()
    await client.control("DELETE", "answers?through=1")
    assert [one["number"] for one in await answers(client)] == ["2"]

    async with Simulator(coins=5, base=BASE) as forgetful:
        other = Client(forgetful, session)
        await other.tickers()
        assert await answers(other) == []
