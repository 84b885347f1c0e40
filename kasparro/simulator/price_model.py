"""Computes the price level of a coin at any moment, as a pure function of seed, coin and time."""

from array import array
from collections.abc import Sequence
from functools import lru_cache

from kasparro.simulator.seeded_random import seeded_random

MILLION = 1_000_000

# A price level is the sum of these waves and a jitter, times the volatility of the coin. Each wave is a pair:
# (length in ms, height in millionths).
_WAVES = ((600_000, 1_500), (4 * 3_600_000, 6_000), (2 * 86_400_000, 25_000), (20 * 86_400_000, 60_000))


class PricePath:
    """The level of every coin at one moment: its difference from the base price in millionths."""

    def __init__(self, parts: list[tuple[Sequence[int], Sequence[int], int, int]], salt: int) -> None:
        self._parts = parts
        self._salt = salt

    def level(self, index: int, volatility: int) -> int:
        total = (((index + 1) * 0x9E3779B1 ^ self._salt) * 0x85EBCA6B >> 13 & 0x3FF) - 0x200  # jitter
        for before, after, offset, length in self._parts:
            start = before[index]
            total += start + (after[index] - start) * offset // length
        return total * volatility // 100


class PriceModel:
    """The levels of `count` coins at any moment, for one seed."""

    def __init__(self, seed: int, count: int) -> None:
        self._seed = seed
        self._count = count
        self._drawn = lru_cache(maxsize=1024)(self._draw)
        self.at = lru_cache(maxsize=4096)(self._at)

    def _at(self, elapsed_ms: int) -> PricePath:
        parts = []
        for wave, (length, _) in enumerate(_WAVES):
            crest, offset = divmod(elapsed_ms, length)
            parts.append((self._drawn(wave, crest), self._drawn(wave, crest + 1), offset, length))
        return PricePath(parts, seeded_random(self._seed, "jitter", elapsed_ms).getrandbits(32))

    def _draw(self, wave: int, crest: int) -> Sequence[int]:
        rng = seeded_random(self._seed, "wave", wave, crest)
        height = _WAVES[wave][1]
        return array("i", [int((rng.random() * 2 - 1) * height) for _ in range(self._count)])
