"""The text of an archive: decompressed and decoded as it streams, in reads big enough to be quick."""

import codecs
import gzip
import re
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, cast

import msgspec
from aiocsv import AsyncReader

from kasparro.printable import escape
from kasparro.sources.archives.files import ArchiveFile

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
# No table packs this tightly: prices shrink to a third or a tenth, a constant column to a fiftieth.
UNPACKED_LIMIT = 250
# What a small file may unpack to, however tightly it is packed.
UNPACKED_ALWAYS = 16 * 1024 * 1024

# The encodings that a description may name. In each, ASCII stands for itself, or the unit is two bytes.
ENCODINGS = frozenset(
    {
        *("ascii", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"),
        *(f"iso8859-{part}" for part in (*range(1, 12), *range(13, 17))),
        *(f"cp{page}" for page in (437, 737, 775, 850, 852, 855, 857, 858, 860, 861, 862, 863, 864, 865)),
        *(f"cp{page}" for page in (866, 869, 874, 932, 949, 950, *range(1250, 1259))),
        *("koi8-r", "koi8-u", "mac-roman", "mac-latin2", "mac-cyrillic", "mac-greek", "mac-turkish"),
        *("gb2312", "gbk", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr"),
    }
)

if TYPE_CHECKING:
    import io


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


def text_codec(name: str) -> str | None:
    """The codec of a text encoding by any of its names; None for what is not a text encoding."""
    try:
        codec = codecs.lookup(name).name
    except (LookupError, ValueError):
        return None
    return codec if codec in ENCODINGS else None


@contextmanager
def opened(file: ArchiveFile) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A file's content, and the file as it lies on disk; the first bytes tell the compression."""
    with file.content() as raw:
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


def windows(file: ArchiveFile) -> Iterator[Window]:
    """The beginning of a file and then windows at even distances of the file as it lies on disk.

    A file that is damaged further on gives the windows before that.
    """
    size = file.size
    try:
        with _damage_told(), opened(file) as (content, raw):
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
            unpacked = len(head)
            while chunk := content.read(WINDOW_BYTES):
                unpacked += len(chunk)
                _require_plausible(unpacked, raw)
                if raw.tell() >= due:
                    yield Window(chunk, first=False, last=False)
                    due = raw.tell() + stride
    except Damaged:
        return


def _require_plausible(unpacked: int, raw: IO[bytes]) -> None:
    # A bomb is refused by its own numbers, long before it has cost a minute.
    if unpacked > max(UNPACKED_ALWAYS, UNPACKED_LIMIT * raw.tell()):
        raise Damaged(f"it unpacks to more than {UNPACKED_LIMIT} times its size")


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
    """An open archive as aiocsv reads it; `position` is how far it has come in the file on disk, `quoted`
    whether what was read so far ends within quotes, `characters` counts the text."""

    def __init__(self, content: IO[bytes], raw: IO[bytes], encoding: Encoding, delimiter: str) -> None:
        self._content = content
        self._raw = raw
        self._decoder = decoder(encoding)
        self._delimiter = delimiter
        self._texts = self._portions()
        self._unpacked = 0
        self.quoted = False
        self.position = 0
        self.characters = 0

    async def read(self, size: int) -> str:
        """The next lines, a good deal more than the `size` that aiocsv asks for; "" at the end.

        Raises Damaged after all lines that stand before the damage. It waits for the disk as it is: who reads
        an archive does nothing else.
        """
        del size
        return next(self._texts, "")

    def _portions(self) -> Iterator[str]:
        rest, last, damage = "", "", None
        while damage is None:
            chunk, damage = _gathered(self._content, READ_BYTES)
            self.position = self._raw.tell()
            ended = not chunk and damage is None
            if self._content is not self._raw:
                self._unpacked += len(chunk)
                _require_plausible(self._unpacked, self._raw)
            try:
                text = rest + self._decoder.decode(chunk, final=ended)
            except UnicodeError as error:
                raise Damaged(f"its bytes do not decode ({error})") from None
            self.characters += len(text) - len(rest)
            # Whole lines, as what follows may belong to the last one.
            cut = len(text) if ended else max(text.rfind("\n"), text.rfind("\r")) + 1
            lines, rest = text[:cut], text[cut:]
            if lines:
                last = lines[-1]
                yield self._tight(lines)
            if ended:
                # aiocsv waits for what follows a bare carriage return, and with it keeps the last row.
                if last == "\r":
                    yield "\n"
                return
            if len(rest) > LINE_LIMIT:
                damage = Damaged(f"a line in it is longer than {LINE_LIMIT:,} characters")
        raise damage

    def _tight(self, lines: str) -> str:
        began_quoted = self.quoted
        if '"' in lines:
            self.quoted = _ends_quoted(lines, self._delimiter, quoted=began_quoted)
        return _tight(lines, self._delimiter, quoted=began_quoted)


def _ends_quoted(lines: str, delimiter: str, *, quoted: bool) -> bool:
    # Whether lines end within quotes; `quoted`, they begin within them. A quote opens a cell, blanks or none
    # before it, and is a character as any other within one. All cells match, up to one that nobody closes.
    # The outer group is not possessive, as such groups of Python before 3.11.5 take what they do not match.
    ends = rf"\r\n{re.escape(delimiter)}"
    whole = f'"{lines}\n' if quoted else f"{lines}\n"
    matched = re.match(rf'(?: *+(?:"[^"]*+(?:""[^"]*+)*+"|(?!"))[^{ends}]*+[{ends}])*', whole)
    return matched is None or matched.end() < len(whole)


def _tight(lines: str, delimiter: str, *, quoted: bool = False) -> str:
    # Lines without the blanks that stand between a delimiter and a quote: they mean nothing, but with them
    # aiocsv takes the quote for a part of the cell (its `skipinitialspace` does too, and takes blanks out of
    # quotes). `quoted`, the lines begin within quotes.
    if ' "' not in lines:
        return lines
    quote = '"' if quoted else ""
    ends = rf"\r\n{re.escape(delimiter)}"
    return re.sub(rf'(\A|[{ends}]) *+("[^"]*+(?:""[^"]*+)*+"?)', r"\1\2", quote + lines)[len(quote) :]


def shown(text: str) -> str:
    """A piece of a file as people, terminals and PostgreSQL can take it: valid, in one line, with whatever
    would steer a terminal written out."""
    text = " ".join(text.encode("utf-8", "replace").decode().replace("\x00", "�").split())
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    return character if character.isprintable() else escape(character)


class _Held:
    # Text at hand, as aiocsv reads it.
    def __init__(self, text: str, delimiter: str) -> None:
        self._text = _tight(text, delimiter) + ("\n" if text.endswith("\r") else "")

    async def read(self, size: int) -> str:
        del size
        text, self._text = self._text, ""
        return text


def rows_of(source: ArchiveText | str, delimiter: str) -> AsyncReader:
    """The rows of a text, blank lines as empty ones."""
    text = _Held(source, delimiter) if isinstance(source, str) else source
    return AsyncReader(text, delimiter=delimiter)


def holds(row: list[str]) -> bool:
    """Whether anything but blanks stands in a row."""
    return any(map(str.strip, row))


async def told_rows(source: ArchiveText | str, delimiter: str) -> AsyncIterator[list[str]]:
    """The rows of a text that hold anything."""
    async for row in rows_of(source, delimiter):
        if holds(row):
            yield row


def fitted(row: list[str], width: int) -> list[str]:
    """A row without the blank cells that stand beyond the header's, as trailing delimiters make them."""
    return row[:width] if len(row) > width and not any(map(str.strip, row[width:])) else row
