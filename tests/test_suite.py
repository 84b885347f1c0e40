"""The test suite needs no more than CONTRIBUTING says, and removes its files."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import OPEN_FILES

ROOT = Path(__file__).parents[1]

SAMPLE = f"""
import logging
import resource

def test_passes(tmp_path, database_url):
    (tmp_path / "passed").write_text("")

def test_fails(tmp_path, database_url):
    (tmp_path / "failed").write_text("")
    assert False

def test_floods():
    for number in range(100_000):
        logging.getLogger("flood").error("error %s", number)
    assert False

def test_open_files():
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == {OPEN_FILES}
"""


class Outcome(NamedTuple):
    """The output of a run of the sample, and the names of the files that it left."""

    output: str
    files: list[str]


def run_pytest(*arguments: str, limits: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run pytest in a shell that first sets `limits`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        ["sh", "-c", f'{limits} && exec "$0" "$@"', sys.executable, "-m", "pytest", *arguments],
        cwd=ROOT,
        env={**inherited, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """A run with failures, because failed tests keep their files."""
    sample = tmp_path_factory.mktemp("sample") / "test_sample.py"
    sample.write_text(SAMPLE)
    configuration = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "tests.conftest"]
    # A short path, because the path of a socket is limited to about 100 bytes.
    with tempfile.TemporaryDirectory() as folder:
        result = run_pytest(
            *("-n", "2", *configuration, str(sample)),
            limits=f"ulimit -Sn 256 && ulimit -Hn {OPEN_FILES}",
            TMPDIR=folder,
        )
        yield Outcome(result.stdout, sorted(path.name for path in Path(folder).rglob("*") if path.is_file()))
    shutil.rmtree(sample.parent)


@pytest.mark.slow
def test_only_files_of_failed_tests_are_kept(outcome: Outcome) -> None:
    assert outcome.files == ["failed"]


def test_long_log_is_truncated(outcome: Outcome) -> None:
    assert "characters left out]" in outcome.output
    assert "error 99999\n" in outcome.output
    assert len(outcome.output) < 100_000


def test_soft_limit_of_open_files_is_raised(outcome: Outcome) -> None:
    assert "2 failed, 2 passed" in outcome.output


@pytest.mark.slow
def test_low_hard_limit_of_open_files_is_reported_in_one_line() -> None:
    result = run_pytest("--collect-only", "tests/support/test_proxy.py", limits="ulimit -n 256")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    (line,) = filter(None, result.stdout.splitlines())
    assert "the tests need 1024 open files, but the hard limit is 256" in line
