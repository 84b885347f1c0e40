"""Starts the archive worker for the service, exchanges messages with it, and always ends it after use."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import structlog

from kasparro.errors import SourceError
from kasparro.model.batch import KnownFile
from kasparro.sources.archives.checked import Checked
from kasparro.sources.archives.found import Archive, Found
from kasparro.sources.archives.identity import Identity
from kasparro.sources.archives.known_coins import KnownCoin
from kasparro.sources.archives.portions import Portion, Problem
from kasparro.sources.archives.worker_messages import (
    LENGTH,
    MESSAGE_LIMIT,
    CheckResult,
    FileKey,
    FindArchives,
    Finished,
    FoundArchives,
    Heartbeat,
    Message,
    NothingFound,
    OpenArchive,
    ReadArchive,
    Request,
    SkipArchive,
    decode_message,
    encode,
)

STDERR_LIMIT = 4_000
# Bytes that are read ahead of the consumer. The worker can be ahead by these and the pipe's own buffer.
READ_AHEAD = 256 * 1024
# A worker sends a heartbeat every few seconds. If it sends none for this time, its file or the file system
# blocks it.
SILENCE_S = 120.0
# A killed process that waits for a network mount may not end. This is the longest wait for it.
KILL_S = 5.0
# The worker gets only these variables, because it reads files from outside and others may contain passwords.
_VARIABLES = ("HOME", "LANG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ")
_VARIABLE_PREFIXES = ("LC_", "PYTHON")

log = structlog.get_logger(__name__)


class WorkerEnded(SourceError):
    """The worker process ended, or was ended, before it had sent all of a file."""


class WorkerSilent(WorkerEnded):
    """The worker process was ended because it had sent nothing for a long time."""


class Worker:
    """A worker process; it ends with the `async with` block."""

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
            start_new_session=True,  # signals from a terminal are for the service, which ends this process
        )
        if self._process.stdin is None or self._process.stdout is None or self._process.stderr is None:
            raise AssertionError("the worker was started without pipes")
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._stderr = b""
        self._errors = asyncio.create_task(self._read_stderr(self._process.stderr))
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
        """End the process, if it has not ended."""
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
        # wait() also waits for the ends of the pipes, and a paused pipe does not show its end.
        with suppress(ConnectionError):
            while await self._stdout.read(READ_AHEAD):
                pass
        await self._errors
        await self._process.wait()

    async def _read_stderr(self, source: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while part := await source.read(STDERR_LIMIT):
                self._stderr = (self._stderr + part)[-STDERR_LIMIT:]

    @property
    def alive(self) -> bool:
        """Whether the process can read another file."""
        return not self._spent and self._process.returncode is None

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    async def find(self, setting: str | None) -> Found:
        """Find the archives that a setting names. Raises SourceError if there is nothing to read."""
        self._send(FindArchives(None if setting is None else os.fsencode(setting)))
        found = Found([], [])
        while True:
            message = await self._next(f"archives {setting}")
            if isinstance(message, NothingFound):
                raise SourceError(message.text)
            if isinstance(message, FoundArchives):
                found.archives.extend(
                    Archive(_path(path), name, size, None if root is None else _path(root))
                    for path, name, size, root in message.archives
                )
                found.unsearched.extend(message.unsearched)
                if message.last:
                    return found

    async def identify(
        self, archive: Archive, earlier: KnownFile | None, now: datetime, coins: Sequence[KnownCoin] = ()
    ) -> Identity | Problem:
        """Open a file and return what it is known by, or the problem if it cannot be read.

        `coins` are those coins of other sources that its name may mean. After an identity, call
        `start_reading` or `skip`. Raises WorkerEnded.
        """
        self._send(_open_request(archive, now, earlier, coins=coins))
        problem: Problem | None = None
        while True:
            message = await self._next(archive.name)
            if isinstance(message, FileKey):
                return message.identity
            if isinstance(message, Problem):
                problem = message
            elif isinstance(message, Finished) and problem is not None:
                return problem

    def start_reading(self, position: int | None) -> None:
        """Let the worker read the open file without the first `position` rows, or all that is new if that is
        None. It reads ahead as far as the pipe allows.
        """
        self._send(ReadArchive(position))

    def skip(self) -> None:
        """Do not read the open file."""
        self._send(SkipArchive())

    async def messages(self, name: str) -> AsyncGenerator[Portion | Problem, None]:
        """The messages about the file that the worker reads. Raises WorkerEnded."""
        while not isinstance(message := await self._next(name), Finished):
            if isinstance(message, Portion | Problem):
                yield message

    async def check(self, archive: Archive, now: datetime) -> Checked:
        """What a run would load of a file. Raises WorkerEnded."""
        self._send(_open_request(archive, now, check=True))
        checked: Checked | None = None
        while True:
            message = await self._next(archive.name)
            if isinstance(message, CheckResult):
                checked = message.checked
            elif isinstance(message, Finished) and checked is not None:
                return checked

    def _send(self, request: Request) -> None:
        self._stdin.write(encode(request))

    async def _next(self, name: str) -> Message:
        while True:
            self._deadline = asyncio.get_running_loop().call_later(SILENCE_S / 2, self._wait_again)
            try:
                size: int = LENGTH.unpack(await self._stdout.readexactly(LENGTH.size))[0]
                if size > MESSAGE_LIMIT:
                    raise self._broken(name)
                message: Message = decode_message(await self._stdout.readexactly(size))
            except (asyncio.IncompleteReadError, ConnectionError):
                raise await self._why_ended(name) from None
            except msgspec.DecodeError:
                raise self._broken(name) from None
            finally:
                self._deadline.cancel()
            if isinstance(message, Finished):
                self._spent = message.spent
            if not isinstance(message, Heartbeat):
                return message

    def _wait_again(self) -> None:
        # The wait has two halves: if this process itself was blocked, the second half reads what has arrived.
        self._deadline = asyncio.get_running_loop().call_later(SILENCE_S / 2, self._give_up)

    def _give_up(self) -> None:
        # Ends the read at once, even if the killed process does not end.
        self._silent = True
        with suppress(ProcessLookupError):
            self._process.kill()
        self._stdout.feed_eof()

    def _broken(self, name: str) -> WorkerEnded:
        self._spent = True
        return WorkerEnded(f"{name}: the process that read it sent an invalid message")

    async def _why_ended(self, name: str) -> WorkerEnded:
        self._spent = True
        if self._silent:
            return WorkerSilent(f"{name}: the process that read it sent nothing for {SILENCE_S:.0f} s")
        # The process ends without being killed, so its exit code is worth waiting for.
        await asyncio.wait({asyncio.create_task(self._process.wait())}, timeout=KILL_S)
        await self.end()
        code = self._process.returncode
        if code is None:
            return WorkerEnded(f"{name}: the process that read it closed its pipes")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return WorkerEnded(f"{name}: the process that read it ended early ({how})")


def _open_request(
    archive: Archive,
    now: datetime,
    earlier: KnownFile | None = None,
    *,
    coins: Sequence[KnownCoin] = (),
    check: bool = False,
) -> OpenArchive:
    return OpenArchive(
        path=os.fsencode(archive.path.absolute()),
        root=None if archive.root is None else os.fsencode(archive.root.absolute()),
        name=archive.name,
        now=now,
        earlier=earlier,
        coins=tuple(coins),
        check=check,
    )


def _path(name: bytes) -> Path:
    return Path(os.fsdecode(name))


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name in _VARIABLES or name.startswith(_VARIABLE_PREFIXES)
    }
