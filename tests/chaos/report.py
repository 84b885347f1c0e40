"""What a series of rounds came to, for people."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.chaos.rounds import Round


def show(
    out: Console, rounds: Sequence[Round], failed: Sequence[str], impossible: dict[str, str], seconds: float
) -> None:
    """Print how many of each fault were injected and survived. `failed` are the faults of a round that did
    not pass, `impossible` those that this machine cannot have, each with the reason."""
    survived = Counter(name for one in rounds for name in one.faults)
    injected = survived + Counter(failed)
    table = Table("fault", "injected", "survived", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, count in sorted(injected.items()):
        table.add_row(name, str(count), str(survived[name]))
    out.print(table)
    for name, reason in sorted(impossible.items()):
        out.print(f"not injected: {name}: {reason}")
    runs: Counter[str] = sum((one.runs for one in rounds), Counter())
    answers: Counter[str] = sum((one.answers for one in rounds), Counter())
    slowest = max((one.recovery_s for one in rounds), default=0.0)
    out.print(
        f"{len(rounds)} rounds passed in {seconds:.0f} s: {injected.total()} faults injected, "
        f"{survived.total()} survived; whole again after {slowest:.1f} s at most"
    )
    out.print(f"runs: {_counts(runs)}")
    out.print(f"answers to clients, by status: {_counts(answers)}")


def _counts(counted: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counted.items()))
