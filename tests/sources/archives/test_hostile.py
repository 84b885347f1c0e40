"""A hostile archives folder: each good file loads, each bad one is refused in one line, nothing is held."""

import asyncio
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from kasparro.cli import commands
from kasparro.errors import SourceError
from kasparro.sources.archives import checks, sandbox, worker, worker_client
from kasparro.sources.archives import source as source_module
from kasparro.sources.archives.discover import Archive, archives
from kasparro.sources.archives.files import FLAGS, ArchiveFile, Opened, open_file
from kasparro.sources.archives.reader import Portion, Problem
from kasparro.sources.archives.source import Archives
from kasparro.sources.archives.worker_client import Worker
from kasparro.sources.archives.worker_messages import Ask, Finished, Message
from kasparro.sources.base import SourceContext
from tests.sources.archives import hostile
from tests.sources.archives.conftest import NOW, read_by
from tests.sources.archives.hostile import HOSTILE, beside, good

# A good file of any size needs less than 80 MiB.
MEMORY = 300 * 1024 * 1024
# Only a hang reaches this.
HANG_S = 120
# Those that are refused within a moment, and how often they are in the large folder.
CHEAP = [kind for kind in HOSTILE if not kind.endswith(("-lines", "-rows")) and kind != "slow"]
COPIES = 3


async def work(where: Path | str, **options: object) -> tuple[int, list[str]]:
    """One pass over a folder: the rows that it brought, and what it refused."""
    context = SourceContext(clock=lambda: NOW, **options)  # type: ignore[arg-type]
    rows, problems = 0, list[str]()
    async with asyncio.timeout(HANG_S):
        async for batch in Archives(str(where)).extract(context):
            rows += batch.rows
            problems += [reject.summary for reject in batch.rejects if reject.of_file]
    return rows, sorted(problems)


