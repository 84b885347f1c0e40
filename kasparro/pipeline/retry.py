"""The retry policy of a run: repeats database work that failed because the database was unavailable."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import stamina

from kasparro.errors import DatabaseUnavailable, LeaseLost
from kasparro.store.locks import AdvisoryLease

T = TypeVar("T")

# How long a run waits for an unavailable database before it gives up.
DATABASE_PATIENCE_S = 300.0


class DatabaseRetry:
    """Retries database work for one run. All sources of the run share the limit on the time of waiting.

    When the limit is reached, further work is tried once. `stop` ends retrying at once. `on_wait` is called
    with the reason at each failed attempt, and with None when the database works again.
    """

    def __init__(
        self,
        run_id: int,
        lease: AdvisoryLease,
        stop: asyncio.Event,
        on_wait: Callable[[str | None], None] = lambda reason: None,
    ) -> None:
        self._run_id = run_id
        self._lease = lease
        self._stop = stop
        self._on_wait = on_wait
        self._unavailable_since: float | None = None

    async def __call__(self, call: Callable[[], Awaitable[T]], patience_s: float | None = None) -> T:
        """Await `call()`, and repeat it while the database is unavailable and the run holds its lease.

        `patience_s` replaces DATABASE_PATIENCE_S. Raises LeaseLost, and DatabaseUnavailable when the
        limit is reached.
        """
        limit_s = DATABASE_PATIENCE_S if patience_s is None else patience_s

        def may_retry(error: Exception) -> bool:
            if not isinstance(error, DatabaseUnavailable):
                return False
            now = time.monotonic()
            self._unavailable_since = self._unavailable_since or now
            self._on_wait(str(error))
            return not self._stop.is_set() and now - self._unavailable_since < limit_s

        async for attempt in _attempts(may_retry):
            with attempt:
                # A restarted server has lost the lock. Another run may hold it now.
                if not await self._lease.acquire():
                    raise LeaseLost(f"run {self._run_id} lost its lock to another run")
                result = await call()
                if self._unavailable_since is not None:
                    self._unavailable_since = None
                    self._on_wait(None)
                return result
        raise AssertionError("unreachable: the last attempt raises")


async def read_when_available(call: Callable[[], Awaitable[T]], stop: asyncio.Event) -> T:
    """Await `call()`, which only reads, and repeat it while the database is unavailable.

    Raises DatabaseUnavailable after DATABASE_PATIENCE_S, and at once after `stop`.
    """
    deadline = time.monotonic() + DATABASE_PATIENCE_S

    def may_retry(error: Exception) -> bool:
        return isinstance(error, DatabaseUnavailable) and not stop.is_set() and time.monotonic() < deadline

    async for attempt in _attempts(may_retry):
        with attempt:
            return await call()
    raise AssertionError("unreachable: the last attempt raises")


def _attempts(may_retry: Callable[[Exception], bool]) -> AsyncIterator[stamina.Attempt]:
    return stamina.retry_context(
        on=may_retry, attempts=None, timeout=None, wait_initial=0.1, wait_max=5.0, wait_jitter=0.5
    )
