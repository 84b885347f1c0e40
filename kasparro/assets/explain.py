"""Explains why a row is linked or not: all evidence for and against each row that it resembles."""

from typing import Any

import msgspec

from kasparro.assets.knowledge import Knowledge
from kasparro.assets.match import Match
from kasparro.assets.resolve import BAR, Resolver
from kasparro.assets.rules import NO_RULES, Rules
from kasparro.model.asset import FOREVER, Candidate, Key, Link


class Counterpart(msgspec.Struct, frozen=True, kw_only=True):
    """A row of another source that resembles the explained one. `score` is compared with the bar."""

    source: str
    source_id: str
    symbol: str | None
    name: str | None
    asset: str | None
    score: float
    evidence: list[dict[str, Any]]


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a row has its asset or none.

    `link` is the link that it has after a resolution by these rules, and `candidates` what stays open.
    `changes` says in sentences what that resolution would change for the row: a dry run of the rules.
    """

    source: str
    source_id: str
    bar: float
    link: Link | None
    candidates: list[Candidate]
    counterparts: list[Counterpart]
    changes: list[str]


def explain(knowledge: Knowledge, key: Key, rules: Rules = NO_RULES) -> Explanation:
    """Explain one row. Raises KeyError if there is no such row."""
    resolver = Resolver(knowledge, rules)
    if key not in resolver.profiles:
        raise KeyError("/".join(key))
    resolution = resolver.resolve()
    before = next((link for link in knowledge.links if link.key == key and link.valid_until >= FOREVER), None)
    kept = None if key in resolution.ended else before
    after = next((link for link in resolution.links if link.key == key), kept)
    return Explanation(
        source=key[0],
        source_id=key[1],
        bar=BAR,
        link=after,
        candidates=[each for each in resolution.candidates if (each.source, each.source_id) == key],
        counterparts=[_counterpart(resolver, key, match) for match in resolver.matches_of(key)],
        changes=_changes(before, after),
    )


def _counterpart(resolver: Resolver, key: Key, match: Match) -> Counterpart:
    other = match.counterpart(key)
    coin = resolver.profiles[other].coin
    return Counterpart(
        source=coin.source,
        source_id=coin.source_id,
        symbol=coin.symbol,
        name=coin.name,
        asset=resolver.asset_of(other),
        score=match.shown,
        evidence=match.evidence,
    )


def _changes(before: Link | None, after: Link | None) -> list[str]:
    if before is None:
        return [] if after is None else [f"it would be linked to {after.asset}"]
    if after is None:
        return [f"its link to {before.asset} would end"]
    if before.asset != after.asset:
        return [f"it would be linked to {after.asset} instead of {before.asset}"]
    if before.method != after.method:
        return [f"its link to {after.asset} would be by {after.method} instead of {before.method}"]
    if (before.symbol, before.name) != (after.symbol, after.name):
        return [f"its link to {after.asset} would be confirmed for its present symbol and name"]
    return []
