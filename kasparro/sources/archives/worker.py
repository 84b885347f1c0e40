"""The archive worker: the process that reads files from outside, so that no file can harm the service.

It searches folders, opens files and reads them. As root it is two processes (`privilege_separation`).
"""

import codecs
import os
import sys
import time
import traceback
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from kasparro.errors import SourceError
from kasparro.memory import return_large_buffers
from kasparro.signals import ignore_stop_signals
from kasparro.sources.archives import privilege_separation, sandbox
from kasparro.sources.archives.checked import not_checked
from kasparro.sources.archives.discover import find_archives
from kasparro.sources.archives.explain import check
from kasparro.sources.archives.files import ArchiveFile, OpenFiles, open_all
from kasparro.sources.archives.identity import Contents, Identity, Key, digest_contents
from kasparro.sources.archives.known_coins import LEADING_COINS, KnownCoins
from kasparro.sources.archives.overrides import (
    FOLDER_FILE,
    SUFFIX,
    Overrides,
    OverridesRejected,
    read_overrides,
)
from kasparro.sources.archives.portions import file_problem
from kasparro.sources.archives.reader import (
    READ_ERRORS,
    Detected,
    Job,
    detect_format,
    problem_of,
    read_archive,
)
from kasparro.sources.archives.text import ENCODINGS
from kasparro.sources.archives.worker_messages import (
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
    encode,
    read_request,
)

NICENESS = 15
# Far below the time that the service waits for a message.
HEARTBEAT_S = 5.0
# Archives in one message.
ARCHIVES_PER_MESSAGE = 1_000

T = TypeVar("T")

Requests = Iterator[tuple[Request, OpenFiles | None]]


