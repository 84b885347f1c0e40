"""The resolver's process: it computes for seconds, and the requests of the service must not wait for it."""

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from typing import IO

import msgspec

from kasparro.assets.knowledge import read_knowledge, read_prices
from kasparro.assets.process_messages import Answer, Task
from kasparro.assets.resolve import open_pairs, resolve, resolve_by_labels
from kasparro.model.asset_documents import KnownDocuments, ResolutionDocuments
from kasparro.signals import ignore_stop_signals

# The process lets others go first.
NICENESS = 10
# The lines of a task: itself, prices, and what is known.
TASK_LINES = 2 + len(KnownDocuments.__struct_fields__)


def main() -> None:
    """Read tasks from stdin, and write each decision to stdout, until stdin ends."""
    ignore_stop_signals()
    os.nice(NICENESS)
    # The process decides only a few times, and collections take a fifth of its time.
    gc.disable()
    for lines in _tasks(sys.stdin.buffer):
        sys.stdout.buffer.write(_decide(lines))
        sys.stdout.buffer.flush()


def _tasks(stdin: IO[bytes]) -> Iterator[list[bytes]]:
    while first := stdin.readline():
        yield [first, *(stdin.readline() for _ in range(TASK_LINES - 1))]


def _decide(lines: Sequence[bytes]) -> bytes:
    first, prices, *known = lines
    task = msgspec.json.decode(first, type=Task)
    knowledge = msgspec.structs.replace(
        read_knowledge(known, task.awaited), prices=read_prices(prices, task.pairs)
    )
    resolution = (resolve_by_labels if task.by_labels else resolve)(knowledge, task.rules)
    if resolution is None:
        return msgspec.json.encode(Answer(0)) + b"\n"
    documents = ResolutionDocuments.of(resolution)
    found = [*documents.assets, *documents.links, documents.ended, documents.candidates]
    pairs = open_pairs(knowledge, resolution)
    answer = Answer(len(found), len(documents.assets), documents.counts, pairs)
    return msgspec.json.encode(answer) + "\n".join(["", *found, ""]).encode()


if __name__ == "__main__":
    main()
