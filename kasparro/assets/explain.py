"""Explains why a row is linked or not: all evidence for and against each row that it resembles."""

from typing import Any

import msgspec

from kasparro.assets.knowledge import Key, Knowledge
from kasparro.assets.rules import NO_RULES, Rules
from kasparro.model.asset import Candidate, Link


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
    raise NotImplementedError
