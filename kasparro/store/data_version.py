"""Follows the data version, which every commit that changes a row increments."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import asyncpg
import structlog

from kasparro.concurrency import timeout
from kasparro.errors import KasparroError
from kasparro.store.pool import Connection, Database
from kasparro.store.sql import statements
from kasparro.supervision import BackgroundTask, Supervisor

log = structlog.get_logger()
_SQL = statements("read/version.sql")

CHANNEL = "kasparro_data"
# Polling makes up for notifications that are lost, and for replicas, which send none.
POLL_S = 1.0
# How long a version that the database confirmed counts as current; two polls may be late.
FRESH_S = 3.0
# Manual changes of rows do not move the version. They show after this time at the latest.
INVALIDATE_S = 60.0
RETRY_S = 0.5


async def version_of(connection: Connection) -> str:
    """The data version of a server."""
    version: str = await connection.fetchval(_SQL["version"])
    return version


class DataVersion:
    """The data version that readers see, which a connection of its own follows while this is entered.

    `invalidate` is called for each new version, and whenever one may have been missed.
    """

    def __init__(
        self, database: Database, invalidate: Callable[[], None], supervisor: Supervisor | None = None
    ) -> None:
        self._database = database
        self._supervisor = supervisor or Supervisor()
        self._callbacks = [invalidate]
        self._seen: str | None = None
        self._invalidated_at = float("-inf")
        self._task: BackgroundTask | None = None
        # On the clock of time.perf_counter: until then, `invalidate` was called for every new version.
        self.fresh_until = float("-inf")

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call this function too, whenever `invalidate` is called."""
        self._callbacks.append(callback)

    async def __aenter__(self) -> Self:
        self._task = self._supervisor.start("data_version", self._follow)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            await self._task.stop()

    async def holds(self, connection: Connection) -> bool:
        """Whether the server of this connection has the version that was seen last.

        One of several replicas may be behind the one that is followed.
        """
        return self._seen is not None and await version_of(connection) == self._seen

    async def _follow(self) -> None:
        while True:
            try:
                async with self._database.following() as connection:
                    await self._watch(connection)
            except (KasparroError, asyncpg.PostgresError) as error:
                # Unreachable or not migrated yet; the next request reports the same.
                log.debug("data_version_unknown", reason=str(error))
            finally:
                # Until it is known again, every response is read from the database.
                self._forget()
            await asyncio.sleep(RETRY_S)

    async def _watch(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        if self._database.can_listen:
            # A standby cannot listen.
            with suppress(asyncpg.ReadOnlySQLTransactionError):
                await connection.add_listener(CHANNEL, self._notified)
        while not lost.is_set():
            polled_at = time.perf_counter()
            version = await version_of(connection)
            self.fresh_until = polled_at + FRESH_S
            self._see(version)
            with suppress(TimeoutError):
                async with timeout(POLL_S):
                    await lost.wait()

    def _notified(self, connection: Any, process: int, channel: str, payload: object) -> None:
        self._see(str(payload))

    def _see(self, version: str) -> None:
        if version != self._seen or time.perf_counter() - self._invalidated_at > INVALIDATE_S:
            self._seen = version
            self._invalidate()

    def _forget(self) -> None:
        self._seen = None
        self.fresh_until = float("-inf")
        self._invalidate()

    def _invalidate(self) -> None:
        self._invalidated_at = time.perf_counter()
        for callback in self._callbacks:
            callback()
