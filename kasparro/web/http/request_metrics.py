"""Counts the requests of this process, and of the other workers beside it, for /metrics."""

import asyncio
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

import msgspec

from kasparro.supervision import BackgroundTask, Supervisor

# Upper bounds of the latency histogram, in seconds; what takes longer is counted beyond the last.
BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
WRITE_INTERVAL_S = 1.0
# A worker that has told nothing for so long is gone; what it counted stays counted.
STALE_AFTER_S = 5.0
# The file of the process that supervises the workers.
SUPERVISOR = "supervisor"

METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS"})

# Route, method, status, and how the answer came about: `hit` of those kept, `miss`, or `none` where none is.
Label = tuple[str, str, int, str]


class Counts(msgspec.Struct):
    """What was counted: of each label the seconds spent, then how many fell under each bound and beyond; of
    each key's name the requests; and of each way in which a worker process ended how often it did.
    """

    requests: dict[Label, list[float]] = {}
    keys: dict[str, int] = {}
    worker_exits: dict[str, int] = {}

    def add(self, other: "Counts") -> None:
        """Add what another process counted."""
        for label, line in other.requests.items():
            mine = self.requests.setdefault(label, [0.0] * len(line))
            mine[:] = map(sum, zip(mine, line, strict=True))
        for name, requests in other.keys.items():
            self.keys[name] = self.keys.get(name, 0) + requests
        for how, times in other.worker_exits.items():
            self.worker_exits[how] = self.worker_exits.get(how, 0) + times


class ProcessReport(msgspec.Struct):
    """What one process tells: its name, what it counted, its gauges by name, and what is wrong with it."""

    worker: str
    counts: Counts
    gauges: dict[str, float] = {}
    problems: list[str] = []
    merged: list[str] = []
    """Files of processes that ended, whose counts are in these."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ProcessReport).decode


class RequestMetrics:
    """Counts in plain numbers. Where a folder is told, the process writes them there each second while this
    is entered, so that any worker can tell for all.
    """

    def __init__(
        self,
        gauges: Callable[[], dict[str, float]],
        keys: Sequence[str],
        folder: Path | None,
        supervisor: Supervisor,
    ) -> None:
        self.counts = Counts(keys=dict.fromkeys(keys, 0))
        self._gauges = gauges
        self._worker = str(os.getpid())
        self._folder = folder
        self._supervisor = supervisor
        self._telling: BackgroundTask | None = None

    async def __aenter__(self) -> Self:
        if self._folder is not None:
            file = self._folder / f"{self._worker}-{uuid4().hex}"
            self._telling = self._supervisor.start("metrics_writer", partial(self._tell, file))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._telling is not None:
            await self._telling.stop()

    def count(self, label: Label, seconds: float) -> None:
        """Count one request."""
        line = self.counts.requests.get(label)
        if line is None:
            route, method, status, cache = label
            label = (route, method if method in METHODS else "other", status, cache)
            line = self.counts.requests.setdefault(label, [0.0] * (len(BUCKETS_S) + 2))
        line[0] += seconds
        line[1 + bisect_left(BUCKETS_S, seconds)] += 1

    def count_key(self, name: str) -> None:
        """Count one request of an API key."""
        self.counts.keys[name] += 1

    async def reports(self) -> list[ProcessReport]:
        """What this process and all others tell; of those that are gone the counts alone. Raises OSError."""
        own = self._report()
        if self._folder is None:
            return [own]
        return [own, *await asyncio.to_thread(_others, self._folder, self._worker)]

    async def _tell(self, file: Path) -> None:
        while True:
            await asyncio.to_thread(write, file, self._report())
            await asyncio.sleep(WRITE_INTERVAL_S)

    def _report(self) -> ProcessReport:
        return ProcessReport(self._worker, self.counts, self._gauges(), self._supervisor.problems())


def write(file: Path, report: ProcessReport) -> None:
    """Leave a report for the other processes of the service. Raises OSError."""
    draft = file.with_suffix(".new")
    draft.write_bytes(_encode(report))
    draft.replace(file)


def read_counts(folder: Path, worker: str) -> tuple[Counts, list[Path]]:
    """What a worker process that has ended counted, and the files that say so. Raises OSError."""
    counts, files = Counts(), sorted(folder.glob(f"{worker}-*"))
    for file in files:
        if not file.suffix:
            counts.add(_decode(file.read_bytes()).counts)
    return counts, files


def _others(folder: Path, worker: str) -> list[ProcessReport]:
    found: dict[str, ProcessReport] = {}
    # The supervisor's file last: what it has taken over from a file is in one of them, and counts once.
    for file in sorted(folder.iterdir(), key=lambda file: file.name == SUPERVISOR):
        if file.suffix or file.name.startswith(f"{worker}-"):
            continue
        try:
            report = _decode(file.read_bytes())
            age_s = time.time() - file.stat().st_mtime
        except FileNotFoundError:
            # The supervisor took it over just now.
            continue
        if age_s > STALE_AFTER_S:
            report.gauges, report.problems = {}, []
        for name in report.merged:
            found.pop(name, None)
        found[file.name] = report
    return list(found.values())
