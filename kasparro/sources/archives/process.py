"""The worker process seen from the service: jobs go in, messages come out, and it never outlives its use."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from types import TracebackType
from typing import IO, Self

import structlog

from kasparro.errors import SourceError
from kasparro.sources.archives.reader import Job, Portion, Problem
from kasparro.sources.archives.wire import HEAD, Finished, message_of, packed

STDERR_SHOWN = 4_000
# What is read ahead of the consumer; with the pipe's own buffer all that the worker can be ahead of it.
READ_AHEAD = 256 * 1024

log = structlog.get_logger(__name__)


class Worker:
    """A reading process, for as long as the block around it."""

    async def __aenter__(self) -> Self:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed on leaving the block
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "kasparro.sources.archives.worker",
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._stderr,
            limit=READ_AHEAD,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.returncode is None:
            self._process.kill()
        try:
            await asyncio.shield(self._ended())
        finally:
            self._tell_stderr()
            self._stderr.close()

    async def _ended(self) -> None:
        # wait() waits for the pipe's end too, which nobody sees while the pipe is held back.
        with suppress(ConnectionError):
            while self._process.stdout is not None and await self._process.stdout.read(READ_AHEAD):
                pass
        await self._process.wait()

    @property
    def alive(self) -> bool:
        """Whether the process may be given another file."""
        return self._process.returncode is None

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    async def read(self, job: Job) -> AsyncGenerator[Portion | Problem, None]:
        """All that the worker tells of one file. Raises SourceError where it ends before its time."""
        self.begin(job)
        async with aclosing(self.told(job)) as told:
            async for message in told:
                yield message

    def begin(self, job: Job) -> None:
        """Have the worker begin with a file, as far as it may read ahead."""
        if self._process.stdin is None:
            raise AssertionError("the worker was started without pipes")
        self._process.stdin.write(packed(job))

    async def told(self, job: Job) -> AsyncGenerator[Portion | Problem, None]:
        """All that it tells of the file it began with. Raises SourceError where it ends before its time."""
        stdout = self._process.stdout
        if stdout is None:
            raise AssertionError("the worker was started without pipes")
        try:
            while True:
                head = await stdout.readexactly(HEAD.size)
                message = message_of(await stdout.readexactly(HEAD.unpack(head)[0]))
                if isinstance(message, Finished):
                    return
                yield message
        except (asyncio.IncompleteReadError, ConnectionError):
            code = await self._process.wait()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise SourceError(f"{job.name}: the process that read it ended early ({how})") from None

    def _tell_stderr(self) -> None:
        size = self._stderr.seek(0, os.SEEK_END)
        if size:
            self._stderr.seek(max(0, size - STDERR_SHOWN))
            text = self._stderr.read().decode("utf-8", "replace")
            log.warning("the archive worker wrote to stderr", pid=self.pid, text=text)
