"""Sources for a replay: they read stored payloads again and make no upstream call."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from kasparro.errors import NothingToDo, SourceError
from kasparro.model.batch import Batch
from kasparro.model.contract_list import ContractList
from kasparro.model.payload import Payload
from kasparro.sources.base import ContractReader, Reader, SourceContext
from kasparro.sources.crawl import Crawl
from kasparro.sources.http import UpstreamError, parse_list


class Replay:
    """One source's part in an earlier run, read again: its good payloads in their order, as one crawl.

    `fetch` gives the payload of an id, or None if it is no longer stored. `missing` calls of the run have no
    stored payload. `unchanged` calls have no records, because the upstream said that nothing had changed.
    The summary reports both.
    """

    def __init__(
        self,
        name: str,
        read: Reader,
        ids: Sequence[int],
        fetch: Callable[[int], Awaitable[Payload | None]],
        *,
        missing: int,
        unchanged: int,
        read_contracts: ContractReader | None = None,
    ) -> None:
        self.name = name
        self.contract_lists = list[ContractList]()
        """The contract lists among the payloads, once `extract` has read them."""
        self._read_contracts = read_contracts
        self._read = read
        self._ids = ids
        self._fetch = fetch
        self._missing = missing
        self._unchanged = unchanged

    async def extract(self, context: SourceContext) -> AsyncGenerator[Batch, None]:
        """The records of each payload as batches. An unreadable payload costs that payload."""
        crawl, missing = Crawl(), self._missing
        unreadable: dict[str, str] = {}
        if self._unchanged:
            context.summary.note = (
                f"{self._unchanged} of the run's calls brought no news; an earlier run has the records"
            )
        for done, payload_id in enumerate(self._ids, start=1):
            payload = await self._fetch(payload_id)
            if payload is None:
                missing += 1
                continue
            if self._read_contracts and self._read_contracts(payload.path, (), payload.received_at):
                await self._add_contracts(payload, self._read_contracts)
                continue
            request = _request(payload.path, payload.parameters)
            try:
                items = await parse_list(self.name, payload.body)
            except UpstreamError as error:
                unreadable[request] = str(error)
                continue
            # The run had repeated a call whose response it could not read.
            unreadable.pop(request, None)
            async for batch in crawl.batches(
                items[: payload.items_limit], partial(self._read, now=payload.received_at)
            ):
                yield batch
            context.progress(done, len(self._ids))
        for request, error_text in unreadable.items():
            context.summary.add_problem(f"{request}: {error_text}")
        if missing:
            context.summary.add_problem(f"{missing} of the run's calls have no stored payload")

    async def _add_contracts(self, payload: Payload, read: ContractReader) -> None:
        # The run that fetched an unreadable list has logged it, and no record is lost.
        with suppress(SourceError):
            items = await parse_list(self.name, payload.body)
            found = await asyncio.to_thread(read, payload.path, items, payload.received_at)
            if found is not None:
                self.contract_lists.append(found)


class SkippedSource:
    """One source's part in an earlier run that cannot be read again, and why."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self._reason = reason

    async def extract(self, context: SourceContext) -> AsyncGenerator[Batch, None]:
        """No batch. Raises NothingToDo."""
        del context
        raise NothingToDo(self._reason)
        yield  # makes this an async generator, as for every source


def _request(path: str, parameters: Mapping[str, str]) -> str:
    return f"{path}?{'&'.join(f'{name}={value}' for name, value in parameters.items())}"
