"""The cache of rendered answers by itself: its bound, its order, and what a move of the data does to it."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import Response

from kasparro.web.cache.response import CachedResponse, Render
from kasparro.web.cache.store import SPELLINGS, ResponseCache

Key = tuple[bytes, bytes]


def rendering(size: int = 10, lasting: bool = True) -> Render:
    async def render() -> tuple[CachedResponse, bool]:
        return CachedResponse(
            Response(b"x" * size, media_type="text/plain"), "/", "no-cache", "Accept"
        ), lasting

    return render


def key(number: int) -> Key:
    return b"/data", b"%d" % number


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30_000), st.integers(0, 20), st.booleans())),
)
async def test_it_never_holds_more_than_it_may_and_forgets_whole_answers(
    asked: list[tuple[int, int, int, bool]],
) -> None:
    kept = ResponseCache(100_000)
    for number, size, spelling, pack in asked:
        answer = kept.find(key(number)) or await kept.render(key(number), rendering(size))
        if pack:
            await answer.variant("gzip")
        kept.remember(answer, (b"/data", b"%d-%d" % (number, spelling)))
        assert kept.bytes <= 100_000
        assert len(answer.spellings) <= SPELLINGS
        assert kept.bytes == sum(one.kept_bytes for one in kept._kept.values())
        spelt = [one for answer in kept._kept.values() for one in answer.spellings]
        assert sorted(spelt) == sorted(kept._spelt)


async def test_of_many_ways_of_asking_the_latest_are_known() -> None:
    kept = ResponseCache(100_000)
    answer = await kept.render(key(1), rendering())
    for n in range(SPELLINGS + 2):
        kept.remember(answer, key(n))
    assert [kept.spelt(key(n)) is answer for n in range(SPELLINGS + 2)] == [False] * 2 + [True] * SPELLINGS


async def test_what_was_asked_for_longest_ago_makes_room() -> None:
    kept = ResponseCache(100_000)
    for number in range(3):
        answer = await kept.render(key(number), rendering(30_000))
        kept.remember(answer, key(number))
    assert kept.spelt(key(0)) is not None
    await kept.render(key(3), rendering(30_000))
    assert [kept.find(key(number)) is not None for number in range(4)] == [True, False, True, True]


async def test_an_answer_from_before_a_move_is_given_to_who_asked_then_and_to_nobody_else() -> None:
    kept = ResponseCache(100_000)
    read, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> tuple[CachedResponse, bool]:
        read.set()
        await go_on.wait()
        return await rendering(1)()

    early = asyncio.create_task(kept.render(key(1), slow))
    await read.wait()
    kept.drop()
    late = await kept.render(key(1), rendering(2))
    go_on.set()
    assert await early is not late
    assert kept.find(key(1)) is late


async def test_what_the_last_waiter_leaves_is_ended_and_made_anew_for_the_next() -> None:
    kept = ResponseCache(100_000)
    read, ended = asyncio.Event(), asyncio.Event()

    async def endless() -> tuple[CachedResponse, bool]:
        read.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError("unreachable")

    waiters = [asyncio.create_task(kept.render(key(1), endless)) for _ in range(2)]
    await read.wait()
    waiters[0].cancel()
    await asyncio.wait(waiters[:1])
    assert not ended.is_set()
    waiters[1].cancel()
    # Until it has heard so it still waits, and whoever asks waits with it.
    await asyncio.wait(waiters[1:])
    assert (await kept.render(key(1), rendering(3))).key == key(1)
    await ended.wait()


async def test_an_answer_that_may_be_old_is_not_kept() -> None:
    kept = ResponseCache(100_000)
    await kept.render(key(1), rendering(lasting=False))
    assert len(kept) == 0


async def test_an_error_is_everybodys_and_nothing_is_kept_of_it() -> None:
    kept = ResponseCache(100_000)

    async def fail() -> tuple[CachedResponse, bool]:
        await asyncio.sleep(0)
        raise ValueError("no")

    asked = [asyncio.create_task(kept.render(key(1), fail)) for _ in range(3)]
    assert [type(error) for error in await asyncio.gather(*asked, return_exceptions=True)] == [ValueError] * 3
    assert await kept.render(key(1), rendering())


async def test_closing_ends_what_is_being_rendered() -> None:
    kept = ResponseCache(100_000)

    async def never() -> tuple[CachedResponse, bool]:
        await asyncio.Event().wait()
        raise AssertionError

    waiting = asyncio.create_task(kept.render(key(1), never))
    await asyncio.sleep(0)
    await kept.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
