"""What the service and the resolver's process send each other besides documents: a line before these."""

from collections.abc import Collection, Sequence

import msgspec

from kasparro.assets.rules import Rules
from kasparro.model.asset import Key


class Task(msgspec.Struct, frozen=True):
    """What to decide. After it come the prices of `pairs`, and the documents of what is known.

    With `by_labels`, only a decision that does not depend on figures and times of rows.
    """

    rules: Rules
    awaited: Collection[str]
    pairs: Sequence[tuple[Key, Key]] = ()
    by_labels: bool = False


class Answer(msgspec.Struct, frozen=True):
    """What is decided. After it come the documents, `lines` lines: those of the assets, `asset_lines` in
    number, and of the links, the ended links, and the candidates. Without a decision by labels, none.
    """

    lines: int
    asset_lines: int = 0
    counts: dict[str, int] = {}
    open_pairs: Sequence[tuple[Key, Key]] = ()
