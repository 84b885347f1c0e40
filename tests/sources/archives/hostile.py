"""Files that somebody made to hurt whoever reads them, each with what is said of it; all made by code."""

import gzip
import os
import random
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from kasparro.sources.archives.overrides import SUFFIX

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ROWS = "date,symbol,price_usd\n2021-12-31,BTC,1.5\n2021-12-30,ETH,2.5\n"
MIB = 1024 * 1024


class Hostile(msgspec.Struct, frozen=True):
    """How to make a hostile file at a path that ends in .csv, and a part of the line that refuses it."""

    make: Callable[[Path], object]
    refusal: str


def good(path: Path, price: int) -> Path:
    """A file of two rows that loads whole; no two prices make the same content."""
    path.write_text(ROWS.replace("1.5", str(price)))
    return path


def described(said: str | bytes, content: str = ROWS) -> Callable[[Path], object]:
    """An archive with a description."""

    def make(path: Path) -> None:
        # The content differs from that of all other files.
        path.write_text(content + f"2021-12-29,{path.stem[:8].upper()},3\n")
        beside(path).write_bytes(said if isinstance(said, bytes) else said.encode())

    return make


def beside(path: Path) -> Path:
    """Where the description of an archive lies."""
    return path.with_name(path.name + SUFFIX)


