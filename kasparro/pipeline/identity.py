"""Runs the resolver after the sources of a run, and stores what it decides."""

import asyncio
from collections.abc import Callable, Collection
from datetime import datetime
from functools import partial
from hashlib import blake2b

import msgspec
import structlog

from kasparro.assets.knowledge import Knowledge, Relabelled
from kasparro.assets.resolve import VERSION, open_pairs, resolve
from kasparro.assets.rules import NO_RULES, Rules, read_rules
from kasparro.model.asset import Resolution
from kasparro.model.consensus import ConsensusLimits
from kasparro.settings import Settings
from kasparro.sources import registry
from kasparro.store import assets, contracts
from kasparro.store.assets import Known
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
    path = settings.asset_rules
    rules = (lambda: NO_RULES) if path is None else partial(read_rules, path, registry.names())
    return AssetOptions(limits=settings.consensus_limits, rules=rules)


async def link_rows(
    database: Database,
    run_id: int,
    options: AssetOptions,
    awaited: Collection[str],
    clock: Callable[[], datetime],
) -> None:
    """Let the resolver decide what is pending, and store it.

    `awaited` are the sources with lists that this run reads. Raises LeaseLost, DatabaseUnavailable, and
    SettingsError if the rules are not valid.
    """
    rules = options.rules()
    async with database.writing() as connection:
        depends_on = _digest(rules, await contracts.changed_at(connection))
        if not await assets.is_pending(connection, depends_on):
            return
        known = await assets.known(connection)
    resolution = await _resolve(database, known, rules, awaited)
    async with database.writing() as connection:
        resolved = await assets.apply(
            connection, resolution, options.limits, clock(), run_id=run_id, depends_on=depends_on
        )
    log.info(
        "assets_resolved",
        run=run_id,
        new_assets=len(resolution.assets),
        new_links=len(resolution.links),
        ended_links=len(resolution.ended),
        candidates=len(resolution.candidates),
        rows=resolved.rows,
    )


async def _resolve(database: Database, known: Known, rules: Rules, awaited: Collection[str]) -> Resolution:
    sources = {coin.source for coin in known.coins}
    knowledge = Knowledge(
        coins=known.coins,
        contracts=known.contracts,
        links=known.links,
        assets=known.assets,
        candidates=known.candidates,
        relabelled={key: Relabelled(*found) for key, found in known.relabelled.items()},
        awaited=set(awaited) - sources,
    )
    # In a thread, because requests must not wait.
    resolution = await asyncio.to_thread(resolve, knowledge, rules)
    pairs = list(open_pairs(knowledge, resolution))[:PAIRS_LIMIT]
    if pairs:
        async with database.writing() as connection:
            prices = await assets.prices(connection, pairs)
        if prices:
            knowledge = msgspec.structs.replace(knowledge, prices=prices)
            resolution = await asyncio.to_thread(resolve, knowledge, rules)
    return resolution


def _digest(rules: Rules, contracts_changed_at: datetime | None) -> str:
    # What decisions depend on besides the rows.
    return blake2b(f"{VERSION} {rules.digest} {contracts_changed_at}".encode(), digest_size=16).hexdigest()
