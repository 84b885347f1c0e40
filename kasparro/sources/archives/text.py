"""Reads an archive as a stream of decompressed and decoded text, and splits it into rows."""

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

from kasparro.sources.archives.files import ArchiveFile

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Small enough that texts of this size do not get new pages each time: 256 KiB take half as long again.
READ_BYTES = 64 * 1024
# The sample of a file: its beginning, and windows at even distances after that.
HEAD_BYTES = 1024 * 1024
WINDOW_BYTES = 64 * 1024
WINDOWS = 16
# The csv module limits a cell; this limits a line.
LINE_LIMIT = 4 * 1024 * 1024
# Characters of plain lines that are split together: few enough to stay in the processor's cache.
PLAIN_CHARACTERS = 16 * 1024
# No table is compressed this much: prices shrink to between a third and a tenth, a constant column to a
# fiftieth.
UNPACKED_RATIO_LIMIT = 250
# Any file may unpack to this.
UNPACKED_ALWAYS_ALLOWED = 16 * 1024 * 1024

# The encodings that overrides may name. Each contains ASCII unchanged, or has units of two bytes.
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
    """How bytes become text; `note` says so if the file itself does not show it clearly."""

    codec: str
    note: str | None = None

    @property
    def unit(self) -> int:
        """The fewest bytes that a character takes."""
        return 2 if self.codec.startswith("utf-16") else 1


class Window(msgspec.Struct, frozen=True):
    """A part of a file's bytes. All but the first are likely to begin within a row."""

    content: bytes
    last: bool


def text_codec(name: str) -> str | None:
    """The codec of a text encoding by any of its names; None if the name is not of an allowed encoding."""
    try:
        codec = codecs.lookup(name).name
    except (LookupError, ValueError):
        return None
    return codec if codec in ENCODINGS else None


