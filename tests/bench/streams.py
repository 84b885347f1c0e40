"""Readers of `/data` next to thousands of open streams, and the memory that a stream takes."""

import asyncio
import itertools
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal

import aiohttp

from kasparro.store.pool import Database
from tests.bench import measure, rows, servers, wrk
from tests.bench.servers import PATH
from tests.support.batches import load_batches, make_batch, make_record
from tests.support.metrics import metric_value, scrape

ROWS, READERS, ROUNDS, SECONDS = 60_000, 16, 3, 4
# A service has 3,072 streams, and a client 256 of them.
STREAMS, PER_ADDRESS = (2_000, 3_000), 250
# A page of CoinGecko, which is committed once a second.
BATCH = 250
TARGET = 0.8


class _Streams(asyncio.Protocol):
    # All streams of the benchmark: it counts what arrives.

    received = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        type(self).received += len(data)


async def main() -> None:
    """Load the service by turns without and with streams, idle and with one version per second."""
    wrk.require()
    async with measure.server() as server_url:
        url = await measure.new_database(server_url, "bench_streams")
        await rows.current(url, ROWS)
        with servers.load_on_core(1):
            for count in STREAMS:
                async with Database(url) as database, servers.kasparro(url) as port:
                    await _measure(database, port, count)


async def _measure(database: Database, port: int, count: int) -> None:
    (pid,) = await measure.workers(port)
    await _rate(port, pid)
    rates: dict[tuple[bool, bool], list[float]] = {}
    memory, megabytes = [], 0.0
    for _ in range(ROUNDS):
        for committing in (False, True):
            committer = database if committing else None
            rates.setdefault((committing, False), []).append(await _rate(port, pid, committer))
            before = measure.resident_bytes(pid)
            async with open_streams(port, count):
                memory.append((measure.resident_bytes(pid) - before) / count)
                received = _Streams.received
                rates.setdefault((committing, True), []).append(await _rate(port, pid, committer))
                megabytes = (_Streams.received - received) / SECONDS / 1e6
    print(f"{count:,} streams next to {READERS} readers of {PATH} in a table of {ROWS:,} rows")
    for committing in (False, True):
        alone, beside = (rates[committing, streams] for streams in (False, True))
        ratios = [rate / without for without, rate in zip(alone, beside, strict=True)]
        print(f"  {f'one version of {BATCH} rows per second' if committing else 'idle'}")
        print(f"    without streams {measure.spread(alone, 'responses per second of CPU time')}")
        print(f"    with streams    {measure.spread(beside, 'responses per second of CPU time')}")
        print(f"    ratio {statistics.median(ratios):.2f}; target: {TARGET}")
    # Later streams use memory that earlier ones have left.
    print(f"  the streams got {megabytes:,.1f} MB/s; a stream takes {memory[0] / 1024:.1f} KiB", flush=True)


async def _rate(port: int, pid: int, committer: Database | None = None) -> float:
    # Responses per second of the service's CPU time, all of which the readers use that the streams leave. It
    # varies less than the time on the clock, which other processes take, too.
    committing = None if committer is None else asyncio.create_task(commit_regularly(committer))
    began = measure.cpu_s(pid)
    try:
        load = await wrk.load(port, [PATH], connections=READERS, seconds=SECONDS)
    finally:
        if committing is not None:
            committing.cancel()
            await asyncio.wait({committing})
    if committing is not None and not committing.cancelled() and (error := committing.exception()):
        raise error
    return load.rate * SECONDS / (measure.cpu_s(pid) - began)


_prices = itertools.count(1)


async def commit_regularly(database: Database) -> None:
    """Commit a version once a second."""
    while True:
        await asyncio.gather(commit(database), asyncio.sleep(1))


async def commit(database: Database) -> None:
    """Commit a version in which the prices of a page of coins change."""
    now, price = datetime.now(UTC), next(_prices)
    records = (
        make_record(f"coin-{3 * n}", at=now, rank=3 * n + 1, price_usd=Decimal(price) + n)
        for n in range(BATCH)
    )
    await load_batches(database, make_batch(*records), source="coingecko")


@asynccontextmanager
async def open_streams(port: int, count: int) -> AsyncIterator[None]:
    """Open streams, 250 from one address, while the block runs."""
    loop = asyncio.get_running_loop()
    transports = []
    for number in range(count):
        address = f"127.0.0.{2 + number // PER_ADDRESS}"
        transport, _ = await loop.create_connection(_Streams, "127.0.0.1", port, local_addr=(address, 0))
        transports.append(transport)
    await _wait_for_streams(port, count)
    try:
        yield
    finally:
        for transport in transports:
            transport.abort()
        await _wait_for_streams(port, 0)


async def _wait_for_streams(port: int, count: int) -> None:
    async with asyncio.timeout(60), aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
        # Another process has the streams.
        while metric_value(await scrape(client), "kasparro_streams") != count:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
