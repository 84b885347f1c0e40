"""What an archive is known by: its content and how it is read, and the part that an earlier run loaded."""

import hashlib
from typing import IO, TYPE_CHECKING, NamedTuple, Self

import msgspec

from kasparro.model.batch import KnownFile

if TYPE_CHECKING:
    # The service, which does not read files, imports this module, too.
    from kasparro.sources.archives.files import ArchiveFile
    from kasparro.sources.archives.overrides import Overrides

# Part of every key. A parser that reads files differently needs a new version, so that they are loaded again.
PARSER_VERSION = "7"
# A larger part would get new pages each time, which takes longer than its digest.
READ_BYTES = 128 * 1024


class Key(NamedTuple):
    """The parts of a file's key: parser version, digests of content and overrides, and the interpretation.

    The interpretation covers all that is read from the file's name, so files of one content have different
    keys if their names give different coins.
    """

    version: str
    content: str
    overrides: str
    interpretation: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """The parts of a key. Keys of earlier parsers have fewer parts."""
        return cls(*[*text.split(":"), "", "", ""][:4])

    def __str__(self) -> str:
        return ":".join(self)

    def reads_like(self, other: "Key") -> bool:
        """Whether the rows of both files are read in the same way."""
        return self._replace(content="") == other._replace(content="")


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a grown file that an earlier run loaded.

    `position` is its number of rows. `bytes` and `line` say where the new part begins.
    """

    position: int
    bytes: int
    line: int
    interpretation: str


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """A file's key, and the one coin of its rows if there is one.

    `has_earlier_content` says that its content is what it was, or begins with it. `head` is the part that was
    loaded, if only the rest must be read.
    """

    key: str
    coin: str | None
    has_earlier_content: bool
    head: Head | None = None

    @property
    def content(self) -> str:
        """The digest of its content."""
        return Key.parse(self.key).content


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """A file's key without the interpretation, and what `Identity` has of its earlier content."""

    key: Key
    has_earlier_content: bool
    head: Head | None


def digest_contents(file: "ArchiveFile", overrides: "Overrides", earlier: KnownFile | None) -> Contents:
    """Read a file once for its digest, and for the digest of the part that `earlier` covers."""
    digest = hashlib.sha256()
    head, grown = None, False
    with file.content() as content:
        if earlier is not None and earlier.complete and earlier.bytes is not None:
            lines, last = _digest(content, digest, earlier.bytes)
            if digest.hexdigest() == earlier.content:
                grown, head = True, _head(earlier, earlier.bytes, lines, last, content)
        while chunk := content.read(READ_BYTES):
            digest.update(chunk)
    same = earlier is not None and digest.hexdigest() == earlier.content
    key = Key(PARSER_VERSION, digest.hexdigest(), overrides.digest, "")
    return Contents(key=key, has_earlier_content=grown or same, head=head)


def _digest(content: IO[bytes], digest: "hashlib._Hash", size: int) -> tuple[int, bytes]:
    # Adds `size` bytes to the digest. Returns the number of line ends in them and the last byte.
    lines, last = 0, b""
    while size and (chunk := content.read(min(size, READ_BYTES))):
        digest.update(chunk)
        size -= len(chunk)
        lines += chunk.count(b"\n")
        last = chunk[-1:]
    return lines, last


def _head(earlier: KnownFile, size: int, lines: int, last: bytes, content: IO[bytes]) -> Head | None:
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
