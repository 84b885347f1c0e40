"""The source csv: files known by their content, files that grow, and memory that stays bounded."""

import asyncio
import gzip
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from pathlib import Path

import pytest

from kasparro.errors import SourceError
from kasparro.model.batch import MERGED_ROWS, KnownFile
from kasparro.sources.archives import source as source_module
from kasparro.sources.archives import worker_client
from kasparro.sources.archives.found import Archive
from kasparro.sources.archives.identity import Identity
from kasparro.sources.archives.known_coins import KnownCoin
from kasparro.sources.archives.portions import Problem
from kasparro.sources.archives.reader import BATCH_ROWS
from kasparro.sources.archives.source import Archives
from kasparro.sources.archives.worker_client import Worker
from kasparro.sources.base import SourceContext, processes_started
from tests.support.archives import (
    HANG_S,
    HEADER,
    NOW,
    Checkpoints,
    dump,
    ended,
    rejected_files,
    run_source,
    with_children,
)
from tests.support.hostile_archives import good

pytestmark = pytest.mark.slow


async def test_sample_archive_loads() -> None:
    rows, rejected = await run_source(None)
    assert rows > 300
    assert rejected == []


async def test_folder_is_read_in_order_and_known_content_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    dump(tmp_path / "b" / "two.csv", 20_500)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(dump(tmp_path / "copy.csv", 5, first=9).read_bytes()))
    (tmp_path / "notes.md").write_text("not an archive")
    checkpoints = Checkpoints()
    assert (await run_source(tmp_path, checkpoints))[0] == 20_510
    assert [checkpoint.name for checkpoint in checkpoints.files.values()] == [
        "a.csv.gz",
        "b/two.csv",
        "copy.csv",
    ]
    assert all(checkpoint.complete for checkpoint in checkpoints.files.values())
    (tmp_path / "b" / "two.csv").rename(tmp_path / "renamed.csv")
    assert (await run_source(tmp_path, checkpoints))[0] == 0


async def test_same_content_is_read_once(tmp_path: Path) -> None:
    dump(tmp_path / "a.csv", 5)
    dump(tmp_path / "b.csv", 5)
    assert (await run_source(tmp_path))[0] == 5


async def test_stopped_run_ends_its_worker_and_the_next_run_resumes(tmp_path: Path, pids: list[int]) -> None:
    path = dump(tmp_path / "a.csv", 2 * MERGED_ROWS)
    checkpoints = Checkpoints()
    async with aclosing(Archives(str(path)).extract(checkpoints.context())) as batches:
        async for batch in batches:
            checkpoints.commit(batch)
            break
    assert ended(pids[0])
    assert (await run_source(path, checkpoints))[0] == 2 * MERGED_ROWS - batch.rows


async def test_cancelled_run_ends_its_worker(tmp_path: Path, pids: list[int]) -> None:
    path = dump(tmp_path / "a.csv", 2 * MERGED_ROWS)
    started = asyncio.Event()

    async def consume() -> None:
        async with aclosing(Archives(str(path)).extract(SourceContext(clock=lambda: NOW))) as batches:
            async for _ in batches:
                started.set()
                await asyncio.Event().wait()

    task = asyncio.create_task(consume())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended(pids[0])


async def test_run_uses_the_worker_that_was_started_for_it(tmp_path: Path, pids: list[int]) -> None:
    dump(tmp_path / "a.csv", 5)
    source = Archives(str(tmp_path), workers=1)
    async with processes_started([source]):
        assert len(pids) == 1
        for _ in range(2):
            batches = [batch async for batch in source.extract(SourceContext(clock=lambda: NOW))]
            assert [batch.rows for batch in batches] == [5]
            assert ended(pids[-1])
    # The second run started its own.
    assert len(pids) == 2


async def test_worker_of_a_run_that_never_begins_ends(tmp_path: Path, pids: list[int]) -> None:
    source = Archives(str(tmp_path))
    async with processes_started([source]):
        pass
    assert ended(pids[0])


async def test_run_starts_a_worker_if_the_one_started_for_it_has_died(
    tmp_path: Path, pids: list[int]
) -> None:
    dump(tmp_path / "a.csv", 5)
    source = Archives(str(tmp_path), workers=1)
    async with processes_started([source]):
        assert source._waiting is not None
        os.kill(pids[0], signal.SIGKILL)
        await source._waiting._process.wait()
        batches = [batch async for batch in source.extract(SourceContext(clock=lambda: NOW))]
    assert [batch.rows for batch in batches] == [5]


