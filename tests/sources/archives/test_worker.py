"""The archive worker itself: unforeseen errors, and signs of life."""

import io
import os
from pathlib import Path

import pytest

from kasparro.sources.archives import worker
from kasparro.sources.archives.files import FLAGS, ArchiveFile, OpenFiles, open_file
from kasparro.sources.archives.portions import Problem
from kasparro.sources.archives.worker_messages import Finished, Message, OpenArchive
from tests.support.archives import NOW
from tests.support.hostile_archives import good


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "reading it takes more than 512 MiB of memory"),
        (RecursionError("deep"), "reading it failed (RecursionError)"),
        (KeyError("x"), "reading it failed (KeyError)"),
    ],
)
def test_unforeseen_error_rejects_the_file_and_retires_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(worker, "read_overrides", fail)
    path = good(tmp_path / "a.csv", 7)
    sent: list[Message] = []

    class RecordingWriter(worker.MessageWriter):
        def send(self, message: Message) -> None:
            sent.append(message)

    request = OpenArchive(path=os.fsencode(path), root=None, name="a.csv", now=NOW)
    worker._serve(
        iter([(request, OpenFiles(os.open(path, FLAGS), None, None))]), RecordingWriter(io.BytesIO())
    )

    problem, finished = sent
    assert isinstance(problem, Problem)
    assert reason in problem.reject.reason
    assert finished == Finished(spent=True)


def test_worker_reports_that_it_is_alive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(worker, "HEARTBEAT_S", 0.0)
    out = io.BytesIO()
    writer = worker.MessageWriter(out)
    descriptor = open_file(good(tmp_path / "a.csv", 7), None)
    with ArchiveFile(descriptor, writer.heartbeat) as file, file.content() as content:
        content.read()
    assert out.getvalue().count(b"Heartbeat") >= 1
