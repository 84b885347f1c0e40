"""Runs the resolver after the sources of a run, and stores what it decides."""

from collections.abc import Callable, Collection
from datetime import date, datetime
from functools import partial
from hashlib import blake2b

import msgspec
import structlog

from kasparro.assets.explain import Explanation, explain
from kasparro.assets.knowledge import knowledge_of
from kasparro.assets.process_client import Resolver
from kasparro.assets.resolve import VERSION
from kasparro.assets.rules import NO_RULES, Rules, load_rules
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


async def link_rows(
    database: Database,
    run_id: int,
    options: AssetOptions,
    awaited: Collection[str],
    clock: Callable[[], datetime],
    *,
    always: bool = False,
) -> None:
    """Let the resolver decide what is pending, and store it.

    With `always`, and on the first run of a day (UTC), rows without a link are decided again although nothing
    is pending: their prices are others now. `awaited` are the sources with lists that this run reads.

    Raises LeaseLost, DatabaseUnavailable, ResolverFailed, and SettingsError if the rules are not valid.
    """
    rules = options.rules()
    async with database.writing() as connection:
        depends_on = _digest(rules, options.limits, await contracts.changed_at(connection), clock().date())
        if not always and not await assets.is_pending(connection, depends_on):
            return
    resolution = await _resolve(database, rules, awaited)
    async with database.writing() as connection:
        resolved = await assets.apply(
            connection, resolution, options.limits, clock(), run_id=run_id, depends_on=depends_on
        )
    log.info(
        "assets_resolved",
        run=run_id,
        new_assets=resolution.counts["assets"],
        new_links=resolution.counts["links"],
        ended_links=resolution.counts["ended"],
        candidates=resolution.counts["candidates"],
        rows=resolved.rows,
    )


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


async def _resolve(database: Database, rules: Rules, awaited: Collection[str]) -> ResolutionDocuments:
    async with Resolver() as resolver:
        async with database.writing() as connection:
            known = await assets.known(connection)
        decision = await resolver.decide(known, rules, awaited)
    pairs = decision.open_pairs[:PAIRS_LIMIT]
    if pairs:
        async with database.writing() as connection:
            prices = await assets.prices(connection, pairs)
        if prices:
            async with Resolver() as resolver:
                decision = await resolver.decide(known, rules, awaited, pairs=pairs, prices=prices)
    return decision.resolution


def _digest(rules: Rules, limits: ConsensusLimits, contracts_changed_at: datetime | None, day: date) -> str:
    # What decisions and the consensus depend on besides the rows.
    parts = (VERSION, rules.digest, limits.max_lag, limits.divergence_percent, contracts_changed_at, day)
    return blake2b(" ".join(map(str, parts)).encode(), digest_size=16).hexdigest()
