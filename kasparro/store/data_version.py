"""Follows the data version, which every commit that changes a row increments."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Literal, Self

import asyncpg
import structlog

from kasparro.concurrency import timeout
from kasparro.errors import DatabaseUnavailable, KasparroError, ReplicaBehind
from kasparro.store.cursors import signing_key
from kasparro.store.pool import Connection, Database
from kasparro.store.sql import statements
from kasparro.store.version_tokens import VersionTokens
from kasparro.supervision import BackgroundTask, Supervisor

log = structlog.get_logger()
_SQL = statements("read/version.sql")

CHANNEL = "kasparro_data"
# Polling makes up for notifications that are lost.
POLL_S = 1.0
# Replicas send no notifications, and poolers pass none on.
UNHEARD_POLL_S = 0.5
# How long a version that the database confirmed counts as current; two polls may be late.
FRESH_S = 3.0
# Manual changes of rows do not move the version. They show after this time at the latest.
INVALIDATE_S = 60.0
RETRY_S = 0.5
# How long a read waits for a version that no server has yet, and how often it looks.
CATCH_UP_S = 1.0
CATCH_UP_POLL_S = 0.05


async def version_of(connection: Connection) -> int:
    """The data version of a server."""
    version: int = await connection.fetchval(_SQL["version"])
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
        self.seen: int | None = None
        """The version of the server that is followed; None while it is not known."""
        self._tokens: VersionTokens | None = None
        # The newest version that a client has seen and that no server has any more.
        self._lost = 0
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

    @property
    def tokens(self) -> VersionTokens | None:
        """The names of data versions in entity tags; None until the key is known."""
        return self._tokens

    def newest_named(self, if_none_match: bytes | None) -> int:
        """The newest data version that If-None-Match names; 0 if it names none, or the key is not known."""
        if if_none_match is None or self._tokens is None:
            return 0
        return self._tokens.newest(if_none_match)

    async def read_tokens(self, connection: Connection) -> VersionTokens:
        """The names of data versions in entity tags. The key is read once."""
        if self._tokens is None:
            self._tokens = VersionTokens(await signing_key(connection))
        return self._tokens

    def reading(
        self, at_least: int = 0, *, pool: Literal["short", "slow"] = "short", client: str = ""
    ) -> AbstractAsyncContextManager[Connection]:
        """A connection for reading, as `Database.reading`, to a server that has at least this data version.

        If no replica has it, the primary is read. If the primary lacks it too, the version is lost: a backup
        was restored, or a standby that had not received it became the primary. Then any version is read.
        Raises ReplicaBehind if the replicas lack it and the primary cannot be reached.
        """
        if self._database.one_server or at_least <= self._lost:
            return self._database.reading(pool=pool, client=client)
        return self._reading_at_least(at_least, pool, client)

    @asynccontextmanager
    async def _reading_at_least(
        self, at_least: int, pool: Literal["short", "slow"], client: str
    ) -> AsyncIterator[Connection]:
        async with AsyncExitStack() as stack:
            yield await self._connect_at_least(stack, at_least, pool, client)

    async def _connect_at_least(
        self, stack: AsyncExitStack, at_least: int, pool: Literal["short", "slow"], client: str
    ) -> Connection:
        deadline = time.monotonic() + CATCH_UP_S
        while True:
            last_look = time.monotonic() >= deadline or at_least <= self._lost
            for primary in (False, True):
                # An error of `version_of` is translated where the connection is given back.
                with suppress(DatabaseUnavailable):
                    async with AsyncExitStack() as attempt:
                        connection = await attempt.enter_async_context(
                            self._database.reading(pool=pool, client=client, primary=primary)
                        )
                        version = await version_of(connection)
                        lost = version < at_least and primary and last_look
                        if lost:
                            log.warning("data_version_lost", lost=at_least, found=version)
                            self._lost = max(self._lost, at_least)
                        if version >= at_least or lost:
                            stack.push_async_exit(attempt.pop_all())
                            return connection
            if last_look:
                raise ReplicaBehind(f"no server that can be reached has reached data version {at_least}")
            await asyncio.sleep(CATCH_UP_POLL_S)

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
        poll_s = UNHEARD_POLL_S
        if self._database.can_listen:
            # A standby cannot listen.
            with suppress(asyncpg.ReadOnlySQLTransactionError):
                await connection.add_listener(CHANNEL, self._notified)
                poll_s = POLL_S
        while not lost.is_set():
            polled_at = time.perf_counter()
            version = await version_of(connection)
            if version != self.seen or self._tokens is None:
                # A database that was restored from a backup of another one has another key.
                self._tokens = VersionTokens(await signing_key(connection))
            self.fresh_until = polled_at + FRESH_S
            self._see(version)
            with suppress(TimeoutError):
                async with timeout(poll_s):
                    await lost.wait()

    def _notified(self, connection: Any, process: int, channel: str, payload: object) -> None:
        self._see(int(str(payload)))

    def _see(self, version: int) -> None:
        if version > self._lost:
            # The numbers of the lost versions are in use again, and those of the tokens are older.
            self._lost = 0
        if version != self.seen or time.perf_counter() - self._invalidated_at > INVALIDATE_S:
            self.seen = version
            self._invalidate()

    def _forget(self) -> None:
        self.seen = None
        self.fresh_until = float("-inf")
        self._invalidate()

    def _invalidate(self) -> None:
        self._invalidated_at = time.perf_counter()
        for callback in self._callbacks:
            callback()