async def test_run_reports_why_no_worker_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    source = Archives(str(tmp_path))
    async with processes_started([source]):
        with pytest.raises(FileNotFoundError, match="absent"):
            await anext(source.extract(SourceContext(clock=lambda: NOW)))


async def test_bad_file_costs_that_file(tmp_path: Path) -> None:
    dump(tmp_path / "good.csv", 5)
    (tmp_path / "bad.csv").write_text("no,table\n1,2\n")
    rows, rejected = await run_source(tmp_path)
    assert rows == 5
    assert len(rejected) == 1
    assert rejected[0].startswith("bad.csv: ")


async def test_file_deleted_during_the_run_costs_that_file(tmp_path: Path) -> None:
    dump(tmp_path / "a.csv", 5)
    deleted = dump(tmp_path / "b.csv", 6)

    async def file_named(name: str) -> None:
        deleted.unlink(missing_ok=True)

    context = SourceContext(clock=lambda: NOW, file_named=file_named)
    batches = [batch async for batch in Archives(str(tmp_path)).extract(context)]

    assert [batch.rows for batch in batches] == [5, 0]
    assert rejected_files(batches[1]) == ["b.csv: cannot be read (No such file or directory)"]


@pytest.mark.parametrize(
    ("path_in", "error"),
    [
        (lambda folder: folder / "nosuch.csv", "no file or folder"),
        (lambda folder: folder, "holds no file ending in"),
        (lambda folder: folder / "*.csv", "no file matches"),
    ],
)
async def test_nothing_to_read_is_an_error(
    tmp_path: Path, path_in: Callable[[Path], Path], error: str
) -> None:
    with pytest.raises(SourceError, match=error):
        await run_source(path_in(tmp_path))


async def test_folder_that_appears_later_is_read_by_the_next_run(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    source = Archives(str(folder))
    with pytest.raises(SourceError, match=f"there is no file or folder {folder}"):
        await anext(source.extract(SourceContext(clock=lambda: NOW)))
    folder.mkdir()
    dump(folder / "a.csv", 5)

    assert [batch.valid async for batch in source.extract(SourceContext(clock=lambda: NOW))] == [5]


async def test_progress_ends_at_the_size_of_all_files(tmp_path: Path) -> None:
    dump(tmp_path / "a.csv", BATCH_ROWS + 5)
    dump(tmp_path / "b.csv", 10, first=7)
    seen: list[tuple[float, float | None]] = []
    context = SourceContext(clock=lambda: NOW, progress=lambda done, total: seen.append((done, total)))
    async for _ in Archives(str(tmp_path)).extract(context):
        pass
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


async def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    # In a process of its own, whose only child is the worker.
    program = f"""if True:
        import asyncio, resource, sys
        from kasparro.sources.archives.source import Archives
        from kasparro.sources.base import SourceContext, processes_started
        async def rows():
            return sum([batch.rows async for batch in Archives({str(tmp_path)!r}).extract(SourceContext())])
        print(asyncio.run(rows()), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    """
    dump(tmp_path / "big.csv", 300_000)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    rows, kilobytes = map(int, (await process.communicate())[0].split())
    assert rows == 300_000
    assert kilobytes < 150 * 1024


async def test_undecodable_names_and_headers_are_shown_replaced(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"odd\xff.csv")).write_bytes(b"pr\xffice,b\x00\n1,2\n")
    (tmp_path / "some.csv").write_bytes(
        HEADER.encode() + b"a,A,\xff,1,1515230661\n" + b"b,B,B,2,1515230661\n" * 2
    )
    rows, rejected = await run_source(tmp_path)
    assert rows == 3
    assert rejected[0].startswith("odd?.csv: ")


async def rows_before_and_after(path: Path, head: str, tail: str) -> tuple[int, int, list[str]]:
    """The rows of a file, then the rows and rejected files after it has grown."""
    checkpoints = Checkpoints()
    path.write_text(head, newline="")
    first, _ = await run_source(path, checkpoints)
    path.write_text(head + tail, newline="")
    second, rejected = await run_source(path, checkpoints)
    assert (await run_source(path, checkpoints))[0] == 0
    return first, second, rejected


ROWS = [f"coin-{n},C{n},Coin {n},{n}.5,1515230661" for n in range(6)]


