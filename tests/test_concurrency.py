"""Timeouts and groups of tasks count cancel requests right, whatever came before."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

import pytest

from kasparro.concurrency import UnexpectedCancel, run_together, timeout


async def fails(error: BaseException) -> NoReturn:
    raise error


async def waits() -> None:
    await asyncio.Event().wait()


async def times_out() -> None:
    async with timeout(0.01):
        await waits()


async def cancelled_before() -> None:
    """Cancel the task that calls this, and swallow the request as cleaning up does."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(0)


async def test_a_timeout_in_a_task_that_was_cancelled_before_is_a_timeout() -> None:
    async def clean_up() -> None:
        await cancelled_before()
        with pytest.raises(TimeoutError):
            await times_out()

    await asyncio.create_task(clean_up())


async def test_a_cancel_within_a_timeout_stays_a_cancel() -> None:
    async def work() -> None:
        async with timeout(60):
            await waits()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_nested_timeouts_each_raise_their_own() -> None:
    async def outer() -> None:
        async with timeout(0.02):
            with pytest.raises(TimeoutError):
                await times_out()
            await waits()

    with pytest.raises(TimeoutError):
        await outer()


async def test_work_side_by_side_gives_its_results_in_order() -> None:
    async def number(value: int) -> int:
        for _ in range(3 - value):
            await asyncio.sleep(0)
        return value

    assert await run_together(*(number(value) for value in range(3))) == [0, 1, 2]
    assert await run_together() == []


async def cancels_itself() -> None:
    asyncio.current_task().cancel()  # type: ignore[union-attr]
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        (lambda: fails(ValueError("no")), ValueError),
        (lambda: fails(ExceptionGroup("two", [ValueError("no")])), ExceptionGroup),
        (lambda: fails(asyncio.CancelledError()), UnexpectedCancel),
        (cancels_itself, UnexpectedCancel),
    ],
)
async def test_a_failure_ends_the_others_and_leaves_no_cancel_request_behind(
    work: Callable[[], Coroutine[Any, Any, None]], kind: type[BaseException]
) -> None:
    ended = asyncio.Event()

    async def other() -> None:
        try:
            await waits()
        finally:
            ended.set()

    with pytest.raises(BaseExceptionGroup) as errors:
        await run_together(other(), work(), other())

    assert [type(error) for error in errors.value.exceptions] == [kind]
    assert ended.is_set()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    # What broke the background loop for good: this was a CancelledError on Python 3.11.2.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await waits()


async def test_a_cancel_from_outside_ends_all_work_and_stays_a_cancel() -> None:
    begun = asyncio.Event()
    ended = 0

    async def other() -> None:
        nonlocal ended
        begun.set()
        try:
            await waits()
        finally:
            ended += 1

    task = asyncio.create_task(run_together(other(), other()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == 2
