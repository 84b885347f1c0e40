"""Makes the checkpoint key of an archive from its content, and finds the part that an earlier run loaded."""

import hashlib
from typing import IO

import msgspec

from kasparro.model.batch import Checkpoint
from kasparro.sources.archives.files import ArchiveFile
from kasparro.sources.archives.overrides import Overrides
from kasparro.sources.archives.reader import Head

# Part of every key. A parser that reads files differently needs a new version, so that they are loaded again.
PARSER_VERSION = "5"
READ_BYTES = 1024 * 1024


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """A file's key, and the part of it that was loaded before it grew."""

    key: str
    head: Head | None


def identify(file: ArchiveFile, overrides: Overrides, earlier: Checkpoint | None) -> Identity:
    """Read a file once for its digest, and for the digest of the part that `earlier` covers."""
    suffix = f":{overrides.digest}" if overrides.digest else ""
    digest = hashlib.sha256()
    head = None
    with file.content() as content:
        if earlier is not None and earlier.complete and earlier.bytes is not None:
            lines, last = _digest(content, digest, earlier.bytes)
            if f"{PARSER_VERSION}:{digest.hexdigest()}{suffix}" == earlier.key:
                head = _head(earlier, earlier.bytes, lines, last, content)
        while chunk := content.read(READ_BYTES):
            digest.update(chunk)
    return Identity(key=f"{PARSER_VERSION}:{digest.hexdigest()}{suffix}", head=head)


def _digest(content: IO[bytes], digest: "hashlib._Hash", size: int) -> tuple[int, bytes]:
    # Adds `size` bytes to the digest. Returns the number of line ends in them and the last byte.
    lines, last = 0, b""
    while size and (chunk := content.read(min(size, READ_BYTES))):
        digest.update(chunk)
        size -= len(chunk)
        lines += chunk.count(b"\n")
        last = chunk[-1:]
    return lines, last


def _head(earlier: Checkpoint, size: int, lines: int, last: bytes, content: IO[bytes]) -> Head | None:
    # Where the appended rows begin; None if the last line of the earlier content was incomplete.
    if earlier.interpretation is None:
        return None
    following = content.read(2)
    content.seek(size)
    if last != b"\n":
        ending = b"\r\n" if following == b"\r\n" else b"\n"
        if not following.startswith(ending):
            return None
        size, lines = size + len(ending), lines + 1
    return Head(position=earlier.position, bytes=size, line=lines + 1, interpretation=earlier.interpretation)
