"""The response cache: rendered responses of one data version, in bounded memory."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable

from kasparro.web.cache.response import OVERHEAD_BYTES, CachedResponse
from kasparro.web.shared_calls import SharedCalls

# An entry is found without parsing the query by at most this many URLs. A new URL replaces the oldest.
ALIASES = 8

# The raw path and the raw query string.
Alias = tuple[bytes, bytes]
# The raw path and the parsed query.
Key = tuple[bytes, bytes]
# Renders a response, and says whether it may be stored.
Render = Callable[[], Awaitable[tuple[CachedResponse, bool]]]


class ResponseCache:
    """Rendered responses by path and query. The least recently used are dropped first.

    The entries take at most `limit_bytes`. `drop` empties the cache when the data version changes; a response
    that is being rendered then is not stored. Concurrent requests for one key share one rendering.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._entries: OrderedDict[Key, CachedResponse] = OrderedDict()
        self._by_alias: dict[Alias, CachedResponse] = {}
        self._rendering = SharedCalls[Key, CachedResponse]()
        self._version = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find_alias(self, alias: Alias) -> CachedResponse | None:
        """The entry for a raw path and query string that `add_alias` registered."""
        response = self._by_alias.get(alias)
        if response is not None:
            self._entries.move_to_end(response.key)
        return response

    def find(self, key: Key) -> CachedResponse | None:
        """The entry for a key."""
        response = self._entries.get(key)
        if response is not None:
            self._entries.move_to_end(key)
        return response

    def add_alias(self, response: CachedResponse, alias: Alias) -> None:
        """Find this response under that alias too, if it is in the cache. Its size is counted again."""
        if self._entries.get(response.key) is not response:
            return
        self._remove(response)
        if alias not in response.aliases:
            response.aliases.append(alias)
            response.bytes += _size(alias)
            if len(response.aliases) > ALIASES:
                response.bytes -= _size(response.aliases.pop(0))
        self._insert(response)

    async def render(self, key: Key, render: Render) -> CachedResponse:
        """The response that `render` returns; it is called once for all concurrent requests for the key.

        `render` also says whether the response may be stored. If the caller whose call it is leaves, another
        one renders again.
        """
        return await self._rendering.join(key, lambda: self._render(key, render))

    async def _render(self, key: Key, render: Render) -> CachedResponse:
        version = self._version
        response, cacheable = await render()
        response.key = key
        response.bytes += sum(map(len, key))
        if cacheable and version == self._version:
            self._insert(response)
        return response

    def drop(self) -> None:
        """Empty the cache: no response from before this call is given to a request from after it."""
        self._version += 1
        self._entries.clear()
        self._by_alias.clear()
        self._rendering.detach()
        self.bytes = 0

    def _insert(self, response: CachedResponse) -> None:
        if response.bytes > self.limit_bytes:
            return
        if (older := self._entries.get(response.key)) is not None:
            self._remove(older)
        self._entries[response.key] = response
        # The size grows when the response is compressed; `_remove` must subtract what was added here.
        response.counted_bytes = response.bytes
        self.bytes += response.bytes
        for alias in response.aliases:
            self._by_alias[alias] = response
        while self.bytes > self.limit_bytes:
            self._remove(next(iter(self._entries.values())))

    def _remove(self, response: CachedResponse) -> None:
        del self._entries[response.key]
        self.bytes -= response.counted_bytes
        for alias in response.aliases:
            del self._by_alias[alias]


def _size(alias: Alias) -> int:
    return len(alias[0]) + len(alias[1]) + OVERHEAD_BYTES // 10
