"""Plays rounds until all have passed or one has not: ``python -m tests.chaos``, or ``just chaos``."""

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
from tests.chaos.rounds import ROUNDS_A_WORLD, Planned, Round, plans, series

out = Console()


@click.command()
@click.option("--seed", help="Which faults strike, and when.  [default: a new one]")
@click.option("--rounds", default=200, show_default=True, type=click.IntRange(1))
@click.option("--first", default=1, show_default=True, type=click.IntRange(1), help="Begin at this round.")
def main(seed: str | None, rounds: int, first: int) -> None:
    """Run the service, PostgreSQL and the simulator, break them, and check that nothing is lost or wrong."""
    seed = seed or str(random.SystemRandom().randrange(1_000_000))
    out.print(f"seed {seed}, {rounds} rounds, a new world every {ROUNDS_A_WORLD}")
    sys.exit(asyncio.run(_play(seed, rounds, first)))


async def _play(seed: str, rounds: int, first: int) -> int:
    began = time.monotonic()
    done: list[Round] = []
    impossible: dict[str, str] = {}
    failed: list[str] = []
    numbered = list(enumerate(plans(seed, rounds), start=1))
    start = first - 1
    while start < len(numbered) and not failed:
        failed = await _world(f"{seed}/{start}", numbered[start : start + ROUNDS_A_WORLD], done, impossible)
        start += ROUNDS_A_WORLD
    report.show(out, done, failed, impossible, time.monotonic() - began)
    if failed:
        out.print(f"again: just chaos --seed {seed} --rounds {rounds} --first {start - ROUNDS_A_WORLD + 1}")
    return 1 if failed else 0


async def _world(
    seed: str, part: list[tuple[int, list[Planned]]], done: list[Round], impossible: dict[str, str]
) -> list[str]:
    """Rounds in one world; gives the faults of the one that did not pass."""
    folder = Path(tempfile.mkdtemp(prefix="kasparro-chaos-"))
    folder.chmod(0o755)
    async with series(folder, seed) as playing:
        impossible |= {
            fault.name: reason for fault in FAULTS if (reason := fault.impossible(playing.world)) is not None
        }
        for number, plan in part:
            possible = [planned for planned in plan if planned.fault.name not in impossible]
            names = [planned.fault.name for planned in possible]
            try:
                done.append(await playing.play(number, possible))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what this looks for
                out.print(f"round {number} of seed {seed} did not pass: {', '.join(names)}", style="red")
                out.print("\n".join(playing.world.notes), markup=False, highlight=False)
                out.print(_told(error), markup=False, highlight=False)
                out.print(f"logs: {folder}, {playing.world.server.log}")
                shutil.copy(playing.world.server.log, folder)
                return names or ["nothing"]
            last = done[-1]
            out.print(f"{number:4} {last.seconds:5.1f} s  {', '.join(names) or 'nothing'}", highlight=False)
        await playing.close()
    shutil.rmtree(folder)
    return []


def _told(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "\n".join(_told(one) for one in error.exceptions)
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
