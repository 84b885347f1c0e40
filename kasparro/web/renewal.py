"""Renders what is asked for again and again anew as soon as the data moves, before anybody asks."""

import asyncio
from heapq import nlargest
from time import monotonic

import asyncpg
import structlog

from kasparro.concurrency import cancel_all, failure
from kasparro.errors import KasparroError
from kasparro.log_rate import RateLimitedLog
from kasparro.supervision import Supervisor
from kasparro.web.cache.response import CachedResponse, Render
from kasparro.web.cache.store import Key, ResponseCache
from kasparro.web.http.problems import Problem

log = structlog.get_logger()
client_log = RateLimitedLog(log)

# So many answers at most, one after the other.
RENEWED = 8
# What was asked for half so long ago counts half, and what nobody asked for meanwhile is forgotten.
WANTED_S = 60.0
# Of so many of a version, those asked for last, the most wanted are noted, in all so many.
LOOKED_AT, NOTED = 1_000, 64


class _Wanted:
    # What is known of an answer that was asked for: how often lately, when last, how to render it, and how it
    # was asked for in that version.
    __slots__ = ("again", "asks", "at", "codings", "spellings")

    def __init__(self) -> None:
        self.asks = 0.0

    def note(self, answer: CachedResponse, again: Render, now: float) -> None:
        """Its answer in the version that ends."""
        self.again = again
        self.asks += answer.asks
        self.at = now
        self.codings = tuple(answer.variants)
        self.spellings = answer.spellings


class Renewal:
    """Keeps the answers of `kept` that are wanted most those of the newest data.

    A run commits batch after batch: without this, whoever asks first after each waits for the database.
    """

    def __init__(self, kept: ResponseCache, supervisor: Supervisor | None = None) -> None:
        self._kept = kept
        self._supervisor = supervisor or Supervisor()
        self._closed = False
        self._wanted: dict[Key, _Wanted] = {}
        self._noted_at = 0.0
        self._due: dict[Key, _Wanted] = {}
        self._working: asyncio.Task[None] | None = None

    def moved(self, *, known: bool) -> None:
        """The data moved: drop what is kept; where the database is `known` to answer, begin to renew it."""
        self._note()
        self._kept.drop()
        # The most wanted come first, and what was asked for but once is not wanted yet.
        often = [(key, wanted) for key, wanted in self._wanted.items() if wanted.asks > 1]
        self._due = dict(often[:RENEWED]) if known else {}
        if self._due and (self._working is None or self._working.done()):
            self._working = asyncio.create_task(self._work())
            self._working.add_done_callback(self._ended)

    def _note(self) -> None:
        now = monotonic()
        lately = {key: one for key, one in self._wanted.items() if now - one.at < WANTED_S}
        for wanted in lately.values():
            wanted.asks *= 0.5 ** (2 * (now - self._noted_at) / WANTED_S)
        for answer in self._kept.asked(LOOKED_AT):
            if answer.again is None:
                lately.pop(answer.key, None)
            else:
                lately.setdefault(answer.key, _Wanted()).note(answer, answer.again, now)
        self._noted_at = now
        self._wanted = dict(nlargest(NOTED, lately.items(), key=lambda one: (one[1].asks, one[1].at)))

    async def _work(self) -> None:
        # Whoever asks meanwhile for what is under way gets that, and what comes later is rendered for them.
        while self._due:
            key = next(iter(self._due))
            wanted = self._due.pop(key)
            try:
                await self._renew(key, wanted)
            except (Problem, KasparroError, asyncpg.PostgresError) as error:
                # Whoever asks for it is told.
                log.debug("an answer was not renewed", reason=str(error))
            except Exception as error:  # noqa: BLE001 - the others are rendered all the same
                client_log.fault("renewal_failed", error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        # The next version of the data starts it again.
        if not self._closed and (error := failure(task)) is not None:
            self._supervisor.failed("cache_renewal", error)

    async def _renew(self, key: Key, wanted: _Wanted) -> None:
        answer = self._kept.find(key) or await self._kept.render(key, wanted.again)
        if answer.again is None:
            # It takes too long by now.
            self._wanted.pop(key, None)
        for coding in wanted.codings:
            # Where it is not kept, nobody is going to get it.
            if self._kept.find(key) is answer:
                await answer.variant(coding)
        for spelling in wanted.spellings:
            self._kept.remember(answer, spelling)

    async def close(self) -> None:
        """End what is being renewed."""
        self._closed = True
        if self._working is not None:
            await cancel_all({self._working})
