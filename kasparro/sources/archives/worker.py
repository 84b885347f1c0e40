"""The process that reads archives, so that parsing takes neither the service's interpreter nor its loop."""

import asyncio
import ctypes
import os
import signal
import sys
from contextlib import suppress
from typing import IO

from kasparro.sources.archives.reader import Job, read_archive
from kasparro.sources.archives.wire import Finished, Message, next_job, packed

_PR_SET_PDEATHSIG = 1
NICENESS = 15


def die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, and end it now where that was missed.

    Only Linux can; elsewhere the pipes tell: no next job comes, and writing to nobody fails.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


async def _work(job: Job, out: IO[bytes]) -> None:
    # Writing blocks while the pipe is full: that is what holds the worker back, and nothing else runs here.
    def tell(message: Message) -> None:
        out.write(packed(message))
        out.flush()

    async for told in read_archive(job):
        tell(told)
    tell(Finished())


def main() -> None:
    """Read the files that standard input names, until it ends; `argv[1]` is the parent's process id."""
    die_with(int(sys.argv[1]))
    # Whoever waits for an answer of the service comes first.
    os.nice(NICENESS)
    # An interrupt of the terminal is for the service, which ends this process itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever is printed by accident must not get between the messages.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with suppress(BrokenPipeError), asyncio.Runner() as runner:
        while (job := next_job(sys.stdin.buffer)) is not None:
            runner.run(_work(job, out))


if __name__ == "__main__":
    main()
