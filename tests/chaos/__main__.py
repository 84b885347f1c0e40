"""`python -m tests.chaos`, or `just chaos`: runs rounds of faults until one fails or all have passed."""

import asyncio
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console

from tests.chaos import report
from tests.chaos.faults import FAULTS
from tests.chaos.rounds import ROUNDS_A_WORLD, Planned, Round, plans, start_series

out = Console()


@click.command()
@click.option("--seed", help="Decides which faults occur, and when.  [default: random]")
@click.option("--rounds", default=200, show_default=True, type=click.IntRange(1))
@click.option("--first", default=1, show_default=True, type=click.IntRange(1), help="Start at this round.")
def main(seed: str | None, rounds: int, first: int) -> None:
    """Break the service, PostgreSQL and the simulator, and check that no data is lost or wrong."""
    seed = seed or str(random.SystemRandom().randrange(1_000_000))
    out.print(f"seed {seed}, {rounds} rounds, a new world every {ROUNDS_A_WORLD}")
    sys.exit(asyncio.run(_run_rounds(seed, rounds, first)))


async def _run_rounds(seed: str, rounds: int, first: int) -> int:
    start_time = time.monotonic()
    done: list[Round] = []
    impossible: dict[str, str] = {}
    failed: list[str] = []
    numbered = list(enumerate(plans(seed, rounds), start=1))
    start = first - 1
    while start < len(numbered) and not failed:
        failed = await _run_in_world(
            f"{seed}/{start}", numbered[start : start + ROUNDS_A_WORLD], done, impossible
        )
        start += ROUNDS_A_WORLD
    report.show(out, done, failed, impossible, time.monotonic() - start_time)
    if failed:
        out.print(f"repeat: just chaos --seed {seed} --rounds {rounds} --first {start - ROUNDS_A_WORLD + 1}")
    return 1 if failed else 0


async def _run_in_world(
    seed: str, part: list[tuple[int, list[Planned]]], done: list[Round], impossible: dict[str, str]
) -> list[str]:
    """Run rounds in one world; returns the faults of the round that failed."""
    folder = Path(tempfile.mkdtemp(prefix="kasparro-chaos-"))
    folder.chmod(0o755)
    async with start_series(folder, seed) as rounds:
        impossible |= {
            fault.name: reason for fault in FAULTS if (reason := fault.impossible(rounds.world)) is not None
        }
        for number, plan in part:
            possible = [planned for planned in plan if planned.fault.name not in impossible]
            names = [planned.fault.name for planned in possible]
            try:
                done.append(await rounds.run(number, possible))
            except Exception as error:  # noqa: BLE001 - any error fails the round
                out.print(f"round {number} of seed {seed} failed: {', '.join(names)}", style="red")
                out.print("\n".join(rounds.world.notes), markup=False, highlight=False)
                out.print(_describe(error), markup=False, highlight=False)
                out.print(f"logs: {folder}, {rounds.world.server.log}")
                shutil.copy(rounds.world.server.log, folder)
                return names or ["nothing"]
            last = done[-1]
            out.print(f"{number:4} {last.seconds:5.1f} s  {', '.join(names) or 'nothing'}", highlight=False)
        await rounds.close()
    shutil.rmtree(folder)
    return []


def _describe(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "\n".join(_describe(inner) for inner in error.exceptions)
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
