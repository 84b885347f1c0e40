"""The process that touches foreign files, so that none of them can hold, fill or end the service.

It searches folders, opens files and reads them. As root it is two processes (`lending`).
"""

import asyncio
import codecs
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from kasparro.errors import SourceError
from kasparro.sources.archives import lending, sandbox
from kasparro.sources.archives.discover import archives
from kasparro.sources.archives.explain import check, refused
from kasparro.sources.archives.files import ArchiveFile, Opened, open_all
from kasparro.sources.archives.identity import identify
from kasparro.sources.archives.overrides import FOLDER_FILE, SUFFIX, OverridesRejected, describe
from kasparro.sources.archives.reader import Job, read_archive, refusal
from kasparro.sources.archives.text import ENCODINGS
from kasparro.sources.archives.worker_messages import (
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
    next_request,
    packed,
)

NICENESS = 15
# How often the worker says that it reads on; far below what the service waits.
BEAT_S = 5.0
# Archives in one message.
LISTED_AT_ONCE = 1_000

Requests = Iterator[tuple[Request, Opened | None]]


class Teller:
    """The way to the service. Writing blocks while the pipe is full, which holds the worker back."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._last = time.monotonic()

    def tell(self, message: Message) -> None:
        """Send a message."""
        self._out.write(packed(message))
        self._out.flush()
        self._last = time.monotonic()

    def beat(self) -> None:
        """Say that the work goes on, if that was not said lately."""
        if time.monotonic() - self._last > BEAT_S:
            self.tell(Alive())


def _incoming(source: IO[bytes], teller: Teller) -> Requests:
    # The requests with their files opened; a search is answered here.
    while (request := next_request(source)) is not None:
        if isinstance(request, Find):
            _search(request, teller)
        elif isinstance(request, Ask):
            path = Path(os.fsdecode(request.path))
            root = None if request.root is None else Path(os.fsdecode(request.root))
            yield request, open_all(path, root, (path.name + SUFFIX, FOLDER_FILE))
        else:
            yield request, None


def _search(request: Find, teller: Teller) -> None:
    where = None if request.where is None else os.fsdecode(request.where)
    try:
        found = archives(where, teller.beat)
    except SourceError as error:
        teller.tell(NothingFound(str(error)))
        return
    listed = [
        (
            os.fsencode(archive.path.absolute()),
            archive.name,
            archive.size,
            None if archive.root is None else os.fsencode(archive.root.absolute()),
        )
        for archive in found.archives
    ]
    for start in range(0, len(listed), LISTED_AT_ONCE):
        teller.tell(Listed(listed[start : start + LISTED_AT_ONCE], [], last=False))
    teller.tell(Listed([], found.unsearched, last=True))


def _serve(requests: Requests, teller: Teller) -> None:
    with asyncio.Runner() as runner:
        for request, opened in requests:
            if isinstance(request, Ask) and opened is not None:
                try:
                    finished = runner.run(_answer(request, opened, requests, teller))
                finally:
                    opened.close()
                if finished is not None:
                    teller.tell(finished)


async def _answer(ask: Ask, opened: Opened, requests: Requests, teller: Teller) -> Finished | None:
    # Whatever a file does to this process costs that file.
    try:
        return await _read(ask, opened, requests, teller)
    except BrokenPipeError:
        raise
    except MemoryError:
        limit = sandbox.MEMORY_LIMIT // 1024**2
        _refuse(ask, f"not loaded, for reading it takes more than {limit} MiB of memory", teller)
    except Exception as error:  # noqa: BLE001 - the service logs what stands on stderr
        traceback.print_exc()
        reason = f"not loaded, for reading it failed ({type(error).__name__}); the log tells more"
        _refuse(ask, reason, teller)
    return Finished(spent=True)


async def _read(ask: Ask, opened: Opened, requests: Requests, teller: Teller) -> Finished | None:
    try:
        if isinstance(opened.archive, OSError):
            raise opened.archive
        said = describe(opened, Path(os.fsdecode(ask.path)).name)
        file = ArchiveFile(opened.archive, teller.beat)
        if ask.check:
            teller.tell(Report(await check(file, ask.name, said, ask.now)))
            return Finished()
        identity = identify(file, said, ask.earlier)
    except OverridesRejected as error:
        _refuse(ask, f"not loaded, for {error}", teller)
        return Finished()
    except OSError as error:
        _refuse(ask, f"cannot be read ({error.strerror or error})", teller)
        return Finished()
    teller.tell(Known(identity.key))
    order, _ = next(requests, (None, None))
    if not isinstance(order, Order):
        return None
    job = Job(
        name=ask.name,
        key=identity.key,
        position=order.position or 0,
        now=ask.now,
        said=said,
        head=identity.head if order.position is None else None,
    )
    async for message in read_archive(file, job):
        teller.tell(message)
    return Finished()


def _refuse(ask: Ask, reason: str, teller: Teller) -> None:
    problem = refusal(ask.name, reason)
    teller.tell(Report(refused(ask.name, problem.reject.summary)) if ask.check else problem)


def main() -> None:
    """Answer what standard input asks, until it ends; `argv[1]` is the parent's process id."""
    sandbox.end_with(int(sys.argv[1]))
    # Whoever waits for an answer of the service comes first.
    os.nice(NICENESS)
    # An interrupt of the terminal is for the service, which ends this process itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever is printed by accident must not get between the messages.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sandbox.limit_resources()
    teller = Teller(out)
    with suppress(BrokenPipeError):
        requests = _incoming(sys.stdin.buffer, teller)
        if sandbox.is_root():
            # The child may be unable to reach the modules of the standard library.
            for name in ENCODINGS:
                codecs.lookup(name)
            requests = lending.lend(requests)
        sandbox.forbid_children()
        _serve(requests, teller)


if __name__ == "__main__":
    main()
