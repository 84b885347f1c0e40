"""What a source is to the pipeline, and what the pipeline lends it for one pass."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

import msgspec

from kasparro.model.batch import Batch, Checkpoint, CrawledPage
from kasparro.model.payload import Payload
from kasparro.sources.page_schedule import Month


def utc_now() -> datetime:
    """The wall clock, aware and in UTC."""
    return datetime.now(UTC)


async def _no_checkpoint(key: str) -> Checkpoint | None:
    del key
    return None


async def _no_pages() -> list[CrawledPage]:
    return []


async def _unlimited() -> Month | None:
    return None


async def _uncounted() -> None:
    return None


async def _unkept(payload: Payload) -> None:
    del payload


class SourceContext(msgspec.Struct, kw_only=True):
    """One pass over one source: what it may ask while it works, and what it has to tell.

    `checkpoint(key)` gives what an earlier pass committed, `checkpoint_named(name)` the newest of that name,
    and `pages()` each page of the source's list. `month()` gives the month's calls, None where nothing limits
    them, `interval` is the time between runs, None where nobody knows it, and `probing` says that the
    source has failed again and again: its first call is not repeated. `note` is what a person should know
    of the pass that is no error. `count_call()` books a call upstream before it is made and, as `month()`,
    raises SourceError where the month's budget is spent; `uncount_call()` takes the last booking back, where
    nothing was sent; `keep(payload)` stores what the call was answered,
    and costs no pass its records where it cannot; `progress(done, total)` moves a bar, in the source's own
    unit, where `total` may be unknown.
    `planned` is the share of its list that a source sets out to bring, told where that is not all of it.
    `bound` is how many records of its upstream's list it asks for at most, None for all.
    `loaded` says that an earlier pass has loaded a part of the source that has not changed since: what is
    lost beside it makes the source `partial`, not `failed`.
    """

    clock: Callable[[], datetime] = utc_now
    checkpoint: Callable[[str], Awaitable[Checkpoint | None]] = _no_checkpoint
    checkpoint_named: Callable[[str], Awaitable[Checkpoint | None]] = _no_checkpoint
    pages: Callable[[], Awaitable[list[CrawledPage]]] = _no_pages
    month: Callable[[], Awaitable[Month | None]] = _unlimited
    interval: timedelta | None = None
    probing: bool = False
    count_call: Callable[[], Awaitable[None]] = _uncounted
    uncount_call: Callable[[], Awaitable[None]] = _uncounted
    keep: Callable[[Payload], Awaitable[None]] = _unkept
    progress: Callable[[float, float | None], None] = lambda done, total: None
    planned: float = 1.0
    bound: int | None = None
    loaded: bool = False
    problems: list[str] = msgspec.field(default_factory=list)
    note: str | None = None

    def problem(self, text: str) -> None:
        """Tell of a page or file that was lost while the rest went on: the source is then `partial`."""
        self.problems.append(text)


class Source(Protocol):
    """A source: its name, and a pass over all that it has now, batch by batch.

    `extract` raises SourceError where it cannot go on, and NothingToDo where it has nothing to do now; the
    batches before that stand. It may be closed at any batch. A record that is not fit becomes a Reject in a
    batch, never an exception.
    """

    @property
    def name(self) -> str: ...

    def extract(self, passing: SourceContext) -> AsyncGenerator[Batch, None]: ...
