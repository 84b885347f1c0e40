"""Which files the setting means: a file, a folder or a glob, in the order of their paths.

Nothing is opened here. What a name leads to may change until it is opened, so `files` checks it then.
"""

import fnmatch
import glob
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

import msgspec

from kasparro.errors import SourceError
from kasparro.sources.archives.overrides import SUFFIX
from kasparro.sources.archives.text import shown

PACKINGS = ("", ".gz", ".zst", ".zstd")
ENDINGS = tuple(f"{kind}{packing}" for kind in (".csv", ".tsv", ".txt") for packing in PACKINGS)
SAMPLE = Path(__file__).parent / "sample"
# Beyond these bounds a folder is refused: it is no folder of archives, or has no end.
FILES_LIMIT = 100_000
ENTRIES_LIMIT = 2_000_000
# PostgreSQL has to take a name into an index.
NAME_BYTES = 512


class Archive(msgspec.Struct, frozen=True):
    """A file to read: where it is, what people call it, how large it seems, and the folder that it must lie
    in; None where the user named the file itself.
    """

    path: Path
    name: str
    size: int = 0
    root: Path | None = None


class Unsearched(msgspec.Struct, frozen=True, order=True):
    """A folder whose archives are not known, and why; the reason completes "NAME: "."""

    name: str
    reason: str


class Found(msgspec.Struct, frozen=True):
    """The archives that the setting means, and the folders on the way that could not be searched."""

    archives: list[Archive]
    unsearched: list[Unsearched]


def archives(where: str | None, beat: Callable[[], None] = lambda: None) -> Found:
    """The files that `where` names, sorted; None names the sample in the package.

    `beat` is called for each entry of a folder. Raises SourceError where there is nothing to read.
    """
    try:
        named = Path(where).expanduser() if where is not None else SAMPLE
    except RuntimeError:
        raise SourceError(f"archives {where}: ~NAME is no user of this machine") from None
    try:
        return _found(named, beat)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise SourceError(f"archives {named}: cannot be read ({reason or error})") from None


def _found(named: Path, beat: Callable[[], None]) -> Found:
    state = _state(named)
    if state is not None and stat.S_ISREG(state.st_mode):
        return Found([Archive(named, shown_path(named.name), state.st_size)], [])
    if state is not None and stat.S_ISDIR(state.st_mode):
        # What installs the package may have made links of its files.
        search = _Search(named, beat, confined=named != SAMPLE)
        search.whole_folder(named, _is_archive)
        missing = f"no archive in {named}: it holds no file ending in .csv, .tsv or .txt (.gz, .zst)"
    elif state is not None:
        raise SourceError(f"archives {named}: it is neither a file nor a folder")
    else:
        root = _root(named)
        search = _Search(root, beat)
        search.matches(root, named.parts[len(root.parts) :])
        what = "no file matches" if glob.has_magic(str(named)) else "there is no file or folder"
        missing = f"archives: {what} {named}"
    if not search.archives and not search.unsearched:
        raise SourceError(missing)
    return Found(sorted(search.archives, key=lambda archive: archive.path), sorted(search.unsearched))


