"""Prints why rows are linked to their assets or not, as tables for people or as JSON."""

from collections.abc import Sequence

from rich.table import Table

from kasparro.assets.explain import Explanation
from kasparro.cli.terminal import PrintableConsole

_VERDICTS = {"for": "+", "against": "-", "veto": "veto", "neutral": ""}


def show(console: PrintableConsole, explanations: Sequence[Explanation]) -> None:
    """Print the link of each row, what stays open, and all evidence for and against each similar row."""
    for number, found in enumerate(explanations):
        if number:
            console.print()
        console.print(f"{found.source}/{found.source_id}: {_state(found)}", soft_wrap=True)
        for change in found.changes:
            console.print(f"  the next run: {change}", soft_wrap=True)
        for candidate in found.candidates:
            console.print(f"  {candidate.kind}: {candidate.reason}", soft_wrap=True)
        if not found.counterparts:
            console.print("  no row of another source resembles it", soft_wrap=True)
            continue
        console.print(f"  similar rows; a score of {found.bar:g} links:", soft_wrap=True)
        table = Table("row", "symbol", "name", "asset", "score", "", "evidence")
        table.columns[4].justify = "right"
        for counterpart in found.counterparts:
            cells = [
                f"{counterpart.source}/{counterpart.source_id}",
                counterpart.symbol or "",
                counterpart.name or "",
                counterpart.asset or "-",
                f"{counterpart.score:.3f}",
            ]
            for index, item in enumerate(counterpart.evidence):
                shown = cells if index == 0 else [""] * len(cells)
                table.add_row(*shown, _VERDICTS.get(item["verdict"], ""), item["text"])
        console.print(table)


def _state(found: Explanation) -> str:
    if found.link is None:
        return "not linked to any asset"
    return f"linked to {found.link.asset} by {found.link.method}, score {found.link.score:.3f}"
