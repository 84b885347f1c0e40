"""Renders what is asked for again and again anew as soon as the data moves, before anybody asks."""

import asyncio
import time
from heapq import nlargest

import asyncpg
import structlog

from kasparro.errors import KasparroError
from kasparro.web.answers import Render
from kasparro.web.kept import KeptAnswers, Key, Spelling
from kasparro.web.problems import Problem

log = structlog.get_logger()

# So many answers at most, one after the other: a few milliseconds' work for each version of the data.
RENEWED = 8
# What counts is asked for twice within this time, or in the version that ends.
WANTED_S = 60.0
# The last asked for of a version, and the most wanted of all that time: among so many the choice is made.
LOOKED_AT = 64


class _Wanted:
    # An answer that was asked for, as often, last in the version that ended `at`, in these ways.
    __slots__ = ("again", "asks", "at", "codings", "spellings")

    def __init__(self, again: Render) -> None:
        self.again = again
        self.asks = 0
        self.at = 0.0
        self.codings: set[str] = set()
        self.spellings: set[Spelling] = set()


class Renewal:
    """Keeps the answers of `kept` that are wanted most those of the newest data.

    A run commits batch after batch: without this, whoever asks first after each waits for the database.
    """

    def __init__(self, kept: KeptAnswers) -> None:
        self._kept = kept
        self._wanted: dict[Key, _Wanted] = {}
        self._due: dict[Key, _Wanted] = {}
        self._working: asyncio.Task[None] | None = None

    def moved(self, *, known: bool) -> None:
        """The data moved: drop what is kept; where the database is `known` to answer, begin to renew it."""
        self._note()
        self._kept.drop()
        # The most wanted come first.
        often = [(key, wanted) for key, wanted in self._wanted.items() if wanted.asks > 1]
        self._due = dict(often[:RENEWED]) if known else {}
        if self._due and (self._working is None or self._working.done()):
            self._working = asyncio.create_task(self._work())

    def _note(self) -> None:
        now = time.monotonic()
        for answer in self._kept.asked(LOOKED_AT):
            if answer.again is not None:
                wanted = self._wanted.setdefault(answer.key, _Wanted(answer.again))
                wanted.asks += answer.asks
                wanted.at = now
                wanted.codings.update(answer.variants)
                wanted.spellings.update(answer.spellings)
        lately = [(key, one) for key, one in self._wanted.items() if now - one.at < WANTED_S]
        self._wanted = dict(nlargest(LOOKED_AT, lately, key=lambda one: (one[1].asks, one[1].at)))

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
            except Exception:
                log.exception("an answer was not renewed")

    async def _renew(self, key: Key, wanted: _Wanted) -> None:
        answer = self._kept.find(key) or await self._kept.render(key, wanted.again)
        for coding in wanted.codings:
            await answer.variant(coding)
        for spelling in wanted.spellings:
            self._kept.remember(answer, spelling)

    async def close(self) -> None:
        """End what is being renewed."""
        if self._working is not None:
            self._working.cancel()
            await asyncio.wait({self._working})
