"""Calls that concurrent requests share: the first starts the call, the others wait for its result."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

# How long `close` waits.
CLOSE_S = 1.0

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SharedCalls(Generic[K, T]):
    """Calls in progress, by key.

    A cancelled caller does not disturb the others; the last one to leave cancels the call. A call runs in the
    context of its first caller.
    """

    def __init__(self) -> None:
        self._by_key: dict[K, asyncio.Task[T]] = {}
        self._callers: Counter[asyncio.Task[T]] = Counter()
        self._tasks: set[asyncio.Task[T]] = set()

    async def join(self, key: K, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `call` returns; it is called once for all concurrent callers with this key."""
        task = self._by_key.get(key)
        if task is None:
            task = self._by_key[key] = asyncio.create_task(call())
            self._tasks.add(task)
            task.add_done_callback(lambda ended: self._ended(key, ended))
        self._callers[task] += 1
        try:
            return await asyncio.shield(task)
        finally:
            self._callers[task] -= 1
            if not self._callers[task]:
                del self._callers[task]
                if not task.done():
                    # A caller that comes now must not join a cancelled task.
                    self._forget(key, task)
                    task.cancel()

    def detach(self) -> None:
        """Let callers from now on start new calls. Earlier callers still get the results of theirs."""
        self._by_key.clear()

    async def close(self) -> None:
        """Cancel the calls, and wait a moment until they have ended: a server that hangs may delay them."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_S)

    def _ended(self, key: K, task: asyncio.Task[T]) -> None:
        self._tasks.discard(task)
        self._forget(key, task)
        if not task.cancelled():
            # Every caller may have left: without this, asyncio would log the exception as never retrieved.
            task.exception()

    def _forget(self, key: K, task: asyncio.Task[T]) -> None:
        # After `detach`, the key may stand for a newer call.
        if self._by_key.get(key) is task:
            del self._by_key[key]
