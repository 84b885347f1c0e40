"""Calls that concurrent requests share: the first makes the call, the others wait for its result."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SharedCalls(Generic[K, T]):
    """Calls in progress, by key.

    The first caller makes the call in its own task: a task for each call would take as long as a tenth of a
    page. If that caller is cancelled, its call ends, and one of those that wait for it makes the call again;
    what was done until then is lost.
    """

    def __init__(self) -> None:
        self._by_key: dict[K, asyncio.Future[T]] = {}

    async def join(self, key: K, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `call` returns; it is called once for all concurrent callers with this key."""
        while (shared := self._by_key.get(key)) is not None:
            # This does not cancel the future if this caller is cancelled.
            await asyncio.wait([shared])
            if not shared.cancelled():
                return shared.result()
        shared = self._by_key[key] = asyncio.get_running_loop().create_future()
        try:
            result = await call()
            shared.set_result(result)
        except Exception as error:
            shared.set_exception(error)
            # Nobody may wait: without this, asyncio would log the exception as never retrieved.
            shared.exception()
            raise
        finally:
            # Without a result, this caller was cancelled.
            shared.cancel()
            # After `detach`, the key may stand for a newer call.
            if self._by_key.get(key) is shared:
                del self._by_key[key]
        return result

    def detach(self) -> None:
        """Let callers from now on start new calls. Earlier callers still get the results of theirs."""
        self._by_key.clear()
