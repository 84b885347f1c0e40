"""Kasparro: one self-hosted API for crypto market data."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """Find the version when it is asked for: its import takes a third of the archive worker's start."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version  # noqa: PLC0415

        found = globals()[name] = version("kasparro")
        return found


def commit() -> str | None:
    """The commit that this package was built from; None in a checkout. See hatch_build.py."""
    try:
        return (Path(__file__).parent / "commit").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
