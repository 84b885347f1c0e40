"""The service's side of the archive worker: processes that die, hang or outlive, and files that change."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from kasparro.errors import SourceError
from kasparro.model.batch import BATCH_ROWS
from kasparro.model.record import Reject
from kasparro.sources.archives import worker_client
from kasparro.sources.archives.found import Archive
from kasparro.sources.archives.identity import Identity
from kasparro.sources.archives.portions import Portion, Problem
from kasparro.sources.archives.worker_client import Worker
from tests.support.archives import HANG_S, NOW, dump, ended, read_by, with_children
from tests.support.hostile_archives import good


@pytest.mark.slow
async def test_killed_worker_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = dump(tmp_path / "big.csv", 4 * BATCH_ROWS)
    async with Worker() as worker:
        messages = read_by(worker, path)
        await anext(messages)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(SourceError, match=r"big\.csv: the process that read it ended early \(signal 9\)"):
            async for _ in messages:
                pass


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the two processes of root")
@pytest.mark.parametrize("victim", [0, -1])
async def test_killing_either_process_ends_both(tmp_path: Path, victim: int) -> None:
    path = good(tmp_path / "a.csv", 7)
    async with asyncio.timeout(HANG_S), Worker() as worker:
        await worker.identify(Archive(path, path.name), None, NOW)
        handles = [os.pidfd_open(pid) for pid in with_children(worker.pid)]
        os.kill(with_children(worker.pid)[victim], signal.SIGKILL)
        worker.start_reading(None)
        with pytest.raises(SourceError, match=r"a\.csv: the process that read it ended early \(signal 9\)"):
            async for _ in worker.messages(path.name):
                pass
        for handle in handles:
            ended = asyncio.Event()
            asyncio.get_running_loop().add_reader(handle, ended.set)
            await ended.wait()
            asyncio.get_running_loop().remove_reader(handle)
            os.close(handle)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
async def test_signal_to_all_processes_of_a_command_does_not_end_the_worker(
    tmp_path: Path, number: signal.Signals
) -> None:
    """They mean the command, which ends the worker itself."""
    path = dump(tmp_path / "a.csv", 2 * BATCH_ROWS)
    async with asyncio.timeout(HANG_S), Worker() as worker:
        await worker.identify(Archive(path, path.name), None, NOW)
        for pid in with_children(worker.pid):
            os.kill(pid, number)
        worker.start_reading(None)
        found = [message async for message in worker.messages(path.name)]
    assert sum(message.batch.rows for message in found if isinstance(message, Portion)) == 2 * BATCH_ROWS


PARENT = """
import asyncio, sys
from pathlib import Path
from kasparro.sources.archives.worker_client import Worker
from tests.support.archives import read_by
async def main():
    async with Worker() as worker:
        messages = read_by(worker, Path(sys.argv[1]))
        await anext(messages)
        print(worker.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.slow
async def test_worker_ends_with_its_parent(tmp_path: Path) -> None:
    dump(tmp_path / "big.csv", 4 * BATCH_ROWS)
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(tmp_path / "big.csv"), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    worker = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    assert ended(worker)


@pytest.mark.slow
async def test_blocked_worker_ends_when_the_client_leaves(tmp_path: Path) -> None:
    path = dump(tmp_path / "big.csv", 8 * BATCH_ROWS)
    async with asyncio.timeout(HANG_S):
        async with Worker() as worker:
            await worker.identify(Archive(path, path.name), None, NOW)
            worker.start_reading(None)
            stdout = worker._process.stdout
            assert stdout is not None
            # Its messages fill the pipe until the stream pauses, which nothing but polling can see.
            while not stdout._paused:  # type: ignore[attr-defined]  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_answer_that_came_while_the_event_loop_was_blocked_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = good(tmp_path / "a.csv", 7)
    async with asyncio.timeout(HANG_S), Worker() as worker:
        # It has started before the time counts.
        await worker.find(str(path))
        monkeypatch.setattr(worker_client, "SILENCE_S", 1.0)
        identifying = asyncio.create_task(worker.identify(Archive(path, path.name), None, NOW))
        await asyncio.sleep(0.01)
        time.sleep(2.5)  # noqa: ASYNC251 - blocks the event loop on purpose
        assert isinstance(await identifying, Identity)


async def test_file_deleted_before_it_is_read_is_rejected(tmp_path: Path) -> None:
    async with Worker() as worker:
        messages = [message async for message in read_by(worker, tmp_path / "a.csv")]
        dump(tmp_path / "b.csv", 5)
        next_messages = [message async for message in read_by(worker, tmp_path / "b.csv")]

    assert messages == [
        Problem(Reject(reason="cannot be read (No such file or directory)", location="a.csv"))
    ]
    assert [type(message).__name__ for message in next_messages] == ["Portion"]


async def test_file_that_changes_while_it_is_read_is_not_complete(tmp_path: Path) -> None:
    path = dump(tmp_path / "a.csv", 5)
    async with Worker() as worker:
        await worker.identify(Archive(path, path.name), None, NOW)
        dump(path, 6)
        worker.start_reading(None)
        messages = [message async for message in worker.messages(path.name)]
    assert "changed while it was read" in str(messages[-1])


@pytest.mark.parametrize("change", ["truncated", "grown", "rewritten", "replaced"])
async def test_file_that_changes_between_digest_and_reading_is_not_mixed(tmp_path: Path, change: str) -> None:
    path = good(tmp_path / "a.csv", 7)
    os.utime(path, ns=(1, 1))
    async with asyncio.timeout(HANG_S), Worker() as worker:
        await worker.identify(Archive(path, path.name), None, NOW)
        if change == "truncated":
            os.truncate(path, 30)
        elif change == "grown":
            with path.open("a") as file:
                file.write("2021-12-29,XRP,1\n" * 100_000)
        elif change == "rewritten":
            path.write_text(path.read_text().replace("7", "8"))
        else:
            good(tmp_path / "other.csv", 8).rename(path)
        worker.start_reading(None)
        messages = [message async for message in worker.messages(path.name)]
    portions = [message for message in messages if isinstance(message, Portion)]
    rows = sum(portion.batch.rows for portion in portions)
    if change == "replaced":
        # The file that was digested stays open and is read to its end; the next run finds the new one.
        assert rows == 2
        assert [type(message) for message in messages] == [Portion]
    else:
        # The next run reads what was appended after the file was opened.
        assert rows <= 2
        assert isinstance(messages[-1], Problem)
        assert all(not portion.batch.checkpoint.complete for portion in portions)  # type: ignore[union-attr]
