"""What the store gives to the resolver and gets from it: JSON that the process in between does not read."""

from collections.abc import Iterator, Sequence
from typing import Any, Self

import msgspec

from kasparro.model.asset import Resolution

# Objects that are sent or stored at once. Requests wait meanwhile.
OBJECTS_AT_ONCE = 1_000

_encode = msgspec.json.Encoder().encode


class KnownDocuments(msgspec.Struct, frozen=True, kw_only=True):
    """All rows, contracts, links, assets and candidates of one moment, each as JSON objects.

    The objects have the fields of Coin, Contract, Link, Asset and Candidate. `relabelled` has, for each
    linked row with another symbol or name than its link, its last record with these (`before`), and the time
    of the first record with others (`since`).
    """

    coins: Sequence[str]
    contracts: Sequence[str]
    links: Sequence[str]
    assets: Sequence[str]
    candidates: Sequence[str]
    relabelled: Sequence[str]

    def pieces(self) -> Iterator[bytes]:
        """All of it, piece by piece: a line with a JSON array for each field."""
        for name in self.__struct_fields__:
            yield from array_pieces(getattr(self, name))


def array_pieces(objects: Sequence[str]) -> Iterator[bytes]:
    """A line with a JSON array of these objects, piece by piece."""
    for first in range(0, len(objects), OBJECTS_AT_ONCE):
        part = ",".join(objects[first : first + OBJECTS_AT_ONCE])
        yield f"{',' if first else '['}{part}".encode()
    yield b"]\n" if objects else b"[]\n"


class ResolutionDocuments(msgspec.Struct, frozen=True, kw_only=True):
    """A resolution as JSON arrays of objects, and how many objects each field has.

    The objects have the fields of Asset, Link and Candidate; those of `ended` are `source`, `source_id` and
    `valid_until`. The assets and links are in several arrays of at most OBJECTS_AT_ONCE.
    """

    assets: Sequence[str]
    links: Sequence[str]
    ended: str
    candidates: str
    counts: dict[str, int]

    @classmethod
    def of(cls, resolution: Resolution) -> Self:
        """The documents of a resolution."""
        ended = [
            {"source": source, "source_id": source_id, "valid_until": moment}
            for (source, source_id), moment in resolution.ended.items()
        ]
        return cls(
            assets=_arrays(resolution.assets),
            links=_arrays(resolution.links),
            ended=_encode(ended).decode(),
            candidates=_encode(resolution.candidates).decode(),
            counts={
                "assets": len(resolution.assets),
                "links": len(resolution.links),
                "ended": len(ended),
                "candidates": len(resolution.candidates),
            },
        )


def _arrays(objects: Sequence[Any]) -> list[str]:
    parts = (objects[first : first + OBJECTS_AT_ONCE] for first in range(0, len(objects), OBJECTS_AT_ONCE))
    return [_encode(part).decode() for part in parts]
