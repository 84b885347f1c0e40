"""The proxy breaks connections as its methods say."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.proxy import Proxy


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """The port of a server that echoes its input, and then sends `end`."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.write(b"end")
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def test_forward_block_and_reject(echo: int) -> None:
    async with asyncio.timeout(20), Proxy(echo) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"

        proxy.block()
        writer.write(b"two")
        received = asyncio.create_task(reader.readexactly(3))
        done, _ = await asyncio.wait({received}, timeout=0.2)
        assert not done
        proxy.forward()
        assert await received == b"two"

        proxy.reject()
        assert await reader.read() == b""
        second_reader, second_writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await second_reader.read() == b""
        writer.close()
        second_writer.close()


async def test_close_half(echo: int) -> None:
    async with asyncio.timeout(20), Proxy(echo) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"one")
        await reader.readexactly(3)
        proxy.close_half("client")
        assert await reader.read() == b"end"
        writer.close()
