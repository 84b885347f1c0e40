"""The interface between sources and the pipeline: a source, what it declares, what a run gives it."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import msgspec
from msgspec import Raw

from kasparro.model.batch import Batch, CrawledPage, KnownFile
from kasparro.model.contract_list import ContractList
from kasparro.model.payload import Payload
from kasparro.model.record import Record
from kasparro.settings import SourceSettings
from kasparro.sources.page_schedule import MonthlyCalls


def utc_now() -> datetime:
    """The wall clock, aware and in UTC."""
    return datetime.now(UTC)


async def _no_file(name: str) -> KnownFile | None:
    del name
    return None


async def _no_files(name: str, content: str) -> list[KnownFile]:
    del name, content
    return []


async def _no_pages() -> list[CrawledPage]:
    return []


async def _no_coins() -> list[tuple[str, str, str]]:
    return []


async def _no_limit() -> MonthlyCalls | None:
    return None


async def _no_count() -> None:
    return None


async def _no_payload(payload: Payload) -> None:
    del payload


class SourceSummary(msgspec.Struct, kw_only=True):
    """What a source reports of its run besides the records. The source writes it, the pipeline reads it."""

    problems: list[str] = msgspec.field(default_factory=list)
    """Pages and files that were lost while the rest went on. Any makes the source `partial`."""
    note: str | None = None
    """Something a person should know that is not an error."""
    planned_share: float = 1.0
    """The share of its list that the source planned to fetch."""
    record_limit: int | None = None
    """How many records of its upstream's list the source fetches at most; None: all."""
    list_began_at: datetime | None = None
    """When the crawl began that has fetched the upstream's whole list; None: no crawl has. A coin that was
    not listed since then is missing from the list."""
    loaded_before: bool = False
    """An earlier run loaded a part of the source that has not changed since. Losing the rest then makes the
    source `partial`, not `failed`."""

    def add_problem(self, text: str) -> None:
        """Report a page or file that was lost while the rest went on."""
        self.problems.append(text)


class SourceContext(msgspec.Struct, kw_only=True, frozen=True):
    """What a run gives a source: a clock, access to earlier progress, the call budget, storage for payloads.

    The defaults suit a source that runs without a pipeline, as in tests.
    """

    clock: Callable[[], datetime] = utc_now
    file_named: Callable[[str], Awaitable[KnownFile | None]] = _no_file
    """The file with this name, as committed earlier."""
    known_files: Callable[[str, str], Awaitable[list[KnownFile]]] = _no_files
    """The files with this name or with this digest of their content."""
    known_coins: Callable[[], Awaitable[list[tuple[str, str, str]]]] = _no_coins
    """Symbol, name and id of the leading coins of other sources, as committed earlier."""
    known_pages: Callable[[], Awaitable[list[CrawledPage]]] = _no_pages
    """The pages of the source's list, as committed earlier."""
    monthly_calls: Callable[[], Awaitable[MonthlyCalls | None]] = _no_limit
    """The month's calls; None: nothing limits them. Raises SourceError if none is left."""
    interval: timedelta | None = None
    """The time between runs, if known."""
    probing: bool = False
    """The source failed in the last runs, so its first call is not repeated."""
    count_call: Callable[[], Awaitable[None]] = _no_count
    """Counts an upstream call before it is made. Raises SourceError if the month's budget is spent."""
    uncount_call: Callable[[], Awaitable[None]] = _no_count
    """Takes the last count back, if nothing was sent."""
    save_payload: Callable[[Payload], Awaitable[None]] = _no_payload
    """Stores an upstream's response. A failure to store it is no error of the source."""
    progress: Callable[[float, float | None], None] = lambda done, total: None
    """Moves a progress bar: done and total in a unit of the source's choice; total may be unknown."""
    summary: SourceSummary = msgspec.field(default_factory=SourceSummary)


class Source(Protocol):
    """Something that yields records, batch by batch."""

    @property
    def name(self) -> str: ...

    def extract(self, context: SourceContext) -> AsyncGenerator[Batch, None]:
        """Yield everything that is due now.

        Raises SourceError if it cannot continue, and NothingToDo if nothing is due. Batches yielded before
        stay loaded. The pipeline may close the generator after any batch. A bad record becomes a Reject in
        a batch, never an exception.
        """
        ...


@runtime_checkable
class SourceWithProcess(Protocol):
    """A source whose runs need a process. It can start before the run, because that takes time."""

    def process_started(self) -> AbstractAsyncContextManager[None]:
        """Start the process for the next run. It reads nothing before that. Without a run, it ends with the
        block.
        """
        ...


@asynccontextmanager
async def processes_started(sources: Iterable[Source]) -> AsyncIterator[None]:
    """Start the processes that these sources need for their next run."""
    async with AsyncExitStack() as stack:
        for source in sources:
            if isinstance(source, SourceWithProcess):
                await stack.enter_async_context(source.process_started())
        yield


@runtime_checkable
class ContractSource(Protocol):
    """A source that can also fetch lists of contracts, as evidence for which coins are the same.

    The pipeline calls it after the source's records are loaded. It decides which lists are due, within the
    call budget. A source without such lists has neither attribute.
    """

    contract_root: str
    """The path of the list that is always there. It may name further lists."""

    def contract_lists(
        self, context: SourceContext, paths: AsyncIterator[str]
    ) -> AsyncGenerator[ContractList, None]:
        """Fetch the list of each path and yield it, before the next path is taken. Raises SourceError.

        A list is requested once, without retries.
        """
        ...


class ContractReader(Protocol):
    """Reads the response to a call as a contract list; None if the path is not that of such a list.

    Raises SourceError if the response does not have the shape of the list.
    """

    def __call__(self, path: str, items: Sequence[Raw], received_at: datetime) -> ContractList | None: ...


class Reader(Protocol):
    """Makes a record of one item of an API's list.

    Raises RejectedValue, msgspec.DecodeError or ValueError.
    """

    def __call__(self, item: Raw, now: datetime) -> Record: ...


S = TypeVar("S", bound=SourceSettings)


class SourceDefinition(msgspec.Struct, Generic[S], frozen=True, kw_only=True):
    """What a source declares. An entry point of the group `kasparro.sources` names such a definition.

    Settings, `--help`, call budget, page schedule, reports and the OpenAPI document derive from it.
    """

    name: str
    """As in the `source` field of the API. The entry point has the same name."""
    settings: type[S]
    """The source's environment variables."""
    build: Callable[[S], Source]
    is_api: bool = True
    """Whether the source calls an upstream. `/stats` then has its call budget and its drift."""
    max_pages: Callable[[S], int] | None = None
    """If the upstream divides its list into pages: how many of them the source fetches at most."""
    read: Reader | None = None
    """Reads stored payloads again. None: a run of this source cannot be replayed."""
    read_contracts: ContractReader | None = None
    """Reads stored payloads of contract lists again. None: the source has no such lists."""


AnySource = SourceDefinition[Any]
