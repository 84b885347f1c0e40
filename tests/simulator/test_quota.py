"""Quotas count calls as the vendors do, failed calls too."""

import aiohttp
import pytest

from kasparro.simulator import Account, Simulator
from kasparro.simulator.faults import Status
from tests.simulator.client import Client
from tests.simulator.conftest import BASE

MONTH_OF_TICKS = 31 * 24 * 60


async def test_calls_over_the_minute_get_retry_after(session: aiohttp.ClientSession) -> None:
    async with Simulator(
        coins=30, base=BASE, tick=20, manual=True, coingecko=Account(per_minute=2)
    ) as simulator:
        client = Client(simulator, session)
        assert [(await client.markets()).status for _ in range(2)] == [200, 200]
        simulator.advance()
        over = await client.markets()
        assert (over.status, over.headers["retry-after"]) == (429, "40")
        assert over.json()["status"]["error_code"] == "429"
        simulator.advance(2)
        assert (await client.markets()).status == 200


async def test_throttled_call_as_plain_text(session: aiohttp.ClientSession) -> None:
    account = Account(per_minute=0, throttled="plain")
    async with Simulator(coins=30, base=BASE, manual=True, coingecko=account) as simulator:
        over = await Client(simulator, session).markets()
    assert (over.status, over.body.strip()) == (429, b"Throttled")
    assert over.headers["content-type"].startswith("text/plain")


async def test_calls_over_the_second_are_rejected(session: aiohttp.ClientSession) -> None:
    async with Simulator(
        coins=30, base=BASE, tick=1, manual=True, coinpaprika=Account(per_second=1)
    ) as simulator:
        client = Client(simulator, session)
        assert [(await client.tickers()).status for _ in range(2)] == [200, 429]
        simulator.advance()
        assert (await client.tickers()).status == 200


@pytest.mark.parametrize("api", ["coinpaprika", "coingecko"])
async def test_monthly_quota_resets_with_the_month(session: aiohttp.ClientSession, api: str) -> None:
    account = Account(per_month=1)
    async with Simulator(
        coins=30, base=BASE, manual=True, coinpaprika=account, coingecko=account
    ) as simulator:
        client = Client(simulator, session)
        call, status = (client.tickers, 402) if api == "coinpaprika" else (client.markets, 429)
        assert [(await call()).status for _ in range(2)] == [200, status]
        simulator.advance(MONTH_OF_TICKS)
        assert (await call()).status == 200


async def test_failed_calls_count(session: aiohttp.ClientSession) -> None:
    async with Simulator(coins=30, base=BASE, manual=True, coingecko=Account(per_minute=2)) as simulator:
        client = Client(simulator, session)
        simulator.add_fault(Status(api="coingecko", code=503, times=1))
        assert (await client.markets()).status == 503
        assert (await client.markets(page=0)).status == 422
        assert (await client.markets()).status == 429
