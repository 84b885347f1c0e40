"""The justfile works, CI calls what exists, and locked requirements have hashes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import ROOT, read


def test_recipes_call_just_in_a_path_with_a_space(tmp_path: Path) -> None:
    folder = tmp_path / "a clone"
    folder.mkdir()
    just = shutil.copy(Path(sys.executable).with_name("just"), folder)
    shutil.copy(ROOT / "justfile", folder)
    listed = subprocess.run([just], cwd=folder, capture_output=True, text=True, check=True)
    assert "test *args" in listed.stdout


@pytest.mark.parametrize("workflow", sorted(path.name for path in (ROOT / ".github/workflows").iterdir()))
def test_workflows_call_recipes_that_exist(workflow: str) -> None:
    recipes = re.findall(r"^(\w+)(?: [^:=]*)?:(?!=)", read("justfile"), re.MULTILINE)
    calls = re.findall(r"\.venv/bin/just (\w+)", read(f".github/workflows/{workflow}"))
    assert calls
    assert set(calls) <= set(recipes)


def test_ci_has_no_unused_function() -> None:
    script = read(".ci/run")
    for name in re.findall(r"^(\w+)\(\) \{", script, re.MULTILINE):
        calls = re.findall(rf"(?<![\w-]){name}\b(?!\(\))", re.sub(r"(?m)^(#|export).*", "", script))
        assert calls, f"{name} is defined in .ci/run, but nothing calls it"


@pytest.mark.parametrize(
    "file", ["requirements.txt", "tests/requirements.txt", ".ci/binary/requirements.txt"]
)
def test_locked_packages_have_hashes_and_no_addresses(file: str) -> None:
    text = read(file)
    assert "://" not in text
    for requirement in re.split(r"\n(?=[a-z])", text)[1:]:
        assert "--hash=sha256:" in requirement
