"""The process that parses archives has given up its rights."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kasparro.sources.archives import sandbox
from kasparro.sources.archives.found import Archive
from kasparro.sources.archives.portions import Problem
from kasparro.sources.archives.worker_client import Worker
from tests.support.archives import HANG_S, NOW, proc_status, with_children
from tests.support.hostile_archives import good


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_parser_has_no_rights_and_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret")
    monkeypatch.setenv("KASPARRO_ADMIN_TOKEN", "secret")
    path = good(tmp_path / "a.csv", 7)
    async with asyncio.timeout(HANG_S), Worker() as worker:
        assert not isinstance(await worker.identify(Archive(path, path.name), None, NOW), Problem)
        pids = with_children(worker.pid)
        parser = pids[-1]
        assert proc_status(parser, "NoNewPrivs") == ["1"]
        assert proc_status(parser, "CapEff") == ["0000000000000000"]
        limits = Path(f"/proc/{parser}/limits").read_text()
        for name, limit in (
            ("Max address space", sandbox.MEMORY_LIMIT),
            ("Max open files", sandbox.OPEN_FILES_LIMIT),
            ("Max file size", 0),
            ("Max core file size", 0),
            ("Max processes", 0),
        ):
            assert re.search(rf"^{name}\s+{limit}\s+{limit}\s", limits, re.MULTILINE)
        for pid in pids:
            assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()
        if os.geteuid() == 0:
            identity = [str(sandbox.UNPRIVILEGED_ID)] * 4
            assert proc_status(parser, "Uid") == proc_status(parser, "Gid") == identity
            assert proc_status(parser, "Groups") == []
            # Its parent opens the files, so files that only root may read are read.
            assert len(pids) == 2


WITHOUT_SETGID = """
import ctypes, os, sys
if len(sys.argv) == 1:
    # PR_CAPBSET_DROP of CAP_SETGID, which takes effect with the next program.
    ctypes.CDLL(None).prctl(24, 6, 0, 0, 0)
    os.execv(sys.executable, [sys.executable, "-c", os.environ["PROGRAM"], "again"])
from kasparro.sources.archives import sandbox
sandbox.become_unprivileged()
print(os.getuid(), *[line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")])
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root gives up rights")
def test_root_that_may_not_change_groups_gives_up_its_other_rights() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_SETGID],
        env=os.environ | {"PROGRAM": WITHOUT_SETGID},
        capture_output=True,
        check=True,
        text=True,
    )
    assert finished.stdout.split() == [str(sandbox.UNPRIVILEGED_ID), "0000000000000000"]
