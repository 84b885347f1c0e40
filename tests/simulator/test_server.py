"""The simulator runs in a loop or as a process, and ends at once even if a fault holds a connection."""

import asyncio
import signal
import sys
from pathlib import Path

import aiohttp
import msgspec
import pytest

from kasparro.simulator import Account, Simulator
from kasparro.simulator.coingecko import CoinGecko
from kasparro.simulator.faults import Hang, Huge, Slow
from kasparro.simulator.upstream import Selection
from tests.simulator.client import Client
from tests.simulator.conftest import BASE


async def test_context_serves_at_once(session: aiohttp.ClientSession) -> None:
    async with Simulator(coins=5, base=BASE) as simulator:
        assert simulator.url.startswith("http://127.0.0.1:")
        assert (await Client(simulator, session).tickers()).status == 200


async def test_two_simulators_at_once(session: aiohttp.ClientSession) -> None:
    async with Simulator(coins=5, base=BASE) as one, Simulator(coins=6, base=BASE) as two:
        assert len((await Client(one, session).tickers()).json()) == 5
        assert len((await Client(two, session).tickers()).json()) == 6


async def test_no_address_without_context() -> None:
    with pytest.raises(RuntimeError, match="enter its context"):
        _ = Simulator(coins=5).url


async def test_signal_handlers_stay() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    async with Simulator(coins=5):
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    "fault",
    [
        Hang(api="coinpaprika"),
        Slow(api="coinpaprika", bytes_per_second=1),
        Huge(api="coinpaprika", megabytes=10_000),
    ],
)
async def test_exit_does_not_wait_for_a_fault(
    session: aiohttp.ClientSession, fault: Hang | Slow | Huge
) -> None:
    async with asyncio.timeout(30), Simulator(coins=5, base=BASE) as simulator:
        simulator.add_fault(fault)
        client = Client(simulator, session)
        held = asyncio.create_task(client.tickers())
        await simulator.calls.reached(1)
    with pytest.raises(aiohttp.ClientError):
        await held


async def test_disconnect_ends_a_held_call(session: aiohttp.ClientSession) -> None:
    async with Simulator(coins=5, base=BASE) as simulator:
        simulator.add_fault(Hang(api="coinpaprika", times=1))
        client = Client(simulator, session)
        held = asyncio.create_task(client.tickers())
        await simulator.calls.reached(1)
        held.cancel()
        assert (await client.tickers()).status == 200


async def test_response_body_is_cached_within_a_tick(simulator: Simulator) -> None:
    upstream = CoinGecko(simulator.market, Account())
    selection = Selection(0, 250)

    assert upstream.body(selection) is upstream.body(selection)


async def test_process_prints_its_addresses(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    pages = [tmp_path / "one.json", tmp_path / "two.json"]
    for number, page in enumerate(pages):
        page.write_text(f'[{{"id":"{number}"}}]')
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "kasparro.simulator",
            "--coins",
            "40",
            "--manual",
            "--base",
            "2026-06-01T12:00",
        ),
        *(f"--replay=coingecko={page}" for page in pages),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        addresses = msgspec.json.decode(await process.stdout.readline(), type=dict[str, str])
        async with session.get(f"{addresses['coinpaprika']}/tickers") as response:
            assert len(await response.json()) == 40
        for number, ids in ((1, ["0"]), (2, ["1"]), (3, [])):
            query = {"vs_currency": "usd", "page": str(number)}
            async with session.get(f"{addresses['coingecko']}/coins/markets", params=query) as response:
                assert [record["id"] for record in await response.json()] == ids
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
