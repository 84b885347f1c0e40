"""Timeouts and groups of tasks that count cancel requests right, on every Python that we support.

A task counts the cancel requests that it got (`Task.cancelling()`). On Python 3.11 and 3.12 asyncio.TaskGroup
leaves a request behind in its parent where a child fails, and asyncio.timeout of 3.11.0 to 3.11.2 raises
CancelledError instead of TimeoutError in a task that has one left. So the package uses `timeout` and
`run_together`, and ruff refuses the others.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class UnexpectedCancel(Exception):
    """Work ended as if it had been cancelled, though nobody asked for that: a failure like any other."""


@asynccontextmanager
async def timeout(seconds: float) -> AsyncIterator[None]:
    """Cancel the block after this time and raise TimeoutError, also in a task that was cancelled before."""
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    limit = asyncio.timeout(seconds)  # noqa: TID251 - what is wrong with it is mended below
    try:
        async with limit:
            yield
    except asyncio.CancelledError:
        if limit.expired() and task is not None and task.cancelling() <= before:
            raise TimeoutError from None
        raise


async def run_together(*work: Coroutine[Any, Any, T]) -> list[T]:
    """The results of coroutines that run side by side; where one fails, the others are cancelled.

    Raises the errors of all that failed as one BaseExceptionGroup. A coroutine that ends as cancelled, though
    nobody cancelled it, has failed with UnexpectedCancel.
    """
    tasks = [asyncio.create_task(each) for each in work]
    pending, late = set(tasks), set[asyncio.Task[T]]()
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if any(failure(task) for task in done):
                break
    finally:
        late = {task for task in tasks if not task.done()}
        await cancel_all(late)
    errors = [error for task in tasks if (error := failure(task)) and not (task in late and task.cancelled())]
    if errors:
        raise BaseExceptionGroup("work side by side failed", errors)
    return [task.result() for task in tasks]


def failure(task: asyncio.Task[Any]) -> BaseException | None:
    """Why a task that is done has no result; UnexpectedCancel where it was cancelled."""
    if task.cancelled():
        return UnexpectedCancel("it was cancelled from inside")
    return task.exception()


async def cancel_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until each has ended."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
