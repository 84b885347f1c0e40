"""Places by themselves: none is lost, who holds the fewest goes first, and waiting ends by its time."""

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.fair_semaphore import FairSemaphore


@pytest.fixture(scope="module")
def places_runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


steps = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.sampled_from(["end", "cancel", "both"])),
    max_size=40,
)


@given(steps, st.integers(1, 4), st.none() | st.integers(1, 3))
def test_however_holders_come_end_and_give_up_no_place_is_lost_or_given_twice(
    places_runner: asyncio.Runner, told: list[tuple[str, int, str]], count: int, each: int | None
) -> None:
    async def work() -> None:
        places = FairSemaphore(count, each)
        held: Counter[str] = Counter()

        async def hold(client: str, ended: asyncio.Event) -> None:
            await places.acquire(client, 5)
            held[client] += 1
            assert held.total() <= count
            assert each is None or max(held.values()) <= each
            try:
                await ended.wait()
            finally:
                held[client] -= 1
                places.release(client)

        tasks: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        for client, which, how in told:
            ended = asyncio.Event()
            tasks.append((asyncio.create_task(hold(client, ended)), ended))
            await asyncio.sleep(0)
            task, its_end = tasks[which % len(tasks)]
            if how != "cancel":
                its_end.set()
                await asyncio.sleep(0)
            if how != "end":
                task.cancel()
        for _, ended in tasks:
            ended.set()
        found = await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
        assert all(one is None or isinstance(one, asyncio.CancelledError) for one in found)
        assert (places.waiting, places.has_eligible_waiter) == (0, False)
        for _ in range(count):
            await places.acquire(f"{_}", 0.01)
        with pytest.raises(TimeoutError):
            await places.acquire("late", 0.001)
        assert places.waiting == 0

    places_runner.run(work())


async def test_who_holds_the_fewest_goes_first_then_whose_turn_was_longest_ago() -> None:
    places = FairSemaphore(2)
    order: list[str] = []

    async def come(name: str) -> None:
        await places.acquire(name[0], 5)
        order.append(name)

    for _ in range(2):
        await places.acquire("a", 5)
    tasks = []
    for name in ("a1", "a2", "b1", "b2", "c1"):
        tasks.append(asyncio.create_task(come(name)))
        await asyncio.sleep(0)
    assert (places.waiting, places.waiting_of("a"), places.waiting_of("d")) == (5, 2, 0)
    for client in "aabac":
        places.release(client)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert order == ["b1", "a1", "c1", "b2", "a2"]
