"""The example on the archives page is what `kasparro check` prints."""

import re
import shlex
import tomllib
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from kasparro.cli import check_command
from kasparro.cli import commands as cli
from kasparro.sources.archives.overrides import Overrides
from tests.support.documents import blocks, section

PAGE, EXAMPLE = "docs/archives.md", "Check a file first"


def block(language: str) -> str:
    (text,) = blocks(section(PAGE, EXAMPLE), language)
    return text


def test_example_is_what_check_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kurse.csv").write_text(block("csv"), encoding="utf-8")
    (tmp_path / "kurse.csv.toml").write_text(block("toml"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check_command, "out", Console(width=100))
    command, _, output = block("console").partition("\n")
    arguments = shlex.split(command.removeprefix("$ kasparro "))
    assert CliRunner().invoke(cli.main, arguments).output == output


def test_example_names_every_key_of_the_overrides() -> None:
    keys = tomllib.loads(re.sub(r"(?m)^# (?=\w+ = )", "", block("toml")))
    keys["observed_at"] = keys["observed_at"].isoformat()
    assert msgspec.convert(keys, Overrides) != Overrides()
    assert set(keys) == set(Overrides.__struct_fields__)
