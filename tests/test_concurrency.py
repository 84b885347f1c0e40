"""Timeouts and groups of tasks count cancel requests correctly, even after earlier requests."""

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
    """Cancel the calling task and swallow the request, as clean-up code does."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(0)


async def test_timeout_after_a_swallowed_cancel_raises_timeout_error() -> None:
    async def clean_up() -> None:
        await cancelled_before()
        with pytest.raises(TimeoutError):
            await times_out()

    await asyncio.create_task(clean_up())


async def test_cancel_within_a_timeout_raises_cancelled_error() -> None:
    async def work() -> None:
        async with timeout(60):
            await waits()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_nested_timeouts_each_raise() -> None:
    async def outer() -> None:
        async with timeout(0.02):
            with pytest.raises(TimeoutError):
                await times_out()
            await waits()

    with pytest.raises(TimeoutError):
        await outer()


async def test_results_are_in_order() -> None:
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
async def test_failure_cancels_the_others_and_leaves_no_cancel_request(
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
    # On Python 3.11.2 this raised CancelledError, which ended the background loop for good.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await waits()


async def test_cancel_from_outside_cancels_all_and_raises_cancelled_error() -> None:
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
