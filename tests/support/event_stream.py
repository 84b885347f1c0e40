"""Reads server-sent events as a browser does."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec


class Event(msgspec.Struct):
    """An event; `last_id` is the last id of the stream, which may come from an earlier event."""

    kind: str
    data: dict[str, Any]
    last_id: str


class EventReader:
    """The events of an open stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.last_id = ""
        self.comments = 0

    async def next(self, *kinds: str) -> Event:
        """The next event, of one of these kinds if any are given. Raises EOFError if the stream ends."""
        async with asyncio.timeout(20):
            while True:
                event = await self._read()
                if event is not None and (not kinds or event.kind in kinds):
                    return event

    async def next_id(self) -> str:
        """The last id after the next block, which may be an event, a comment or an id alone."""
        async with asyncio.timeout(20):
            await self._read()
        return self.last_id

    async def end(self) -> None:
        """Read until the stream ends properly."""
        async with asyncio.timeout(20):
            while await self.response.content.readline():
                pass

    async def _read(self) -> Event | None:
        kind, data = "message", ""
        while (line := (await self.response.content.readline()).decode()) != "\n":
            if not line:
                raise EOFError
            field, _, value = line.rstrip("\n").partition(": ")
            match field:
                case "event":
                    kind = value
                case "data":
                    data += value
                case "id":
                    self.last_id = value
                case ":":
                    self.comments += 1
        return Event(kind, json.loads(data), self.last_id) if data else None


@asynccontextmanager
async def event_stream(
    client: aiohttp.ClientSession, query: str = "", **headers: str
) -> AsyncIterator[EventReader]:
    """An open stream with this query string."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    timeout = aiohttp.ClientTimeout(total=None)
    async with client.get(f"/stream{query}", headers=names, timeout=timeout) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        yield EventReader(response)
