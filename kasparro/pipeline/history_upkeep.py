"""The background task that computes the candles of the history, and thins it."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Self

import asyncpg
import structlog

from kasparro.errors import KasparroError, one_line
from kasparro.model.history_retention import HistoryRetention
from kasparro.sources.base import utc_now
from kasparro.store.history_upkeep import compute_candles, thin
from kasparro.store.locks import AdvisoryLease
from kasparro.store.pool import Database
from kasparro.supervision import Supervisor

log = structlog.get_logger()

# Between two looks for something to do.
PAUSE_S = 300.0


class HistoryUpkeep:
    """The upkeep of the history, as a context manager. One process at a time works on a database."""

    def __init__(
        self,
        database: Database,
        retention: HistoryRetention,
        *,
        supervisor: Supervisor,
        clock: Callable[[], datetime] = utc_now,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._retention = retention
        self._supervisor = supervisor
        self._clock = clock
        self._pause_s = pause_s
        self._lease = AdvisoryLease(database, "history")

    async def __aenter__(self) -> Self:
        self._task = self._supervisor.start("history_upkeep", self._keep_working)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._task.stop()

    async def _keep_working(self) -> None:
        while True:
            try:
                async with self._lease as lease:
                    if await lease.acquire():
                        await compute_candles(lease, self._clock())
                        await thin(lease, self._retention, self._clock())
            except (KasparroError, asyncpg.UndefinedTableError) as error:
                # Unreachable, or not migrated yet. Reads stay right, only slower.
                log.warning("history_upkeep_waits", reason=one_line(error))
            await asyncio.sleep(self._pause_s)
