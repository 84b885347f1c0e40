"""The resolver's process: it computes for seconds, and the requests of the service must not wait for it."""

import gc
import os
import sys

import msgspec

from kasparro.assets.knowledge import read_knowledge, read_prices
from kasparro.assets.process_messages import Answer, Task
from kasparro.assets.resolve import open_pairs, resolve
from kasparro.model.asset_documents import ResolutionDocuments

# The process lets others go first.
NICENESS = 10


def main() -> None:
    """Read a task from stdin, and write the decision to stdout."""
    os.nice(NICENESS)
    # The process ends soon, and collections take a fifth of its time.
    gc.disable()
    first, prices, *known = sys.stdin.buffer.read().splitlines()
    task = msgspec.json.decode(first, type=Task)
    knowledge = msgspec.structs.replace(
        read_knowledge(known, task.awaited), prices=read_prices(prices, task.pairs)
    )
    resolution = resolve(knowledge, task.rules)
    documents = ResolutionDocuments.of(resolution)
    answer = Answer(open_pairs(knowledge, resolution), documents.counts, len(documents.assets))
    lines = [*documents.assets, *documents.links, documents.ended, documents.candidates]
    sys.stdout.buffer.write(msgspec.json.encode(answer) + "\n".join(["", *lines]).encode())


if __name__ == "__main__":
    main()
