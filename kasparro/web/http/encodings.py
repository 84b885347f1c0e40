"""Content codings: which one a client gets, and how bodies are put into it."""

import gzip
import re
import sys
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Protocol

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

IDENTITY = "identity"

# Beyond this level zstd takes three times as long for two percent less.
_ZSTD_LEVEL = 3
_GZIP_LEVEL = 6
# A stream is compressed for one client alone, so speed counts more: gzip at 3 takes a fifth of the time that
# it takes at 6, for six percent more bytes; zstd at 1 is as small as at 3.
_ZSTD_STREAM_LEVEL = 1
_GZIP_STREAM_LEVEL = 3

# Ours, best first: zstd packs tighter than gzip in less time.
_COMPRESS: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType(
    {
        "zstd": lambda body: zstd.compress(body, _ZSTD_LEVEL),
        # With no time in it, so that equal bytes stay equal.
        "gzip": lambda body: gzip.compress(body, _GZIP_LEVEL, mtime=0),
    }
)
# Below this, one packet carries either.
SMALL_BYTES = 1_200

_QUALITY = re.compile(r"q\s*=\s*(0(\.\d{0,3})?|1(\.0{0,3})?)", re.IGNORECASE)


@lru_cache(maxsize=512)
def choose_encoding(accepted: bytes) -> str:
    """The coding for a client with this Accept-Encoding (RFC 9110, 12.5.3): the one it likes best, of those
    that it likes equally the best of ours; as it is, where nothing else is to its liking.
    """
    told: dict[str, float] = {}
    for part in accepted.decode("latin-1").lower().split(","):
        name, _, weight = (piece.strip() for piece in part.partition(";"))
        quality = _QUALITY.fullmatch(weight)
        if name and (quality or not weight):
            told["gzip" if name == "x-gzip" else name] = float(quality[1]) if quality else 1.0
    rest = told.get("*", 0.0)
    # Nothing is said of identity where it is welcome, but less than what is named.
    weights = {name: told.get(name, rest) for name in _COMPRESS} | {IDENTITY: told.get(IDENTITY, 0.001)}
    return max(weights, key=lambda name: weights[name])


class Encoder(Protocol):
    """Encodes a body that arrives in pieces, so that streams are compressed without waiting for their end."""

    def encode(self, piece: bytes) -> bytes:
        """The next piece, encoded and flushed: a client can decode it at once."""

    def finish(self) -> bytes:
        """The end of the body. Without it, a decoder reports that the body is cut off."""


class _GzipEncoder:
    def __init__(self) -> None:
        # 31: the largest window, and the header and trailer of gzip.
        self._compressor = zlib.compressobj(_GZIP_STREAM_LEVEL, wbits=31)

    def encode(self, piece: bytes) -> bytes:
        return self._compressor.compress(piece) + self._compressor.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        return self._compressor.flush()


class _ZstdEncoder:
    def __init__(self) -> None:
        self._compressor = zstd.ZstdCompressor(_ZSTD_STREAM_LEVEL)

    def encode(self, piece: bytes) -> bytes:
        return self._compressor.compress(piece, zstd.ZstdCompressor.FLUSH_BLOCK)

    def finish(self) -> bytes:
        return self._compressor.flush()


_ENCODERS: Mapping[str, Callable[[], Encoder]] = MappingProxyType(
    {"zstd": _ZstdEncoder, "gzip": _GzipEncoder}
)


def new_encoder(coding: str) -> Encoder | None:
    """An encoder for a coding that `choose_encoding` gave; None for identity."""
    return None if coding == IDENTITY else _ENCODERS[coding]()


def compress(body: bytes, coding: str) -> bytes:
    """The body in a coding that `choose_encoding` gave, other than identity."""
    return _COMPRESS[coding](body)
