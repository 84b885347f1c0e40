"""Opening an archive: only regular files in the folder, and the same file that was found."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kasparro.sources.archives.files import FLAGS, ArchiveFile, open_file
from kasparro.sources.base import SourceContext
from tests.support.archives import NOW, run_source
from tests.support.hostile_archives import device, good


@pytest.mark.parametrize(
    ("replace", "reason"),
    [
        (os.mkfifo, "it is a FIFO, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a link that leaves the folder"),
        (lambda path: path.symlink_to("/etc/passwd"), "it is a link that leaves the folder"),
        (lambda path: path.symlink_to("nosuch"), "it is a link that leads to no file"),
        (Path.mkdir, "it is a folder, not a file"),
    ],
)
async def test_file_replaced_after_discovery_is_rejected(
    tmp_path: Path, replace: Callable[[Path], object], reason: str
) -> None:
    path = good(tmp_path / "a.csv", 7)
    good(tmp_path / "b.csv", 8)

    async def file_named(name: str) -> None:
        if name == "a.csv":
            path.unlink()
            replace(path)

    context = SourceContext(clock=lambda: NOW, file_named=file_named)
    rows, rejected = await run_source(tmp_path, context=context)

    assert rows == 2
    assert len(rejected) == 1
    assert reason in rejected[0]


async def test_folder_replaced_by_a_link_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    good(outside / "a.csv", 7)
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    path = good(root / "in" / "a.csv", 8)

    async def file_named(name: str) -> None:
        path.unlink()
        path.parent.rmdir()
        path.parent.symlink_to(outside)

    context = SourceContext(clock=lambda: NOW, file_named=file_named)
    rows, rejected = await run_source(root, context=context)

    assert rows == 0
    assert rejected == ["in/a.csv: cannot be read (it is a link that leaves the folder root)"]


def test_link_put_in_after_the_check_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between resolving the path and opening it, one of its folders becomes a link."""
    (tmp_path / "root" / "in").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    path = good(tmp_path / "root" / "in" / "a.csv", 7)
    good(tmp_path / "outside" / "a.csv", 8)
    resolve = os.path.realpath

    def resolve_then_replace(name: str | Path) -> str:
        real = resolve(name)
        if real.endswith("a.csv"):
            path.unlink()
            path.parent.rmdir()
            path.parent.symlink_to(tmp_path / "outside")
        return real

    monkeypatch.setattr(os.path, "realpath", resolve_then_replace)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        open_file(path, tmp_path / "root")


async def test_devices_are_rejected_unopened(tmp_path: Path) -> None:
    try:
        device(tmp_path / "zero.csv")
    except PermissionError:
        pytest.skip("only root may make a device")
    good(tmp_path / "a.csv", 7)
    device(tmp_path / "a.csv.toml")

    assert await run_source(tmp_path) == (
        0,
        [
            "a.csv: not loaded: a.csv.toml: cannot be read (it is a device, not a file)",
            "zero.csv: cannot be read (it is a device, not a file)",
        ],
    )


async def test_growing_file_is_read_to_its_size_at_opening(tmp_path: Path) -> None:
    path = good(tmp_path / "a.csv", 7)
    with ArchiveFile.at(path) as file, file.content() as content, path.open("ab") as growing:
        read = 0
        while part := content.read(16):
            growing.write(b"2021-12-29,XRP,1\n")
            growing.flush()
            read += len(part)
    assert read == file.size < path.stat().st_size


def test_file_is_opened_without_waiting_and_not_inherited(tmp_path: Path) -> None:
    assert FLAGS & os.O_NONBLOCK
    assert FLAGS & os.O_NOCTTY
    descriptor = open_file(good(tmp_path / "a.csv", 7), None)
    try:
        assert not os.get_inheritable(descriptor)
        assert stat.S_ISREG(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
