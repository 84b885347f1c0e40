"""The HTTP servers that the benchmarks measure: each runs on the first core, apart from the load."""

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager

import aiohttp
import msgspec
import stamina

from tests.bench.bare_app import BareResponse

LIMIT = 50
PATH = f"/data?limit={LIMIT}"


def kasparro(database_url: str, *, workers: int = 1, **environment: str) -> AbstractAsyncContextManager[int]:
    """`kasparro serve` without scheduled runs; yields its port."""
    settings = {"DATABASE_URL": database_url, "KASPARRO_INTERVAL": "off", "KASPARRO_LOG_LEVEL": "error"}
    arguments = ("-m", "kasparro", "serve", "--workers", str(workers), "--port")
    return started(*arguments, **settings, **environment)


@asynccontextmanager
async def bare_app(response: BareResponse, **environment: str) -> AsyncIterator[int]:
    """The bare app with this response; yields its port."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(msgspec.msgpack.encode(response))
        file.flush()
        async with started("-m", "tests.bench.bare_app", file.name, **environment) as port:
            yield port


@asynccontextmanager
async def started(*arguments: str, **environment: str) -> AsyncIterator[int]:
    """Start Python with these arguments and a port, and wait until `PATH` answers; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *("taskset", "-c", "0", sys.executable, *arguments, str(port)), env={**os.environ, **environment}
    )
    try:
        async with aiohttp.ClientSession() as session:
            await _wait_until_ready(session, f"http://127.0.0.1:{port}{PATH}")
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def _wait_until_ready(session: aiohttp.ClientSession, url: str) -> None:
    async for attempt in stamina.retry_context(
        on=aiohttp.ClientError, attempts=100, wait_initial=0.05, wait_max=0.2
    ):
        with attempt:
            async with session.get(url, raise_for_status=True):
                return


@contextmanager
def load_on_core(number: int) -> Iterator[None]:
    """Keep this process, and those that it starts, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
