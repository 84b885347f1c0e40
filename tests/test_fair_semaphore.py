"""Permits of the fair semaphore: none is lost, and they are granted in the right order and in time."""

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.fair_semaphore import FairSemaphore


@pytest.fixture(scope="module")
def shared_runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


steps = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.sampled_from(["end", "cancel", "both"])),
    max_size=40,
)


@pytest.mark.slow
@given(steps, st.integers(1, 4), st.none() | st.integers(1, 3))
def test_no_permit_is_lost_or_granted_twice(
    shared_runner: asyncio.Runner, steps: list[tuple[str, int, str]], count: int, per_client: int | None
) -> None:
    async def work() -> None:
        semaphore = FairSemaphore(count, per_client)
        held: Counter[str] = Counter()

        async def hold(client: str, ended: asyncio.Event) -> None:
            await semaphore.acquire(client, 5)
            held[client] += 1
            assert held.total() <= count
            assert per_client is None or max(held.values()) <= per_client
            try:
                await ended.wait()
            finally:
                held[client] -= 1
                semaphore.release(client)

        tasks: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        for client, which, how in steps:
            ended = asyncio.Event()
            tasks.append((asyncio.create_task(hold(client, ended)), ended))
            await asyncio.sleep(0)
            task, its_event = tasks[which % len(tasks)]
            if how != "cancel":
                its_event.set()
                await asyncio.sleep(0)
            if how != "end":
                task.cancel()
        for _, ended in tasks:
            ended.set()
        results = await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
        assert (semaphore.waiting, semaphore.has_eligible_waiter) == (0, False)
        for number in range(count):
            await semaphore.acquire(f"{number}", 0.01)
        with pytest.raises(TimeoutError):
            await semaphore.acquire("late", 0.001)
        assert semaphore.waiting == 0

    shared_runner.run(work())


async def test_order_of_grants() -> None:
    """The client with the fewest permits is served first; among equals, the one served the longest ago."""
    semaphore = FairSemaphore(2)
    order: list[str] = []

    async def acquire(name: str) -> None:
        await semaphore.acquire(name[0], 5)
        order.append(name)

    for _ in range(2):
        await semaphore.acquire("a", 5)
    tasks = []
    for name in ("a1", "a2", "b1", "b2", "c1"):
        tasks.append(asyncio.create_task(acquire(name)))
        await asyncio.sleep(0)
    assert (semaphore.waiting, semaphore.waiting_of("a"), semaphore.waiting_of("d")) == (5, 2, 0)
    for client in "aabac":
        semaphore.release(client)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert order == ["b1", "a1", "c1", "b2", "a2"]
