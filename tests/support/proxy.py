"""A TCP proxy that breaks connections in the ways in which networks do."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self

Side = Literal["client", "server"]


class Proxy:
    """Forwards connections from `port` to the port `target`, until a method breaks them."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._rejecting = False
        self._delay_s = 0.0
        self._forwarding = asyncio.Event()
        self._forwarding.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def forward(self) -> None:
        """Forward everything again. Blocked data arrives now."""
        self._rejecting = False
        self._delay_s = 0.0
        self._forwarding.set()

    def reject(self) -> None:
        """Abort every connection, and each new one at once."""
        self._rejecting = True
        self.reset()

    def reset(self) -> None:
        """Abort every present connection."""
        for connection in list(self._connections):
            connection.abort()

    def block(self) -> None:
        """Accept data but forward nothing, as a network does that drops packets. Ends are not forwarded."""
        self._forwarding.clear()

    def delay(self, seconds: float) -> None:
        """Delay all data by this time, in both directions."""
        self._delay_s = seconds

    def close_half(self, side: Side) -> None:
        """End the data from one side of each connection. The other side may still send."""
        for connection in self._connections:
            connection.end_data_of(side)

    async def wait_until_forwarding(self) -> None:
        """Wait until data may be forwarded, and for the delay."""
        await self._forwarding.wait()
        if self._delay_s:
            await asyncio.sleep(self._delay_s)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._rejecting:
                return
            await self._forwarding.wait()
            server = await asyncio.open_connection("127.0.0.1", self._target)
            connection = _Connection(self, (reader, writer), server)
            self._connections.add(connection)
            try:
                await connection.run()
            finally:
                self._connections.discard(connection)
        except OSError:
            # The target does not listen. The client's connection is aborted below.
            pass
        finally:
            writer.transport.abort()


_End = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Connection:
    def __init__(self, proxy: Proxy, client: _End, server: _End) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(self._client[0], self._server[1]))
                group.create_task(self._pump(self._server[0], self._client[1]))
        except* (OSError, RuntimeError):
            # The peer is gone, or `close_half` has already ended this direction.
            pass
        finally:
            self.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._proxy.wait_until_forwarding()
            writer.write(data)
            await writer.drain()
        await self._proxy.wait_until_forwarding()
        if writer.can_write_eof() and not writer.is_closing():
            writer.write_eof()

    def end_data_of(self, side: Side) -> None:
        """Send the end of this side's data to the other side."""
        _, writer = self._server if side == "client" else self._client
        with suppress(OSError, RuntimeError):
            writer.write_eof()

    def abort(self) -> None:
        for _, writer in (self._client, self._server):
            writer.transport.abort()
