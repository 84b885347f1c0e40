"""`python -m tests.bench [NAME]…`: run the benchmarks and print their ratios."""

import argparse
from collections.abc import Awaitable, Callable

import stamina.instrumentation
import uvloop

from kasparro import logs
from kasparro.settings import Settings
from tests.bench import hostile, latency, load, month, reads, scale

# What no name asks for: these take minutes and gigabytes.
BIG: dict[str, Callable[[], Awaitable[None]]] = {
    "scale": scale.rows_in_the_table,
    "as_of": scale.as_of,
    "month": month.main,
}
SMALL: dict[str, Callable[[], Awaitable[None]]] = {
    "load": load.main,
    "latency": latency.main,
    "hostile": hostile.main,
}


def main() -> None:
    """Run the benchmarks named on the command line, or all but the big ones."""
    parser = argparse.ArgumentParser("just bench", description=__doc__)
    names = [*SMALL, *reads.CASES, *BIG]
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*names, []], help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=reads.ROUNDS, help="of reads, by turns (%(default)s)")
    parser.add_argument("--seconds", type=int, default=reads.SECONDS, help="of each (%(default)s)")
    parser.add_argument(
        "--connections", type=int, nargs="+", default=reads.CONNECTIONS, help="of reads (%(default)s)"
    )
    told = parser.parse_args()
    logs.configure(Settings(log_level="error"))
    # Servers take a moment to answer, which needs no word.
    stamina.instrumentation.set_on_retry_hooks([])
    chosen = told.names or [*SMALL, *reads.CASES]
    if cases := [name for name in reads.CASES if name in chosen]:
        uvloop.run(reads.main(cases, told.connections, told.rounds, told.seconds))
    for name, run in (SMALL | BIG).items():
        if name in chosen:
            uvloop.run(_awaited(run))


async def _awaited(run: Callable[[], Awaitable[None]]) -> None:
    await run()


if __name__ == "__main__":
    main()
