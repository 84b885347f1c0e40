"""Archives made to exhaust or mislead their reader, each with a part of the reason that rejects it."""

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
    """Makes a hostile file at a path that ends in .csv; `reason` is a part of the line that rejects it."""

    make: Callable[[Path], object]
    reason: str


def good(path: Path, price: int) -> Path:
    """Write a file of two rows that loads; its content is unique by its price."""
    path.write_text(ROWS.replace("1.5", str(price)))
    return path


def with_overrides(overrides: str | bytes, content: str = ROWS) -> Callable[[Path], object]:
    """Makes an archive and its overrides."""

    def make(path: Path) -> None:
        # The file's name makes its content unique.
        path.write_text(content + f"2021-12-29,{path.stem[:8].upper()},3\n")
        overrides_path(path).write_bytes(overrides if isinstance(overrides, bytes) else overrides.encode())

    return make


def overrides_path(path: Path) -> Path:
    """The path of an archive's overrides."""
    return path.with_name(path.name + SUFFIX)


def containing(content: bytes | str) -> Callable[[Path], object]:
    """Makes an archive with this content."""
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def with_overrides_made_by(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Makes a good archive, and lets `make` put something at the path of its overrides."""

    def make_both(path: Path) -> None:
        path.write_text(ROWS)
        make(overrides_path(path))

    return make_both


def link(target: str) -> Callable[[Path], object]:
    """Makes a symbolic link."""
    return lambda path: path.symlink_to(target)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        # Unix limits the length of a socket's path.
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
    # Both formats allow concatenation, so a megabyte is compressed once and repeated to a gigabyte.
    megabyte = part * (MIB // len(part))
    return pack(ROWS.encode()) + pack(megabyte) * 1_024


def _digits(count: int) -> str:
    return "".join(random.Random(1).choices("123456789", k=count))


DOTTED_KEY = b"x." * 25_000 + b"a=1"
HOSTILE: dict[str, Hostile] = {
    # Overrides that cost far more than their size.
    "dotted": Hostile(with_overrides(DOTTED_KEY), "a key has more than 8 parts"),
    "dotted-table": Hostile(with_overrides(b"[" + b"x." * 25_000 + b"x]"), "a key has more than 8 parts"),
    "dotted-quoted": Hostile(with_overrides(b'"x" . ' * 10_000 + b"a=1"), "a key has more than 8 parts"),
    "dotted-inline": Hostile(
        with_overrides(b"a = {" + b"x." * 25_000 + b"a=1}"), "a key has more than 8 parts"
    ),
    "deep-list": Hostile(with_overrides(b"header = " + b"[" * 30_000), "nested more than 8 deep"),
    "deep-table": Hostile(with_overrides(b"coin = " + b"{a=" * 20_000), "nested more than 8 deep"),
    "huge-number": Hostile(with_overrides(b"decimal = " + b"9" * 60_000), "not TOML"),
    "huge-hex": Hostile(with_overrides(b"decimal = 0x" + b"f" * 60_000), "decimal is a number of thousands"),
    "huge-key": Hostile(with_overrides(b"k" * 60_000 + b" = 1"), "unknown key"),
    "huge-text": Hostile(with_overrides(b'decimal = "' + b"x" * 60_000 + b'"'), "decimal is"),
    "big": Hostile(with_overrides(b"# " + b"x" * 70_000), "longer than 64 KiB"),
    "far-time": Hostile(with_overrides("observed_at = 0001-01-01T00:00:00+23:59"), "observed_at is"),
    "not-utf8": Hostile(with_overrides(b'decimal = "\xff"'), "not TOML"),
    "nul": Hostile(with_overrides(b'decimal = "\x00"'), "not TOML"),
    "steering": Hostile(with_overrides("\x1b]0;x\x07 = 1"), "not TOML"),
    # Encodings that do not fit the content, or are no text encodings.
    "utf-32": Hostile(with_overrides('encoding = "utf-32"'), "encoding is 'utf-32'"),
    "utf-16": Hostile(with_overrides('encoding = "utf-16"'), "no byte order mark of UTF-16"),
    "utf-16-le": Hostile(with_overrides('encoding = "utf-16-le"'), "no table"),
    "utf-7": Hostile(with_overrides('encoding = "utf-7"'), "encoding is 'utf-7'"),
    "idna": Hostile(with_overrides('encoding = "idna"'), "encoding is 'idna'"),
    "rot13": Hostile(with_overrides('encoding = "rot13"'), "encoding is 'rot13'"),
    "zip": Hostile(with_overrides('encoding = "zip"'), "encoding is 'zip'"),
    "escape": Hostile(with_overrides('encoding = "unicode_escape"'), "encoding is 'unicode_escape'"),
    "path": Hostile(with_overrides('encoding = "../../etc/passwd"'), "encoding is"),
    "bom-32-le": Hostile(containing(ROWS.encode("utf-32")), "UTF-32 by its byte order mark"),
    "bom-32-be": Hostile(containing(b"\x00\x00\xfe\xff" + ROWS.encode("utf-32-be")), "UTF-32"),
    "bom-alone": Hostile(containing(b"\xff\xfe"), "no table"),
    "bom-truncated": Hostile(containing(b"\xff\xfea"), "no table"),
    # Not regular files.
    "fifo": Hostile(os.mkfifo, "it is a FIFO, not a file"),
    "socket": Hostile(_socket, "it is a socket, not a file"),
    "overrides-fifo": Hostile(with_overrides_made_by(os.mkfifo), "it is a FIFO, not a file"),
    "overrides-socket": Hostile(with_overrides_made_by(_socket), "it is a socket, not a file"),
    "overrides-folder": Hostile(with_overrides_made_by(Path.mkdir), "it is a folder, not a file"),
    # Links that leave the folder or lead nowhere.
    "zero": Hostile(link("/dev/zero"), "it is a link that leaves the folder"),
    "passwd": Hostile(link("/etc/passwd"), "it is a link that leaves the folder"),
    "up": Hostile(link("../../../../../../../../etc/passwd"), "it is a link that leaves the folder"),
    "two-steps": Hostile(_link_to_link_out, "it is a link that leaves the folder"),
    "memory": Hostile(link("/proc/self/mem"), "it is a link that leaves the folder"),
    "dangling": Hostile(link("nosuch"), "it is a link that leads to no file"),
    "looping": Hostile(_looping, "it is a link that leads to no file"),
    "overrides-outside": Hostile(
        with_overrides_made_by(link("/etc/passwd")), "it is a link that leaves the folder"
    ),
    "overrides-dangling": Hostile(
        with_overrides_made_by(link("nosuch")), "it is a link that leads to no file"
    ),
    # Compression bombs, and content of absurd shape.
    "sparse": Hostile(_sparse, "it is a sparse file"),
    "gzip": Hostile(containing(_bomb(gzip.compress, b"x")), "field larger than field limit"),
    "gzip-lines": Hostile(containing(_bomb(gzip.compress, b"\n")), "more than 250 times its size"),
    "gzip-rows": Hostile(
        containing(_bomb(lambda part: gzip.compress(part, 9), b"2021-12-29,X,1.25\n")), "times its size"
    ),
    "zstd": Hostile(containing(_bomb(zstd.compress, b"\x00")), "it is not text"),
    "zstd-lines": Hostile(containing(_bomb(zstd.compress, b"\n")), "more than 250 times its size"),
    "zstd-rows": Hostile(containing(_bomb(zstd.compress, b"2021-12-29,X,1.25\n")), "times its size"),
    "gzip-truncated": Hostile(
        containing(gzip.compress(ROWS.encode())[:-9]), "it ends in the middle of its compressed data"
    ),
    "long-line": Hostile(containing(ROWS + "x," * 3 * MIB), "a line in it is longer than"),
    "long-cell": Hostile(containing(ROWS + "x" * 200_000 + ",1\n"), "field larger than field limit"),
    "columns": Hostile(containing("date,symbol,price_usd" + ",x" * MIB + "\n" + ROWS), "would be rejected"),
    "slow": Hostile(
        containing("date,symbol,price_usd" + ",x" * MIB + ("\n2021-12-31,BTC,1.5" + ",1" * MIB) * 20),
        "not loaded",
    ),
    "blank-columns": Hostile(
        containing("date,symbol,price_usd" + "," * 60_000 + "\n" + "2021-12-31,,\n" * 70_000),
        "would be rejected",
    ),
    "digits": Hostile(containing(f"date,symbol,price_usd\n2021-12-31,BTC,{_digits(MIB)}\n"), "field larger"),
    "some-digits": Hostile(
        containing(f"date,symbol,price_usd\n2021-12-31,BTC,{_digits(100_000)}\n"), "would be rejected"
    ),
    "open-quote": Hostile(
        containing(ROWS + '2021-12-29,"' + "2021-12-29,XRP,1\n" * 20_000), "field larger than field limit"
    ),
    "nuls": Hostile(containing(bytes(MIB)), "it is not text"),
    "empty": Hostile(containing(b""), "it is empty"),
}
# Kinds that take seconds to reject.
SLOW = {kind for kind in HOSTILE if kind.endswith(("-lines", "-rows"))} | {"slow"}


def device(path: Path) -> None:
    """Make a device that yields endless zeros. Raises PermissionError without root."""
    os.mknod(path, 0o644 | stat.S_IFCHR, os.makedev(1, 5))
