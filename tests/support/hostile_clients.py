"""Clients that misbehave, each kind from an address of the loopback network of its own.

`python -m tests.support.hostile_clients PORT EACH` runs EACH clients of every kind against our own service
on this machine until it is ended. Tests and the benchmark `hostile` see how other clients fare meanwhile.
"""

import asyncio
import itertools
import random
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import uvloop

# What slow readers take at once, and how often.
SLOW_BYTES, SLOW_S = 1_024, 0.5
# Pieces of an answer that fast readers take.
READ_BYTES = 262_144


class Line:
    """A connection of bytes, whose client may read as slowly as it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def read_all(self) -> None:
        """Read until the service ends the connection."""
        while await self.reader.read(READ_BYTES):
            pass


@asynccontextmanager
async def connected(port: int, address: str, *, window: int | None = None) -> AsyncIterator[Line]:
    """A connection from this address, with a receive buffer of `window` bytes."""
    with socket.socket() as raw:
        if window is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        raw.bind((address, 0))
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=raw, limit=1_024 if window else READ_BYTES)
        try:
            yield Line(reader, writer)
        finally:
            writer.transport.abort()


def get(path: str) -> bytes:
    """A request as any client sends it."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


async def slow_reader(port: int, address: str) -> None:
    """Asks for much, several times ahead, and hardly reads it."""
    async with connected(port, address, window=4_096) as line:
        line.writer.write(get(random.choice(["/data?limit=1000", "/data.csv", "/openapi.json"])) * 8)
        while await line.reader.read(SLOW_BYTES):  # noqa: ASYNC110 - its pace is the point
            await asyncio.sleep(SLOW_S)


async def pipeliner(port: int, address: str) -> None:
    """Sends hundreds of requests at once, and again as soon as the connection ends."""
    async with connected(port, address) as line:
        line.writer.write(get("/data?limit=50") * 500)
        await line.read_all()


async def idler(port: int, address: str) -> None:
    """Opens connections and says nothing, or stops in the middle of a request."""
    async with connected(port, address) as line:
        line.writer.write(random.choice([b"", b"GET /data HTTP/1.1\r\nHost: x\r\n", get("/health/live")]))
        await line.read_all()


async def refused(port: int, address: str) -> None:
    """Floods the service with requests that it refuses."""
    async with connected(port, address) as line:
        line.writer.write(get(random.choice(["/nosuch", "/data?limit=0", "/data?nosuch=1"])) * 100)
        await line.read_all()


_numbers = itertools.count()


async def wide_query(port: int, address: str) -> None:
    """Asks what the database takes long for, and never the same twice."""
    async with connected(port, address) as line:
        for _ in range(10):
            line.writer.write(get(f"/data?q=a{next(_numbers)}&sort=-market_cap_usd&limit=1000"))
            head = await line.reader.readuntil(b"\r\n\r\n")
            await line.reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))


KINDS: dict[str, Callable[[int, str], Awaitable[None]]] = {
    "127.0.0.2": slow_reader,
    "127.0.0.3": pipeliner,
    "127.0.0.4": idler,
    "127.0.0.5": refused,
    "127.0.0.6": wide_query,
}


async def attack(port: int, each: int) -> None:
    """Run so many clients of each kind until this is cancelled; what the service ends begins again."""

    async def again(kind: Callable[[int, str], Awaitable[None]], address: str) -> None:
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                await kind(port, address)
            # Where the service refuses at once, no client can do more than this.
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        for address, kind in KINDS.items():
            for _ in range(each):
                group.create_task(again(kind, address))


if __name__ == "__main__":
    uvloop.run(attack(int(sys.argv[1]), int(sys.argv[2])))
