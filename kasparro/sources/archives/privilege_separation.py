"""Splits root's worker into two processes: one opens files and reads nothing, its child reads them as nobody.

So files that only root may read can be loaded. A file that takes over the parser has no rights, and gets only
the files that the service asked for.
"""

import os
import signal
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress

import msgspec

from kasparro.sources.archives import sandbox
from kasparro.sources.archives.files import OpenFiles
from kasparro.sources.archives.worker_messages import Request

# A request holds two paths of at most 4 KiB each, and a name.
_REQUEST_BYTES = 64 * 1024


class _OpenError(msgspec.Struct, frozen=True):
    errno: int
    text: str


class _PassedRequest(msgspec.Struct, frozen=True):
    # A request, and for each of its files True if a descriptor comes with it, the error, or None.
    request: Request
    files: tuple[bool | _OpenError | None, ...]


_encoder = msgspec.msgpack.Encoder()
_decode = msgspec.msgpack.Decoder(_PassedRequest).decode


def pass_to_child(
    requests: Iterable[tuple[Request, OpenFiles | None]],
) -> Iterator[tuple[Request, OpenFiles | None]]:
    """Fork, and return the requests with their open files in the child. This process ends with the child."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    opener = os.getpid()
    # The child can end while this process waits for a request.
    signal.signal(signal.SIGCHLD, lambda *_: _end_like(*os.waitpid(-1, os.WNOHANG)))
    if child := os.fork():
        theirs.close()
        with suppress(BrokenPipeError), ours:
            for request, files in requests:
                _send(ours, request, files)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _end_like(*os.waitpid(child, 0))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ours.close()
    # Only the opener reads requests from standard input.
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sandbox.become_unprivileged()
    # Changing the user id has cleared the signal for the parent's end.
    sandbox.end_with(opener)
    return _received(theirs)


def _end_like(child: int, status: int) -> None:
    # Ends this process as its child ended, so that the service sees how the child ended.
    if child:
        if os.WIFSIGNALED(status):
            os.kill(os.getpid(), os.WTERMSIG(status))
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _send(to: socket.socket, request: Request, files: OpenFiles | None) -> None:
    descriptors = [file for file in files or () if isinstance(file, int)]
    passed = tuple(
        _OpenError(file.errno or 0, file.strerror or str(file))
        if isinstance(file, OSError)
        else file is not None
        for file in files or ()
    )
    try:
        socket.send_fds(to, [_encoder.encode(_PassedRequest(request, passed))], descriptors)
    finally:
        if files is not None:
            files.close()


def _received(source: socket.socket) -> Iterator[tuple[Request, OpenFiles | None]]:
    while True:
        content, descriptors, _, _ = socket.recv_fds(source, _REQUEST_BYTES, len(OpenFiles._fields))
        if not content:
            return
        passed = _decode(content)
        remaining = iter(descriptors)
        files: list[int | OSError | None] = []
        for file in passed.files:
            if isinstance(file, _OpenError):
                files.append(OSError(file.errno, file.text))
            else:
                files.append(next(remaining) if file else None)
        yield passed.request, OpenFiles(*files) if files else None  # type: ignore[arg-type]
