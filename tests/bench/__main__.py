"""`python -m tests.bench [NAME]…`: runs the benchmarks and prints their ratios."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable

import stamina.instrumentation
import uvloop

from kasparro import logs
from kasparro.settings import Settings
from tests.bench import (
    assets,
    first_request,
    floor,
    growth,
    hostile,
    identity,
    latency,
    load,
    month,
    read_ahead,
    readers,
    reads,
    request,
    scale,
    soak,
    streams,
)

# These take minutes and gigabytes, so they run only if they are named.
LARGE: dict[str, Callable[[], Awaitable[None]]] = {
    "scale": scale.table_size,
    "as_of": scale.as_of,
    "growth": growth.main,
    "month": month.main,
    "soak": soak.main,
}
SMALL: dict[str, Callable[[], Awaitable[None]]] = {
    "load": load.main,
    "latency": latency.main,
    "hostile": hostile.main,
    "first_request": first_request.main,
    "request": request.main,
    "read_ahead": read_ahead.main,
    "identity": identity.main,
    "assets": assets.main,
    "streams": streams.main,
    "readers": readers.main,
}


def main() -> None:
    """Run the named benchmarks; without names, all but the large ones."""
    parser = argparse.ArgumentParser("just bench", description=__doc__)
    names = [*SMALL, "floor", *reads.CASES, *LARGE]
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*names, []], help=", ".join(names))
    parser.add_argument(
        "--rounds", type=int, default=reads.ROUNDS, help="rounds of each read benchmark (%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=int, default=reads.SECONDS, help="seconds per server and round (%(default)s)"
    )
    parser.add_argument(
        "--connections",
        type=int,
        nargs="+",
        default=reads.CONNECTIONS,
        help="of read benchmarks (%(default)s)",
    )
    options = parser.parse_args()
    logs.configure(Settings(log_level="error"))
    # Servers take a moment to start; their retries need no log event.
    stamina.instrumentation.set_on_retry_hooks([])
    chosen = options.names or [*SMALL, "floor", *reads.CASES]
    if cases := [name for name in reads.CASES if name in chosen]:
        uvloop.run(reads.main(cases, options.connections, options.rounds, options.seconds))
    if "floor" in chosen:
        uvloop.run(floor.main(options.connections, options.rounds, options.seconds))
    for name, run in (SMALL | LARGE).items():
        if name in chosen:
            # uvloop starts no process of another account, which the servers of this one need.
            (asyncio.run if run is readers.main else uvloop.run)(_awaited(run))


async def _awaited(run: Callable[[], Awaitable[None]]) -> None:
    await run()


if __name__ == "__main__":
    main()
