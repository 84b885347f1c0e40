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
    """A process for decisions, one at a time; it ends with the `async with` block.

    It starts at once, which takes a tenth of a second, so that it may be ready before the rows are read.
    """

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "kasparro.assets.process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT,
            start_new_session=True,  # signals from a terminal are for the service, which ends this process
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    @property
    def alive(self) -> bool:
        """Whether the process can decide."""
        return self._process.returncode is None

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
        decision = await self._ask(Task(rules, sorted(awaited), pairs), prices, known)
        if decision is None:
            raise ResolverFailed("the resolver did not decide")
        return decision

    async def decide_by_labels(
        self, known: KnownDocuments, rules: Rules, awaited: Collection[str] = ()
    ) -> ResolutionDocuments | None:
        """The decision that does not depend on figures and times of rows, None if there is none.

        Raises ResolverFailed.
        """
        decision = await self._ask(Task(rules, sorted(awaited), by_labels=True), (), known)
        return None if decision is None else decision.resolution

    async def _ask(self, task: Task, prices: Sequence[str], known: KnownDocuments) -> Decision | None:
        process = self._process
        if process.stdin is None or process.stdout is None:
            raise AssertionError("the resolver was started without pipes")
        first = msgspec.json.encode(task) + b"\n"
        # It reads everything before it writes.
        await _send(process.stdin, chain([first], array_pieces(prices), known.pieces()))
        answer = msgspec.json.decode(await self._line(process.stdout), type=Answer)
        lines = [(await self._line(process.stdout)).decode().rstrip("\n") for _ in range(answer.lines)]
        return _decision(answer, lines) if lines else None

    async def _line(self, stdout: asyncio.StreamReader) -> bytes:
        line = await stdout.readline()
        if not line.endswith(b"\n"):
            raise await self._why_ended()
        return line

    async def _why_ended(self) -> ResolverFailed:
        stderr = self._process.stderr
        errors = b"" if stderr is None else await stderr.read()
        code = await self._process.wait()
        if code < 0:
            return ResolverFailed(f"the resolver was killed by signal {-code}; is memory short?")
        last = errors.decode(errors="replace").strip()[-SHOWN:]
        return ResolverFailed(f"the resolver ended with exit code {code}: {last}")


async def _send(stdin: asyncio.StreamWriter, pieces: Iterable[bytes]) -> None:
    # If the process has ended, its exit code says more than the lost connection.
    # uvloop raises RuntimeError for a pipe that it has closed.
    with suppress(ConnectionError, RuntimeError):
        for piece in pieces:
            stdin.write(piece)
            await stdin.drain()


def _decision(answer: Answer, lines: Sequence[str]) -> Decision:
    *arrays, ended, candidates = lines
    resolution = ResolutionDocuments(
        assets=arrays[: answer.asset_lines],
        links=arrays[answer.asset_lines :],
        ended=ended,
        candidates=candidates,
        counts=answer.counts,
    )
    return Decision(resolution, answer.open_pairs)
