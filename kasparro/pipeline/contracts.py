"""Loads the contract lists of a source after its records, from the reserve of the call budget."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime, timedelta

import structlog

from kasparro.concurrency import timeout
from kasparro.errors import LeaseLost, one_line
from kasparro.model.contract_list import ContractList
from kasparro.pipeline.retry import DatabaseRetry
from kasparro.sources import page_schedule
from kasparro.sources.base import ContractSource, Source, SourceContext
from kasparro.sources.page_schedule import RESERVE_PERCENT, MonthlyCalls
from kasparro.sources.replay import Replay
from kasparro.store.contracts import Replaced
from kasparro.store.loader import Loader

log = structlog.get_logger()

# How long a run works on the contract lists of a source, and how long it waits for the database meanwhile.
# The next run goes on.
TIME_LIMIT_S = 60.0
PATIENCE_S = 10.0


def daily_lists(month: MonthlyCalls | None, now: datetime) -> int | None:
    """How many contract lists a source may request on this day (UTC); None for no limit.

    The calls come from the reserve of the month, so prices lose none. Where the reserve has less than a call
    a day left, no list is requested.
    """
    if month is None:
        return None
    days = -(-(page_schedule.month_of(now)[1] - now) // timedelta(days=1))
    return month.remaining * RESERVE_PERCENT // 100 // days


class ContractLoader:
    """Loads the contract lists of one source in one run. A failure costs only the list."""

    def __init__(self, source: Source, loader: Loader, retry: DatabaseRetry, run_id: int) -> None:
        self._source = source
        self._loader = loader
        self._retry = retry
        self._path: str | None = None
        self._log = log.bind(run=run_id, source=source.name)

    async def load(self, context: SourceContext) -> None:
        """Load the lists that are due, or those that a replay has read. Raises LeaseLost.

        A failure is logged in one line. The contracts of the last good list stay.
        """
        try:
            async with timeout(TIME_LIMIT_S):
                if isinstance(self._source, Replay):
                    for found in self._source.contract_lists:
                        await self._replace(found, context)
                elif isinstance(self._source, ContractSource):
                    await self._fetch(self._source, context)
        except LeaseLost:
            raise
        except TimeoutError:
            self._fail(f"the lists took longer than {TIME_LIMIT_S:g} s; the next run goes on")
        except Exception as error:  # noqa: BLE001 - contracts are only evidence; nothing here may fail the run
            self._fail(one_line(error))

    async def _fetch(self, source: ContractSource, context: SourceContext) -> None:
        limit = daily_lists(await context.monthly_calls(), context.clock())
        changes = list[Replaced]()
        lists = source.contract_lists(context, self._due(source.contract_root, limit, context))
        async with aclosing(lists):
            async for found in lists:
                changes.append(await self._replace(found, context))
        if changes:
            self._log.info(
                "contracts_loaded",
                lists=len(changes),
                added=sum(change.added for change in changes),
                removed=sum(change.removed for change in changes),
            )

    async def _due(self, root: str, limit: int | None, context: SourceContext) -> AsyncIterator[str]:
        while True:
            path = await self._retry(
                lambda: self._loader.next_contract_list(root, context.clock(), limit), PATIENCE_S
            )
            if path is None:
                return
            self._path = path
            yield path

    async def _replace(self, found: ContractList, context: SourceContext) -> Replaced:
        self._path = found.path
        change = await self._retry(lambda: self._loader.load_contracts(found, context.clock()), PATIENCE_S)
        if change.kept:
            self._log.warning("contract_list_short", path=found.path, kept=change.kept)
        return change

    def _fail(self, reason: str) -> None:
        self._log.warning("contract_list_failed", path=self._path, reason=reason)
