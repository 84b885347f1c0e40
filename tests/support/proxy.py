"""A TCP proxy that breaks lines in the ways that networks do."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self

Half = Literal["client", "server"]


class Proxy:
    """Passes on what comes to `port`, until told otherwise."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._lines: set[_Line] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusing = False
        self._delay_s = 0.0
        self._passing = asyncio.Event()
        self._passing.set()

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

    def pass_on(self) -> None:
        """Be an honest line again; what was held back arrives now."""
        self._refusing = False
        self._delay_s = 0.0
        self._passing.set()

    def refuse(self) -> None:
        """Cut every line, and each new one at once."""
        self._refusing = True
        self.reset()

    def reset(self) -> None:
        """Cut every line there is."""
        for line in list(self._lines):
            line.cut()

    def swallow(self) -> None:
        """Take what comes and let nothing through, as where packets are dropped; ends are not seen either."""
        self._passing.clear()

    def delay(self, seconds: float) -> None:
        """Let everything take so much longer, each way."""
        self._delay_s = seconds

    def close_half(self, half: Half) -> None:
        """End what comes from one side of each line, while the other side may still speak."""
        for line in self._lines:
            line.end_of(half)

    async def carry(self) -> None:
        """Wait until something may pass."""
        await self._passing.wait()
        if self._delay_s:
            await asyncio.sleep(self._delay_s)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._refusing:
                return
            await self._passing.wait()
            line = _Line(self, (reader, writer), await asyncio.open_connection("127.0.0.1", self._target))
            self._lines.add(line)
            try:
                await line.run()
            finally:
                self._lines.discard(line)
        except OSError:
            # Nobody listens there: this end breaks too.
            pass
        finally:
            writer.transport.abort()


_End = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Line:
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
            # Gone, or told before that nothing more would come.
            pass
        finally:
            self.cut()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._proxy.carry()
            writer.write(data)
            await writer.drain()
        await self._proxy.carry()
        if writer.can_write_eof() and not writer.is_closing():
            writer.write_eof()

    def end_of(self, half: Half) -> None:
        """Tell the other side that this one has said its last word."""
        _, writer = self._server if half == "client" else self._client
        with suppress(OSError, RuntimeError):
            writer.write_eof()

    def cut(self) -> None:
        for _, writer in (self._client, self._server):
            writer.transport.abort()