def processes(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def state_of(pid: int, field: str) -> list[str]:
    """A line of what the kernel tells of a process."""
    (line,) = re.findall(rf"^{field}:[ \t]*(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return str(line).split()


def peak(pid: int) -> int:
    """The most memory that a process and its children have held, in bytes."""
    return max(int(state_of(process, "VmHWM")[0]) for process in processes(pid)) * 1024


@pytest.mark.parametrize("kind", HOSTILE)
async def test_a_hostile_file_is_refused_in_one_line_within_bounds(tmp_path: Path, kind: str) -> None:
    """Memory stays near that of a good file, and the same process reads the next one."""
    path = tmp_path / f"{kind}.csv"
    HOSTILE[kind].make(path)
    good(tmp_path / "zz.csv", 7)
    async with asyncio.timeout(HANG_S), Worker() as reader:
        found = await reader.find(str(tmp_path))
        told: dict[str, list[Portion | Problem]] = {}
        for archive in found.archives:
            async with aclosing(read_by(reader, archive)) as messages:
                told[archive.name] = [message async for message in messages]
        used = peak(reader.pid)

    problems = [message.reject.summary for message in told[path.name] if isinstance(message, Problem)]
    assert len(problems) == 1
    assert problems[0].startswith(f"{path.name}: ")
    assert HOSTILE[kind].refusal in problems[0]
    assert problems[0].isprintable()
    assert len(problems[0]) < 1_500
    assert [type(message) for message in told["zz.csv"]] == [Portion]
    assert used < MEMORY


def test_check_reports_all_files_beside_hostile_ones(tmp_path: Path) -> None:
    for kind in CHEAP:
        HOSTILE[kind].make(tmp_path / f"{kind}.csv")
    good(tmp_path / "zz.csv", 7)

    result = CliRunner().invoke(commands.main, ["check", "--json", str(tmp_path)])

    assert result.exit_code == 1
    files = {file["name"]: file for file in json.loads(result.stdout)["files"]}
    assert (files["zz.csv"]["rows"], files["zz.csv"]["problem"]) == (2, None)
    for kind in CHEAP:
        assert HOSTILE[kind].refusal in files[f"{kind}.csv"]["problem"]


@pytest.mark.parametrize("said", ["utf-32", "utf-16", "utf-7", "punycode", "hex"])
def test_check_survives_an_encoding_that_does_not_fit(tmp_path: Path, said: str) -> None:
    good(tmp_path / "a.csv", 7)
    beside(tmp_path / "a.csv").write_text(f'encoding = "{said}"')
    good(tmp_path / "b.csv", 8)

    result = CliRunner().invoke(commands.main, ["check", "--json", str(tmp_path)])

    refused, loaded = json.loads(result.stdout)["files"]
    assert (refused["rows"], loaded["rows"]) == (0, 2)
    assert refused["problem"].startswith("a.csv: ")


FOLDER = """
import asyncio, json, resource, sys
from kasparro.sources.archives.source import Archives
from kasparro.sources.base import SourceContext

async def main():
    context = SourceContext()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows, problems = 0, []
    async for batch in Archives(sys.argv[1]).extract(context):
        rows += batch.rows
        problems += [reject.summary for reject in batch.rejects if reject.of_file]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"rows": rows, "problems": problems, "grown": grown}))

asyncio.run(main())
"""


async def test_a_folder_of_200_hostile_files_is_worked_through_in_one_run(tmp_path: Path) -> None:
    """Every good file loads, every bad one is refused in one line, and the service's memory stays flat."""
    bad = list(HOSTILE) + [kind for _ in range(COPIES) for kind in CHEAP]
    for number, kind in enumerate(bad):
        # A folder each, as a bad kasparro.toml concerns all files beside it.
        folder = tmp_path / f"{number:03}"
        folder.mkdir()
        HOSTILE[kind].make(folder / f"{kind}.csv")
        good(folder / "good.csv", number + 3)
    own: list[Callable[[Path], object]] = [os.mkfifo, Path.mkdir, hostile.link("/etc/passwd")]
    for number, make in enumerate(own):
        folder = tmp_path / f"own-{number}"
        folder.mkdir()
        make(folder / "kasparro.toml")
        good(folder / "held.csv", 1_000 + number)
    (tmp_path / "out").symlink_to("/etc")
    assert len(bad) >= 200

    async with asyncio.timeout(5 * HANG_S):
        running = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FOLDER, str(tmp_path), stdout=asyncio.subprocess.PIPE
        )
        told = json.loads((await running.communicate())[0])

    expected = {f"{number:03}/{kind}.csv": HOSTILE[kind].refusal for number, kind in enumerate(bad)}
    expected |= {f"own-{number}/held.csv": "kasparro.toml: cannot be read (it is" for number in range(3)}
    expected["out"] = "a link that leaves the folder"
    refused = dict(problem.split(": ", 1) for problem in told["problems"])
    assert len(told["problems"]) == len(refused)
    assert refused.keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in refused.items())
    # Some of the bad ones bring rows before they turn bad.
    assert told["rows"] >= 2 * len(bad)
    assert told["grown"] < 60 * 1024


async def test_a_fifo_as_description_does_not_keep_the_program_from_ending(tmp_path: Path) -> None:
    good(tmp_path / "a.csv", 7)
    os.mkfifo(tmp_path / "kasparro.toml")
    async with asyncio.timeout(HANG_S):
        running = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FOLDER, str(tmp_path), stdout=asyncio.subprocess.PIPE
        )
        told = json.loads((await running.communicate())[0])
    assert running.returncode == 0
    assert told["problems"] == [
        "a.csv: not loaded, for kasparro.toml: cannot be read (it is a FIFO, not a file)"
    ]


async def test_devices_are_refused_and_not_opened(tmp_path: Path) -> None:
    try:
        hostile.device(tmp_path / "zero.csv")
    except PermissionError:
        pytest.skip("only root may make a device")
    good(tmp_path / "a.csv", 7)
    hostile.device(tmp_path / "a.csv.toml")
    assert await work(tmp_path) == (
        0,
        [
            "a.csv: not loaded, for a.csv.toml: cannot be read (it is a device, not a file)",
            "zero.csv: cannot be read (it is a device, not a file)",
        ],
    )