@contextmanager
def open_content(file: ArchiveFile) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open a file's content, and the file as it is on disk. The first bytes show the compression."""
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
def _damage_raised() -> Iterator[None]:
    try:
        yield
    except EOFError:
        raise Damaged("it ends in the middle of its compressed data") from None
    except (gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
        raise Damaged(f"its compressed data is damaged ({error})") from None
    except OSError as error:
        raise Damaged(f"it cannot be read ({error.strerror or error})") from None


def _read(content: IO[bytes], size: int) -> tuple[bytes, Damaged | None]:
    # Up to `size` bytes; fewer at the end or before damage, so that nothing before the damage is lost.
    parts: list[bytes] = []
    length = 0
    try:
        with _damage_raised():
            while length < size and (part := cast("io.BufferedReader", content).read1(size - length)):
                parts.append(part)
                length += len(part)
    except Damaged as damage:
        return b"".join(parts), damage
    return b"".join(parts), None


def windows(file: ArchiveFile) -> Iterator[Window]:
    """The beginning of a file, then windows at even distances of the file as it is on disk.

    Ends before any damage.
    """
    size = file.size
    try:
        with _damage_raised(), open_content(file) as (content, raw):
            head, damage = _read(content, HEAD_BYTES)
            following = b"" if damage else content.read(1)
            yield Window(head, last=not following)
            if not following:
                return
            stride = max((size - raw.tell()) // WINDOWS, WINDOW_BYTES)
            if content is raw:
                for start in range(HEAD_BYTES + stride // 2 // 4 * 4, size, stride):
                    raw.seek(start)
                    yield Window(raw.read(WINDOW_BYTES), last=False)
                return
            due = raw.tell() + stride // 2
            unpacked = len(head)
            while chunk := content.read(WINDOW_BYTES):
                unpacked += len(chunk)
                _require_plausible(unpacked, raw)
                if raw.tell() >= due:
                    yield Window(chunk, last=False)
                    due = raw.tell() + stride
    except Damaged:
        return


def _require_plausible(unpacked: int, raw: IO[bytes]) -> None:
    # Rejects a compression bomb long before it takes a minute.
    if unpacked > max(UNPACKED_ALWAYS_ALLOWED, UNPACKED_RATIO_LIMIT * raw.tell()):
        raise Damaged(f"it unpacks to more than {UNPACKED_RATIO_LIMIT} times its size")


def encoding_of(head: bytes) -> Encoding:
    """The encoding of a file, by its byte order mark, or else by the bytes of its beginning."""
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
    """A decoder that turns invalid bytes into surrogates, so that they cost only their row."""
    errors = "replace" if encoding.unit == 2 else "surrogateescape"
    return codecs.getincrementaldecoder(encoding.codec)(errors)


class ArchiveText:
    """An open archive as aiocsv reads it.

    `position` is how far the file on disk has been read, `characters` counts the text, and `quoted` says
    whether the text read so far ends within quotes.
    """

    def __init__(self, content: IO[bytes], raw: IO[bytes], encoding: Encoding, delimiter: str) -> None:
        self._content = content
        self._raw = raw
        self._decoder = decoder(encoding)
        self._delimiter = delimiter
        self._texts = self._read_lines()
        self._unread = ""
        self._unpacked = 0
        self.quoted = False
        self.position = 0
        self.characters = 0

    async def read(self, size: int) -> str:
        """The next lines, many more than the `size` that aiocsv asks for; "" at the end.

        Blocks while it reads: the worker does nothing else. Raises Damaged after all lines before the damage.
        """
        del size
        text, self._unread = self._unread, ""
        return text or next(self._texts, "")

    def plain_texts(self) -> Iterator[str]:
        """The next lines as short texts of whole lines, until a cell is quoted. Each ends with a newline.

        Then a line's cells are what stands between its delimiters. Ends before the first part of the file
        that is not so plain; aiocsv reads from there. Blocks and raises as `read` does.
        """
        for text in self._texts:
            if (plain := _plain(text)) is None:
                self._unread = text
                return
            start = 0
            while start < len(plain):
                end = plain.find("\n", start + PLAIN_CHARACTERS) + 1 or len(plain)
                if end - start > 2 * PLAIN_CHARACTERS:
                    # A cell may be too long, which aiocsv reports.
                    self._unread = plain[start:]
                    return
                yield plain[start:end]
                start = end

    def _read_lines(self) -> Iterator[str]:
        rest, last, damage = "", "", None
        while damage is None:
            chunk, damage = _read(self._content, READ_BYTES)
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
            # Whole lines only, because the last one may be incomplete. A carriage return at the end may be
            # half of a line's end.
            end = len(text) if ended else max(text.rfind("\n"), text.rfind("\r", 0, -1)) + 1
            lines, rest = text[:end], text[end:]
            if lines:
                last = lines[-1]
                yield self._without_blanks(lines)
            if ended:
                # After a bare carriage return aiocsv waits for more, and holds the last row back.
                if last == "\r":
                    yield "\n"
                return
            if len(rest) > LINE_LIMIT:
                damage = Damaged(f"a line in it is longer than {LINE_LIMIT:,} characters")
        raise damage

    def _without_blanks(self, lines: str) -> str:
        if '"' not in lines:
            return lines
        began_quoted = self.quoted
        self.quoted = _ends_quoted(lines, self._delimiter, quoted=began_quoted)
        return _without_blanks_before_quotes(lines, self._delimiter, quoted=began_quoted)


def _plain(text: str) -> str | None:
    # A text without quotes, with "\n" at the end of each line; None if aiocsv must split it.
    if '"' in text:
        return None
    if "\r" in text:
        if text.count("\r") != text.count("\r\n"):
            return None
        # In less than half the time in which both characters would be replaced by one.
        text = text.replace("\r", "")
    return text if text[-1] == "\n" else f"{text}\n"


def columns_of(text: str, delimiter: str, width: int) -> list[list[str]] | None:
    """The cells of a plain text by column; None if a line does not have `width` cells."""
    # One split of all lines takes half the time of one for each. No cell contains a line's end, so it shows
    # where the lines end.
    cells = text.replace("\n", f"{delimiter}\n{delimiter}").split(delimiter)
    rows, stride = text.count("\n"), width + 1
    if len(cells) != rows * stride + 1 or cells[width::stride].count("\n") != rows:
        return None
    cells.pop()
    return [cells[column::stride] for column in range(width)]


def _ends_quoted(lines: str, delimiter: str, *, quoted: bool) -> bool:
    # Whether lines end within quotes. `quoted` says that they begin within quotes. A quote that opens a cell
    # has only blanks before it; elsewhere in a cell a quote is an ordinary character. The pattern matches all
    # cells up to one that is never closed.
    # The outer group is not possessive: before Python 3.11.5 nested possessive groups match too much.
    ends = rf"\r\n{re.escape(delimiter)}"
    whole = f'"{lines}\n' if quoted else f"{lines}\n"
    matched = re.match(rf'(?: *+(?:"[^"]*+(?:""[^"]*+)*+"|(?!"))[^{ends}]*+[{ends}])*', whole)
    return matched is None or matched.end() < len(whole)


def _without_blanks_before_quotes(lines: str, delimiter: str, *, quoted: bool = False) -> str:
    # Removes blanks between a delimiter and a quote. They mean nothing, but after them aiocsv takes the quote
    # for a part of the cell. (Its `skipinitialspace` does not help: it also removes blanks within quotes.)
    # `quoted` says that the lines begin within quotes.
    if ' "' not in lines:
        return lines
    quote = '"' if quoted else ""
    ends = rf"\r\n{re.escape(delimiter)}"
    return re.sub(rf'(\A|[{ends}]) *+("[^"]*+(?:""[^"]*+)*+"?)', r"\1\2", quote + lines)[len(quote) :]


class _TextReader:
    # Text in memory, as aiocsv reads it.
    def __init__(self, text: str, delimiter: str) -> None:
        self._text = _without_blanks_before_quotes(text, delimiter) + ("\n" if text.endswith("\r") else "")

    async def read(self, size: int) -> str:
        del size
        text, self._text = self._text, ""
        return text


def rows_of(source: ArchiveText | str, delimiter: str) -> AsyncReader:
    """The rows of a text. A blank line is an empty row."""
    text = _TextReader(source, delimiter) if isinstance(source, str) else source
    return AsyncReader(text, delimiter=delimiter)


def is_filled(row: list[str]) -> bool:
    """Whether a row has a cell that is not blank."""
    return any(map(str.strip, row))


async def filled_rows(source: ArchiveText | str, delimiter: str) -> AsyncIterator[list[str]]:
    """The rows of a text that are not blank."""
    async for row in rows_of(source, delimiter):
        if is_filled(row):
            yield row


def trimmed(row: list[str], width: int) -> list[str]:
    """A row without blank cells beyond the header's width, which trailing delimiters cause."""
    return row[:width] if len(row) > width and not any(map(str.strip, row[width:])) else row
