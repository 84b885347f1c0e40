"""The worker processes of one service: started, replaced when they die, and never lost without a word."""

import os
import signal
import socket
import time
from pathlib import Path

import structlog
import uvicorn
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from kasparro.errors import KasparroError
from kasparro.supervision import Supervisor
from kasparro.web.http.request_metrics import (
    SUPERVISOR,
    WRITE_INTERVAL_S,
    Counts,
    ProcessReport,
    read_counts,
    write,
)

log = structlog.get_logger()

# How long a health check waits for its answer, twice a second; and how many in a row may stay without one: of
# a worker that has started, and of one that has not. Counts, not times: this process may have stood still.
ANSWER_S = 0.05
MISSES = 10
START_MISSES = 120

# Set in the environment of a worker that replaces one that died.
REPLACES = "_KASPARRO_REPLACES_WORKER"


class WorkersFailed(KasparroError):
    """No worker process could start."""


class Workers(Multiprocess):
    """uvicorn's supervisor of worker processes, with what it lacks: each death is logged and counted, pauses
    grow where workers die again and again, and it gives up where none ever started.

    In `folder` it leaves its own figures for the workers to show.
    """

    def __init__(
        self, config: uvicorn.Config, listener: socket.socket, folder: Path, supervisor: Supervisor
    ) -> None:
        super().__init__(config, [listener])
        self._supervisor = supervisor
        self._folder = folder
        # Of the workers that ended, and in which ways they did.
        self._counts = Counts()
        self._misses: dict[Process, int] = {}
        self._due: dict[Process, float] = {}
        self._started: set[Process] = set()
        self._failure: str | None = None
        self._written_at = float("-inf")

    def run(self) -> None:
        """Keep the workers going until a signal. Raises WorkersFailed where none could start."""
        super().run()
        if self._failure is not None:
            raise WorkersFailed(self._failure)

    def keep_subprocess_alive(self) -> None:
        """Replace the workers that died; called twice a second."""
        now = time.monotonic()
        for index, process in enumerate(self.processes):
            if process not in self._due:
                self._check(process)
            elif self._started and self._due[process] <= now:
                self._replace(index, process)
        if not self._started and all(process in self._due for process in self.processes):
            how = exit_of(self.processes[-1].exitcode)
            self._failure = (
                f"none of the {len(self.processes)} worker processes could start ({how}); the log says why"
            )
            self.should_exit.set()
        elif now - self._written_at >= WRITE_INTERVAL_S:
            self._written_at = now
            self._write()

    def _check(self, process: Process) -> None:
        dead = not process.process.is_alive()
        if not dead and process.is_ready(timeout=ANSWER_S):
            self._started.add(process)
            self._misses[process] = 0
            return
        misses = self._misses[process] = self._misses.get(process, 0) + 1
        if dead or misses > (MISSES if process in self._started else START_MISSES):
            self._bury(process, "no answer to health checks" if not dead else exit_of(process.exitcode))

    def _bury(self, process: Process, how: str) -> None:
        process.kill()
        process.join()
        self._counts.add(Counts(worker_exits={how: 1}))
        self._take_over(str(process.pid))
        error = KasparroError(f"process {process.pid} ended: {how}")
        pause = self._supervisor.failed("worker", error, event="worker_died", pid=process.pid, exit=how)
        self._due[process] = time.monotonic() + pause

    def _replace(self, index: int, process: Process) -> None:
        del self._due[process], self._misses[process]
        # The workers read the environment: one that replaces another starts no run of its own.
        os.environ[REPLACES] = "1"
        self.processes[index] = started = Process(self.config, self.sockets)
        started.start()
        log.info("worker_started", pid=started.pid)

    def _take_over(self, worker: str) -> None:
        # Else every request for the figures would read a file of each worker that ever ended.
        try:
            counts, files = read_counts(self._folder, worker)
            self._counts.add(counts)
            self._write([file.name for file in files])
            for file in files:
                file.unlink()
        except OSError as error:
            log.warning("worker_metrics_not_merged", worker=worker, reason=str(error))

    def _write(self, merged: list[str] | None = None) -> None:
        report = ProcessReport(
            SUPERVISOR, self._counts, problems=self._supervisor.problems(), merged=merged or []
        )
        try:
            write(self._folder / SUPERVISOR, report)
        except OSError as error:
            log.warning("worker_metrics_not_written", reason=str(error))

    def handle_hup(self) -> None:
        """Stop, as for SIGTERM: a terminal that closes asks for no new workers."""
        self.handle_term()


def exit_of(code: int | None) -> str:
    """How a process ended, in words: its signal or its exit code."""
    if code is not None and code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"
