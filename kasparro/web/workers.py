"""Supervises the worker processes of one service: starts, replaces, logs and counts them."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path

import structlog
import uvicorn
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from kasparro.errors import KasparroError
from kasparro.signals import STOP_SIGNALS
from kasparro.supervision import Supervisor
from kasparro.web.http.request_metrics import (
    SUPERVISOR,
    WRITE_INTERVAL_S,
    Counts,
    ProcessReport,
    read_counts,
    write_report,
)
from kasparro.web.service_manager import READY, ServiceManager

log = structlog.get_logger()

# Each worker is checked twice a second, with this timeout. A worker that fails this number of checks in a row
# is replaced; one that is still starting may fail more. This process counts the checks and does not
# measure time, because it may have been suspended meanwhile.
CHECK_TIMEOUT_S = 0.05
MAX_FAILED_CHECKS = 10
MAX_FAILED_CHECKS_AT_START = 120

# Set in the environment of a worker that replaces one that died.
REPLACES = "_KASPARRO_REPLACES_WORKER"


class WorkersFailed(KasparroError):
    """No worker process could start."""


class Workers(Multiprocess):
    """uvicorn's supervisor of worker processes, with additions.

    Each death of a worker is logged and counted. The pause before a restart grows with each failure. If no
    worker ever started, the supervisor gives up. It writes its report to `folder`, where the workers read it.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        listener: socket.socket,
        folder: Path,
        supervisor: Supervisor,
        manager: ServiceManager | None = None,
    ) -> None:
        super().__init__(config, [listener])
        self._manager = manager or ServiceManager()
        self._supervisor = supervisor
        self._folder = folder
        # The counters of ended workers, and how they ended.
        self._counts = Counts()
        self._failed_checks: dict[Process, int] = {}
        # Ended workers, and when to replace them.
        self._restart_at: dict[Process, float] = {}
        self._started: set[Process] = set()
        self._failure: str | None = None
        self._written_at = float("-inf")

    def run(self) -> None:
        """Keep the workers running until a signal arrives. Raises WorkersFailed if none could start."""
        super().run()
        if self._failure is not None:
            raise WorkersFailed(self._failure)

    def init_processes(self) -> None:
        """Start all workers."""
        with _stop_signals_blocked():
            super().init_processes()

    def keep_subprocess_alive(self) -> None:
        """Check all workers and replace those that ended. uvicorn calls this twice a second."""
        if self.should_exit.is_set():
            return
        self._manager.alive()
        now = time.monotonic()
        for index, process in enumerate(self.processes):
            if process not in self._restart_at:
                self._check(process)
            elif self._started and self._restart_at[process] <= now:
                self._replace(index, process)
        if not self._started and all(process in self._restart_at for process in self.processes):
            reason = exit_reason(self.processes[-1].exitcode)
            self._failure = (
                f"none of the {len(self.processes)} worker processes could start ({reason}); the log says why"
            )
            self.should_exit.set()
        elif now - self._written_at >= WRITE_INTERVAL_S:
            self._written_at = now
            self._write()

    def _check(self, process: Process) -> None:
        dead = not process.process.is_alive()
        if not dead and process.is_ready(timeout=CHECK_TIMEOUT_S):
            if not self._started:
                self._manager.notify(READY)
            self._started.add(process)
            self._failed_checks[process] = 0
            return
        failed = self._failed_checks[process] = self._failed_checks.get(process, 0) + 1
        if dead or failed > (MAX_FAILED_CHECKS if process in self._started else MAX_FAILED_CHECKS_AT_START):
            self._end(process, exit_reason(process.exitcode) if dead else "no answer to health checks")

    def _end(self, process: Process, reason: str) -> None:
        process.kill()
        process.join()
        self._counts.add(Counts(worker_exits={reason: 1}))
        self._merge(str(process.pid))
        error = KasparroError(f"process {process.pid} ended: {reason}")
        pause = self._supervisor.record_failure(
            "worker", error, event="worker_died", pid=process.pid, exit=reason
        )
        self._restart_at[process] = time.monotonic() + pause

    def _replace(self, index: int, process: Process) -> None:
        del self._restart_at[process], self._failed_checks[process]
        # Workers read the environment. A replacement starts no run when it starts.
        os.environ[REPLACES] = "1"
        self.processes[index] = started = Process(self.config, self.sockets)
        with _stop_signals_blocked():
            started.start()
        log.info("worker_started", pid=started.pid)

    def _merge(self, worker: str) -> None:
        # Without this, every request for metrics would read a file of each worker that ever ended.
        try:
            counts, files = read_counts(self._folder, worker)
            self._counts.add(counts)
            self._write([file.name for file in files])
            for file in files:
                file.unlink()
        except OSError as error:
            log.warning("worker_metrics_not_merged", worker=worker, reason=str(error))

    def _write(self, merged: list[str] | None = None) -> None:
        problems = self._supervisor.problems()
        report = ProcessReport(SUPERVISOR, self._counts, problems=problems, merged=merged or [])
        try:
            write_report(self._folder / SUPERVISOR, report)
        except OSError as error:
            log.warning("worker_metrics_not_written", reason=str(error))

    def handle_hup(self) -> None:
        """Stop, as for SIGTERM. uvicorn would restart the workers when a terminal closes."""
        self.handle_term()


@contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    # A terminal sends the signals to every process, and a worker that is starting would die of them. Those
    # that start in this block get them after `accept_stop_signals`.
    # multiprocessing unblocks two of them when it starts its resource tracker, with the first worker.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def accept_stop_signals() -> None:
    """Let the signals to stop reach this worker process, which has its handlers now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def exit_reason(code: int | None) -> str:
    """How a process ended: the name of its signal, or its exit code."""
    if code is not None and code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"
