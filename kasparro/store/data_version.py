"""Follows the version of the data, which every commit that changes a row moves."""

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
# A notification that was lost, or never comes as on a replica, is made up for by asking.
POLL_S = 1.0
# For so long what the database told last is taken as true; after two polls too late, nothing is known.
VOUCHED_S = 3.0
# Whoever corrects rows by hand moves no version: so long at most goes by until that shows.
KEPT_S = 60.0
RETRY_S = 0.5


async def version_of(connection: Connection) -> str:
    """The version of the data that a server has."""
    version: str = await connection.fetchval(_SQL["version"])
    return version


class DataVersion:
    """The version of the data that readers see, as a connection of its own tells while this is entered.

    `moved` is called as soon as there is a new version, and whenever there may be one that was missed.
    """

    def __init__(
        self, database: Database, moved: Callable[[], None], supervisor: Supervisor | None = None
    ) -> None:
        self._database = database
        self._supervisor = supervisor or Supervisor()
        self._moved = moved
        self._seen: str | None = None
        self._moved_at = float("-inf")
        self._following: BackgroundTask | None = None
        # On the clock of time.perf_counter: until then `moved` was called for everything that moved.
        self.fresh_until = float("-inf")

    async def __aenter__(self) -> Self:
        self._following = self._supervisor.start("data_version", self._follow)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._following is not None:
            await self._following.stop()

    async def holds(self, connection: Connection) -> bool:
        """Whether the server of this connection has the version that was seen here last.

        Of several replicas one may lag behind the one that is followed.
        """
        return self._seen is not None and await version_of(connection) == self._seen

    async def _follow(self) -> None:
        while True:
            try:
                async with self._database.following() as connection:
                    await self._watch(connection)
            except (KasparroError, asyncpg.PostgresError) as error:
                # Out of reach or being prepared, which the next request is told as well.
                log.debug("the version of the data is not known", reason=str(error))
            finally:
                # Until it is known again every answer is read from the database, which is slow and right.
                self._lose()
            await asyncio.sleep(RETRY_S)

    async def _watch(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        # A standby cannot listen.
        with suppress(asyncpg.ReadOnlySQLTransactionError):
            await connection.add_listener(CHANNEL, self._notified)
        while not lost.is_set():
            asked = time.perf_counter()
            version = await version_of(connection)
            self.fresh_until = asked + VOUCHED_S
            self._see(version)
            with suppress(TimeoutError):
                async with timeout(POLL_S):
                    await lost.wait()

    def _notified(self, connection: Any, process: int, channel: str, payload: object) -> None:
        self._see(str(payload))

    def _see(self, version: str) -> None:
        if version != self._seen or time.perf_counter() - self._moved_at > KEPT_S:
            self._seen = version
            self._move()

    def _lose(self) -> None:
        self._seen = None
        self.fresh_until = float("-inf")
        self._move()

    def _move(self) -> None:
        self._moved_at = time.perf_counter()
        self._moved()
