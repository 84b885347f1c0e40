"""The simulator runs within a loop or as a process, and ends at once whatever its faults hold."""

import asyncio
import signal
import sys
import time
from pathlib import Path

import aiohttp
import msgspec
import pytest

from kasparro.simulator import Simulator
from kasparro.simulator.faults import Hang, Huge, Slow
from tests.simulator.client import Client
from tests.simulator.conftest import BASE


async def test_it_answers_as_soon_as_its_context_is_entered(session: aiohttp.ClientSession) -> None:
    async with Simulator(coins=5, base=BASE) as simulator:
        assert simulator.url.startswith("http://127.0.0.1:")
        assert (await Client(simulator, session).tickers()).status == 200


async def test_two_run_side_by_side(session: aiohttp.ClientSession) -> None:
    async with Simulator(coins=5, base=BASE) as one, Simulator(coins=6, base=BASE) as two:
        assert len((await Client(one, session).tickers()).json()) == 5
        assert len((await Client(two, session).tickers()).json()) == 6


async def test_without_its_context_it_has_no_address() -> None:
    with pytest.raises(RuntimeError, match="enter its context"):
        _ = Simulator(coins=5).url


async def test_it_leaves_the_processs_signals_alone() -> None:
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
async def test_it_ends_at_once_while_a_fault_holds_a_connection(
    session: aiohttp.ClientSession, fault: Hang | Slow | Huge
) -> None:
    async with Simulator(coins=5, base=BASE) as simulator:
        simulator.add_fault(fault)
        client = Client(simulator, session)
        held = asyncio.create_task(client.tickers())
        await simulator.calls.reached(1)
        started = time.monotonic()
    assert time.monotonic() - started < 1
    with pytest.raises(aiohttp.ClientError):
        await held


async def test_a_caller_who_hangs_up_frees_what_the_fault_held(session: aiohttp.ClientSession) -> None:
    async with Simulator(coins=5, base=BASE) as simulator:
        simulator.add_fault(Hang(api="coinpaprika", times=1))
        client = Client(simulator, session)
        held = asyncio.create_task(client.tickers())
        await simulator.calls.reached(1)
        held.cancel()
        assert (await client.tickers()).status == 200


async def test_a_page_of_250_comes_from_memory_within_a_tick(simulator: Simulator, client: Client) -> None:
    await client.markets()
    started = time.perf_counter()
    for _ in range(20):
        await client.markets()
    assert (time.perf_counter() - started) / 20 < 0.05, "a page of 250 took ten times what it should"


async def test_it_runs_as_a_process_and_prints_where_it_answers(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
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
            asked = {"vs_currency": "usd", "page": str(number)}
            async with session.get(f"{addresses['coingecko']}/coins/markets", params=asked) as response:
                assert [record["id"] for record in await response.json()] == ids
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