@pytest.mark.parametrize(
    ("head", "tail"),
    [
        ("{0}\n{1}\n", "{2}\n{3}\n"),
        ("{0}\n{1}", "\n{2}\n{3}"),
        ("{0}\r\n{1}", "\r\n{2}\r\n{3}\r\n"),
        ("{0}\r\n\r\n{1}\r\n", "\r\n{2}\r\n{3}\r\n"),
    ],
)
async def test_only_the_tail_of_a_grown_file_is_loaded(tmp_path: Path, head: str, tail: str) -> None:
    first, second, rejected = await rows_before_and_after(
        tmp_path / "a.csv", HEADER + head.format(*ROWS), tail.format(*ROWS)
    )
    assert (first, second, rejected) == (2, 2, [])


@pytest.mark.parametrize(
    ("head", "tail", "loaded"),
    [
        ("{0}\n{1}", ".5\n{2}\n", 3),  # the last line was not complete
        ('{0}\n"{1}\n', '{2}",C,C,1,1515230661\n{3}\n', 2),  # the last cell was not complete
        ("{0}\n{1}\n", '"c",C,C,"1,234.5",1515230661\n', 1),
    ],
)
async def test_whole_file_is_loaded_if_the_tail_cannot_stand_alone(
    tmp_path: Path, head: str, tail: str, loaded: int
) -> None:
    path = tmp_path / "a.csv"
    _, second, _ = await rows_before_and_after(path, HEADER + head.format(*ROWS), tail.format(*ROWS))
    assert second == loaded


async def test_whole_file_is_loaded_if_the_tail_is_detected_differently(tmp_path: Path) -> None:
    head = "date,price_usd\n2018-01-13,1\n2018-01-14,2\n"
    first, second, _ = await rows_before_and_after(tmp_path / "btc.csv", head, "2018-01-15,3\n")
    assert (first, second) == (2, 1)
    head = "date;price_usd\n2018-01-13;1\n2018-01-14;2\n"
    first, second, _ = await rows_before_and_after(tmp_path / "eth.csv", head, "2018-01-15;3,5\n")
    assert (first, second) == (2, 3)


async def test_rejects_in_a_tail_have_their_line_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    checkpoints = Checkpoints()
    path.write_text(HEADER + "".join(f"{row}\n" for row in ROWS[:3]))
    await run_source(path, checkpoints)
    path.write_text(path.read_text() + f"{ROWS[3]}\ncoin-9,C,C,x,1515230661\n")
    batches = [batch async for batch in Archives(str(path)).extract(checkpoints.context())]
    assert [batch.rows for batch in batches] == [1]
    assert [reject.line for reject in batches[0].rejects] == [6]
    assert batches[0].checkpoint is not None
    assert batches[0].checkpoint.position == 5


async def test_changed_and_restored_files_are_loaded_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints()
    path = dump(tmp_path / "a.csv", 5)
    assert (await run_source(path, checkpoints))[0] == 5
    dump(path, 4, first=1)
    assert (await run_source(path, checkpoints))[0] == 4
    dump(path, 5)
    assert (await run_source(path, checkpoints))[0] == 5


async def test_changed_overrides_load_the_file_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints()
    path = tmp_path / "btc-usd.csv"
    path.write_text("date;price\n2018-01-01;1,25\n")
    assert (await run_source(path, checkpoints))[0] == 1
    (tmp_path / "btc-usd.csv.toml").write_text('coin.id = "bitcoin"\n')
    assert (await run_source(path, checkpoints))[0] == 1
    (tmp_path / "btc-usd.csv.toml").write_text('# the same\n[coin]\nid = "bitcoin"\n')
    assert (await run_source(path, checkpoints))[0] == 0
    (tmp_path / "kasparro.toml").write_text("dezimal = 1\n")
    rows, rejected = await run_source(path, checkpoints)
    assert rows == 0
    assert rejected == [
        "btc-usd.csv: not loaded: kasparro.toml: unknown key 'dezimal'; did you mean decimal?"
    ]


