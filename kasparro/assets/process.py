"""Runs the resolver in a process of its own: it computes for seconds, and requests must not wait for it."""

import asyncio
import gc
import os
import sys
from collections.abc import Sequence

import msgspec

from kasparro.assets.knowledge import Knowledge
from kasparro.assets.resolve import open_pairs, resolve
from kasparro.assets.rules import Rules
from kasparro.errors import KasparroError
from kasparro.model.asset import Key, Resolution

# The process lets others go first.
NICENESS = 10
# The characters of its last output that an error shows.
SHOWN = 500


class ResolverFailed(KasparroError):
    """The resolver's process ended without a decision."""


class Task(msgspec.Struct, frozen=True):
    """What to decide."""

    knowledge: Knowledge
    rules: Rules


class Decision(msgspec.Struct, frozen=True):
    """The resolution, and the pairs of rows whose prices could settle a candidate."""

    resolution: Resolution
    open_pairs: Sequence[tuple[Key, Key]]


async def decide(knowledge: Knowledge, rules: Rules) -> Decision:
    """Let the resolver decide. Raises ResolverFailed; the process ends with the task that waits for it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "kasparro.assets.process"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        given = await asyncio.to_thread(msgspec.msgpack.encode, Task(knowledge, rules))
        answer, errors = await process.communicate(given)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        if process.returncode is not None and process.returncode < 0:
            raise ResolverFailed(f"the resolver was killed by signal {-process.returncode}; is memory short?")
        last = errors.decode(errors="replace").strip()[-SHOWN:]
        raise ResolverFailed(f"the resolver ended with exit code {process.returncode}: {last}")
    return await asyncio.to_thread(msgspec.msgpack.decode, answer, type=Decision)


def main() -> None:
    """Read a task from stdin, and write the decision to stdout."""
    os.nice(NICENESS)
    # The process ends soon, and collections take a fifth of its time.
    gc.disable()
    task = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Task)
    resolution = resolve(task.knowledge, task.rules)
    decision = Decision(resolution, open_pairs(task.knowledge, resolution))
    sys.stdout.buffer.write(msgspec.msgpack.encode(decision))


if __name__ == "__main__":
    main()
