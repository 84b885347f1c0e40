"""Compares the archives that earlier runs read with the files that are there now."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Literal

from kasparro.errors import SourceError
from kasparro.model.batch import KnownFile
from kasparro.sources.archives.portions import Problem
from kasparro.sources.archives.worker_client import Worker, WorkerEnded

FileState = Literal["loaded", "incomplete", "changed", "gone", "rejected", "forgotten"]


async def file_states(setting: str | None, files: Sequence[KnownFile], now: datetime) -> list[FileState]:
    """The state of each file, in their order.

    A file that was not forgotten or rejected is `gone` if the setting does not lead to it, `changed` if the
    next run reads it once more, because its content, its name, its overrides or the detection changed, and
    `incomplete` if it was not loaded to its end.
    """
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(Worker())
        try:
            found = {archive.name: archive for archive in (await worker.find(setting)).archives}
        except SourceError:
            found = {}
        states: list[FileState] = []
        for file in files:
            if file.forgotten:
                states.append("forgotten")
            elif (archive := found.get(file.name)) is None:
                states.append("gone")
            else:
                if not worker.alive:
                    worker = await stack.enter_async_context(Worker())
                try:
                    identity = await worker.identify(archive, file, now)
                except WorkerEnded:
                    identity = None
                if identity is not None and not isinstance(identity, Problem):
                    worker.skip()
                    if identity.key == file.key:
                        states.append(_unchanged(file))
                        continue
                states.append("changed")
        return states


def _unchanged(file: KnownFile) -> FileState:
    if file.problem is not None:
        return "rejected"
    return "loaded" if file.complete else "incomplete"
