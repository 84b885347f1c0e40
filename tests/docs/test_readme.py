"""The README is short, and CI runs its commands."""

import pytest

from tests.support.documents import blocks, read, section

LINES = 150


def test_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= LINES


def test_readme_shows_five_requests() -> None:
    assert len(blocks(section("README.md", "Five requests"), "console")) == 5


@pytest.mark.parametrize(
    ("file", "names"), [(".ci/run", ["run", "test"]), (".github/workflows/ci.yml", ["test"])]
)
def test_ci_runs_the_readme_commands(file: str, names: list[str]) -> None:
    commands = [block.strip() for block in blocks(section("README.md", "Quick start"), "sh")]
    readme = dict(zip(("run", "test", "demo"), commands, strict=True))
    lines = [line.strip().removeprefix("run: ") for line in read(file).splitlines()]
    for name in names:
        assert readme[name] in lines
