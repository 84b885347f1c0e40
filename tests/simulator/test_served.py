"""The record of completely sent responses."""

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
    async with Simulator(seed=7, coins=600, base=BASE, manual=True, record_served=True) as running:
        yield running


async def served(client: Client, query: str = "") -> list[dict[str, Any]]:
    responses: list[dict[str, Any]] = (await client.control("GET", f"served{query}")).json()
    return responses


async def test_complete_responses_are_recorded(client: Client) -> None:
    tickers = await client.tickers()
    page = await client.markets(page=2)

    recorded = await served(client)

    assert [(response["number"], response["api"], response["page"]) for response in recorded] == [
        ("1", "coinpaprika", "1"),
        ("2", "coingecko", "2"),
    ]
    assert [base64.b64decode(response["body"]) for response in recorded] == [tickers.body, page.body]
    assert [response["number"] for response in await served(client, "?after=1")] == ["2"]


async def test_304_records_the_body_of_the_client(client: Client) -> None:
    first = await client.markets()
    again = await client.markets(headers={"If-None-Match": first.headers["etag"]})

    assert (again.status, again.body) == (304, b"")
    assert base64.b64decode((await served(client, "?after=1"))[0]["body"]) == first.body


@pytest.mark.parametrize(
    ("fault", "complete"),
    [
        (Status(api="coingecko", code=500), False),
        (Html(api="coingecko"), False),
        (Empty(api="coingecko"), False),
        (Truncated(api="coingecko"), False),
        (ContentType(api="coingecko"), True),
        (Slow(api="coingecko", bytes_per_second=10_000_000), True),
    ],
)
async def test_incomplete_response_is_not_recorded(
    simulator: Simulator, client: Client, fault: AnyFault, complete: bool
) -> None:
    simulator.add_fault(fault)
    try:
        await client.markets()
    except aiohttp.ClientError:
        assert isinstance(fault, Truncated)

    assert bool(await served(client)) == complete


async def test_responses_are_forgotten_on_request_and_recorded_only_on_request(
    client: Client, session: aiohttp.ClientSession
) -> None:
    await client.tickers()
    await client.tickers()
    await client.control("DELETE", "served?through=1")
    assert [response["number"] for response in await served(client)] == ["2"]

    async with Simulator(coins=5, base=BASE) as other_simulator:
        other = Client(other_simulator, session)
        await other.tickers()
        assert await served(other) == []
