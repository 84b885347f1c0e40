"""What a source is to the pipeline, and what the pipeline lends it for one pass."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from kasparro.batch import Batch, Checkpoint


def utc_now() -> datetime:
    """The wall clock, aware and in UTC."""
    return datetime.now(UTC)


async def _no_checkpoint(key: str) -> Checkpoint | None:
    del key
    return None


async def _uncounted() -> None:
    return None


class Pass(msgspec.Struct, kw_only=True):
    """One pass over one source: what it may ask while it works, and what it has to tell.

    `checkpoint(key)` gives what an earlier pass committed, `known_as(name)` the newest of that name;
    `count_call()` books a call upstream before it is made and raises SourceError where the month's budget is
    spent; `progress(done, total)` moves a bar, in the source's own unit, where `total` may be unknown.
    """

    clock: Callable[[], datetime] = utc_now
    checkpoint: Callable[[str], Awaitable[Checkpoint | None]] = _no_checkpoint
    known_as: Callable[[str], Awaitable[Checkpoint | None]] = _no_checkpoint
    count_call: Callable[[], Awaitable[None]] = _uncounted
    progress: Callable[[float, float | None], None] = lambda done, total: None
    problems: list[str] = msgspec.field(default_factory=list)

    def problem(self, text: str) -> None:
        """Tell of a page or file that was lost while the rest went on: the source is then `partial`."""
        self.problems.append(text)


class Source(Protocol):
    """A source: its name, and a pass over all that it has now, batch by batch.

    `extract` raises SourceError where it cannot go on; the batches before that stand. It may be closed at
    any batch. A record that is not fit becomes a Reject in a batch, never an exception.
    """

    @property
    def name(self) -> str: ...

    def extract(self, passing: Pass) -> AsyncGenerator[Batch, None]: ...
