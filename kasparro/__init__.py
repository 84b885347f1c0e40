"""Kasparro: one self-hosted API for crypto market data."""

from importlib.metadata import version
from pathlib import Path

__version__ = version("kasparro")


def commit() -> str | None:
    """The commit that this package was built from; None in a checkout. See hatch_build.py."""
    try:
        return (Path(__file__).parent / "commit").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