async def test_files_of_the_same_name_in_two_folders_are_distinct(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        dump(tmp_path / folder / "prices.csv", 5, first=len(folder) + ord(folder))
    (tmp_path / "a" / "prices.csv.toml").write_text('currency = "USD"\n')
    checkpoints = Checkpoints()
    assert (await run_source(tmp_path / "*" / "*", checkpoints))[0] == 10
    assert [point.name for point in checkpoints.files.values()] == ["a/prices.csv", "b/prices.csv"]
    assert (await run_source(tmp_path / "*" / "*", checkpoints))[0] == 0


async def test_number_of_workers_does_not_change_the_batches(tmp_path: Path) -> None:
    for file in range(7):
        dump(tmp_path / f"{file}.csv", 20 if file != 1 else MERGED_ROWS + BATCH_ROWS, first=file)
    (tmp_path / "3.csv").write_text("no,table\n1,2\n")
    (tmp_path / "5.csv").write_bytes((tmp_path / "4.csv").read_bytes())
    by_workers = []
    for workers in (1, 2, 3):
        source = Archives(str(tmp_path), workers)
        by_workers.append([batch async for batch in source.extract(SourceContext(clock=lambda: NOW))])
    assert by_workers[0] == by_workers[1] == by_workers[2]
    assert len(by_workers[0]) == 7
    assert len(rejected_files(by_workers[0][-1])) == 1


async def test_stopped_run_ends_all_its_workers(tmp_path: Path, pids: list[int]) -> None:
    for file in range(3):
        dump(tmp_path / f"{file}.csv", MERGED_ROWS + 20, first=file)
    async with aclosing(Archives(str(tmp_path), 2).extract(SourceContext(clock=lambda: NOW))) as batches:
        await anext(batches)
    assert len(pids) == 2
    assert all(ended(pid) for pid in pids)


async def test_killed_worker_costs_one_file(tmp_path: Path, pids: list[int]) -> None:
    dump(tmp_path / "a.csv", 2 * MERGED_ROWS)
    dump(tmp_path / "b.csv", 7, first=5)
    context = SourceContext(clock=lambda: NOW)
    rows, rejected = 0, list[str]()

    async with aclosing(Archives(str(tmp_path), workers=1).extract(context)) as batches:
        async for batch in batches:
            if not rows:
                os.kill(pids[0], signal.SIGKILL)
            rows += batch.rows
            rejected += rejected_files(batch)

    assert MERGED_ROWS < rows < 2 * MERGED_ROWS
    assert rejected == ["a.csv: the process that read it ended early (signal 9)"]


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n", ""])
async def test_last_row_counts_with_any_line_end(tmp_path: Path, end: str) -> None:
    path = dump(tmp_path / "a.csv", 5)
    path.write_text(path.read_text().rstrip("\r\n") + end, newline="")

    assert (await run_source(path))[0] == 5


async def test_oversized_cell_costs_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"id,price\n{'x' * 200_000},1\n")
    dump(tmp_path / "b.csv", 5)

    rows, rejected = await run_source(tmp_path)

    assert rows == 5
    assert len(rejected) == 1
    assert rejected[0].startswith("a.csv: not loaded")


async def test_hanging_file_system_costs_a_file_and_then_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedWorker(Worker):
        """A stopped process looks like a process whose file system hangs."""

        async def identify(
            self,
            archive: Archive,
            earlier: KnownFile | None,
            now: datetime,
            coins: Sequence[KnownCoin] = (),
        ) -> Identity | Problem:
            if archive.name.startswith("hanging"):
                for pid in with_children(self.pid):
                    os.kill(pid, signal.SIGSTOP)
                monkeypatch.setattr(worker_client, "SILENCE_S", 0.1)
            try:
                return await super().identify(archive, earlier, now, coins)
            finally:
                monkeypatch.setattr(worker_client, "SILENCE_S", HANG_S)

    monkeypatch.setattr(source_module, "Worker", StoppedWorker)
    good(tmp_path / "a.csv", 7)
    good(tmp_path / "hanging.csv", 8)
    good(tmp_path / "z.csv", 9)
    rows, rejected = await run_source(tmp_path)
    assert rows == 4
    assert rejected == ["hanging.csv: the process that read it sent nothing for 0 s"]

    for number in range(4):
        good(tmp_path / f"hanging{number}.csv", 10 + number)
    named: list[str] = []

    async def run() -> None:
        async for batch in Archives(str(tmp_path)).extract(SourceContext(clock=lambda: NOW)):
            named.extend(rejected_files(batch))

    with pytest.raises(SourceError, match="3 files did not answer"):
        await run()
    # The three files are rejected by name before the source gives up.
    assert len(named) == 3
