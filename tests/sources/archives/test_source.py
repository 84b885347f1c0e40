"""The source csv with its worker: files known by content, ended processes, and memory that stays bounded."""

import asyncio
import gzip
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import aclosing
from io import BytesIO
from pathlib import Path

import pytest

from kasparro.errors import SourceError
from kasparro.model.batch import BATCH_ROWS, Batch, Checkpoint
from kasparro.model.record import Reject
from kasparro.sources.archives import source as source_module
from kasparro.sources.archives.discover import Archive
from kasparro.sources.archives.reader import Problem
from kasparro.sources.archives.source import Archives
from kasparro.sources.archives.worker_client import Worker
from kasparro.sources.archives.worker_messages import Ask, next_request, packed
from kasparro.sources.base import SourceContext
from tests.sources.archives.conftest import NOW, read_by

HEADER = "id,symbol,name,price_usd,last_updated\n"


def dump(path: Path, rows: int, first: int = 0) -> Path:
    """A ticker dump of that many rows."""
    path.write_text(
        HEADER + "".join(f"coin-{n},C{n},Coin {n},{n}.5,1515230661\n" for n in range(first, first + rows))
    )
    return path


class Memory:
    """What a store would remember between passes."""

    def __init__(self) -> None:
        self.checkpoints: dict[str, Checkpoint] = {}

    async def checkpoint(self, key: str) -> Checkpoint | None:
        return self.checkpoints.get(key)

    async def checkpoint_named(self, name: str) -> Checkpoint | None:
        return next((point for point in self.checkpoints.values() if point.name == name), None)

    def commit(self, batch: Batch) -> None:
        point = batch.checkpoint
        if point is None:
            assert batch.rows == 0
            return
        self.checkpoints = {
            key: other for key, other in self.checkpoints.items() if other.name != point.name
        } | {point.key: point}


async def work(where: Path | None, memory: Memory | None = None) -> tuple[int, list[str]]:
    """One whole pass: the rows it brought, and the files it refused."""
    memory = memory or Memory()
    passing = SourceContext(
        clock=lambda: NOW, checkpoint=memory.checkpoint, checkpoint_named=memory.checkpoint_named
    )
    rows, refused = 0, list[str]()
    async for batch in Archives(None if where is None else str(where)).extract(passing):
        memory.commit(batch)
        rows += batch.rows
        refused += refused_files(batch)
    assert passing.problems == []
    return rows, refused


def refused_files(batch: Batch) -> list[str]:
    """The files that a batch refuses, each in one line."""
    return [reject.summary for reject in batch.rejects if reject.of_file]


def ended(pid: int) -> bool:
    """Whether a process ends within ten seconds, told by the kernel."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 10)[0])
    finally:
        os.close(handle)


@pytest.fixture
def pids(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The workers that the source starts."""
    started: list[int] = []

    class Watched(Worker):
        async def __aenter__(self) -> "Watched":
            await super().__aenter__()
            started.append(self.pid)
            return self

    monkeypatch.setattr(source_module, "Worker", Watched)
    return started


async def test_the_sample_archive_shows_several_coins() -> None:
    rows, refused = await work(None)
    assert rows > 300
    assert refused == []


async def test_a_folder_is_read_whole_in_order_and_an_unchanged_file_never_again(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    dump(tmp_path / "b" / "two.csv", 20_500)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(dump(tmp_path / "copy.csv", 5, first=9).read_bytes()))
    (tmp_path / "notes.md").write_text("not an archive")
    memory = Memory()
    assert (await work(tmp_path, memory))[0] == 20_510
    assert [checkpoint.name for checkpoint in memory.checkpoints.values()] == [
        "a.csv.gz",
        "b/two.csv",
        "copy.csv",
    ]
    assert all(checkpoint.complete for checkpoint in memory.checkpoints.values())
    (tmp_path / "b" / "two.csv").rename(tmp_path / "renamed.csv")
    assert (await work(tmp_path, memory))[0] == 0


async def test_the_same_content_twice_in_a_folder_is_read_once(tmp_path: Path) -> None:
    dump(tmp_path / "a.csv", 5)
    dump(tmp_path / "b.csv", 5)
    assert (await work(tmp_path))[0] == 5


async def test_a_stopped_pass_ends_its_worker_and_the_next_goes_on(tmp_path: Path, pids: list[int]) -> None:
    path = dump(tmp_path / "a.csv", 2 * BATCH_ROWS)
    memory = Memory()
    async with aclosing(
        Archives(str(path)).extract(SourceContext(clock=lambda: NOW, checkpoint=memory.checkpoint))
    ) as batches:
        async for batch in batches:
            memory.commit(batch)
            break
    assert ended(pids[0])
    assert (await work(path, memory))[0] == BATCH_ROWS