def _state(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _root(pattern: Path) -> Path:
    # The folder that a glob's names are relative to: no two files may have one name.
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def _is_archive(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


def _is_no_description(name: str) -> bool:
    return not name.endswith(SUFFIX) and not name.startswith(".")


def shown_path(path: str) -> str:
    """A path as people, terminals and an index of PostgreSQL can take it."""
    name = shown(path)
    if len(name.encode()) <= NAME_BYTES:
        return name
    digest = blake2b(os.fsencode(path), digest_size=8).hexdigest()
    begin = name.encode()[: NAME_BYTES - 20].decode(errors="ignore")
    return f"{begin}…{digest}"


class _Search:
    # One pass over a folder, without a step through a link that leaves it.
    def __init__(self, root: Path, beat: Callable[[], None], *, confined: bool = True) -> None:
        self.archives: list[Archive] = []
        self.unsearched: list[Unsearched] = []
        self._root = root
        self._confined = confined
        self._real_root = Path(os.path.realpath(root))
        self._beat = beat
        self._entries = 0
        self._matched: set[tuple[int, int, int]] = set()

    def whole_folder(self, folder: Path, is_meant: Callable[[str], bool], *, hidden: bool = True) -> None:
        """Take every file below a folder whose name is meant."""
        waiting = [folder]
        while waiting:
            for entry in self._listed(waiting.pop()):
                if entry.is_dir(follow_symlinks=False):
                    if hidden or not entry.name.startswith("."):
                        waiting.append(Path(entry.path))
                elif not self._leads_to_folder(entry) and is_meant(entry.name):
                    self._take(entry)

    def matches(self, folder: Path, parts: tuple[str, ...]) -> None:
        """Take every file that the parts of a glob match."""
        waiting = [(folder, 0)]
        while waiting:
            folder, index = waiting.pop()
            if self._seen(folder, index):
                continue
            part, last = parts[index], index == len(parts) - 1
            if part == "**" and last:
                self.whole_folder(folder, _is_no_description, hidden=False)
                continue
            if part == "**":
                waiting.append((folder, index + 1))
            for entry in self._listed(folder):
                if part != "**" and not _fits(entry.name, part):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if part == "**" and not entry.name.startswith("."):
                        waiting.append((Path(entry.path), index))
                    elif part != "**" and not last:
                        waiting.append((Path(entry.path), index + 1))
                elif self._leads_to_folder(entry):
                    if part != "**" and not last and self._is_inside(Path(entry.path)):
                        waiting.append((Path(entry.path), index + 1))
                elif last and _is_no_description(entry.name):
                    self._take(entry)

    def _seen(self, folder: Path, index: int) -> bool:
        # Links inside the folder can lead to one place by any number of paths.
        state = _state(folder)
        if state is None:
            return True
        place = (index, state.st_dev, state.st_ino)
        if place in self._matched:
            return True
        self._matched.add(place)
        return False

    def _listed(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._beat()
                    self._entries += 1
                    self._require(self._entries, ENTRIES_LIMIT, "entries")
                    yield entry
        except NotADirectoryError:
            return
        except OSError as error:
            if folder == self._root:
                raise
            self._pass_over(folder, f"cannot be listed ({error.strerror or error})")

    def _leads_to_folder(self, entry: os.DirEntry[str]) -> bool:
        # Of a link to a folder within the root, the files are found there.
        try:
            if not (entry.is_symlink() and entry.is_dir()):
                return False
        except OSError:
            return False
        path = Path(entry.path)
        if not self._is_inside(path):
            root = self._root.absolute()
            self._pass_over(
                path, f"not searched, for it is a link that leaves the folder {root.name or root}"
            )
        return True

    def _is_inside(self, path: Path) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self._real_root)

    def _take(self, entry: os.DirEntry[str]) -> None:
        path = Path(entry.path)
        try:
            state = entry.stat()
            size = state.st_size if stat.S_ISREG(state.st_mode) else 0
        except OSError:
            size = 0
        self.archives.append(Archive(path, self._name(path), size, self._root if self._confined else None))
        self._require(len(self.archives), FILES_LIMIT, "files")

    def _pass_over(self, folder: Path, reason: str) -> None:
        self.unsearched.append(Unsearched(self._name(folder), shown(reason)))
        self._require(len(self.unsearched), FILES_LIMIT, "folders that cannot be searched")

    def _require(self, count: int, limit: int, what: str) -> None:
        if count > limit:
            raise SourceError(f"archives: {self._root} holds more than {limit:,} {what}; name a part of it")

    def _name(self, path: Path) -> str:
        return shown_path(path.relative_to(self._root).as_posix())


def _fits(name: str, part: str) -> bool:
    return fnmatch.fnmatchcase(name, part) and (part.startswith(".") or not name.startswith("."))
