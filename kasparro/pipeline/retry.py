"""Repeats what the database could not do just now, for as long as the run may still write."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import stamina

from kasparro.errors import DatabaseUnavailable, LeaseLost
from kasparro.store.runs import AdvisoryLease

T = TypeVar("T")

# How long a run waits for a database that went away before it gives up.
DATABASE_PATIENCE_S = 300.0


class DatabaseRetry:
    """The patience of one run, which its sources share: when it is at its end, whatever is left to do is
    tried once. `stop` ends it at once.

    `waits` gets the reason each time that the database is waited for, and None when it has done something.
    """

    def __init__(
        self,
        run_id: int,
        lock: AdvisoryLease,
        stop: asyncio.Event,
        on_wait: Callable[[str | None], None] = lambda reason: None,
    ) -> None:
        self._run_id = run_id
        self._lock = lock
        self._stop = stop
        self._on_wait = on_wait
        self._away_since: float | None = None

    async def __call__(self, call: Callable[[], Awaitable[T]], patience_s: float | None = None) -> T:
        """Do it, again and again while the database is out of reach, and only while the run is ours.

        Raises LeaseLost, and DatabaseUnavailable where patience is at its end.
        """
        limit_s = DATABASE_PATIENCE_S if patience_s is None else patience_s

        def again(error: Exception) -> bool:
            if not isinstance(error, DatabaseUnavailable):
                return False
            now = time.monotonic()
            self._away_since = self._away_since or now
            self._on_wait(str(error))
            return not self._stop.is_set() and now - self._away_since < limit_s

        async for attempt in stamina.retry_context(
            on=again,
            attempts=None,
            timeout=None,
            wait_initial=0.1,
            wait_max=5.0,
            wait_jitter=0.5,
        ):
            with attempt:
                # A restarted server has forgotten the lock; without it another run may have begun.
                if not await self._lock.acquire():
                    raise LeaseLost(f"run {self._run_id} lost its lock to another run")
                done = await call()
                if self._away_since is not None:
                    self._away_since = None
                    self._on_wait(None)
                return done
        raise AssertionError("unreachable: the last attempt raises")