async def test_a_cancelled_pass_ends_its_worker(tmp_path: Path, pids: list[int]) -> None:
    path = dump(tmp_path / "a.csv", 2 * BATCH_ROWS)
    begun = asyncio.Event()

    async def consume() -> None:
        async with aclosing(Archives(str(path)).extract(SourceContext(clock=lambda: NOW))) as batches:
            async for _ in batches:
                begun.set()
                await asyncio.Event().wait()

    task = asyncio.create_task(consume())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended(pids[0])


async def test_a_worker_that_dies_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = dump(tmp_path / "big.csv", 4 * BATCH_ROWS)
    async with Worker() as worker:
        told = read_by(worker, path)
        await anext(told)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(SourceError, match=r"big\.csv: the process that read it ended early \(signal 9\)"):
            async for _ in told:
                pass


async def test_a_worker_never_outlives_its_parent(tmp_path: Path) -> None:
    dump(tmp_path / "big.csv", 4 * BATCH_ROWS)
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PARENT,
        str(tmp_path / "big.csv"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    worker = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    assert ended(worker)


PARENT = """
import asyncio, sys
from pathlib import Path
from kasparro.sources.archives.worker_client import Worker
from tests.sources.archives.conftest import read_by
async def main():
    async with Worker() as worker:
        told = read_by(worker, Path(sys.argv[1]))
        await anext(told)
        print(worker.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_one_bad_file_costs_that_file(tmp_path: Path) -> None:
    dump(tmp_path / "good.csv", 5)
    (tmp_path / "bad.csv").write_text("no,table\n1,2\n")
    rows, refused = await work(tmp_path)
    assert rows == 5
    assert len(refused) == 1
    assert refused[0].startswith("bad.csv: ")


async def test_a_file_that_goes_before_its_turn_costs_that_file(tmp_path: Path) -> None:
    dump(tmp_path / "a.csv", 5)
    gone = dump(tmp_path / "b.csv", 6)

    async def checkpoint_named(name: str) -> None:
        gone.unlink(missing_ok=True)

    passing = SourceContext(clock=lambda: NOW, checkpoint_named=checkpoint_named)
    batches = [batch async for batch in Archives(str(tmp_path)).extract(passing)]

    assert [batch.rows for batch in batches] == [5, 0]
    assert refused_files(batches[1]) == ["b.csv: cannot be read (No such file or directory)"]


async def test_a_file_that_goes_just_before_it_is_read_costs_that_file(tmp_path: Path) -> None:
    async with Worker() as worker:
        told = [message async for message in read_by(worker, tmp_path / "a.csv")]
        dump(tmp_path / "b.csv", 5)
        after = [message async for message in read_by(worker, tmp_path / "b.csv")]

    assert told == [Problem(Reject(reason="cannot be read (No such file or directory)", location="a.csv"))]
    assert [type(message).__name__ for message in after] == ["Portion"]


async def test_a_file_that_changes_while_it_is_read_is_not_marked_done(tmp_path: Path) -> None:
    path = dump(tmp_path / "a.csv", 5)
    async with Worker() as worker:
        await worker.identify(Archive(path, path.name), None, NOW)
        dump(path, 6)
        worker.begin(None)
        told = [message async for message in worker.messages(path.name)]
    assert "changed while it was read" in str(told[-1])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: folder / "nosuch.csv", "no file or folder"),
        (lambda folder: folder, "holds no file ending in"),
        (lambda folder: folder / "*.csv", "no file matches"),
    ],
)
async def test_nothing_to_read_is_said_in_one_line(
    tmp_path: Path, make: Callable[[Path], Path], told: str
) -> None:
    with pytest.raises(SourceError, match=told):
        await work(make(tmp_path))


async def test_a_folder_that_is_mounted_later_is_read_by_the_next_pass(tmp_path: Path) -> None:
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
    passing = SourceContext(clock=lambda: NOW, progress=lambda done, total: seen.append((done, total)))
    async for _ in Archives(str(tmp_path)).extract(passing):
        pass
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


async def test_memory_stays_bounded_whatever_the_size_of_the_file(tmp_path: Path) -> None:
    # In an interpreter of its own, whose only child is the worker.
    measured = f"""if True:
        import asyncio, resource, sys
        from kasparro.sources.archives.source import Archives
        from kasparro.sources.base import SourceContext
        async def rows():
            return sum([batch.rows async for batch in Archives({str(tmp_path)!r}).extract(SourceContext())])
        print(asyncio.run(rows()), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    """
    dump(tmp_path / "big.csv", 300_000)
    measuring = await asyncio.create_subprocess_exec(
        sys.executable, "-c", measured, stdout=asyncio.subprocess.PIPE
    )
    rows, kilobytes = map(int, (await measuring.communicate())[0].split())
    assert rows == 300_000
    assert kilobytes < 150 * 1024


def test_a_request_survives_the_wire() -> None:
    request = Ask(path=b"/a/\xff.csv", root=None, name="a.csv", now=NOW)
    assert next_request(BytesIO(packed(request))) == request
    assert next_request(BytesIO()) is None


async def test_names_and_headers_that_are_no_text_are_told_all_the_same(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"odd\xff.csv")).write_bytes(b"pr\xffice,b\x00\n1,2\n")
    (tmp_path / "some.csv").write_bytes(
        HEADER.encode() + b"a,A,\xff,1,1515230661\n" + b"b,B,B,2,1515230661\n" * 2
    )
    rows, refused = await work(tmp_path)
    assert rows == 3
    assert refused[0].startswith("odd?.csv: ")


async def grown(path: Path, head: str, tail: str) -> tuple[int, int, list[str]]:
    """Rows that a file brought, and those it brought after it had grown."""
    memory = Memory()
    path.write_text(head, newline="")
    first, _ = await work(path, memory)
    path.write_text(head + tail, newline="")
    second, refused = await work(path, memory)
    assert (await work(path, memory))[0] == 0
    return first, second, refused


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
async def test_of_a_file_that_grew_the_tail_alone_is_loaded(tmp_path: Path, head: str, tail: str) -> None:
    first, second, refused = await grown(tmp_path / "a.csv", HEADER + head.format(*ROWS), tail.format(*ROWS))
    assert (first, second, refused) == (2, 2, [])


@pytest.mark.parametrize(
    ("head", "tail", "loaded"),
    [
        ("{0}\n{1}", ".5\n{2}\n", 3),  # the last line was not at its end
        ('{0}\n"{1}\n', '{2}",C,C,1,1515230661\n{3}\n', 2),  # nor was the last cell
        ("{0}\n{1}\n", '"c",C,C,"1,234.5",1515230661\n', 1),
    ],
)
async def test_where_the_tail_cannot_stand_alone_the_whole_file_is_loaded(
    tmp_path: Path, head: str, tail: str, loaded: int
) -> None:
    path = tmp_path / "a.csv"
    _, second, _ = await grown(path, HEADER + head.format(*ROWS), tail.format(*ROWS))
    assert second == loaded


async def test_a_tail_that_is_read_another_way_has_the_whole_file_loaded_again(tmp_path: Path) -> None:
    head = "date,price_usd\n2018-01-13,1\n2018-01-14,2\n"
    first, second, _ = await grown(tmp_path / "btc.csv", head, "2018-01-15,3\n")
    assert (first, second) == (2, 1)
    head = "date;price_usd\n2018-01-13;1\n2018-01-14;2\n"
    first, second, _ = await grown(tmp_path / "eth.csv", head, "2018-01-15;3,5\n")
    assert (first, second) == (2, 3)


async def test_rejects_in_a_tail_tell_their_physical_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    memory = Memory()
    path.write_text(HEADER + "".join(f"{row}\n" for row in ROWS[:3]))
    await work(path, memory)
    path.write_text(path.read_text() + f"{ROWS[3]}\ncoin-9,C,C,x,1515230661\n")
    passing = SourceContext(
        clock=lambda: NOW, checkpoint=memory.checkpoint, checkpoint_named=memory.checkpoint_named
    )
    batches = [batch async for batch in Archives(str(path)).extract(passing)]
    assert [batch.rows for batch in batches] == [1]
    assert [reject.line for reject in batches[0].rejects] == [6]
    assert batches[0].checkpoint is not None
    assert batches[0].checkpoint.position == 5


async def test_a_changed_file_is_loaded_again_and_so_is_one_put_back(tmp_path: Path) -> None:
    memory = Memory()
    path = dump(tmp_path / "a.csv", 5)
    assert (await work(path, memory))[0] == 5
    dump(path, 4, first=1)
    assert (await work(path, memory))[0] == 4
    dump(path, 5)
    assert (await work(path, memory))[0] == 5


async def test_a_changed_description_has_the_file_loaded_again(tmp_path: Path) -> None:
    memory = Memory()
    path = tmp_path / "btc-usd.csv"
    path.write_text("date;price\n2018-01-01;1,25\n")
    assert (await work(path, memory))[0] == 1
    (tmp_path / "btc-usd.csv.toml").write_text('coin.id = "bitcoin"\n')
    assert (await work(path, memory))[0] == 1
    (tmp_path / "btc-usd.csv.toml").write_text('# the same\n[coin]\nid = "bitcoin"\n')
    assert (await work(path, memory))[0] == 0
    (tmp_path / "kasparro.toml").write_text("dezimal = 1\n")
    rows, refused = await work(path, memory)
    assert rows == 0
    assert refused == [
        "btc-usd.csv: not loaded, for kasparro.toml: unknown key 'dezimal'; did you mean decimal?"
    ]


async def test_files_of_one_name_in_many_folders_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        dump(tmp_path / folder / "prices.csv", 5, first=len(folder) + ord(folder))
    (tmp_path / "a" / "prices.csv.toml").write_text('currency = "USD"\n')
    memory = Memory()
    assert (await work(tmp_path / "*" / "*", memory))[0] == 10
    assert [point.name for point in memory.checkpoints.values()] == ["a/prices.csv", "b/prices.csv"]
    assert (await work(tmp_path / "*" / "*", memory))[0] == 0


async def test_several_workers_bring_the_same_batches_in_the_order_of_the_files(tmp_path: Path) -> None:
    for file in range(7):
        dump(tmp_path / f"{file}.csv", 20 if file != 1 else BATCH_ROWS + 20, first=file)
    (tmp_path / "3.csv").write_text("no,table\n1,2\n")
    (tmp_path / "5.csv").write_bytes((tmp_path / "4.csv").read_bytes())
    told = []
    for workers in (1, 2, 3):
        passing = SourceContext(clock=lambda: NOW)
        told.append([batch async for batch in Archives(str(tmp_path), workers).extract(passing)])
    assert told[0] == told[1] == told[2]
    assert len(told[0]) == 7
    assert len(refused_files(told[0][-1])) == 1


async def test_a_pass_that_stops_ends_all_its_workers(tmp_path: Path, pids: list[int]) -> None:
    for file in range(3):
        dump(tmp_path / f"{file}.csv", BATCH_ROWS + 20, first=file)
    async with aclosing(Archives(str(tmp_path), 2).extract(SourceContext(clock=lambda: NOW))) as batches:
        await anext(batches)
    assert len(pids) == 2
    assert all(ended(pid) for pid in pids)


async def test_a_file_that_ends_the_worker_costs_only_itself(
    tmp_path: Path, pids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    dump(tmp_path / "a.csv", 3 * BATCH_ROWS)
    dump(tmp_path / "b.csv", 7, first=5)
    passing = SourceContext(clock=lambda: NOW)
    rows, refused = 0, list[str]()

    async with aclosing(Archives(str(tmp_path), workers=1).extract(passing)) as batches:
        async for batch in batches:
            if not rows:
                os.kill(pids[0], signal.SIGKILL)
            rows += batch.rows
            refused += refused_files(batch)

    assert BATCH_ROWS < rows + 1 <= 3 * BATCH_ROWS + 7
    assert refused == ["a.csv: the process that read it ended early (signal 9)"]
    assert rows % BATCH_ROWS == 7


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n", ""])
async def test_the_last_row_counts_however_it_ends(tmp_path: Path, end: str) -> None:
    path = dump(tmp_path / "a.csv", 5)
    path.write_text(path.read_text().rstrip("\r\n") + end, newline="")

    assert (await work(path))[0] == 5


async def test_a_cell_beyond_all_bounds_costs_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"id,price\n{'x' * 200_000},1\n")
    dump(tmp_path / "b.csv", 5)

    rows, refused = await work(tmp_path)

    assert rows == 5
    assert len(refused) == 1
    assert refused[0].startswith("a.csv: not loaded")


async def test_a_worker_that_is_held_back_ends_at_once(tmp_path: Path) -> None:
    path = dump(tmp_path / "big.csv", 8 * BATCH_ROWS)
    async with asyncio.timeout(10):
        async with Worker() as worker:
            await worker.identify(Archive(path, path.name), None, NOW)
            worker.begin(None)
            stdout = worker._process.stdout
            assert stdout is not None
            # Nobody reads: what it tells fills the pipe, and the pipe is held back, which only polling sees.
            while not stdout._paused:  # type: ignore[attr-defined]  # noqa: ASYNC110
                await asyncio.sleep(0.01)