@pytest.mark.parametrize(
    ("swap", "refusal"),
    [
        (os.mkfifo, "it is a FIFO, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a link that leaves the folder"),
        (lambda path: path.symlink_to("/etc/passwd"), "it is a link that leaves the folder"),
        (lambda path: path.symlink_to("nosuch"), "it is a link that leads to no file"),
        (Path.mkdir, "it is a folder, not a file"),
    ],
)
async def test_a_file_that_is_swapped_after_it_was_found_is_refused(
    tmp_path: Path, swap: Callable[[Path], object], refusal: str
) -> None:
    path = good(tmp_path / "a.csv", 7)
    good(tmp_path / "b.csv", 8)

    async def checkpoint_named(name: str) -> None:
        if name == "a.csv":
            path.unlink()
            swap(path)

    rows, problems = await work(tmp_path, checkpoint_named=checkpoint_named)
    assert rows == 2
    assert len(problems) == 1
    assert refusal in problems[0]


async def test_a_folder_that_is_swapped_for_a_link_leads_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    good(outside / "a.csv", 7)
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    path = good(root / "in" / "a.csv", 8)

    async def checkpoint_named(name: str) -> None:
        path.unlink()
        path.parent.rmdir()
        path.parent.symlink_to(outside)

    rows, problems = await work(root, checkpoint_named=checkpoint_named)
    assert rows == 0
    assert problems == ["in/a.csv: cannot be read (it is a link that leaves the folder root)"]


