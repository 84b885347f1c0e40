"""Folders of hostile archives: good files load, each bad file is rejected in one line, and nothing hangs."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from kasparro.sources.archives.portions import Portion, Problem
from kasparro.sources.archives.worker_client import Worker
from tests.support.archives import HANG_S, proc_status, read_by, with_children
from tests.support.hostile_archives import HOSTILE, SLOW, good, link

pytestmark = pytest.mark.slow

# A good file of any size needs less than 80 MiB.
MEMORY_LIMIT = 300 * 1024 * 1024
# How often the large folder has each file that is rejected quickly.
COPIES = 3


def peak_memory(pid: int) -> int:
    """The largest resident memory of a process or of one of its children, in bytes."""
    return max(int(proc_status(process, "VmHWM")[0]) for process in with_children(pid)) * 1024


@pytest.mark.parametrize("kind", HOSTILE)
async def test_hostile_file_is_rejected_in_one_line_within_bounds(tmp_path: Path, kind: str) -> None:
    """Memory stays near that of a good file, and the same process reads the next file."""
    path = tmp_path / f"{kind}.csv"
    HOSTILE[kind].make(path)
    good(tmp_path / "zz.csv", 7)
    by_name: dict[str, list[Portion | Problem]] = {}
    async with asyncio.timeout(HANG_S), Worker() as worker:
        found = await worker.find(str(tmp_path))
        for archive in found.archives:
            async with aclosing(read_by(worker, archive)) as messages:
                by_name[archive.name] = [message async for message in messages]
        memory = peak_memory(worker.pid)

    problems = [message.reject.summary for message in by_name[path.name] if isinstance(message, Problem)]
    assert len(problems) == 1
    assert problems[0].startswith(f"{path.name}: ")
    assert HOSTILE[kind].reason in problems[0]
    assert problems[0].isprintable()
    assert len(problems[0]) < 1_500
    assert [type(message) for message in by_name["zz.csv"]] == [Portion]
    assert memory < MEMORY_LIMIT


PROGRAM = """
import asyncio, json, resource, sys
from kasparro.sources.archives.source import Archives
from kasparro.sources.base import SourceContext

async def main():
    context = SourceContext()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows, rejected = 0, []
    async for batch in Archives(sys.argv[1]).extract(context):
        rows += batch.rows
        rejected += [reject.summary for reject in batch.rejects if reject.is_file]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"rows": rows, "rejected": rejected, "grown_kilobytes": grown}))

asyncio.run(main())
"""


async def run_in_process(folder: Path) -> dict[str, Any]:
    """Run the source csv in a process of its own; returns what the program prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(folder), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return dict(json.loads(output))


async def test_200_hostile_files_in_one_run(tmp_path: Path) -> None:
    """Every good file loads, every bad file is rejected in one line, and the service's memory stays flat."""
    bad = list(HOSTILE) + [kind for _ in range(COPIES) for kind in HOSTILE if kind not in SLOW]
    for number, kind in enumerate(bad):
        # Each has a folder, since a bad kasparro.toml affects all files of its folder.
        folder = tmp_path / f"{number:03}"
        folder.mkdir()
        HOSTILE[kind].make(folder / f"{kind}.csv")
        good(folder / "good.csv", number + 3)
    folder_overrides: list[Callable[[Path], object]] = [os.mkfifo, Path.mkdir, link("/etc/passwd")]
    for number, make in enumerate(folder_overrides):
        folder = tmp_path / f"overrides-{number}"
        folder.mkdir()
        make(folder / "kasparro.toml")
        good(folder / "affected.csv", 1_000 + number)
    (tmp_path / "out").symlink_to("/etc")
    assert len(bad) >= 200

    async with asyncio.timeout(5 * HANG_S):
        result = await run_in_process(tmp_path)

    expected = {f"{number:03}/{kind}.csv": HOSTILE[kind].reason for number, kind in enumerate(bad)}
    expected |= {
        f"overrides-{number}/affected.csv": "kasparro.toml: cannot be read (it is" for number in range(3)
    }
    expected["out"] = "a link that leaves the folder"
    rejected = dict(line.split(": ", 1) for line in result["rejected"])
    assert len(result["rejected"]) == len(rejected)
    assert rejected.keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in rejected.items())
    # Some bad files have good rows before the bad part.
    assert result["rows"] >= 2 * len(bad)
    assert result["grown_kilobytes"] < 60 * 1024


async def test_program_ends_although_overrides_are_a_fifo(tmp_path: Path) -> None:
    good(tmp_path / "a.csv", 7)
    os.mkfifo(tmp_path / "kasparro.toml")

    async with asyncio.timeout(HANG_S):
        result = await run_in_process(tmp_path)

    assert result["rejected"] == [
        "a.csv: not loaded: kasparro.toml: cannot be read (it is a FIFO, not a file)"
    ]
