"""What the service and the resolver's process send each other besides documents: the first line of each."""

from collections.abc import Collection, Sequence

import msgspec

from kasparro.assets.rules import Rules
from kasparro.model.asset import Key


class Task(msgspec.Struct, frozen=True):
    """What to decide. After it come the prices of `pairs`, and the documents of what is known."""

    rules: Rules
    awaited: Collection[str]
    pairs: Sequence[tuple[Key, Key]]


class Answer(msgspec.Struct, frozen=True):
    """What is decided. After it come the documents, each in a line: those of the assets, `asset_lines` in
    number, and of the links, the ended links, and the candidates.
    """

    open_pairs: Sequence[tuple[Key, Key]]
    counts: dict[str, int]
    asset_lines: int