def test_a_link_that_is_swapped_in_after_the_check_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is resolved, and then somebody exchanges a folder of it."""
    (tmp_path / "root" / "in").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    path = good(tmp_path / "root" / "in" / "a.csv", 7)
    good(tmp_path / "outside" / "a.csv", 8)
    resolve = os.path.realpath

    def resolved(name: str | Path) -> str:
        real = resolve(name)
        if real.endswith("a.csv"):
            path.unlink()
            path.parent.rmdir()
            path.parent.symlink_to(tmp_path / "outside")
        return real

    monkeypatch.setattr(os.path, "realpath", resolved)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        open_file(path, tmp_path / "root")


async def test_links_within_the_folder_and_named_by_the_user_stand(tmp_path: Path) -> None:
    real, root = tmp_path / "real", tmp_path / "root"
    real.mkdir()
    (root / "..data").mkdir(parents=True)
    good(real / "a.csv", 7)
    good(root / "..data" / "b.csv", 8)
    (root / "b.csv").symlink_to("..data/b.csv")
    (root / "absolute.csv").symlink_to(root / "..data" / "b.csv")
    (tmp_path / "named.csv").symlink_to(real / "a.csv")
    (tmp_path / "named").symlink_to(root)
    assert await work(tmp_path / "named.csv") == (2, [])
    assert await work(tmp_path / "named") == (2, [])
    assert await work(tmp_path / "named" / "*.csv") == (2, [])


async def test_a_description_may_not_be_a_link_out_of_the_folder_of_a_named_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = good(folder / "a.csv", 7)
    (tmp_path / "other.toml").write_text('currency = "USD"')
    beside(path).symlink_to("../other.toml")
    rows, problems = await work(path)
    assert rows == 0
    assert "it is a link that leaves the folder" in problems[0]


@pytest.mark.parametrize("pattern", ["*/*.csv", "**/*.csv", "*/*/*.csv", "o*/x/*.csv", "**"])
async def test_no_glob_leads_out_of_its_folder(tmp_path: Path, pattern: str) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    (outside / "x").mkdir(parents=True)
    good(outside / "a.csv", 7)
    good(outside / "x" / "a.csv", 8)
    (root / "in").mkdir(parents=True)
    good(root / "in" / "b.csv", 9)
    (root / "out").symlink_to(outside)
    try:
        rows, problems = await work(root / pattern)
    except SourceError:
        rows, problems = 0, []
    assert rows == (2 if pattern in {"*/*.csv", "**/*.csv", "**"} else 0)
    assert all("a link that leaves the folder root" in problem for problem in problems)


@pytest.mark.parametrize("pattern", ["**/*.csv", "*/*/*/*/*/*/*.csv", "", "**"])
def test_links_to_the_folder_itself_do_not_multiply_the_work(tmp_path: Path, pattern: str) -> None:
    """Thirty links make thirty to the sixth power of paths, of which each leads to the same file."""
    for number in range(30):
        (tmp_path / f"l{number}").symlink_to(".")
    good(tmp_path / "a.csv", 7)
    entries = 0

    def beat() -> None:
        nonlocal entries
        entries += 1

    found = archives(str(tmp_path / pattern), beat)
    assert len(found.archives) == 1
    assert entries < 500


def test_a_glob_finds_what_the_shell_finds(tmp_path: Path) -> None:
    for name in ("a/b/x.csv", "a/x.csv", "x.csv", ".h/x.csv", "a/.h.csv", "a/b.csv/y.csv", "a/x.csv.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        good(tmp_path / name, 7)

    def names(pattern: str) -> list[str]:
        found = archives(f"{tmp_path}/{pattern}").archives
        return [archive.path.relative_to(tmp_path).as_posix() for archive in found]

    assert names("*.csv") == ["x.csv"]
    assert names("*/x.csv") == ["a/x.csv"]
    assert names("**/x.csv") == ["a/b/x.csv", "a/x.csv", "x.csv"]
    assert names("a/**") == ["a/b/x.csv", "a/b.csv/y.csv", "a/x.csv"]
    assert names("*/*.csv") == ["a/x.csv"]
    assert names("?/b*/[xy].csv") == ["a/b/x.csv", "a/b.csv/y.csv"]
    assert names(".h/*") == [".h/x.csv"]


@pytest.mark.parametrize("kind", ["truncated", "grown", "rewritten", "replaced"])
async def test_a_file_that_changes_between_digest_and_reading_is_not_mixed(tmp_path: Path, kind: str) -> None:
    path = good(tmp_path / "a.csv", 7)
    os.utime(path, ns=(1, 1))
    async with asyncio.timeout(HANG_S), Worker() as reader:
        await reader.identify(Archive(path, path.name), None, NOW)
        if kind == "truncated":
            os.truncate(path, 30)
        elif kind == "grown":
            with path.open("a") as file:
                file.write("2021-12-29,XRP,1\n" * 100_000)
        elif kind == "rewritten":
            path.write_text(path.read_text().replace("7", "8"))
        else:
            good(tmp_path / "other.csv", 8).rename(path)
        reader.begin(None)
        told = [message async for message in reader.messages(path.name)]
    rows = sum(message.batch.rows for message in told if isinstance(message, Portion))
    if kind == "replaced":
        # The file that was digested is read to its end; the next run finds the other one.
        assert rows == 2
        assert [type(message) for message in told] == [Portion]
    else:
        # What was appended after the file was opened is left to the next run.
        assert rows <= 2
        assert isinstance(told[-1], Problem)
        assert all(not message.batch.checkpoint.complete for message in told if isinstance(message, Portion))  # type: ignore[union-attr]


async def test_a_file_that_grows_without_an_end_is_read_to_where_it_was(tmp_path: Path) -> None:
    path = good(tmp_path / "a.csv", 7)
    with ArchiveFile.at(path) as file, file.content() as content, path.open("ab") as growing:
        read = 0
        while part := content.read(16):
            growing.write(b"2021-12-29,XRP,1\n")
            growing.flush()
            read += len(part)
    assert read == file.size < path.stat().st_size


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
async def test_a_good_file_of_any_name_loads(tmp_path: Path, name: str) -> None:
    good(tmp_path / name, 7)
    shown: list[str] = []

    async def checkpoint_named(name: str) -> None:
        shown.append(name)

    assert await work(tmp_path, checkpoint_named=checkpoint_named) == (2, [])
    assert shown[0].isprintable()
    assert await work(tmp_path / name) == (2, [])


async def test_a_deep_path_has_a_name_that_an_index_takes(tmp_path: Path) -> None:
    folder = tmp_path
    for number in range(14):
        folder /= f"{number}" + os.urandom(100).hex()
        folder.mkdir()
    good(folder / "a.csv", 7)
    good(folder / "b.csv", 8)
    found = archives(str(tmp_path))
    assert all(len(archive.name.encode()) <= 512 for archive in found.archives)
    assert len({archive.name for archive in found.archives}) == 2
    assert await work(tmp_path) == (4, [])


async def test_what_may_not_be_read_is_told_and_the_rest_loads(tmp_path: Path) -> None:
    """Root may read everything, so its own files load; anybody else hears which file it was."""
    good(tmp_path / "a.csv", 7)
    good(tmp_path / "b.csv", 8).chmod(0)
    (tmp_path / "closed").mkdir(mode=0)
    rows, problems = await work(tmp_path)
    (tmp_path / "closed").chmod(0o700)
    if os.geteuid() == 0:
        assert (rows, problems) == (4, [])
    else:
        assert rows == 2
        assert problems == [
            "b.csv: cannot be read (Permission denied)",
            "closed: cannot be listed (Permission denied)",
        ]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's words about a process are those of Linux")
async def test_the_process_that_parses_has_given_up_its_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret")
    monkeypatch.setenv("KASPARRO_ADMIN_TOKEN", "secret")
    path = good(tmp_path / "a.csv", 7)
    async with asyncio.timeout(HANG_S), Worker() as reader:
        assert not isinstance(await reader.identify(Archive(path, path.name), None, NOW), Problem)
        pids = processes(reader.pid)
        parser = pids[-1]
        assert state_of(parser, "NoNewPrivs") == ["1"]
        assert state_of(parser, "CapEff") == ["0000000000000000"]
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
            assert state_of(parser, "Uid") == state_of(parser, "Gid") == identity
            assert state_of(parser, "Groups") == []
            # Its parent opens files, so it reads what only root may read.
            assert len(pids) == 2


NO_GROUPS = """
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
def test_who_may_not_change_groups_gives_up_the_rest_of_its_rights() -> None:
    told = subprocess.run(
        [sys.executable, "-c", NO_GROUPS],
        env=os.environ | {"PROGRAM": NO_GROUPS},
        capture_output=True,
        check=True,
        text=True,
    )
    assert told.stdout.split() == [str(sandbox.UNPRIVILEGED_ID), "0000000000000000"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the two processes of root")
@pytest.mark.parametrize("victim", [0, -1])
async def test_either_process_that_is_killed_ends_both(tmp_path: Path, victim: int) -> None:
    path = good(tmp_path / "a.csv", 7)
    async with asyncio.timeout(HANG_S), Worker() as reader:
        await reader.identify(Archive(path, path.name), None, NOW)
        handles = [os.pidfd_open(pid) for pid in processes(reader.pid)]
        os.kill(processes(reader.pid)[victim], signal.SIGKILL)
        reader.begin(None)
        with pytest.raises(SourceError, match=r"a\.csv: the process that read it ended early \(signal 9\)"):
            async for _ in reader.messages(path.name):
                pass
        for handle in handles:
            ended = asyncio.Event()
            asyncio.get_running_loop().add_reader(handle, ended.set)
            await ended.wait()
            asyncio.get_running_loop().remove_reader(handle)
            os.close(handle)


async def test_a_file_system_that_hangs_costs_a_file_and_then_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Worker):
        """A worker that the file system holds, as far as the service can see."""

        async def identify(self, archive: Archive, *arguments: object) -> str | Problem:
            if archive.name.startswith("held"):
                for pid in processes(self.pid):
                    os.kill(pid, signal.SIGSTOP)
                monkeypatch.setattr(worker_client, "SILENCE_S", 0.1)
            try:
                return await super().identify(archive, *arguments)  # type: ignore[arg-type]
            finally:
                monkeypatch.setattr(worker_client, "SILENCE_S", HANG_S)

    monkeypatch.setattr(source_module, "Worker", Stopped)
    good(tmp_path / "a.csv", 7)
    good(tmp_path / "held.csv", 8)
    good(tmp_path / "z.csv", 9)
    rows, problems = await work(tmp_path)
    assert rows == 4
    assert problems == ["held.csv: nothing came of reading it for 0 s"]

    for number in range(4):
        good(tmp_path / f"held{number}.csv", 10 + number)
    told: list[str | None] = []

    async def work_through() -> None:
        async for batch in Archives(str(tmp_path)).extract(SourceContext(clock=lambda: NOW)):
            told.extend(reject.location for reject in batch.rejects if reject.of_file)

    with pytest.raises(SourceError, match="3 files did not answer"):
        await work_through()
    # They are named all the same.
    assert len(told) == 3


