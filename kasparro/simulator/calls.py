"""Records the calls and their outcomes, so that tests can read them and wait for them."""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import overload

import msgspec

from kasparro.simulator.coins import Api

HEADERS_OF_INTEREST = (
    "accept",
    "accept-encoding",
    "authorization",
    "host",
    "if-none-match",
    "user-agent",
    "x-cg-demo-api-key",
    "x-cg-pro-api-key",
)


class Call(msgspec.Struct, kw_only=True):
    """One request. `status` is the status of the response; None until a response is sent."""

    at: datetime
    tick: int
    api: Api
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    fault: str | None = None
    """The delivery fault that affected the call."""
    status: int | None = None


class Calls(Sequence[Call]):
    """Calls in the order of arrival."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._waiting: list[tuple[int, asyncio.Event]] = []

    @overload
    def __getitem__(self, index: int) -> Call: ...
    @overload
    def __getitem__(self, index: slice) -> list[Call]: ...
    def __getitem__(self, index: int | slice) -> Call | list[Call]:
        return self._calls[index]

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls)

    def add(self, call: Call) -> None:
        self._calls.append(call)
        for count, event in self._waiting:
            if len(self._calls) >= count:
                event.set()

    def clear(self) -> None:
        self._calls.clear()

    async def reached(self, count: int) -> None:
        """Wait until `count` calls have arrived."""
        if len(self._calls) >= count:
            return
        waiting = (count, asyncio.Event())
        self._waiting.append(waiting)
        try:
            await waiting[1].wait()
        finally:
            self._waiting.remove(waiting)
