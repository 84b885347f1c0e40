"""Takes a sample of an archive: its header, the rows at its beginning, and rows from windows after that."""

import codecs
import re
from collections.abc import Sequence

import msgspec

from kasparro.sources.archives.detect.header import find_header, line_of
from kasparro.sources.archives.errors import FileRejected, Guess
from kasparro.sources.archives.files import ArchiveFile
from kasparro.sources.archives.layouts import Layout
from kasparro.sources.archives.overrides import NO_OVERRIDES, Overrides
from kasparro.sources.archives.text import (
    Encoding,
    decoder,
    encoding_of,
    filled_rows,
    text_codec,
    trimmed,
    windows,
)

# Files that are no tables whatever their name says, by their first bytes: what they are, and what to do.
OTHER_FORMATS = (
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet: unpack it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old spreadsheet (.xls): save the sheet as CSV"),
    (b"BZh", "compressed by bzip2: unpack it, or compress it by gzip or zstd"),
    (b"\xfd7zXZ", "compressed by xz: unpack it, or compress it by gzip or zstd"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it"),
    (b"Rar!", "a RAR archive: unpack it"),
    (b"PAR1", "a Parquet file: write it as CSV"),
    (b"SQLite format 3", "a SQLite database: write its table as CSV"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file itself by git lfs pull"),
    (b"{", "JSON: write it as CSV"),
    (b"[{", "JSON: write it as CSV"),
    (b"[[", "JSON: write it as CSV"),
    (b"<!", "a web page: the download has failed, or needs to be saved as CSV"),
    (b"<?", "XML: write it as CSV"),
)
# The name of a tag that begins a page. Some programs write the names of columns in angle brackets.
_TAG = re.compile(rb"<[a-zA-Z][^\r\n,;\t|]*>?[^\r\n,;\t|]*(?:[\r\n]|$)")


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The rows from which a file's format is detected; `whole` says that the file has no others.

    `header_row` and `ticker` are as in `Header`. `header_line` is the line that the header ends on.
    """

    encoding: Encoding
    delimiter: str
    header_row: int
    header: list[str]
    layout: Layout
    rows: list[list[str]]
    whole: bool
    header_line: int | None
    ticker: str | None


async def read_sample(file: ArchiveFile, overrides: Overrides = NO_OVERRIDES) -> Sample:
    """Read the beginning of a file, and windows after it. Raises FileRejected if it is no table."""
    file_windows = windows(file)
    head = next(file_windows, None)
    if head is None or not head.content:
        raise FileRejected("it is empty, or nothing of it can be read")
    for magic, description in OTHER_FORMATS:
        if head.content.startswith(magic):
            raise FileRejected(f"it is {description}")
    if _TAG.match(head.content):
        raise FileRejected("it is a web page or XML: the download has failed, or needs to be saved as CSV")
    encoding = _encoding(head.content, overrides)
    try:
        text = decoder(encoding).decode(head.content, final=head.last)
    except UnicodeError as error:
        raise FileRejected(f"its bytes do not decode as {encoding.codec} ({error})") from None
    if text.count("\x00") * 20 > len(text):
        raise FileRejected("it is not text")
    header = await find_header(text, overrides)
    if not head.last and header.rows:
        # The last row may be incomplete.
        header.rows.pop()
    _drop_trailing_blanks(header.cells, header.rows)
    width = len(header.cells)
    rows = [trimmed(row, width) for row in header.rows]
    for window in file_windows:
        content = window.content[: len(window.content) // encoding.unit * encoding.unit]
        window_encoding = encoding if encoding.codec != "utf-16" else _utf16_by_mark(head.content)
        _, _, part = decoder(window_encoding).decode(content).partition("\n")
        further = [row async for row in filled_rows(part, header.delimiter)]
        # A window may begin or end within a row or a quoted cell, so only rows as wide as the header count.
        rows += [row for row in (trimmed(row, width) for row in further[:-1]) if len(row) == width]
    return Sample(
        encoding=encoding,
        delimiter=header.delimiter,
        header_row=header.row,
        header=header.cells,
        layout=header.layout,
        rows=rows,
        whole=head.last,
        ticker=header.ticker,
        header_line=await line_of(text, header.row, header.delimiter),
    )


def _encoding(head: bytes, overrides: Overrides) -> Encoding:
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise FileRejected("it is UTF-32 by its byte order mark: save it as UTF-8")
    codec = text_codec(overrides.encoding) if overrides.encoding else None
    if codec is None:
        return encoding_of(head)
    if codec == "utf-16" and not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FileRejected(
            "it has no byte order mark of UTF-16",
            Guess({"encoding": "utf-16-le"}, 'or "utf-16-be", or the encoding that it really has'),
        )
    return Encoding(codec)


def _utf16_by_mark(head: bytes) -> Encoding:
    # Windows have no byte order mark; that of the beginning holds for them too.
    return Encoding("utf-16-le" if head[:2] == b"\xff\xfe" else "utf-16-be")


def _drop_trailing_blanks(header: list[str], rows: Sequence[list[str]]) -> None:
    # A blank last header cell is only a trailing delimiter if rows end before it or are blank there.
    if header[-1].strip():
        return
    shortest = min(map(len, rows), default=len(header))
    widest = max(map(_filled_width, rows), default=0)
    while not header[-1].strip() and shortest < len(header) and widest < len(header):
        header.pop()


def _filled_width(row: Sequence[str]) -> int:
    # How many cells a row has up to the last one that is not empty.
    return next((count for count in range(len(row), 0, -1) if row[count - 1]), 0)