async def test_what_a_worker_said_while_the_service_stood_still_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_client, "SILENCE_S", 1.0)
    path = good(tmp_path / "a.csv", 7)
    async with asyncio.timeout(HANG_S), Worker() as reader:
        asking = asyncio.create_task(reader.identify(Archive(path, path.name), None, NOW))
        await asyncio.sleep(0.01)
        time.sleep(2.5)  # noqa: ASYNC251 - it is what holds the event loop up
        assert isinstance(await asking, str)


async def test_a_worker_that_ends_during_check_costs_its_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Worker):
        async def check(self, archive: Archive, now: datetime) -> object:  # type: ignore[override]
            if archive.name == "b.csv":
                os.kill(self.pid, signal.SIGKILL)
            return await super().check(archive, now)

    monkeypatch.setattr(checks, "Worker", Killed)
    for number, name in enumerate("abc"):
        good(tmp_path / f"{name}.csv", number)
    checked = await checks.check_all([str(tmp_path)], NOW)
    assert [(file.name, file.rows) for file in checked] == [("a.csv", 2), ("b.csv", 0), ("c.csv", 2)]
    assert "ended early (signal 9)" in (checked[1].problem or "")


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (MemoryError(), "reading it takes more than 512 MiB of memory"),
        (RecursionError("deep"), "reading it failed (RecursionError)"),
        (KeyError("x"), "reading it failed (KeyError)"),
    ],
)
def test_an_error_that_nobody_foresaw_refuses_the_file_and_retires_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, refusal: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(worker, "describe", fail)
    path = good(tmp_path / "a.csv", 7)
    told: list[Message] = []

    class Teller(worker.Teller):
        def tell(self, message: Message) -> None:
            told.append(message)

    ask = Ask(path=os.fsencode(path), root=None, name="a.csv", now=NOW)
    worker._serve(iter([(ask, Opened(os.open(path, FLAGS), None, None))]), Teller(io.BytesIO()))
    problem, finished = told
    assert isinstance(problem, Problem)
    assert refusal in problem.reject.reason
    assert finished == Finished(spent=True)


