"""`python -m tests.bench [NAME]…`: run the benchmarks and print their ratios."""

import asyncio
import sys

from tests.bench import latency, load, month, reads

BENCHMARKS = {"load": load.main, "latency": latency.main, "month": month.main, "reads": reads.main}


def main() -> None:
    """Run the benchmarks named on the command line, or all."""
    names = sys.argv[1:] or list(BENCHMARKS)
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        sys.exit(f"unknown benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    for name in names:
        asyncio.run(BENCHMARKS[name]())


if __name__ == "__main__":
    main()
