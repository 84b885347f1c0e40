"""The archives that a search has found."""

from pathlib import Path

import msgspec


class Archive(msgspec.Struct, frozen=True):
    """A file to read. `name` is for people. `root` is the folder that must contain it; None if the user named
    the file itself.
    """

    path: Path
    name: str
    size: int = 0
    root: Path | None = None


class Unsearched(msgspec.Struct, frozen=True, order=True):
    """A folder that could not be searched. The reason completes "NAME: "."""

    name: str
    reason: str


class Found(msgspec.Struct, frozen=True):
    """The archives that the setting names, and the folders that could not be searched."""

    archives: list[Archive]
    unsearched: list[Unsearched]
