"""Runs the resolver after the sources of a run, and stores what it decides."""

import asyncio
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack
from datetime import date, datetime
from functools import partial
from hashlib import blake2b
from types import TracebackType
from typing import Self

import msgspec
import structlog

from kasparro.assets.explain import Explanation, explain
from kasparro.assets.knowledge import knowledge_of
from kasparro.assets.process_client import Resolver
from kasparro.assets.resolve import VERSION
from kasparro.assets.rules import NO_RULES, Rules, load_rules
from kasparro.concurrency import cancel_all, failure
from kasparro.model.asset_documents import ResolutionDocuments
from kasparro.model.consensus import ConsensusLimits
from kasparro.settings import Settings
from kasparro.store import assets, contracts
from kasparro.store.pool import Database

log = structlog.get_logger()

# For how many pairs of rows prices at the same moments are looked up.
PAIRS_LIMIT = 1_000


class AssetOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How rows are linked to assets. `rules` reads the user's rules; it raises SettingsError."""

    limits: ConsensusLimits = ConsensusLimits()
    rules: Callable[[], Rules] = lambda: NO_RULES


def options_of(settings: Settings) -> AssetOptions:
    """The options that the settings ask for."""
    return AssetOptions(limits=settings.consensus_limits, rules=partial(load_rules, settings))


class Linker:
    """Lets the resolver decide what is pending after the sources of a run, and stores it.

    `awaited` are the sources with lists that the run reads. With `always`, and on the first run of a day
    (UTC), rows without a link are decided again although nothing is pending: their prices are others now. The
    processes of the resolver end with the `async with` block.
    """

    def __init__(
        self,
        database: Database,
        run_id: int,
        options: AssetOptions,
        awaited: Collection[str],
        clock: Callable[[], datetime],
        *,
        always: bool = False,
    ) -> None:
        self._database = database
        self._run_id = run_id
        self._options = options
        self._awaited = awaited
        self._clock = clock
        self._always = always
        self._early: asyncio.Task[_EarlyDecision | None] | None = None
        self._resolver: Resolver | None = None

    async def __aenter__(self) -> Self:
        self._processes = AsyncExitStack()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._early is not None:
            await cancel_all({self._early})
            # Otherwise asyncio would report an error that nobody has looked at.
            failure(self._early)
        await self._processes.aclose()

    def decide_early(self) -> None:
        """Decide by labels while the last batches are merged, if something is pending already.

        If no label changes meanwhile, that need not be decided again. If it fails, `link_rows` does
        everything. The lists of several sources have the same coins, so that their prices always count.
        """
        if not self._awaited:
            self._early = asyncio.create_task(self._decide_early())

    async def link_rows(self) -> None:
        """Decide what is pending, and store it.

        Raises LeaseLost, DatabaseUnavailable, ResolverFailed, and SettingsError if the rules are not valid.
        """
        rules = self._options.rules()
        depends_on = await self._pending(rules)
        if depends_on is None:
            return
        early = await self._take_early()
        resolution = await self._still_valid(early, depends_on)
        if resolution is None:
            resolution = await self._resolve(rules, await self._process())
        async with self._database.writing() as connection:
            resolved = await assets.apply(
                connection,
                resolution,
                self._options.limits,
                self._clock(),
                run_id=self._run_id,
                depends_on=depends_on,
            )
        log.info(
            "assets_resolved",
            run=self._run_id,
            new_assets=resolution.counts["assets"],
            new_links=resolution.counts["links"],
            ended_links=resolution.counts["ended"],
            candidates=resolution.counts["candidates"],
            rows=resolved.rows,
        )

    async def _pending(self, rules: Rules) -> str | None:
        # The digest of what the decisions depend on besides the rows, if something is pending.
        async with self._database.writing() as connection:
            changed_at = await contracts.changed_at(connection)
            depends_on = _digest(rules, self._options.limits, changed_at, self._clock().date())
            pending = self._always or await assets.is_pending(connection, depends_on)
        return depends_on if pending else None

    async def _process(self) -> Resolver:
        # One for all decisions of the run, unless it is killed.
        if self._resolver is None or not self._resolver.alive:
            self._resolver = await self._processes.enter_async_context(Resolver())
        return self._resolver

    async def _decide_early(self) -> "_EarlyDecision | None":
        rules = self._options.rules()
        depends_on = await self._pending(rules)
        if depends_on is None:
            return None
        resolver = await self._process()
        async with self._database.writing() as connection:
            known, labels = await assets.known_with_labels(connection)
        resolution = await resolver.decide_by_labels(known, rules, self._awaited)
        return _EarlyDecision(depends_on, labels, resolution)

    async def _take_early(self) -> "_EarlyDecision | None":
        # An error will come again if it matters.
        if self._early is None:
            return None
        await asyncio.wait({self._early})
        early, self._early = self._early, None
        return None if failure(early) else early.result()

    async def _still_valid(
        self, early: "_EarlyDecision | None", depends_on: str
    ) -> ResolutionDocuments | None:
        # What was decided early, if it would be the same now. Nobody else writes links during a run.
        if early is None or early.resolution is None or early.depends_on != depends_on:
            return None
        async with self._database.writing() as connection:
            labels = await assets.labels(connection)
        return early.resolution if labels == early.labels else None

    async def _resolve(self, rules: Rules, resolver: Resolver) -> ResolutionDocuments:
        async with self._database.writing() as connection:
            known = await assets.known(connection)
        decision = await resolver.decide(known, rules, self._awaited)
        pairs = decision.open_pairs[:PAIRS_LIMIT]
        if pairs:
            async with self._database.writing() as connection:
                prices = await assets.prices(connection, pairs)
            if prices:
                decision = await resolver.decide(known, rules, self._awaited, pairs=pairs, prices=prices)
        return decision.resolution


class _EarlyDecision(msgspec.Struct, frozen=True):
    # What was decided by labels, None if that was not possible, and what it depends on.
    depends_on: str
    labels: str
    resolution: ResolutionDocuments | None


async def note_failure(database: Database, reason: str) -> None:
    """Note why rows were not linked, for /health. Raises DatabaseUnavailable."""
    async with database.writing() as connection:
        await assets.note_problem(connection, reason)


async def explain_rows(database: Database, text: str, rules: Rules) -> list[Explanation]:
    """Explain the rows that a person may mean by an asset, a source_id, or SOURCE/SOURCE_ID.

    Nothing is written, so this is a dry run of the rules. Raises DatabaseUnavailable.
    """
    async with database.reading() as connection:
        keys = await assets.rows_meant(connection, text)
        known = await assets.known(connection) if keys else None
    if known is None:
        return []
    knowledge = knowledge_of(known)
    return [explain(knowledge, key, rules) for key in keys]


def _digest(rules: Rules, limits: ConsensusLimits, contracts_changed_at: datetime | None, day: date) -> str:
    # What decisions and the consensus depend on besides the rows.
    parts = (VERSION, rules.digest, limits.max_lag, limits.divergence_percent, contracts_changed_at, day)
    return blake2b(" ".join(map(str, parts)).encode(), digest_size=16).hexdigest()
