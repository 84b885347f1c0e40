"""The worker process seen from the service: requests go in, messages come out, it never outlives its use."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import structlog

from kasparro.errors import SourceError
from kasparro.model.batch import Checkpoint
from kasparro.sources.archives.discover import Archive, Found
from kasparro.sources.archives.explain import Checked
from kasparro.sources.archives.reader import Portion, Problem
from kasparro.sources.archives.worker_messages import (
    HEAD,
    MESSAGE_LIMIT,
    Alive,
    Ask,
    Find,
    Finished,
    Known,
    Listed,
    Message,
    NothingFound,
    Order,
    Report,
    Request,
    Skip,
    message_of,
    packed,
)

STDERR_SHOWN = 4_000
# What is read ahead of the consumer; with the pipe's own buffer all that the worker can be ahead of it.
READ_AHEAD = 256 * 1024
# A worker that reads on says so every few seconds. This much silence means that the file system or the file
# holds it.
SILENCE_S = 120.0
# The kernel may keep a killed process that waits for a network mount; nobody waits for it longer than this.
KILL_S = 5.0
# The worker gets these variables only. The others may hold passwords, and it reads foreign files.
_ENVIRONMENT = ("HOME", "LANG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ")
_ENVIRONMENT_OF = ("LC_", "PYTHON")

log = structlog.get_logger(__name__)


class WorkerEnded(SourceError):
    """The worker process ended, or had to be ended, before it told all of a file."""


class WorkerSilent(WorkerEnded):
    """The worker process was ended because nothing came from it for a long time."""


class Worker:
    """A reading process, for as long as the block around it."""

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "kasparro.sources.archives.worker",
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=READ_AHEAD,
            env=_environment(),
        )
        if self._process.stdin is None or self._process.stdout is None or self._process.stderr is None:
            raise AssertionError("the worker was started without pipes")
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._stderr = b""
        self._errors = asyncio.create_task(self._keep_errors(self._process.stderr))
        self._spent = self._silent = False
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.end()

    async def end(self) -> None:
        """End the process, if it has not ended itself."""
        self._spent = True
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        ending = asyncio.create_task(self._ended())
        try:
            await asyncio.wait({ending}, timeout=KILL_S)
        finally:
            if not ending.done():
                log.warning("archive_worker_not_ended", pid=self.pid)
            for task in (ending, self._errors):
                task.cancel()
            if self._stderr:
                log.warning(
                    "archive_worker_stderr", pid=self.pid, text=self._stderr.decode("utf-8", "replace")
                )
                self._stderr = b""

    async def _ended(self) -> None:
        # wait() waits for the ends of the pipes too, which nobody sees while a pipe is held back.
        with suppress(ConnectionError):
            while await self._stdout.read(READ_AHEAD):
                pass
        await self._errors
        await self._process.wait()

    async def _keep_errors(self, source: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while part := await source.read(STDERR_SHOWN):
                self._stderr = (self._stderr + part)[-STDERR_SHOWN:]

    @property
    def alive(self) -> bool:
        """Whether the process may be given another file."""
        return not self._spent and self._process.returncode is None

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    async def find(self, where: str | None) -> Found:
        """The archives that the setting means. Raises SourceError where there is nothing to read."""
        self._send(Find(None if where is None else os.fsencode(where)))
        found = Found([], [])
        while True:
            message = await self._next(f"archives {where}")
            if isinstance(message, NothingFound):
                raise SourceError(message.text)
            if isinstance(message, Listed):
                found.archives.extend(
                    Archive(_path(path), name, size, None if root is None else _path(root))
                    for path, name, size, root in message.archives
                )
                found.unsearched.extend(message.unsearched)
                if message.last:
                    return found

    async def identify(self, archive: Archive, earlier: Checkpoint | None, now: datetime) -> str | Problem:
        """The key of a file, which then waits for `begin` or `skip`; or why it cannot be read.

        Raises WorkerEnded.
        """
        self._send(_ask(archive, now, earlier))
        problem: Problem | None = None
        while True:
            message = await self._next(archive.name)
            if isinstance(message, Known):
                return message.key
            if isinstance(message, Problem):
                problem = message
            elif isinstance(message, Finished) and problem is not None:
                return problem

    def begin(self, position: int | None) -> None:
        """Have the worker read the file as far as it may read ahead: after so many rows, or, if that is None,
        all that is new of it.
        """
        self._send(Order(position))

    def skip(self) -> None:
        """Leave the file alone."""
        self._send(Skip())

    async def messages(self, name: str) -> AsyncGenerator[Portion | Problem, None]:
        """All that is told of the file that the worker began with. Raises WorkerEnded."""
        while not isinstance(message := await self._next(name), Finished):
            if isinstance(message, Portion | Problem):
                yield message

    async def check(self, archive: Archive, now: datetime) -> Checked:
        """What a run would load of a file. Raises WorkerEnded."""
        self._send(_ask(archive, now, check=True))
        checked: Checked | None = None
        while True:
            message = await self._next(archive.name)
            if isinstance(message, Report):
                checked = message.checked
            elif isinstance(message, Finished) and checked is not None:
                return checked

    def _send(self, request: Request) -> None:
        self._stdin.write(packed(request))

    async def _next(self, name: str) -> Message:
        while True:
            self._deadline = asyncio.get_running_loop().call_later(SILENCE_S / 2, self._give_half_up)
            try:
                size: int = HEAD.unpack(await self._stdout.readexactly(HEAD.size))[0]
                if size > MESSAGE_LIMIT:
                    raise self._broken(name)
                message: Message = message_of(await self._stdout.readexactly(size))
            except (asyncio.IncompleteReadError, ConnectionError):
                raise await self._why_ended(name) from None
            except msgspec.DecodeError:
                raise self._broken(name) from None
            finally:
                self._deadline.cancel()
            if isinstance(message, Finished):
                self._spent = message.spent
            if not isinstance(message, Alive):
                return message

    def _give_half_up(self) -> None:
        # In two halves: if it was this process that stood still, what came meanwhile is read in the second.
        self._deadline = asyncio.get_running_loop().call_later(SILENCE_S / 2, self._give_up)

    def _give_up(self) -> None:
        # Whoever reads goes on at once, even where the kernel keeps the process.
        self._silent = True
        with suppress(ProcessLookupError):
            self._process.kill()
        self._stdout.feed_eof()

    def _broken(self, name: str) -> WorkerEnded:
        self._spent = True
        return WorkerEnded(f"{name}: the process that read it sent what is no message")

    async def _why_ended(self, name: str) -> WorkerEnded:
        self._spent = True
        if self._silent:
            return WorkerSilent(f"{name}: nothing came of reading it for {SILENCE_S:.0f} s")
        # It ends by itself, and the way tells what happened.
        await asyncio.wait({asyncio.create_task(self._process.wait())}, timeout=KILL_S)
        await self.end()
        code = self._process.returncode
        if code is None:
            return WorkerEnded(f"{name}: the process that read it closed its pipes")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return WorkerEnded(f"{name}: the process that read it ended early ({how})")


def _ask(archive: Archive, now: datetime, earlier: Checkpoint | None = None, *, check: bool = False) -> Ask:
    return Ask(
        path=os.fsencode(archive.path.absolute()),
        root=None if archive.root is None else os.fsencode(archive.root.absolute()),
        name=archive.name,
        now=now,
        earlier=earlier,
        check=check,
    )


def _path(name: bytes) -> Path:
    return Path(os.fsdecode(name))


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_OF)
    }
