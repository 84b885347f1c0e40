"""Content codings: which one a client gets, and how bodies are put into it."""

import gzip
import re
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

IDENTITY = "identity"

# Ours, best first: zstd packs tighter than gzip in less time.
_COMPRESS: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType(
    {
        # Beyond this level it takes three times as long for two percent less.
        "zstd": lambda body: zstd.compress(body, 3),
        # With no time in it, so that equal bytes stay equal.
        "gzip": lambda body: gzip.compress(body, 6, mtime=0),
    }
)
# Below this, one packet carries either.
SMALL_BYTES = 1_200

_QUALITY = re.compile(r"q\s*=\s*(0(\.\d{0,3})?|1(\.0{0,3})?)", re.IGNORECASE)


@lru_cache(maxsize=512)
def chosen(accepted: bytes) -> str:
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


def compress(body: bytes, coding: str) -> bytes:
    """The body in a coding that `chosen` gave, other than identity."""
    return _COMPRESS[coding](body)
