"""The ways in which a background task can end unexpectedly."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn

from kasparro.errors import KasparroError

Ending = Callable[[], Awaitable[None]]


def _raising(error: BaseException) -> Ending:
    async def end() -> NoReturn:
        raise error

    return end


async def _return() -> None:
    pass


async def _cancel_itself() -> None:
    asyncio.current_task().cancel()  # type: ignore[union-attr]
    await asyncio.sleep(0)


# Each ending, and the reason that /health shows for it.
TASK_ENDINGS: dict[str, tuple[Ending, str]] = {
    "exception": (_raising(ValueError("hunter2")), "ValueError; the log has the details"),
    "own error": (_raising(KasparroError("do this")), "do this"),
    "group": (
        _raising(BaseExceptionGroup("many", [asyncio.CancelledError()])),
        "BaseExceptionGroup; the log has the details",
    ),
    "stray cancel": (_raising(asyncio.CancelledError()), "UnexpectedCancel; the log has the details"),
    "cancelled": (_cancel_itself, "UnexpectedCancel; the log has the details"),
    "return": (_return, "it returned before it was stopped"),
}
