"""Which files are meant by the setting: a file, a folder or a glob, in the order of their paths."""

import glob
import itertools
from pathlib import Path

import msgspec

from kasparro.errors import SourceError
from kasparro.sources.archives.described import SUFFIX
from kasparro.sources.archives.text import shown

PACKINGS = ("", ".gz", ".zst", ".zstd")
ENDINGS = tuple(f"{kind}{packing}" for kind in (".csv", ".tsv", ".txt") for packing in PACKINGS)
SAMPLE = Path(__file__).parent / "sample"


class Archive(msgspec.Struct, frozen=True):
    """A file to read: where it is, and what people call it."""

    path: Path
    name: str


def archives(where: str | None) -> list[Archive]:
    """The files that `where` names, sorted; None names the sample in the package.

    Raises SourceError where there is nothing to read.
    """
    try:
        told = Path(where).expanduser() if where is not None else SAMPLE
    except RuntimeError:
        raise SourceError(f"archives {where}: ~NAME is no user of this machine") from None
    try:
        if told.is_file():
            return [Archive(told, shown(told.name))]
        if told.is_dir():
            found = [
                Archive(path, shown(path.relative_to(told).as_posix()))
                for path in told.rglob("*")
                if path.name.lower().endswith(ENDINGS) and not path.name.startswith(".") and path.is_file()
            ]
            if not found:
                raise SourceError(
                    f"no archive in {told}: it holds no file ending in .csv, .tsv or .txt (.gz, .zst)"
                )
            return sorted(found, key=lambda archive: archive.path)
        # pathlib's glob wants a folder to begin in, where the setting is one pattern.
        matching = [Path(match) for match in glob.glob(str(told), recursive=True)]  # noqa: PTH207
        root = _root(told)
        found = [
            Archive(path, shown(path.relative_to(root).as_posix()))
            for path in matching
            if path.is_file() and path.suffix != SUFFIX
        ]
    except OSError as error:
        raise SourceError(f"archives {told}: cannot be read ({error.strerror or error})") from None
    if not found:
        what = "no file matches" if glob.has_magic(str(told)) else "there is no file or folder"
        raise SourceError(f"archives: {what} {told}")
    return sorted(found, key=lambda archive: archive.path)


def _root(pattern: Path) -> Path:
    # The folder that a glob's names are told from: no two files may have one name.
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