def holding(content: bytes | str) -> Callable[[Path], object]:
    """An archive with this content."""
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def with_description(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """A good archive whose description is something else."""

    def both(path: Path) -> None:
        path.write_text(ROWS)
        make(beside(path))

    return both


def link(target: str) -> Callable[[Path], object]:
    """A symbolic link."""
    return lambda path: path.symlink_to(target)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        # The path of a socket may not be long.
        before = Path.cwd()
        os.chdir(path.parent)
        try:
            server.bind(path.name)
        finally:
            os.chdir(before)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(ROWS.encode())
        file.truncate(1 << 42)


def _looping(path: Path) -> None:
    other = path.with_name(path.name + ".other")
    path.symlink_to(other.name)
    other.symlink_to(path.name)


def _link_to_link_out(path: Path) -> None:
    step = path.with_name(path.name + ".step")
    step.symlink_to("/etc/hostname")
    path.symlink_to(step.name)


def _bomb(pack: Callable[[bytes], bytes], part: bytes) -> bytes:
    # Packed files may stand one after the other, so a gigabyte is made at once.
    whole = part * (MIB // len(part))
    return pack(ROWS.encode()) + pack(whole) * 1_024


def _digits(count: int) -> str:
    return "".join(random.Random(1).choices("123456789", k=count))


PARTS = b"x." * 25_000 + b"a=1"
HOSTILE: dict[str, Hostile] = {
    # Descriptions that cost more than their bytes.
    "dotted": Hostile(described(PARTS), "a key has more than 8 parts"),
    "dotted-table": Hostile(described(b"[" + b"x." * 25_000 + b"x]"), "a key has more than 8 parts"),
    "dotted-quoted": Hostile(described(b'"x" . ' * 10_000 + b"a=1"), "a key has more than 8 parts"),
    "dotted-inline": Hostile(described(b"a = {" + b"x." * 25_000 + b"a=1}"), "a key has more than 8 parts"),
    "deep-list": Hostile(described(b"header = " + b"[" * 30_000), "nested more than 8 deep"),
    "deep-table": Hostile(described(b"coin = " + b"{a=" * 20_000), "nested more than 8 deep"),
    "huge-number": Hostile(described(b"decimal = " + b"9" * 60_000), "no TOML"),
    "huge-hex": Hostile(described(b"decimal = 0x" + b"f" * 60_000), "decimal is a number of thousands"),
    "huge-key": Hostile(described(b"k" * 60_000 + b" = 1"), "unknown key"),
    "huge-text": Hostile(described(b'decimal = "' + b"x" * 60_000 + b'"'), "decimal is"),
    "big": Hostile(described(b"# " + b"x" * 70_000), "longer than 64 KiB"),
    "far-time": Hostile(described("observed_at = 0001-01-01T00:00:00+23:59"), "observed_at is"),
    "not-utf8": Hostile(described(b'decimal = "\xff"'), "no TOML"),
    "nul": Hostile(described(b'decimal = "\x00"'), "no TOML"),
    "steering": Hostile(described("\x1b]0;x\x07 = 1"), "no TOML"),
    # Encodings that do not fit, or are none of text.
    "utf-32": Hostile(described('encoding = "utf-32"'), "encoding is 'utf-32'"),
    "utf-16": Hostile(described('encoding = "utf-16"'), "no byte order mark of UTF-16"),
    "utf-16-le": Hostile(described('encoding = "utf-16-le"'), "no table"),
    "utf-7": Hostile(described('encoding = "utf-7"'), "encoding is 'utf-7'"),
    "idna": Hostile(described('encoding = "idna"'), "encoding is 'idna'"),
    "rot13": Hostile(described('encoding = "rot13"'), "encoding is 'rot13'"),
    "zip": Hostile(described('encoding = "zip"'), "encoding is 'zip'"),
    "escape": Hostile(described('encoding = "unicode_escape"'), "encoding is 'unicode_escape'"),
    "path": Hostile(described('encoding = "../../etc/passwd"'), "encoding is"),
    "bom-32-le": Hostile(holding(ROWS.encode("utf-32")), "UTF-32 by its byte order mark"),
    "bom-32-be": Hostile(holding(b"\x00\x00\xfe\xff" + ROWS.encode("utf-32-be")), "UTF-32"),
    "bom-alone": Hostile(holding(b"\xff\xfe"), "no table"),
    "bom-cut": Hostile(holding(b"\xff\xfea"), "no table"),
    # What is no file.
    "fifo": Hostile(os.mkfifo, "it is a FIFO, not a file"),
    "socket": Hostile(_socket, "it is a socket, not a file"),
    "fifo-beside": Hostile(with_description(os.mkfifo), "it is a FIFO, not a file"),
    "socket-beside": Hostile(with_description(_socket), "it is a socket, not a file"),
    "folder-beside": Hostile(with_description(Path.mkdir), "it is a folder, not a file"),
    # Links out of the folder, or to nothing.
    "zero": Hostile(link("/dev/zero"), "it is a link that leaves the folder"),
    "passwd": Hostile(link("/etc/passwd"), "it is a link that leaves the folder"),
    "up": Hostile(link("../../../../../../../../etc/passwd"), "it is a link that leaves the folder"),
    "two-steps": Hostile(_link_to_link_out, "it is a link that leaves the folder"),
    "memory": Hostile(link("/proc/self/mem"), "it is a link that leaves the folder"),
    "dangling": Hostile(link("nosuch"), "it is a link that leads to no file"),
    "looping": Hostile(_looping, "it is a link that leads to no file"),
    "out-beside": Hostile(with_description(link("/etc/passwd")), "it is a link that leaves the folder"),
    "dangling-beside": Hostile(with_description(link("nosuch")), "it is a link that leads to no file"),
    # Bombs, and content of absurd shape.
    "sparse": Hostile(_sparse, "it is a sparse file"),
    "gzip": Hostile(holding(_bomb(gzip.compress, b"x")), "field larger than field limit"),
    "gzip-lines": Hostile(holding(_bomb(gzip.compress, b"\n")), "more than 250 times its size"),
    "gzip-rows": Hostile(
        holding(_bomb(lambda part: gzip.compress(part, 9), b"2021-12-29,X,1.25\n")), "times its size"
    ),
    "zstd": Hostile(holding(_bomb(zstd.compress, b"\x00")), "it is not text"),
    "zstd-lines": Hostile(holding(_bomb(zstd.compress, b"\n")), "more than 250 times its size"),
    "zstd-rows": Hostile(holding(_bomb(zstd.compress, b"2021-12-29,X,1.25\n")), "times its size"),
    "gzip-cut": Hostile(
        holding(gzip.compress(ROWS.encode())[:-9]), "it ends in the middle of its compressed data"
    ),
    "long-line": Hostile(holding(ROWS + "x," * 3 * MIB), "a line in it is longer than"),
    "long-cell": Hostile(holding(ROWS + "x" * 200_000 + ",1\n"), "field larger than field limit"),
    "columns": Hostile(holding("date,symbol,price_usd" + ",x" * MIB + "\n" + ROWS), "would be refused"),
    "slow": Hostile(
        holding("date,symbol,price_usd" + ",x" * MIB + ("\n2021-12-31,BTC,1.5" + ",1" * MIB) * 20),
        "not loaded",
    ),
    "blank-columns": Hostile(
        holding("date,symbol,price_usd" + "," * 60_000 + "\n" + "2021-12-31,,\n" * 70_000), "would be refused"
    ),
    "digits": Hostile(holding(f"date,symbol,price_usd\n2021-12-31,BTC,{_digits(MIB)}\n"), "field larger"),
    "some-digits": Hostile(
        holding(f"date,symbol,price_usd\n2021-12-31,BTC,{_digits(100_000)}\n"), "would be refused"
    ),
    "open-quote": Hostile(
        holding(ROWS + '2021-12-29,"' + "2021-12-29,XRP,1\n" * 20_000), "field larger than field limit"
    ),
    "nuls": Hostile(holding(bytes(MIB)), "it is not text"),
    "empty": Hostile(holding(b""), "it is empty"),
}


def device(path: Path) -> None:
    """A device that gives zeros without an end. Raises PermissionError where that needs another user."""
    os.mknod(path, 0o644 | stat.S_IFCHR, os.makedev(1, 5))
