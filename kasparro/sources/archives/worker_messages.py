"""What the service and its worker send each other: messages of msgpack, each after its length."""

import struct
from datetime import datetime
from typing import IO

import msgspec

from kasparro.model.batch import Checkpoint
from kasparro.sources.archives.discover import Unsearched
from kasparro.sources.archives.explain import Checked
from kasparro.sources.archives.reader import Portion, Problem

HEAD = struct.Struct("<I")
# A batch is far below this, as the reader bounds it by the text that it is made of.
MESSAGE_LIMIT = 128 * 1024 * 1024


class Find(msgspec.Struct, frozen=True, tag=True):
    """Search for archives. `where` is the setting in the file system's own bytes; None means the sample."""

    where: bytes | None


class Ask(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Say what a file is, and wait for an Order. Or say what a run would load of it, if `check` is set.

    `path` and `root` are in the file system's own bytes, `name` is for people, and `now` is the pass's clock.
    `earlier` is the newest checkpoint of this name.
    """

    path: bytes
    root: bytes | None
    name: str
    now: datetime
    earlier: Checkpoint | None = None
    check: bool = False


class Order(msgspec.Struct, frozen=True, tag=True):
    """Read the file of the last Ask: after so many rows, or what was appended to it if that is None."""

    position: int | None


class Skip(msgspec.Struct, frozen=True, tag=True):
    """Leave the file of the last Ask alone; this needs no answer."""


class Listed(msgspec.Struct, frozen=True, tag=True):
    """Some of the archives that were found; `last` says that no more follow."""

    archives: list[tuple[bytes, str, int, bytes | None]]
    unsearched: list[Unsearched]
    last: bool


class NothingFound(msgspec.Struct, frozen=True, tag=True):
    """There is nothing to read; `text` says why."""

    text: str


class Alive(msgspec.Struct, frozen=True, tag=True):
    """The worker reads on, and has nothing to tell yet."""


class Known(msgspec.Struct, frozen=True, tag=True):
    """The key of the file, for the checkpoints."""

    key: str


class Report(msgspec.Struct, frozen=True, tag=True):
    """What a run would load of the file."""

    checked: Checked


class Finished(msgspec.Struct, frozen=True, tag=True):
    """All was told of the last file. `spent` says that the process must not read another one."""

    spent: bool = False


Request = Find | Ask | Order | Skip
Message = Listed | NothingFound | Alive | Known | Portion | Problem | Report | Finished

_encoder = msgspec.msgpack.Encoder()
message_of = msgspec.msgpack.Decoder(Message).decode
_request_of = msgspec.msgpack.Decoder(Request).decode


def packed(message: Message | Request) -> bytes:
    """A message ready to be written."""
    content = _encoder.encode(message)
    return HEAD.pack(len(content)) + content


def next_request(source: IO[bytes]) -> Request | None:
    """The next request from a pipe; None at its end."""
    head = source.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    request: Request = _request_of(source.read(HEAD.unpack(head)[0]))
    return request
