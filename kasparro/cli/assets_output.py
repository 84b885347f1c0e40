"""Prints why rows are linked to their assets or not."""

from collections.abc import Sequence

from kasparro.assets.explain import Counterpart, Explanation
from kasparro.cli.terminal import PrintableConsole

_SIGNS = {"for": "+", "against": "-", "veto": "!", "neutral": " "}


def show(console: PrintableConsole, explanations: Sequence[Explanation]) -> None:
    """Print the link of each row, what stays open, and all evidence for and against each similar row."""
    for number, found in enumerate(explanations):
        if number:
            console.print()
        for line in _lines(found):
            console.print(line, soft_wrap=True)


def _lines(found: Explanation) -> list[str]:
    if found.link is None:
        state = "not linked to any asset"
    else:
        state = f"linked to {found.link.asset} by {found.link.method}, score {found.link.score:.3f}"
    lines = [f"{found.source}/{found.source_id}: {state}"]
    lines += [f"  the next run: {change}" for change in found.changes]
    lines += [f"  {candidate.kind}: {candidate.reason}" for candidate in found.candidates]
    if not found.counterparts:
        return [*lines, "  no row of another source resembles it"]
    lines.append(
        f"  similar rows; a score of {found.bar:g} links (+ is for it, - against it, ! rules it out):"
    )
    for counterpart in found.counterparts:
        lines += _of_counterpart(counterpart)
    return lines


def _of_counterpart(counterpart: Counterpart) -> list[str]:
    labels = ", ".join(label for label in (counterpart.symbol, counterpart.name) if label)
    asset = counterpart.asset or "no asset"
    return [
        f"  {counterpart.score:.3f}  {counterpart.source}/{counterpart.source_id} ({labels}), {asset}",
        *(f"         {_SIGNS[item['verdict']]} {item['text']}" for item in counterpart.evidence),
    ]
