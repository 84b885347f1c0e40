"""Prints the summary of a series of rounds."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.chaos.rounds import Round


def show(
    out: Console, rounds: Sequence[Round], failed: Sequence[str], impossible: dict[str, str], seconds: float
) -> None:
    """Print how often each fault was injected and survived.

    `failed` are the faults of the round that failed, `impossible` the faults that this machine cannot inject,
    with the reason.
    """
    survived = Counter(name for round_ in rounds for name in round_.faults)
    injected = survived + Counter(failed)
    table = Table("fault", "injected", "survived", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, count in sorted(injected.items()):
        table.add_row(name, str(count), str(survived[name]))
    out.print(table)
    for name, reason in sorted(impossible.items()):
        out.print(f"not injected: {name}: {reason}")
    runs: Counter[str] = sum((round_.runs for round_ in rounds), Counter())
    responses: Counter[str] = sum((round_.responses for round_ in rounds), Counter())
    slowest = max((round_.recovery_s for round_ in rounds), default=0.0)
    out.print(
        f"{len(rounds)} rounds passed in {seconds:.0f} s: {injected.total()} faults injected, "
        f"{survived.total()} survived; recovered within {slowest:.1f} s"
    )
    out.print(f"runs: {_counts(runs)}")
    out.print(f"responses to clients by status: {_counts(responses)}")


def _counts(counted: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counted.items()))
