"""A connection of raw bytes to a service, for requests that no HTTP client sends."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from kasparro.web.http.protocol import LimitedProtocol, Limits

# The URL of a database that does not exist.
NO_DATABASE = "postgresql://nobody@127.0.0.1:1/nosuch"
LIVE_REQUEST = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


class ImpatientProtocol(LimitedProtocol):
    """Short time limits, so that tests need not wait."""

    limits = Limits(request_s=0.3, drain_s=0.3)


class RawConnection:
    """The client's end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        """The status, headers and body of the next response."""
        async with asyncio.timeout(20):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            return (
                int(head[0].split()[1]),
                headers,
                await self.reader.readexactly(int(headers["content-length"])),
            )

    async def rejection(self) -> dict[str, Any]:
        """The problem document of the last response, with its headers; then the connection must end."""
        status, headers, body = await self.response()
        assert headers["content-type"] == "application/problem+json"
        assert headers["connection"] == "close"
        assert {"date", "server-timing", "x-request-id", "x-content-type-options"} <= set(headers)
        problem: dict[str, Any] = json.loads(body)
        assert problem["status"] == status
        assert problem["request_id"] == headers["x-request-id"]
        assert await self.rest() == b""
        return problem | {"headers": headers}

    async def rest(self) -> bytes:
        """All bytes until the server ends the connection."""
        async with asyncio.timeout(20):
            return await self.reader.read()

    async def send_until_closed(self) -> None:
        """Send until the server accepts no more."""
        async with asyncio.timeout(20):
            while True:
                self.writer.write(b"x" * 65_536)
                try:
                    await self.writer.drain()
                except OSError:
                    return


@asynccontextmanager
async def connected(
    client: aiohttp.ClientSession, *, window: int | None = None, address: str = "127.0.0.1"
) -> AsyncIterator[RawConnection]:
    """A connection to the service of `client`, from an address of the loopback network.

    `window` is the size of its receive buffer in bytes.
    """
    host, port = client._base_url.host, client._base_url.port  # type: ignore[union-attr]
    with socket.socket() as raw:
        raw.bind((address, 0))
        if window is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, (host, port))
        reader, writer = await asyncio.open_connection(sock=raw, limit=1_024)
        try:
            yield RawConnection(reader, writer)
        finally:
            writer.transport.abort()
