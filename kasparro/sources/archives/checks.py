"""The command `check`: what files would load, as the worker finds it, so that no file ends the command."""

from collections.abc import Iterable
from contextlib import AsyncExitStack
from datetime import datetime

from kasparro.sources.archives.explain import Checked, refused
from kasparro.sources.archives.worker_client import Worker, WorkerEnded


async def check_all(names: Iterable[str], now: datetime) -> list[Checked]:
    """What each file that the names mean would load. Raises SourceError where a name means nothing."""
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(Worker())
        found = [await worker.find(name) for name in names]
        checked = [
            refused(folder.name, f"{folder.name}: {folder.reason}")
            for some in found
            for folder in some.unsearched
        ]
        for archive in (archive for some in found for archive in some.archives):
            if not worker.alive:
                worker = await stack.enter_async_context(Worker())
            try:
                checked.append(await worker.check(archive, now))
            except WorkerEnded as error:
                checked.append(refused(archive.name, str(error)))
            if not worker.alive:
                await worker.end()
        return checked
