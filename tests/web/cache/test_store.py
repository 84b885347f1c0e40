"""The response cache: its memory limit, its eviction order, and drops."""

import asyncio
import gc

from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import Response

from kasparro.web.cache.response import CachedResponse
from kasparro.web.cache.store import ALIASES, Key, Render, ResponseCache


def rendering(size: int = 10, cacheable: bool = True, after: asyncio.Event | None = None) -> Render:
    """A rendering of a body of this size; with `after`, it waits for the event first."""

    async def render() -> tuple[CachedResponse, bool]:
        if after is not None:
            await after.wait()
        response = Response(b"x" * size, media_type="text/plain")
        return CachedResponse(response, "/", "no-cache", "Accept"), cacheable

    return render


def key(number: int) -> Key:
    return b"/data", b"%d" % number


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30_000), st.integers(0, 20), st.booleans())),
)
async def test_memory_limit_holds(requests: list[tuple[int, int, int, bool]]) -> None:
    """The cache never exceeds its limit, and forgets an entry with all its aliases."""
    cache = ResponseCache(100_000)
    for number, size, alias, compressed in requests:
        response = cache.find(key(number)) or await cache.render(key(number), rendering(size))
        if compressed:
            await response.encoded("gzip")
        cache.add_alias(response, (b"/data", b"%d-%d" % (number, alias)))
        assert cache.bytes <= 100_000
        assert len(response.aliases) <= ALIASES
        assert cache.bytes == sum(entry.counted_bytes for entry in cache._entries.values())
        aliases = [alias for entry in cache._entries.values() for alias in entry.aliases]
        assert sorted(aliases) == sorted(cache._by_alias)


async def test_latest_aliases_stay() -> None:
    cache = ResponseCache(100_000)
    response = await cache.render(key(1), rendering())
    for n in range(ALIASES + 2):
        cache.add_alias(response, key(n))
    found = [cache.find_alias(key(n)) is response for n in range(ALIASES + 2)]
    assert found == [False] * 2 + [True] * ALIASES


async def test_least_recently_used_is_evicted() -> None:
    cache = ResponseCache(100_000)
    for number in range(3):
        response = await cache.render(key(number), rendering(30_000))
        cache.add_alias(response, key(number))
    assert cache.find_alias(key(0)) is not None
    await cache.render(key(3), rendering(30_000))
    assert [cache.find(key(number)) is not None for number in range(4)] == [True, False, True, True]


async def test_response_that_replaces_another_takes_its_room() -> None:
    cache = ResponseCache(100_000)
    for size in (30_000, 40_000, 20_000):
        response = await cache.render(key(1), rendering(size))
        cache.add_alias(response, key(size))

    assert len(cache) == 1
    assert cache.bytes == response.counted_bytes
    assert [cache.find_alias(key(size)) is response for size in (30_000, 40_000, 20_000)] == [
        *[False] * 2,
        True,
    ]


async def test_stale_render_is_not_cached() -> None:
    """A response that was rendering during a drop goes only to the requests from before it."""
    cache = ResponseCache(100_000)
    started, proceed = asyncio.Event(), asyncio.Event()

    async def slow() -> tuple[CachedResponse, bool]:
        started.set()
        await proceed.wait()
        return await rendering(1)()

    early = asyncio.create_task(cache.render(key(1), slow))
    await started.wait()
    cache.drop()
    late = await cache.render(key(1), rendering(2))
    proceed.set()
    assert await early is not late
    assert cache.find(key(1)) is late


async def test_caller_that_leaves_ends_its_rendering() -> None:
    """One of the others renders again, and the last one to leave ends that too."""
    cache = ResponseCache(100_000)
    started, ended = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def endless() -> tuple[CachedResponse, bool]:
        started.release()
        try:
            await asyncio.Event().wait()
        finally:
            ended.release()
        raise AssertionError("unreachable")

    callers = [asyncio.create_task(cache.render(key(1), endless)) for _ in range(3)]
    for caller in callers:
        await started.acquire()
        assert ended.locked()
        caller.cancel()
        await asyncio.wait([caller])
        await ended.acquire()
    assert (await cache.render(key(1), rendering(3))).key == key(1)


async def test_waiting_caller_that_leaves_disturbs_nobody() -> None:
    cache = ResponseCache(100_000)
    proceed = asyncio.Event()
    slow = rendering(after=proceed)
    first, leaving, last = [asyncio.create_task(cache.render(key(1), slow)) for _ in range(3)]
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    proceed.set()
    assert leaving.cancelled()
    assert await first is await last


async def test_caller_that_leaves_during_a_drop_does_not_end_the_newer_rendering() -> None:
    cache = ResponseCache(100_000)
    proceed = asyncio.Event()
    slow = rendering(after=proceed)
    early = asyncio.create_task(cache.render(key(1), slow))
    await asyncio.sleep(0)
    cache.drop()
    late = [asyncio.create_task(cache.render(key(1), slow)) for _ in range(2)]
    await asyncio.sleep(0)
    early.cancel()
    await asyncio.wait([early])
    proceed.set()
    assert await late[0] is await late[1]


async def test_uncacheable_response_is_not_stored() -> None:
    cache = ResponseCache(100_000)
    await cache.render(key(1), rendering(cacheable=False))
    assert len(cache) == 0


async def test_error_is_shared_and_not_stored() -> None:
    cache = ResponseCache(100_000)

    async def fail() -> tuple[CachedResponse, bool]:
        await asyncio.sleep(0)
        raise ValueError("no")

    callers = [asyncio.create_task(cache.render(key(1), fail)) for _ in range(3)]
    errors = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(error) for error in errors] == [ValueError] * 3
    assert await cache.render(key(1), rendering())


def test_dropped_response_is_freed_at_once() -> None:
    """Without the garbage collector, which would find its body only much later."""

    def alive() -> int:
        return sum(isinstance(found, CachedResponse) for found in gc.get_objects())

    gc.disable()
    try:
        before = alive()
        response = CachedResponse(Response(b"x", media_type="text/plain"), "/", "no-cache", "Accept")
        assert alive() == before + 1
        del response
        assert alive() == before
    finally:
        gc.enable()