def test_a_worker_says_that_it_reads_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(worker, "BEAT_S", 0.0)
    out = io.BytesIO()
    teller = worker.Teller(out)
    descriptor = open_file(good(tmp_path / "a.csv", 7), None)
    with ArchiveFile(descriptor, teller.beat) as file, file.content() as content:
        content.read()
    assert out.getvalue().count(b"Alive") >= 1


def test_a_file_is_opened_without_waiting_and_for_this_process_alone(tmp_path: Path) -> None:
    assert FLAGS & os.O_NONBLOCK
    assert FLAGS & os.O_NOCTTY
    descriptor = open_file(good(tmp_path / "a.csv", 7), None)
    try:
        assert not os.get_inheritable(descriptor)
        assert stat.S_ISREG(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


async def test_the_kinds_of_rejects_are_few_whatever_a_file_holds(tmp_path: Path) -> None:
    """The service counts rejects by kind, and a file could make a million of them."""
    # They stand where no sample is taken.
    fine = "2021-12-31,BTC,1.5,USD\n"
    strange = "".join(f"2021-12-31,BTC,1.5,X{number}\n" for number in range(500))
    before = fine * (1_300 * 1024 // len(fine))
    (tmp_path / "a.csv").write_text(f"date,symbol,price,currency\n{before}{strange}{fine * 200_000}")
    async with Worker() as reader:
        told = [message async for message in read_by(reader, tmp_path / "a.csv")]
    rejects = [reject for message in told if isinstance(message, Portion) for reject in message.batch.rejects]
    assert len(rejects) == 500
    assert {reject.kind for reject in rejects} == {"not in USD"}


async def test_a_batch_is_bounded_by_the_text_of_its_rows(tmp_path: Path) -> None:
    """Rows that are refused are kept with their text, which the service has to hold."""
    slow = "2021-12-31,BTC,x," + "y" * 100_000 + "\n"
    narrow = "2021-12-31,BTC,1,\n"
    (tmp_path / "a.csv").write_text("date,symbol,price_usd,note\n" + (slow + narrow) * 600)
    async with Worker() as reader:
        told = [message async for message in read_by(reader, tmp_path / "a.csv")]
    batches = [message.batch for message in told if isinstance(message, Portion)]
    assert sum(batch.fetched for batch in batches) == 1_200
    assert len(batches) > 2
    assert batches[-1].checkpoint is not None
    assert batches[-1].checkpoint.complete
