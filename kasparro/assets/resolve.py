"""Decides which rows are the same coin."""

from collections.abc import Sequence

from kasparro.assets.knowledge import Key, Knowledge
from kasparro.assets.rules import NO_RULES, Rules
from kasparro.model.asset import Resolution

# Identifies the built-in rules: a new version of them judges all rows without a link again.
VERSION = "1"
# The lowest score that links.
BAR = 0.9


def resolve(knowledge: Knowledge, rules: Rules = NO_RULES) -> Resolution:
    """Decide the rows that have no link, those with another symbol or name than their link, and what rules say.

    Every row that stays without a link is among the candidates, with the symbol and name that were judged.
    """
    raise NotImplementedError


def open_pairs(knowledge: Knowledge, resolution: Resolution) -> Sequence[tuple[Key, Key]]:
    """The pairs of rows for which prices at the same moments could settle a candidate: keys of
    `Knowledge.prices`."""
    raise NotImplementedError
