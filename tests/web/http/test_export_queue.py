"""The export queue: no export is lost, and the client with the fewest exports goes first."""

import asyncio
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kasparro.web.http.export_queue import ExportQueue

steps = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.booleans()), max_size=40)


@given(steps, st.integers(1, 4))
def test_every_slot_is_used_and_none_twice(
    runner: asyncio.Runner, exports: list[tuple[str, int, bool]], slots: int
) -> None:
    async def work() -> None:
        queue = ExportQueue(slots)
        working: Counter[str] = Counter()
        done: list[str] = []

        async def export(client: str, ended: asyncio.Event) -> None:
            async with queue.slot(client, lambda: None):
                working[client] += 1
                assert max(working.values()) <= queue.limits.per_client
                assert working.total() <= slots
                try:
                    await ended.wait()
                finally:
                    working[client] -= 1
            done.append(client)

        tasks: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        for client, number, cancelled in exports:
            ended = asyncio.Event()
            tasks.append((asyncio.create_task(export(client, ended)), ended))
            await asyncio.sleep(0)
            task, end = tasks[number % len(tasks)]
            if cancelled:
                task.cancel()
            else:
                end.set()
        for _, ended in tasks:
            ended.set()
        async with asyncio.timeout(5):
            await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
        assert queue.waiting == 0
        assert len(done) == sum(not task.cancelled() for task, _ in tasks)

    runner.run(work())


async def test_free_slot_goes_to_the_client_with_the_fewest() -> None:
    queue = ExportQueue(2)
    order: list[str] = []

    async def export(name: str, ended: asyncio.Event) -> None:
        async with queue.slot(name[0], lambda: None):
            order.append(name)
            await ended.wait()

    ends = [asyncio.Event() for _ in range(5)]
    tasks = []
    for name, ended in zip(("a1", "a2", "a3", "a4", "b1"), ends, strict=True):
        tasks.append(asyncio.create_task(export(name, ended)))
        await asyncio.sleep(0)
    for ended in ends:
        ended.set()
        await asyncio.sleep(0.001)
    await asyncio.gather(*tasks)
    assert order == ["a1", "a2", "b1", "a3", "a4"]
