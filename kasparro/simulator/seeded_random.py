"""Reproducible random numbers: one generator for each seed and purpose."""

from random import Random


def seeded_random(seed: int, *purpose: str | int) -> Random:
    return Random("/".join(map(str, (seed, *purpose))))  # noqa: S311 - a market, not a secret
