"""Requests a second of `GET /data`, beside a bare ASGI app that sends the same bytes from one uvicorn."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import stamina

from tests.bench import measure

ROUNDS, SECONDS, CONNECTIONS = 5, 2, 16
PATH = "/data?limit=50"
# What a server adds by itself, or tells of the one request it was.
OWN_HEADERS = {"date", "x-request-id", "server-timing"}


async def main() -> None:
    """Load both servers by turns, each alone on one core, wrk on the other."""
    if shutil.which("wrk") is None:
        sys.exit("the reads benchmark needs wrk (Debian's package of that name)")
    async with measure.server() as url:
        filled = await measure.fresh(url, "bench_reads")
        await measure.fill(filled)
        service = ("-m", "kasparro", "serve", "--port")
        environment = {"DATABASE_URL": filled, "KASPARRO_INTERVAL": "off", "KASPARRO_LOG_LEVEL": "error"}
        async with running(*service, **environment) as ours:
            with tempfile.NamedTemporaryFile() as answer:
                answer.write(await _answer(ours))
                answer.flush()
                async with running("-m", "tests.bench.bare", answer.name) as bare:
                    rates: dict[str, list[float]] = {"bare": [], "kasparro": []}
                    for _ in range(ROUNDS):
                        rates["bare"].append(await _wrk(bare))
                        rates["kasparro"].append(await _wrk(ours))
    print(f"GET {PATH}, {CONNECTIONS} connections, {ROUNDS} rounds of {SECONDS} s by turns")
    for name, values in rates.items():
        print(f"  {name:10} {measure.spread(values, 'requests/s')}")
    print(
        f"  kasparro / bare    {statistics.median(rates['kasparro']) / statistics.median(rates['bare']):.2f}"
    )


async def _answer(port: int) -> bytes:
    """The service's answer, in the form that the bare app reads."""
    plain = {"Accept-Encoding": "identity"}
    async with (
        aiohttp.ClientSession(headers=plain) as session,
        session.get(f"http://127.0.0.1:{port}{PATH}") as response,
    ):
        headers = [
            (name, value) for name, value in response.headers.items() if name.lower() not in OWN_HEADERS
        ]
        return json.dumps(headers).encode() + b"\n" + await response.read()


@asynccontextmanager
async def running(*arguments: str, **environment: str) -> AsyncIterator[int]:
    """A server on the first core, once it answers; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    running = await asyncio.create_subprocess_exec(
        *("taskset", "-c", "0", sys.executable, *arguments, str(port)), env={**os.environ, **environment}
    )
    try:
        async with aiohttp.ClientSession() as session:
            await _ready(session, f"http://127.0.0.1:{port}{PATH}")
        yield port
    finally:
        running.send_signal(signal.SIGTERM)
        await running.wait()


async def _ready(session: aiohttp.ClientSession, url: str) -> None:
    async for attempt in stamina.retry_context(
        on=aiohttp.ClientError, attempts=100, wait_initial=0.05, wait_max=0.2
    ):
        with attempt:
            async with session.get(url, raise_for_status=True):
                return


async def _wrk(port: int) -> float:
    output = await measure.process(
        *("taskset", "-c", "1", "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s"),
        f"http://127.0.0.1:{port}{PATH}",
    )
    match = re.search(rb"Requests/sec:\s+([\d.]+)", output)
    if match is None or b"Non-2xx" in output:
        raise RuntimeError(output.decode())
    return float(match[1])
