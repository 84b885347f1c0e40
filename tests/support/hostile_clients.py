"""Hostile clients, each kind from its own address of the loopback network.

`python -m tests.support.hostile_clients PORT COUNT` runs COUNT clients of every kind against our own service
on this machine until it is terminated. Tests and the benchmark `hostile` measure what other clients notice.
"""

import asyncio
import itertools
import random
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import uvloop

# Slow readers read this many bytes at once, at this interval.
SLOW_BYTES, SLOW_S = 1_024, 0.5
# Fast readers read this many bytes at once.
READ_BYTES = 262_144


class RawConnection:
    """The client's end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def read_all(self) -> None:
        """Read until the service ends the connection."""
        while await self.reader.read(READ_BYTES):
            pass


@asynccontextmanager
async def connected(port: int, address: str, *, window: int | None = None) -> AsyncIterator[RawConnection]:
    """A connection from this address; `window` is the size of its receive buffer in bytes."""
    with socket.socket() as raw:
        if window is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        raw.bind((address, 0))
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=raw, limit=1_024 if window else READ_BYTES)
        try:
            yield RawConnection(reader, writer)
        finally:
            writer.transport.abort()


def get(path: str) -> bytes:
    """An ordinary request."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


async def slow_reader(port: int, address: str) -> None:
    """Sends several requests for large responses at once, and reads slowly."""
    async with connected(port, address, window=4_096) as connection:
        connection.writer.write(get(random.choice(["/data?limit=1000", "/data.csv", "/openapi.json"])) * 8)
        while await connection.reader.read(SLOW_BYTES):  # noqa: ASYNC110 - it reads slowly on purpose
            await asyncio.sleep(SLOW_S)


async def pipeliner(port: int, address: str) -> None:
    """Sends hundreds of requests at once, again and again."""
    async with connected(port, address) as connection:
        connection.writer.write(get("/data?limit=50") * 500)
        await connection.read_all()


async def idler(port: int, address: str) -> None:
    """Opens a connection and sends nothing, or half a request, or one request."""
    async with connected(port, address) as connection:
        connection.writer.write(
            random.choice([b"", b"GET /data HTTP/1.1\r\nHost: x\r\n", get("/health/live")])
        )
        await connection.read_all()


async def invalid_requests(port: int, address: str) -> None:
    """Floods the service with requests that it rejects."""
    async with connected(port, address) as connection:
        connection.writer.write(get(random.choice(["/nosuch", "/data?limit=0", "/data?nosuch=1"])) * 100)
        await connection.read_all()


_numbers = itertools.count()


async def slow_query(port: int, address: str) -> None:
    """Sends queries that are slow in the database, each of them different."""
    async with connected(port, address) as connection:
        for _ in range(10):
            connection.writer.write(get(f"/data?q=a{next(_numbers)}&sort=-market_cap_usd&limit=1000"))
            head = await connection.reader.readuntil(b"\r\n\r\n")
            await connection.reader.readexactly(
                int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            )


KINDS: dict[str, Callable[[int, str], Awaitable[None]]] = {
    "127.0.0.2": slow_reader,
    "127.0.0.3": pipeliner,
    "127.0.0.4": idler,
    "127.0.0.5": invalid_requests,
    "127.0.0.6": slow_query,
}


async def attack(port: int, count: int) -> None:
    """Run `count` clients of each kind until cancelled. A client whose connection ends starts again."""

    async def repeat(kind: Callable[[int, str], Awaitable[None]], address: str) -> None:
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                await kind(port, address)
            # A short pause if the service closes connections at once.
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        for address, kind in KINDS.items():
            for _ in range(count):
                group.create_task(repeat(kind, address))


if __name__ == "__main__":
    uvloop.run(attack(int(sys.argv[1]), int(sys.argv[2])))
