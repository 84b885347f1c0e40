"""Root's worker in two processes: one opens files and reads nothing, its child reads them as nobody.

So files that only root may read are loaded, and whoever takes over the parser has no rights and gets no file
but those that the service asked for.
"""

import os
import signal
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress

import msgspec

from kasparro.sources.archives import sandbox
from kasparro.sources.archives.files import Opened
from kasparro.sources.archives.worker_messages import Request

# A request holds two paths, each of 4 KiB at most, and a name.
_REQUEST_BYTES = 64 * 1024


class _Failure(msgspec.Struct, frozen=True):
    # Why a file is not open.
    errno: int
    text: str


class _Lent(msgspec.Struct, frozen=True):
    # A request; of each of its files True if a descriptor comes with it, a failure, or None.
    request: Request
    files: tuple[bool | _Failure | None, ...]


_encoder = msgspec.msgpack.Encoder()
_lent_of = msgspec.msgpack.Decoder(_Lent).decode


def lend(requests: Iterable[tuple[Request, Opened | None]]) -> Iterator[tuple[Request, Opened | None]]:
    """Fork, and give the child the requests with their open files; this process ends as the child does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    opener = os.getpid()
    # The child can end while this process waits for a request.
    signal.signal(signal.SIGCHLD, lambda *_: _end_like(*os.waitpid(-1, os.WNOHANG)))
    if child := os.fork():
        theirs.close()
        with suppress(BrokenPipeError), ours:
            for request, opened in requests:
                _send(ours, request, opened)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _end_like(*os.waitpid(child, 0))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ours.close()
    # The requests belong to the opener.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sandbox.become_unprivileged()
    # A change of the user id undoes the bond to the parent.
    sandbox.end_with(opener)
    return _received(theirs)


def _end_like(child: int, status: int) -> None:
    # Ends this process in the way of its child, so that the service sees what became of it.
    if child:
        if os.WIFSIGNALED(status):
            os.kill(os.getpid(), os.WTERMSIG(status))
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _send(to: socket.socket, request: Request, opened: Opened | None) -> None:
    descriptors = [file for file in opened or () if isinstance(file, int)]
    files = tuple(
        _Failure(file.errno or 0, file.strerror or str(file))
        if isinstance(file, OSError)
        else file is not None
        for file in opened or ()
    )
    try:
        socket.send_fds(to, [_encoder.encode(_Lent(request, files))], descriptors)
    finally:
        if opened is not None:
            opened.close()


def _received(source: socket.socket) -> Iterator[tuple[Request, Opened | None]]:
    while True:
        content, descriptors, _, _ = socket.recv_fds(source, _REQUEST_BYTES, len(Opened._fields))
        if not content:
            return
        lent = _lent_of(content)
        coming = iter(descriptors)
        files: list[int | OSError | None] = []
        for file in lent.files:
            if isinstance(file, _Failure):
                files.append(OSError(file.errno, file.text))
            else:
                files.append(next(coming) if file else None)
        yield lent.request, Opened(*files) if files else None  # type: ignore[arg-type]
