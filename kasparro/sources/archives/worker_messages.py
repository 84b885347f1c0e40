"""The messages between the service and its archive worker: msgpack, each with its length before it."""

import struct
from datetime import datetime
from typing import IO

import msgspec

from kasparro.model.batch import KnownFile
from kasparro.sources.archives.checked import Checked
from kasparro.sources.archives.found import Unsearched
from kasparro.sources.archives.identity import Identity
from kasparro.sources.archives.known_coins import KnownCoin
from kasparro.sources.archives.portions import Portion, Problem

LENGTH = struct.Struct("<I")
# Far larger than any batch, because the reader limits the text of a batch.
MESSAGE_LIMIT = 128 * 1024 * 1024


class FindArchives(msgspec.Struct, frozen=True, tag=True):
    """Find archives. `setting` is in the file system's own bytes; None means the sample in the package."""

    setting: bytes | None


class OpenArchive(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Open a file and send its FileKey, then wait for ReadArchive or SkipArchive.

    If `check` is set, send the CheckResult instead. `path` and `root` are in the file system's own bytes,
    `name` is for people, and `now` is the run's clock. `earlier` is the newest file of this name. `coins` are
    those coins of other sources that its name may mean.
    """

    path: bytes
    root: bytes | None
    name: str
    now: datetime
    earlier: KnownFile | None = None
    coins: tuple[KnownCoin, ...] = ()
    check: bool = False


class ReadArchive(msgspec.Struct, frozen=True, tag=True):
    """Read the open file without the first `position` rows, or only what was appended if that is None."""

    position: int | None


class SkipArchive(msgspec.Struct, frozen=True, tag=True):
    """Do not read the open file. There is no response."""


class FoundArchives(msgspec.Struct, frozen=True, tag=True):
    """Some of the archives that were found: path, name, size and root. `last` says that no more follow."""

    archives: list[tuple[bytes, str, int, bytes | None]]
    unsearched: list[Unsearched]
    last: bool


class NothingFound(msgspec.Struct, frozen=True, tag=True):
    """There is nothing to read. `text` says why."""

    text: str


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """The worker is still reading."""


class FileKey(msgspec.Struct, frozen=True, tag=True):
    """What the open file is known by."""

    identity: Identity


class CheckResult(msgspec.Struct, frozen=True, tag=True):
    """What a run would load of the file."""

    checked: Checked


class Finished(msgspec.Struct, frozen=True, tag=True):
    """The last message about a file. `spent` says that the process must not read another file."""

    spent: bool = False


Request = FindArchives | OpenArchive | ReadArchive | SkipArchive
Message = FoundArchives | NothingFound | Heartbeat | FileKey | Portion | Problem | CheckResult | Finished

_encoder = msgspec.msgpack.Encoder()
decode_message = msgspec.msgpack.Decoder(Message).decode
_decode_request = msgspec.msgpack.Decoder(Request).decode


def encode(message: Message | Request) -> bytearray:
    """A message with its length, ready to be written."""
    # Encoded behind its length, because a copy of a batch takes as long as its encoding.
    encoded = bytearray(LENGTH.size)
    _encoder.encode_into(message, encoded, LENGTH.size)
    LENGTH.pack_into(encoded, 0, len(encoded) - LENGTH.size)
    return encoded


def read_request(source: IO[bytes]) -> Request | None:
    """Read the next request from a pipe; None at its end."""
    length = source.read(LENGTH.size)
    if len(length) < LENGTH.size:
        return None
    request: Request = _decode_request(source.read(LENGTH.unpack(length)[0]))
    return request
