"""The proxy that breaks lines breaks them as it says."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.proxy import Proxy


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """The port of a server that says what it hears, and `end` when it hears no more."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.write(b"end")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def test_it_passes_on_holds_back_and_cuts(echo: int) -> None:
    async with asyncio.timeout(20), Proxy(echo) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"

        proxy.swallow()
        writer.write(b"two")
        heard = asyncio.create_task(reader.readexactly(3))
        done, _ = await asyncio.wait({heard}, timeout=0.2)
        assert not done
        proxy.pass_on()
        assert await heard == b"two"

        proxy.refuse()
        assert await reader.read() == b""
        again, other = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await again.read() == b""
        for one in (writer, other):
            one.close()


async def test_half_a_line_may_end(echo: int) -> None:
    async with asyncio.timeout(20), Proxy(echo) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"one")
        await reader.readexactly(3)
        proxy.close_half("client")
        assert await reader.read() == b"end"
        writer.close()
