"""Randomness that repeats: a stream for every purpose, named by the seed and what it is for."""

from random import Random


def seeded_random(seed: int, *purpose: str | int) -> Random:
    return Random("/".join(map(str, (seed, *purpose))))  # noqa: S311 - a market, not a secret
