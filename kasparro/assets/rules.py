"""Reads the user's rules: a TOML file that links and parts coins for good."""

from collections.abc import Collection
from pathlib import Path

import msgspec

from kasparro.assets.knowledge import Key


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """`links` gives the asset of rows. `parts` are pairs of rows that are never the same coin."""

    links: dict[Key, str] = {}
    parts: frozenset[tuple[Key, Key]] = frozenset()

    @property
    def digest(self) -> str:
        """A digest that does not depend on the layout of the file."""
        raise NotImplementedError


NO_RULES = Rules()


def read_rules(path: Path, sources: Collection[str]) -> Rules:
    """The rules of a file. Raises SettingsError, in one line that names the table, the key and what is allowed."""
    raise NotImplementedError
