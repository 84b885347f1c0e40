"""Reads kept payloads again, with the reader of the source that they came from and no call upstream."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Protocol

from msgspec import Raw

from kasparro.errors import NothingToDo
from kasparro.model.batch import Batch
from kasparro.model.payload import Payload
from kasparro.model.record import Record
from kasparro.sources.base import SourceContext
from kasparro.sources.http import UpstreamError, parse_list
from kasparro.sources.json_values import Crawl


class Reader(Protocol):
    """A source's `to_record`."""

    def __call__(self, item: Raw, now: datetime) -> Record: ...


class Replay:
    """A source's part in an earlier run, once more: its good payloads in their order, as one walk.

    `ids` are the payloads', and `fetch` gives one, or None where it is no more. `unkept` of the calls that
    the run made have no payload, and `unchanged` have none with records, since the upstream said that it had
    no news; a pass over the rest tells so.
    """

    def __init__(
        self,
        name: str,
        read: Reader,
        ids: Sequence[int],
        fetch: Callable[[int], Awaitable[Payload | None]],
        *,
        unkept: int,
        unchanged: int,
    ) -> None:
        self.name = name
        self._read = read
        self._ids = ids
        self._fetch = fetch
        self._unkept = unkept
        self._unchanged = unchanged

    async def extract(self, passing: SourceContext) -> AsyncGenerator[Batch, None]:
        """A batch a payload, as the records were told; a payload that cannot be read costs itself."""
        walk, unreadable = Crawl(), dict[str, str]()
        if self._unchanged:
            passing.note = (
                f"{self._unchanged} of the run's calls brought no news; an earlier run has the records"
            )
        for done, number in enumerate(self._ids, start=1):
            payload = await self._fetch(number)
            if payload is None:
                self._unkept += 1
                continue
            asked = _asked(payload.path, payload.parameters)
            try:
                items = await parse_list(self.name, payload.body)
            except UpstreamError as error:
                unreadable[asked] = str(error)
                continue
            # The walk had asked again for what it could not read, until it could.
            unreadable.pop(asked, None)
            async for batch in walk.batches(
                items[: payload.items_limit], partial(self._read, now=payload.received_at)
            ):
                yield batch
            passing.progress(done, len(self._ids))
        for asked, said in unreadable.items():
            passing.problem(f"{asked}: {said}")
        if self._unkept:
            passing.problem(f"{self._unkept} of the run's calls have no payload kept")


class SkippedSource:
    """A source's part in an earlier run of which there is nothing to read again, and why."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self._reason = reason

    async def extract(self, passing: SourceContext) -> AsyncGenerator[Batch, None]:
        """No batch. Raises NothingToDo."""
        del passing
        raise NothingToDo(self._reason)
        yield  # an async generator, as every source's pass is


def _asked(path: str, parameters: Mapping[str, str]) -> str:
    return f"{path}?{'&'.join(f'{name}={value}' for name, value in parameters.items())}"
