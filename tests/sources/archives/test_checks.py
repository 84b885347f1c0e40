"""`kasparro check`: every file gets its line, whatever another file does."""

import json
import os
import signal
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from kasparro.cli import commands
from kasparro.sources.archives import checks
from kasparro.sources.archives.found import Archive
from kasparro.sources.archives.worker_client import Worker
from tests.support.archives import NOW
from tests.support.hostile_archives import HOSTILE, SLOW, good, overrides_path


@pytest.mark.slow
def test_check_reports_every_file_next_to_hostile_files(tmp_path: Path) -> None:
    quick = [kind for kind in HOSTILE if kind not in SLOW]
    for kind in quick:
        HOSTILE[kind].make(tmp_path / f"{kind}.csv")
    good(tmp_path / "zz.csv", 7)

    result = CliRunner().invoke(commands.main, ["check", "--json", str(tmp_path)])

    assert result.exit_code == 1
    files = {file["name"]: file for file in json.loads(result.stdout)["files"]}
    assert (files["zz.csv"]["rows"], files["zz.csv"]["problem"]) == (2, None)
    for kind in quick:
        assert HOSTILE[kind].reason in files[f"{kind}.csv"]["problem"]


@pytest.mark.parametrize("encoding", ["utf-32", "utf-16", "utf-7", "punycode", "hex"])
def test_check_survives_an_encoding_that_does_not_fit(tmp_path: Path, encoding: str) -> None:
    good(tmp_path / "a.csv", 7)
    overrides_path(tmp_path / "a.csv").write_text(f'encoding = "{encoding}"')
    good(tmp_path / "b.csv", 8)

    result = CliRunner().invoke(commands.main, ["check", "--json", str(tmp_path)])

    rejected, loaded = json.loads(result.stdout)["files"]
    assert (rejected["rows"], loaded["rows"]) == (0, 2)
    assert rejected["problem"].startswith("a.csv: ")


async def test_worker_that_ends_during_check_costs_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledWorker(Worker):
        async def check(self, archive: Archive, now: datetime) -> object:  # type: ignore[override]
            if archive.name == "b.csv":
                os.kill(self.pid, signal.SIGKILL)
            return await super().check(archive, now)

    monkeypatch.setattr(checks, "Worker", KilledWorker)
    for number, name in enumerate("abc"):
        good(tmp_path / f"{name}.csv", number)
    checked = await checks.check_all([str(tmp_path)], NOW)
    assert [(file.name, file.rows) for file in checked] == [("a.csv", 2), ("b.csv", 0), ("c.csv", 2)]
    assert "ended early (signal 9)" in (checked[1].problem or "")
