"""The text of an archive: decompressed and decoded as it streams, in reads big enough to be quick."""

import codecs
import csv
import gzip
import io
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import msgspec

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Beyond this the gain is smaller than the memory it costs.
READ_BYTES = 256 * 1024
# What is looked at before a file is loaded: its beginning, and windows at even distances after that.
HEAD_BYTES = 1024 * 1024
WINDOW_BYTES = 64 * 1024
WINDOWS = 16
# A cell is bounded by the csv module, and a row by this.
LINE_LIMIT = 4 * 1024 * 1024


if TYPE_CHECKING:
    from _csv import Reader


class Damaged(Exception):
    """A file cannot be read any further; the text says why."""


class Encoding(msgspec.Struct, frozen=True):
    """How bytes become text; `note` where that was not told by the file itself."""

    codec: str
    note: str | None = None

    @property
    def unit(self) -> int:
        """Bytes that a character takes at least."""
        return 2 if self.codec.startswith("utf-16") else 1


class Window(msgspec.Struct, frozen=True):
    """A part of a file's bytes; one that is not the first most likely begins within a row."""

    content: bytes
    first: bool
    last: bool


@contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A file's content, and the file as it lies on disk; the first bytes tell the compression."""
    with path.open("rb") as raw:
        magic = raw.read(4)
        raw.seek(0)
        if magic[:2] == b"\x1f\x8b":
            with gzip.open(raw) as content:
                yield cast("IO[bytes]", content), raw
        elif magic == b"\x28\xb5\x2f\xfd":
            with zstd.ZstdFile(raw) as content:
                yield cast("IO[bytes]", content), raw
        else:
            yield raw, raw


@contextmanager
def _damage_told() -> Iterator[None]:
    try:
        yield
    except EOFError:
        raise Damaged("it ends in the middle of its compressed data") from None
    except (gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
        raise Damaged(f"its compressed data is damaged ({error})") from None
    except OSError as error:
        raise Damaged(f"it cannot be read ({error.strerror or error})") from None


def _gathered(content: IO[bytes], size: int) -> tuple[bytes, Damaged | None]:
    # As much as that, fewer bytes at the end or before damage: what stands before it is not lost.
    parts: list[bytes] = []
    length = 0
    try:
        with _damage_told():
            while length < size and (part := cast("io.BufferedReader", content).read1(size - length)):
                parts.append(part)
                length += len(part)
    except Damaged as damage:
        return b"".join(parts), damage
    return b"".join(parts), None


def windows(path: Path) -> Iterator[Window]:
    """The beginning of a file and then windows at even distances of the file as it lies on disk.

    A file that is damaged further on gives the windows before that.
    """
    size = path.stat().st_size
    try:
        with _damage_told(), opened(path) as (content, raw):
            head, damage = _gathered(content, HEAD_BYTES)
            following = b"" if damage else content.read(1)
            yield Window(head, first=True, last=not following)
            if not following:
                return
            stride = max((size - raw.tell()) // WINDOWS, WINDOW_BYTES)
            if content is raw:
                for start in range(HEAD_BYTES + stride // 2 // 4 * 4, size, stride):
                    raw.seek(start)
                    yield Window(raw.read(WINDOW_BYTES), first=False, last=False)
                return
            due = raw.tell() + stride // 2
            while chunk := content.read(WINDOW_BYTES):
                if raw.tell() >= due:
                    yield Window(chunk, first=False, last=False)
                    due = raw.tell() + stride
    except Damaged:
        return


def encoding_of(head: bytes) -> Encoding:
    """How a file is encoded, by its byte order mark, else by what its beginning is made of."""
    if head.startswith(codecs.BOM_UTF8):
        return Encoding("utf-8-sig")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return Encoding("utf-16")
    some = head[:4096]
    if len(some) >= 8:
        # Text in a Latin script has a zero in every other byte of UTF-16.
        for codec, zeros, others in (
            ("utf-16-le", some[1::2], some[::2]),
            ("utf-16-be", some[::2], some[1::2]),
        ):
            if zeros.count(0) > len(zeros) * 0.7 and others.count(0) < len(others) * 0.1:
                return Encoding(codec, f"read as {codec.upper()}, by its bytes alone")
    with suppress(UnicodeDecodeError):
        codecs.getincrementaldecoder("utf-8")().decode(head)
        return Encoding("utf-8")
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(head)
    strange = sum("\udc80" <= c <= "\udcff" for c in text)
    beyond = sum(c > "\x7f" for c in text) - strange
    if beyond >= strange:
        return Encoding("utf-8", "some bytes are not UTF-8")
    return Encoding("cp1252", "not UTF-8, so read as Windows-1252")


def decoder(encoding: Encoding) -> codecs.IncrementalDecoder:
    """Bytes to text; what is not of the encoding becomes surrogates, so that it costs its row only."""
    errors = "replace" if encoding.unit == 2 else "surrogateescape"
    return codecs.getincrementaldecoder(encoding.codec)(errors)


class ArchiveText:
    """An open archive as lines; `position` is how far it has come in the file on disk."""

    def __init__(self, content: IO[bytes], raw: IO[bytes], encoding: Encoding) -> None:
        self._content = content
        self._raw = raw
        self._decoder = decoder(encoding)
        self._quotes = 0
        self.position = 0

    @property
    def quoted(self) -> bool:
        """Whether what was read so far ends within quotes."""
        return self._quotes % 2 == 1

    def lines(self) -> Iterator[str]:
        """Its lines with whatever ends them. Raises Damaged after all lines that stand before the damage."""
        return chain.from_iterable(self._portions())

    def _portions(self) -> Iterator[list[str]]:
        rest, damage = "", None
        while damage is None:
            chunk, damage = _gathered(self._content, READ_BYTES)
            self.position = self._raw.tell()
            ended = not chunk and damage is None
            text = self._decoder.decode(chunk, final=ended)
            self._quotes += text.count('"')
            lines = io.StringIO(rest + text, newline="").readlines()
            if ended:
                yield lines
                return
            # What follows may belong to the last line, or be the second half of its end.
            rest = lines.pop() if lines and not lines[-1].endswith("\n") else ""
            yield lines
            if len(rest) > LINE_LIMIT:
                damage = Damaged(f"a line in it is longer than {LINE_LIMIT:,} characters")
        raise damage


def shown(text: str) -> str:
    """A piece of a file as people, terminals and PostgreSQL can take it: valid, in one line, with whatever
    would steer a terminal written out."""
    text = " ".join(text.encode("utf-8", "replace").decode().replace("\x00", "�").split())
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def rows_of(lines: Iterable[str], delimiter: str) -> "Reader":
    """The rows of lines, blank lines as empty ones."""
    # Blanks after a delimiter mean nothing, and before a quote they would make it a part of the cell.
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True)


def all_rows(text: str, delimiter: str) -> Iterator[list[str]]:
    """The rows of a text at hand that hold anything."""
    return filter(any, rows_of(io.StringIO(text, newline=""), delimiter))


def fitted(row: list[str], width: int) -> list[str]:
    """A row without the blank cells that stand beyond the header's, as trailing delimiters make them."""
    return row[:width] if len(row) > width and not any(map(str.strip, row[width:])) else row
