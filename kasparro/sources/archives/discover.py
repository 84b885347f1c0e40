"""Finds the archives that the setting names: a file, a folder or a glob, in the order of their paths.

It opens no file. A name may lead to another file until it is opened, so `files` checks it then.
"""

import fnmatch
import glob
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

from kasparro.errors import SourceError
from kasparro.printable import one_line
from kasparro.sources.archives.found import Archive, Found, Unsearched
from kasparro.sources.archives.overrides import SUFFIX

COMPRESSIONS = ("", ".gz", ".zst", ".zstd")
ENDINGS = tuple(f"{kind}{compression}" for kind in (".csv", ".tsv", ".txt") for compression in COMPRESSIONS)
SAMPLE = Path(__file__).parent / "sample"
# A folder beyond these limits is rejected: it is not a folder of archives, or it has no end.
FILES_LIMIT = 100_000
ENTRIES_LIMIT = 2_000_000
# A name must fit into an index of PostgreSQL.
NAME_BYTES = 512


def find_archives(setting: str | None, heartbeat: Callable[[], None] = lambda: None) -> Found:
    """Find the files that a setting names, sorted by path. None names the sample in the package.

    Calls `heartbeat` for each entry of a folder. Raises SourceError if there is nothing to read.
    """
    try:
        path = Path(setting).expanduser() if setting is not None else SAMPLE
    except RuntimeError:
        raise SourceError(f"archives {setting}: ~NAME is not a user of this machine") from None
    try:
        return _find(path, heartbeat)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise SourceError(f"archives {path}: cannot be read ({reason or error})") from None


def _find(path: Path, heartbeat: Callable[[], None]) -> Found:
    state = _state(path)
    if state is not None and stat.S_ISREG(state.st_mode):
        return Found([Archive(path, display_name(path.name), state.st_size)], [])
    if state is not None and stat.S_ISDIR(state.st_mode):
        # In an installed package, files may be links.
        search = _Search(path, heartbeat, confined=path != SAMPLE)
        search.add_folder(path, _is_archive)
        missing = f"no archive in {path}: it holds no file ending in .csv, .tsv or .txt (.gz, .zst)"
    elif state is not None:
        raise SourceError(f"archives {path}: it is neither a file nor a folder")
    else:
        root = _root(path)
        search = _Search(root, heartbeat)
        search.add_matches(root, path.parts[len(root.parts) :])
        problem = "no file matches" if glob.has_magic(str(path)) else "there is no file or folder"
        missing = f"archives: {problem} {path}"
    if not search.archives and not search.unsearched:
        raise SourceError(missing)
    return Found(sorted(search.archives, key=lambda archive: archive.path), sorted(search.unsearched))


def _state(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _root(pattern: Path) -> Path:
    # Names are relative to the folder before the first part with a wildcard, so that they are unique.
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def _is_archive(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


def _is_not_overrides(name: str) -> bool:
    return not name.endswith(SUFFIX) and not name.startswith(".")


def display_name(path: str) -> str:
    """A path as a name that terminals and an index of PostgreSQL accept."""
    name = one_line(path)
    if len(name.encode()) <= NAME_BYTES:
        return name
    digest = blake2b(os.fsencode(path), digest_size=8).hexdigest()
    start = name.encode()[: NAME_BYTES - 20].decode(errors="ignore")
    return f"{start}…{digest}"


class _Search:
    # Searches a folder. Follows no link that leaves it.
    def __init__(self, root: Path, heartbeat: Callable[[], None], *, confined: bool = True) -> None:
        self.archives: list[Archive] = []
        self.unsearched: list[Unsearched] = []
        self._root = root
        self._confined = confined
        self._real_root = Path(os.path.realpath(root))
        self._heartbeat = heartbeat
        self._entries = 0
        self._matched: set[tuple[int, int, int]] = set()

    def add_folder(self, folder: Path, matches: Callable[[str], bool], *, hidden: bool = True) -> None:
        """Add every file below a folder whose name matches."""
        waiting = [folder]
        while waiting:
            for entry in self._listed(waiting.pop()):
                if entry.is_dir(follow_symlinks=False):
                    if hidden or not entry.name.startswith("."):
                        waiting.append(Path(entry.path))
                elif not self._leads_to_folder(entry) and matches(entry.name):
                    self._add(entry)

    def add_matches(self, folder: Path, parts: tuple[str, ...]) -> None:
        """Add every file that the parts of a glob match."""
        waiting = [(folder, 0)]
        while waiting:
            folder, index = waiting.pop()
            if self._seen(folder, index):
                continue
            part, last = parts[index], index == len(parts) - 1
            if part == "**" and last:
                self.add_folder(folder, _is_not_overrides, hidden=False)
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
                elif last and _is_not_overrides(entry.name):
                    self._add(entry)

    def _seen(self, folder: Path, index: int) -> bool:
        # With links inside the root, any number of paths can lead to one folder.
        state = _state(folder)
        if state is None:
            return True
        identity = (index, state.st_dev, state.st_ino)
        if identity in self._matched:
            return True
        self._matched.add(identity)
        return False

    def _listed(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._heartbeat()
                    self._entries += 1
                    self._require(self._entries, ENTRIES_LIMIT, "entries")
                    yield entry
        except NotADirectoryError:
            return
        except OSError as error:
            if folder == self._root:
                raise
            self._add_unsearched(folder, f"cannot be listed ({error.strerror or error})")

    def _leads_to_folder(self, entry: os.DirEntry[str]) -> bool:
        # If a link leads to a folder within the root, the files are found in that folder.
        try:
            if not (entry.is_symlink() and entry.is_dir()):
                return False
        except OSError:
            return False
        path = Path(entry.path)
        if not self._is_inside(path):
            root = self._root.absolute()
            self._add_unsearched(
                path, f"not searched: it is a link that leaves the folder {root.name or root}"
            )
        return True

    def _is_inside(self, path: Path) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self._real_root)

    def _add(self, entry: os.DirEntry[str]) -> None:
        path = Path(entry.path)
        try:
            state = entry.stat()
            size = state.st_size if stat.S_ISREG(state.st_mode) else 0
        except OSError:
            size = 0
        self.archives.append(Archive(path, self._name(path), size, self._root if self._confined else None))
        self._require(len(self.archives), FILES_LIMIT, "files")

    def _add_unsearched(self, folder: Path, reason: str) -> None:
        self.unsearched.append(Unsearched(self._name(folder), one_line(reason)))
        self._require(len(self.unsearched), FILES_LIMIT, "folders that cannot be searched")

    def _require(self, count: int, limit: int, what: str) -> None:
        if count > limit:
            raise SourceError(f"archives: {self._root} holds more than {limit:,} {what}; name a part of it")

    def _name(self, path: Path) -> str:
        return display_name(path.relative_to(self._root).as_posix())


def _fits(name: str, part: str) -> bool:
    return fnmatch.fnmatchcase(name, part) and (part.startswith(".") or not name.startswith("."))
