"""Starts the resolver's process for the service, and exchanges a task and a decision with it."""

import asyncio
import sys
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from itertools import chain
from types import TracebackType
from typing import Self

import msgspec

from kasparro.assets.process_messages import Answer, Task
from kasparro.assets.rules import Rules
from kasparro.errors import KasparroError
from kasparro.model.asset import Key
from kasparro.model.asset_documents import KnownDocuments, ResolutionDocuments, array_pieces

# The longest line that it writes: all candidates, which are mostly of less than 1 KiB each.
LINE_LIMIT = 256 * 1024 * 1024
# The characters of its last output that an error shows.
SHOWN = 500


class ResolverFailed(KasparroError):
    """The resolver's process ended without a decision."""


class Decision(msgspec.Struct, frozen=True):
    """The resolution, and the pairs of rows whose prices could settle a candidate."""

    resolution: ResolutionDocuments
    open_pairs: Sequence[tuple[Key, Key]]


class Resolver:
    """A process for one decision; it ends with the `async with` block.

    It starts at once, which takes a tenth of a second, so that it may be ready before the rows are read.
    """

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "kasparro.assets.process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def decide(
        self,
        known: KnownDocuments,
        rules: Rules,
        awaited: Collection[str] = (),
        *,
        pairs: Sequence[tuple[Key, Key]] = (),
        prices: Sequence[str] = (),
    ) -> Decision:
        """Let the process decide; `prices` of `pairs` as from the store. `awaited` as in `Knowledge`.

        Raises ResolverFailed.
        """
        process = self._process
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise AssertionError("the resolver was started without pipes")
        task = msgspec.json.encode(Task(rules, sorted(awaited), pairs)) + b"\n"
        # It reads everything before it writes.
        await _send(process.stdin, chain([task], array_pieces(prices), known.pieces()))
        lines = [line.decode().rstrip("\n") async for line in process.stdout]
        errors = await process.stderr.read()
        code = await process.wait()
        if code < 0:
            raise ResolverFailed(f"the resolver was killed by signal {-code}; is memory short?")
        if code != 0:
            last = errors.decode(errors="replace").strip()[-SHOWN:]
            raise ResolverFailed(f"the resolver ended with exit code {code}: {last}")
        return _decision(lines)


async def _send(stdin: asyncio.StreamWriter, pieces: Iterable[bytes]) -> None:
    # If the process has ended, its exit code says more than the lost connection.
    # uvloop raises RuntimeError for a pipe that it has closed.
    with suppress(ConnectionError, RuntimeError):
        for piece in pieces:
            stdin.write(piece)
            await stdin.drain()
    stdin.close()


def _decision(lines: Sequence[str]) -> Decision:
    first, *arrays, ended, candidates = lines
    found = msgspec.json.decode(first, type=Answer)
    resolution = ResolutionDocuments(
        assets=arrays[: found.asset_lines],
        links=arrays[found.asset_lines :],
        ended=ended,
        candidates=candidates,
        counts=found.counts,
    )
    return Decision(resolution, found.open_pairs)