class MessageWriter:
    """Sends messages to the service. While the pipe is full, sending blocks and so slows the worker down."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._last = time.monotonic()

    def send(self, message: Message) -> None:
        """Send a message."""
        self._out.write(encode(message))
        self._out.flush()
        self._last = time.monotonic()

    def heartbeat(self) -> None:
        """Send a heartbeat, if the last message was some time ago."""
        if time.monotonic() - self._last > HEARTBEAT_S:
            self.send(Heartbeat())


def _requests(source: IO[bytes], writer: MessageWriter) -> Requests:
    # The requests, with their files open. Searches are done here.
    while (request := read_request(source)) is not None:
        if isinstance(request, FindArchives):
            _search(request, writer)
        elif isinstance(request, OpenArchive):
            path = Path(os.fsdecode(request.path))
            root = None if request.root is None else Path(os.fsdecode(request.root))
            yield request, open_all(path, root, (path.name + SUFFIX, FOLDER_FILE))
        else:
            yield request, None


def _search(request: FindArchives, writer: MessageWriter) -> None:
    setting = None if request.setting is None else os.fsdecode(request.setting)
    try:
        found = find_archives(setting, writer.heartbeat)
    except SourceError as error:
        writer.send(NothingFound(str(error)))
        return
    archives = [
        (
            os.fsencode(archive.path.absolute()),
            archive.name,
            archive.size,
            None if archive.root is None else os.fsencode(archive.root.absolute()),
        )
        for archive in found.archives
    ]
    for start in range(0, len(archives), ARCHIVES_PER_MESSAGE):
        writer.send(FoundArchives(archives[start : start + ARCHIVES_PER_MESSAGE], [], last=False))
    writer.send(FoundArchives([], found.unsearched, last=True))


def _serve(requests: Requests, writer: MessageWriter) -> None:
    for request, files in requests:
        if isinstance(request, OpenArchive) and files is not None:
            try:
                finished = _run(_respond(request, files, requests, writer))
            finally:
                files.close()
            if finished is not None:
                writer.send(finished)


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    # Reading a file blocks, so a coroutine of this process never waits and needs no event loop. The import of
    # asyncio would take a third of the time in which the process starts.
    try:
        coroutine.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    raise AssertionError("the archive worker has nothing to wait for")


async def _respond(
    request: OpenArchive, files: OpenFiles, requests: Requests, writer: MessageWriter
) -> Finished | None:
    # An error of any kind costs only this file.
    try:
        return await _read(request, files, requests, writer)
    except BrokenPipeError:
        raise
    except MemoryError:
        limit = sandbox.MEMORY_LIMIT // 1024**2
        _reject(request, f"not loaded: reading it takes more than {limit} MiB of memory", writer)
    except Exception as error:  # noqa: BLE001 - the service logs what is printed on stderr
        traceback.print_exc()
        reason = f"not loaded: reading it failed ({type(error).__name__}); the log has the details"
        _reject(request, reason, writer)
    return Finished(spent=True)


async def _read(
    request: OpenArchive, files: OpenFiles, requests: Requests, writer: MessageWriter
) -> Finished | None:
    try:
        if isinstance(files.archive, OSError):
            raise files.archive
        overrides = read_overrides(files, Path(os.fsdecode(request.path)).name)
        file = ArchiveFile(files.archive, writer.heartbeat)
        if request.check:
            writer.send(CheckResult(await check(file, request.name, overrides, request.now)))
            return Finished()
        contents = digest_contents(file, overrides, request.earlier)
    except OverridesRejected as error:
        _reject(request, f"not loaded: {error}", writer)
        return Finished()
    except OSError as error:
        _reject(request, f"cannot be read ({error.strerror or error})", writer)
        return Finished()
    try:
        identity, detected = await _identify(file, contents, request, overrides)
    except READ_ERRORS as error:
        problem = problem_of(request.name, error)
        writer.send(msgspec.structs.replace(problem, content=contents.key.content))
        return Finished()
    writer.send(FileKey(identity))
    following, _ = next(requests, (None, None))
    if not isinstance(following, ReadArchive):
        return None
    job = Job(
        known_coins=_known_coins(request),
        name=request.name,
        key=identity.key,
        position=following.position or 0,
        now=request.now,
        overrides=overrides,
        head=identity.head if following.position is None else None,
        detected=detected,
    )
    async for message in read_archive(file, job):
        writer.send(message)
    return Finished()


async def _identify(
    file: ArchiveFile, contents: Contents, request: OpenArchive, overrides: Overrides
) -> tuple[Identity, Detected | None]:
    # What the file is known by, and its format, if it had to be detected: an unchanged file under the same
    # name is read as before. Raises one of READ_ERRORS.
    if (earlier := request.earlier) is not None:
        known = Key.parse(earlier.key)
        if known._replace(interpretation="") == contents.key:
            return Identity(key=earlier.key, coin=earlier.coin, has_earlier_content=True), None
    detected = await detect_format(file, request.name, request.now, overrides, _known_coins(request))
    detection = detected.detection
    key = contents.key._replace(interpretation=detection.interpretation)
    reads_as_before = earlier is not None and key.reads_like(Key.parse(earlier.key))
    identity = Identity(
        key=str(key),
        coin=None if detection.coin is None else detection.coin.source_id,
        has_earlier_content=contents.has_earlier_content,
        head=contents.head if reads_as_before else None,
    )
    return identity, detected


def _known_coins(request: OpenArchive) -> KnownCoins:
    return LEADING_COINS.with_coins(request.coins) if request.coins else LEADING_COINS


def _reject(request: OpenArchive, reason: str, writer: MessageWriter) -> None:
    problem = file_problem(request.name, reason)
    if request.check:
        writer.send(CheckResult(not_checked(request.name, problem.reject.summary)))
    else:
        writer.send(problem)


def main() -> None:
    """Respond to the requests on standard input until it ends. `argv[1]` is the parent's process id."""
    sandbox.end_with(int(sys.argv[1]))
    # Requests to the service come first.
    os.nice(NICENESS)
    ignore_stop_signals()
    # Messages get a descriptor of their own, so that text printed by accident goes to stderr.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sandbox.limit_resources()
    return_large_buffers()
    writer = MessageWriter(out)
    with suppress(BrokenPipeError):
        requests = _requests(sys.stdin.buffer, writer)
        if sandbox.is_root():
            # The child may have no access to the modules of the standard library.
            for name in ENCODINGS:
                codecs.lookup(name)
            requests = privilege_separation.pass_to_child(requests)
        sandbox.forbid_children()
        _serve(requests, writer)


if __name__ == "__main__":
    main()
