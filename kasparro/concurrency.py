"""Timeouts and groups of tasks that count cancel requests correctly on every supported Python.

A task counts its cancel requests (`Task.cancelling()`). On Python 3.11 and 3.12, asyncio.TaskGroup leaves a
request behind in its parent task if a child fails. asyncio.timeout of 3.11.0 to 3.11.2 then raises
CancelledError instead of TimeoutError in that task. Therefore the package uses `timeout` and `run_together`,
and ruff reports uses of the others.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class UnexpectedCancel(Exception):
    """A task ended as cancelled although nobody cancelled it: a failure like any other."""


@asynccontextmanager
async def timeout(seconds: float) -> AsyncIterator[None]:
    """Cancel the block after this time and raise TimeoutError, even in a task that was cancelled before."""
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    limit = asyncio.timeout(seconds)  # noqa: TID251 - the code below corrects its fault
    try:
        async with limit:
            yield
    except asyncio.CancelledError:
        if limit.expired() and task is not None and task.cancelling() <= before:
            raise TimeoutError from None
        raise


async def run_together(*work: Coroutine[Any, Any, T]) -> list[T]:
    """Run coroutines concurrently and return their results. If one fails, cancel the others.

    Raises a BaseExceptionGroup with all errors. A coroutine that ends as cancelled although nobody cancelled
    it has failed with UnexpectedCancel.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
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
        raise BaseExceptionGroup("concurrent tasks failed", errors)
    return [task.result() for task in tasks]


def failure(task: asyncio.Task[Any]) -> BaseException | None:
    """The error of a finished task, or None. A cancelled task gives UnexpectedCancel."""
    if task.cancelled():
        return UnexpectedCancel("the task was cancelled from inside")
    return task.exception()


async def cancel_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until all have ended."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
