"""Opens files from outside safely: only regular files, and no link that leaves their folder."""

import errno
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# O_PATH also opens folders that may not be listed.
FOLDER_FLAGS = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
# A hole of this size would be a line of NUL characters, which no table has.
HOLE_LIMIT = 64 * 1024 * 1024
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_file(path: Path, root: Path | None) -> int:
    """Open a regular file for reading, and return its descriptor.

    With `root`, the file must be in that folder after all links are resolved. Without it, the user named the
    file, and links may lead anywhere. Raises OSError, whose text completes "cannot be read (...)".
    """
    try:
        if root is None:
            return _open_regular(path, None, follow=True)
        return _open_within(Path(os.path.realpath(path)), Path(os.path.realpath(root)))
    except FileNotFoundError:
        if path.is_symlink():
            raise OSError(errno.ELOOP, "it is a link that leads to no file") from None
        raise


def _open_within(real: Path, root: Path) -> int:
    # All links are resolved, so no part may be a link: somebody could replace it after the check.
    if not real.is_relative_to(root):
        raise OSError(errno.EXDEV, f"it is a link that leaves the folder {root.name or root}")
    *folders, name = real.relative_to(root).parts or (".",)
    folder = os.open(root, FOLDER_FLAGS)
    try:
        for part in folders:
            inner = os.open(part, FOLDER_FLAGS, dir_fd=folder)
            os.close(folder)
            folder = inner
        return _open_regular(name, folder, follow=False)
    finally:
        os.close(folder)


def _open_regular(path: Path | str, folder: int | None, *, follow: bool) -> int:
    # The first check avoids opening devices, which can have effects. The second one has no race.
    _require_regular(os.stat(path, dir_fd=folder, follow_symlinks=follow))
    descriptor = os.open(path, FLAGS | (0 if follow else os.O_NOFOLLOW), dir_fd=folder)
    try:
        _require_regular(os.fstat(descriptor))
        _require_dense(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(state: os.stat_result) -> None:
    if stat.S_ISLNK(state.st_mode):
        raise OSError(errno.ELOOP, "it is a link that leads to no file")
    if not stat.S_ISREG(state.st_mode):
        kind = _KINDS.get(stat.S_IFMT(state.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a file")


def _require_dense(descriptor: int) -> None:
    # A hole takes no space on disk, but hours to read.
    size = os.fstat(descriptor).st_size
    if size <= HOLE_LIMIT:
        return
    start = os.lseek(descriptor, 0, os.SEEK_HOLE)
    try:
        end = os.lseek(descriptor, start, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        # The hole extends to the end.
        end = size
    if end - start > HOLE_LIMIT:
        raise OSError(errno.EINVAL, f"it is a sparse file: {end - start:,} bytes of it were never written")


class OpenFiles(NamedTuple):
    """An archive, its overrides and its folder's: the descriptor of each, its error, or None for no file."""

    archive: int | OSError
    file_overrides: int | OSError | None
    folder_overrides: int | OSError | None

    def close(self) -> None:
        """Close the files that are open."""
        for file in self:
            if isinstance(file, int):
                os.close(file)


def open_all(path: Path, root: Path | None, names: tuple[str, str]) -> OpenFiles:
    """Open an archive, and its own and its folder's overrides, which are next to it and have `names`."""
    folder = root if root is not None else path.parent
    of_file, of_folder = (_open_overrides(path.with_name(name), folder) for name in names)
    return OpenFiles(_try_open(path, root), of_file, of_folder)


def _try_open(path: Path, root: Path | None) -> int | OSError:
    try:
        return open_file(path, root)
    except OSError as error:
        return error


def _open_overrides(path: Path, root: Path) -> int | OSError | None:
    file = _try_open(path, root)
    # No file has a name that is too long.
    absent = isinstance(file, OSError) and file.errno in {errno.ENOENT, errno.ENAMETOOLONG}
    return None if absent else file


class ArchiveFile:
    """An open archive, with the size and the time of change that it had when it was opened.

    Calls `heartbeat` for each part that is read.
    """

    def __init__(self, descriptor: int, heartbeat: Callable[[], None] = lambda: None) -> None:
        self._descriptor = descriptor
        self._heartbeat = heartbeat
        self._opened_as = os.fstat(descriptor)

    @classmethod
    def at(cls, path: Path, root: Path | None = None) -> Self:
        """Open an archive by its path."""
        return cls(open_file(path, root))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @property
    def size(self) -> int:
        """Its size in bytes. What is appended later is not read."""
        return self._opened_as.st_size

    @property
    def changed(self) -> bool:
        """Whether somebody wrote to the file since it was opened."""
        now, then = os.fstat(self._descriptor), self._opened_as
        return (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns)

    def content(self) -> io.BufferedReader:
        """A reader of its bytes from the beginning. Closing the reader leaves the file open."""
        return io.BufferedReader(_Content(self._descriptor, self.size, self._heartbeat))


class _Content(io.RawIOBase):
    # The first `size` bytes of an open file, with its own position.
    def __init__(self, descriptor: int, size: int, heartbeat: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._size = size
        self._heartbeat = heartbeat
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, target: "WriteableBuffer", /) -> int:
        view = memoryview(target).cast("B")
        length = max(0, min(len(view), self._size - self._position))
        part = os.pread(self._descriptor, length, self._position)
        view[: len(part)] = part
        self._position += len(part)
        self._heartbeat()
        return len(part)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position
