"""Which files a path, a folder or a glob means, without leaving the folder."""

import os
from pathlib import Path

import pytest

from kasparro.errors import SourceError
from kasparro.sources.archives.discover import find_archives
from kasparro.sources.base import SourceContext
from tests.support.archives import NOW, run_source
from tests.support.hostile_archives import good, overrides_path


async def test_links_within_the_folder_are_followed(tmp_path: Path) -> None:
    """So are links that the user names, wherever they lead."""
    real, root = tmp_path / "real", tmp_path / "root"
    real.mkdir()
    (root / "..data").mkdir(parents=True)
    good(real / "a.csv", 7)
    good(root / "..data" / "b.csv", 8)
    (root / "b.csv").symlink_to("..data/b.csv")
    (root / "absolute.csv").symlink_to(root / "..data" / "b.csv")
    (tmp_path / "named.csv").symlink_to(real / "a.csv")
    (tmp_path / "named").symlink_to(root)

    assert await run_source(tmp_path / "named.csv") == (2, [])
    assert await run_source(tmp_path / "named") == (2, [])
    assert await run_source(tmp_path / "named" / "*.csv") == (2, [])


async def test_overrides_of_a_named_file_stay_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = good(folder / "a.csv", 7)
    (tmp_path / "other.toml").write_text('currency = "USD"')
    overrides_path(path).symlink_to("../other.toml")

    rows, rejected = await run_source(path)

    assert rows == 0
    assert "it is a link that leaves the folder" in rejected[0]


@pytest.mark.parametrize("pattern", ["*/*.csv", "**/*.csv", "*/*/*.csv", "o*/x/*.csv", "**"])
async def test_glob_stays_in_its_folder(tmp_path: Path, pattern: str) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    (outside / "x").mkdir(parents=True)
    good(outside / "a.csv", 7)
    good(outside / "x" / "a.csv", 8)
    (root / "in").mkdir(parents=True)
    good(root / "in" / "b.csv", 9)
    (root / "out").symlink_to(outside)

    try:
        rows, rejected = await run_source(root / pattern)
    except SourceError:
        rows, rejected = 0, []

    assert rows == (2 if pattern in {"*/*.csv", "**/*.csv", "**"} else 0)
    assert all("a link that leaves the folder root" in reason for reason in rejected)


@pytest.mark.parametrize("pattern", ["**/*.csv", "*/*/*/*/*/*/*.csv", "", "**"])
def test_link_loops_are_not_followed(tmp_path: Path, pattern: str) -> None:
    """Thirty links to the folder itself make 30 to the sixth power of paths, all to the same file."""
    for number in range(30):
        (tmp_path / f"l{number}").symlink_to(".")
    good(tmp_path / "a.csv", 7)
    entries = 0

    def count() -> None:
        nonlocal entries
        entries += 1

    found = find_archives(str(tmp_path / pattern), count)

    assert len(found.archives) == 1
    assert entries < 500


def test_glob_finds_what_a_shell_finds(tmp_path: Path) -> None:
    for name in ("a/b/x.csv", "a/x.csv", "x.csv", ".h/x.csv", "a/.h.csv", "a/b.csv/y.csv", "a/x.csv.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        good(tmp_path / name, 7)

    def names(pattern: str) -> list[str]:
        found = find_archives(f"{tmp_path}/{pattern}").archives
        return [archive.path.relative_to(tmp_path).as_posix() for archive in found]

    assert names("*.csv") == ["x.csv"]
    assert names("*/x.csv") == ["a/x.csv"]
    assert names("**/x.csv") == ["a/b/x.csv", "a/x.csv", "x.csv"]
    assert names("a/**") == ["a/b/x.csv", "a/b.csv/y.csv", "a/x.csv"]
    assert names("*/*.csv") == ["a/x.csv"]
    assert names("?/b*/[xy].csv") == ["a/b/x.csv", "a/b.csv/y.csv"]
    assert names(".h/*") == [".h/x.csv"]


@pytest.mark.parametrize(
    "name",
    [
        "a\nb.csv",
        "a\x1b[31m\x07.csv",
        "a\u202eb.csv",
        os.fsdecode(b"a\xff\xfeb.csv"),
        "x" * 251 + ".csv",
        "é" * 125 + ".csv",
        " .csv",
        "-rf.csv",
        "[x].csv",
    ],
)
async def test_good_file_loads_under_any_name(tmp_path: Path, name: str) -> None:
    good(tmp_path / name, 7)
    shown: list[str] = []

    async def file_named(name: str) -> None:
        shown.append(name)

    context = SourceContext(clock=lambda: NOW, file_named=file_named)
    assert await run_source(tmp_path, context=context) == (2, [])
    assert shown[0].isprintable()
    assert await run_source(tmp_path / name) == (2, [])


async def test_deep_path_gets_a_name_that_an_index_takes(tmp_path: Path) -> None:
    folder = tmp_path
    for number in range(14):
        folder /= f"{number}" + os.urandom(100).hex()
        folder.mkdir()
    good(folder / "a.csv", 7)
    good(folder / "b.csv", 8)

    found = find_archives(str(tmp_path))

    assert all(len(archive.name.encode()) <= 512 for archive in found.archives)
    assert len({archive.name for archive in found.archives}) == 2
    assert await run_source(tmp_path) == (4, [])


async def test_unreadable_paths_are_named_and_the_rest_loads(tmp_path: Path) -> None:
    """Root may read everything, so for root all files load."""
    good(tmp_path / "a.csv", 7)
    good(tmp_path / "b.csv", 8).chmod(0)
    (tmp_path / "closed").mkdir(mode=0)
    rows, rejected = await run_source(tmp_path)
    (tmp_path / "closed").chmod(0o700)
    if os.geteuid() == 0:
        assert (rows, rejected) == (4, [])
    else:
        assert rows == 2
        assert rejected == [
            "b.csv: cannot be read (Permission denied)",
            "closed: cannot be listed (Permission denied)",
        ]
