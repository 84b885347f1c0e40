"""Request counters of this process and of the service's other processes, for /metrics and /health."""

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

# Upper bounds of the latency histogram in seconds. Longer requests are counted in one more bucket.
BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
WRITE_INTERVAL_S = 1.0
# A worker whose file is older has ended. Its gauges no longer count; its counters do.
STALE_AFTER_S = 5.0
# The file of the process that supervises the workers.
SUPERVISOR = "supervisor"

METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS"})

# Route, method, status, and use of the response cache: `hit`, `miss` or `none`.
Label = tuple[str, str, int, str]


class Counts(msgspec.Struct):
    """The counters of a process.

    `requests` has, for each label, the seconds spent and then the number of requests in each bucket. `keys`
    has the number of requests of each API key, `worker_exits` how often worker processes ended by reason,
    `streams_dropped` how many streams ended because their clients did not read.
    """

    requests: dict[Label, list[float]] = {}
    keys: dict[str, int] = {}
    worker_exits: dict[str, int] = {}
    streams_dropped: int = 0

    def add(self, other: "Counts") -> None:
        """Add the counters of another process."""
        for label, figures in other.requests.items():
            sums = self.requests.setdefault(label, [0.0] * len(figures))
            sums[:] = map(sum, zip(sums, figures, strict=True))
        for name, requests in other.keys.items():
            self.keys[name] = self.keys.get(name, 0) + requests
        for reason, times in other.worker_exits.items():
            self.worker_exits[reason] = self.worker_exits.get(reason, 0) + times
        self.streams_dropped += other.streams_dropped


class ProcessReport(msgspec.Struct):
    """What one process of the service reports to the others."""

    worker: str
    counts: Counts
    gauges: dict[str, float] = {}
    problems: list[str] = []
    merged: list[str] = []
    """Files of ended processes whose counts were added to these."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ProcessReport).decode


class RequestMetrics:
    """Counts requests. With a folder, it writes its report there every second, so that every process of the
    service can report for all.
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
        self._writer: BackgroundTask | None = None

    async def __aenter__(self) -> Self:
        if self._folder is not None:
            file = self._folder / f"{self._worker}-{uuid4().hex}"
            self._writer = self._supervisor.start("metrics_writer", partial(self._write_regularly, file))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            await self._writer.stop()

    def count(self, label: Label, seconds: float) -> None:
        """Count one request."""
        figures = self.counts.requests.get(label)
        if figures is None:
            route, method, status, cache = label
            label = (route, method if method in METHODS else "other", status, cache)
            figures = self.counts.requests.setdefault(label, [0.0] * (len(BUCKETS_S) + 2))
        figures[0] += seconds
        figures[1 + bisect_left(BUCKETS_S, seconds)] += 1

    def count_key(self, name: str) -> None:
        """Count one request of an API key."""
        self.counts.keys[name] += 1

    async def reports(self) -> list[ProcessReport]:
        """The reports of this process and all others. Raises OSError."""
        own = self._report()
        if self._folder is None:
            return [own]
        return [own, *await asyncio.to_thread(_others, self._folder, self._worker)]

    async def _write_regularly(self, file: Path) -> None:
        while True:
            await asyncio.to_thread(write_report, file, self._report())
            await asyncio.sleep(WRITE_INTERVAL_S)

    def _report(self) -> ProcessReport:
        return ProcessReport(self._worker, self.counts, self._gauges(), self._supervisor.problems())


def write_report(file: Path, report: ProcessReport) -> None:
    """Replace a report file atomically. Raises OSError."""
    draft = file.with_suffix(".new")
    draft.write_bytes(_encode(report))
    draft.replace(file)


def read_counts(folder: Path, worker: str) -> tuple[Counts, list[Path]]:
    """The counters of a worker process that has ended, and the files they were in. Raises OSError."""
    counts, files = Counts(), sorted(folder.glob(f"{worker}-*"))
    for file in files:
        if not file.suffix:
            counts.add(_decode(file.read_bytes()).counts)
    return counts, files


def _others(folder: Path, worker: str) -> list[ProcessReport]:
    found: dict[str, ProcessReport] = {}
    # The supervisor's file last: counts that it has merged from another file must not count twice.
    for file in sorted(folder.iterdir(), key=lambda file: file.name == SUPERVISOR):
        if file.suffix or file.name.startswith(f"{worker}-"):
            continue
        try:
            report = _decode(file.read_bytes())
            age_s = time.time() - file.stat().st_mtime
        except FileNotFoundError:
            # The supervisor has just merged it.
            continue
        if age_s > STALE_AFTER_S:
            report.gauges, report.problems = {}, []
        for name in report.merged:
            found.pop(name, None)
        found[file.name] = report
    return list(found.values())
