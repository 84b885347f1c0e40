"""Fetches contract lists, and reads their items: shared by all sources that have such lists."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

import msgspec
from msgspec import Raw

from kasparro.errors import SourceError
from kasparro.model.contract_list import ContractList
from kasparro.model.record import RejectedValue, check_id
from kasparro.sources.base import ContractReader
from kasparro.sources.http import RetryLimits, UpstreamClient

T = TypeVar("T")

# A list is requested again in a later run. Contracts are worth no second call, and no waiting.
ONE_CALL = RetryLimits(attempts=1)
# Twenty times the contracts of the longest list in 2026.
CONTRACTS_LIMIT = 1_000_000


async def fetch(
    client: UpstreamClient,
    paths: AsyncIterator[str],
    parameters: Mapping[str, str],
    read: ContractReader,
) -> AsyncGenerator[ContractList, None]:
    """Fetch the lists of these paths, one after the other. Raises SourceError."""
    async for path in paths:
        response = await client.get(path, parameters, ONE_CALL)
        # The longest list takes a tenth of a second.
        found = await asyncio.to_thread(read, path, response.items or [], response.received_at)
        if found is not None:
            yield found


def read_each(items: Sequence[Raw], read: Callable[[Raw], T]) -> tuple[list[T], int]:
    """What the items hold, and how many of them could not be read. Raises SourceError if most could not."""
    found, unread = [], 0
    for item in items:
        try:
            found.append(read(item))
        except (msgspec.DecodeError, ValueError, RecursionError):
            unread += 1
    if unread * 2 > len(items):
        raise SourceError(f"{unread:,} of {len(items):,} items have another shape than expected")
    return found, unread


def contract_list(
    path: str,
    received_at: datetime,
    found: Iterable[tuple[str, str, str]],
    *,
    platform: str | None = None,
    unread: int,
) -> ContractList:
    """The list of these contracts: source_id, platform and address. Those with an empty value are left out.

    Raises SourceError if there are more contracts than any list has.
    """
    contracts = set[tuple[str, str, str]]()
    for values in found:
        try:
            source_id, chain, address = (check_id(value.strip(), "contract") for value in values)
        except RejectedValue:
            continue
        contracts.add((source_id, chain, address))
    if len(contracts) > CONTRACTS_LIMIT:
        raise SourceError(f"the list has more than {CONTRACTS_LIMIT:,} contracts")
    return ContractList(
        path=path, received_at=received_at, platform=platform, contracts=sorted(contracts), unread=unread
    )
