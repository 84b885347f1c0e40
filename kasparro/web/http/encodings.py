"""Content encodings: which one a client gets, and how bodies are compressed."""

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

# Higher levels of zstd take three times as long for two percent fewer bytes.
_ZSTD_LEVEL = 3
_GZIP_LEVEL = 6
# A stream is compressed for one client only, so speed counts more. gzip at level 3 takes a fifth of the time
# of level 6, for six percent more bytes. zstd at level 1 is as small as at level 3.
_ZSTD_STREAM_LEVEL = 1
_GZIP_STREAM_LEVEL = 3

# Best first: zstd compresses better than gzip in less time.
_COMPRESS: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType(
    {
        "zstd": lambda body: zstd.compress(body, _ZSTD_LEVEL),
        # Without a timestamp, so that equal bodies give equal bytes.
        "gzip": lambda body: gzip.compress(body, _GZIP_LEVEL, mtime=0),
    }
)
# Smaller bodies fit into one packet without compression.
SMALL_BYTES = 1_200
# Up to this size, compressing takes less than 0.3 ms. A thread takes as long to start and to come back, and
# several milliseconds if other processes use all cores.
MEDIUM_BYTES = 32 * 1024

_QUALITY = re.compile(r"q\s*=\s*(0(\.\d{0,3})?|1(\.0{0,3})?)", re.IGNORECASE)


@lru_cache(maxsize=512)
def choose_encoding(accepted: bytes) -> str:
    """The encoding for a client with this Accept-Encoding (RFC 9110, 12.5.3).

    The highest weight wins; among equal weights, our own order. `identity` if no other is acceptable.
    """
    stated: dict[str, float] = {}
    for part in accepted.decode("latin-1").lower().split(","):
        name, _, weight = (piece.strip() for piece in part.partition(";"))
        quality = _QUALITY.fullmatch(weight)
        if name and (quality or not weight):
            stated["gzip" if name == "x-gzip" else name] = float(quality[1]) if quality else 1.0
    others = stated.get("*", 0.0)
    # Identity is acceptable if it is not mentioned, but a named encoding is preferred.
    weights = {name: stated.get(name, others) for name in _COMPRESS} | {IDENTITY: stated.get(IDENTITY, 0.001)}
    return max(weights, key=lambda name: weights[name])


class Encoder(Protocol):
    """Compresses a stream piece by piece."""

    def encode(self, piece: bytes) -> bytes:
        """The next piece, encoded and flushed: a client can decode it at once."""

    def finish(self) -> bytes:
        """The end of the body. Without it, a decoder reports that the body is truncated."""


class _GzipEncoder:
    def __init__(self) -> None:
        # 31: the largest window, with gzip header and trailer.
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


def new_encoder(encoding: str) -> Encoder | None:
    """An encoder for a result of `choose_encoding`; None for identity."""
    return None if encoding == IDENTITY else _ENCODERS[encoding]()


def compress(body: bytes, encoding: str) -> bytes:
    """The body in an encoding other than identity."""
    return _COMPRESS[encoding](body)
