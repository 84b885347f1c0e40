"""Keeps rendered answers for one version of the data, in bounded memory; equal questions share one query."""

import asyncio
from collections import Counter, OrderedDict

from kasparro.web.cache.response import OVERHEAD_BYTES, CachedResponse, Render

# One query may be spelt in many ways; of each so many are found without reading the query string.
SPELLINGS = 8

# The raw path, with the query as it was sent or, for a key, as it was understood.
Spelling = tuple[bytes, bytes]
Key = tuple[bytes, bytes]


class ResponseCache:
    """Answers by what they answer, until `drop` is told that the data moved; the least asked for make room.

    `most` is how many bytes they may take. What was rendered from data before a `drop` is not kept after it.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: OrderedDict[Key, CachedResponse] = OrderedDict()
        self._spelt: dict[Spelling, CachedResponse] = {}
        self._rendering: dict[Key, asyncio.Task[CachedResponse]] = {}
        self._tasks: set[asyncio.Task[CachedResponse]] = set()
        self._waiting: Counter[asyncio.Task[CachedResponse]] = Counter()
        self._version = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def spelt(self, spelling: Spelling) -> CachedResponse | None:
        """The answer to a raw path and query string that `remember` was told of."""
        answer = self._spelt.get(spelling)
        if answer is not None:
            self._kept.move_to_end(answer.key)
        return answer

    def find(self, key: Key) -> CachedResponse | None:
        """The answer kept under a key."""
        answer = self._kept.get(key)
        if answer is not None:
            self._kept.move_to_end(key)
        return answer

    def remember(self, answer: CachedResponse, spelling: Spelling) -> None:
        """Find this answer, if it is kept, by that spelling too, and by the latest before it; its size is
        taken anew, for it may have grown.
        """
        if self._kept.get(answer.key) is not answer:
            return
        self._forget(answer)
        if spelling not in answer.spellings:
            answer.spellings.append(spelling)
            answer.bytes += _size(spelling)
            if len(answer.spellings) > SPELLINGS:
                answer.bytes -= _size(answer.spellings.pop(0))
        self._keep(answer)

    async def render(self, key: Key, render: Render) -> CachedResponse:
        """The answer of `render`, which is called once for all who ask for this key meanwhile.

        It says beside its answer whether that may be kept. A waiter that is cancelled takes nothing from
        the others, and the last one ends it.
        """
        task = self._rendering.get(key)
        if task is None:
            task = self._rendering[key] = asyncio.create_task(self._render(key, render))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        self._waiting[task] += 1
        try:
            return await asyncio.shield(task)
        finally:
            self._waiting[task] -= 1
            if not self._waiting[task]:
                del self._waiting[task]
                if not task.done():
                    # Whoever asks from here on has it rendered anew.
                    if self._rendering.get(key) is task:
                        del self._rendering[key]
                    task.cancel()

    async def _render(self, key: Key, render: Render) -> CachedResponse:
        version = self._version
        task = asyncio.current_task()
        try:
            answer, lasting = await render()
        finally:
            # After a drop another may be at it, whose snapshot is newer.
            if self._rendering.get(key) is task:
                del self._rendering[key]
        answer.key = key
        answer.bytes += sum(map(len, key))
        if lasting and version == self._version:
            self._keep(answer)
        return answer

    def _ended(self, task: asyncio.Task[CachedResponse]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Nobody may be left to hear of it.
            task.exception()

    def drop(self) -> None:
        """The data moved: nothing that was rendered so far, or is being rendered, answers what comes now."""
        self._version += 1
        self._kept.clear()
        self._spelt.clear()
        self._rendering.clear()
        self.bytes = 0

    async def close(self) -> None:
        """End what is being rendered."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)

    def _keep(self, answer: CachedResponse) -> None:
        if answer.bytes > self.most:
            return
        self._kept[answer.key] = answer
        # Until it is kept anew, which is when it may have grown.
        answer.kept_bytes = answer.bytes
        self.bytes += answer.bytes
        for spelling in answer.spellings:
            self._spelt[spelling] = answer
        while self.bytes > self.most:
            self._forget(next(iter(self._kept.values())))

    def _forget(self, answer: CachedResponse) -> None:
        del self._kept[answer.key]
        self.bytes -= answer.kept_bytes
        for spelling in answer.spellings:
            del self._spelt[spelling]


def _size(spelling: Spelling) -> int:
    return len(spelling[0]) + len(spelling[1]) + OVERHEAD_BYTES // 10
