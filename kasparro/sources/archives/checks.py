"""Checks archives for `kasparro check`, in a worker, so that no file can end the command."""

from collections.abc import Iterable
from contextlib import AsyncExitStack
from datetime import datetime

from kasparro.sources.archives.checked import Checked, not_checked
from kasparro.sources.archives.worker_client import Worker, WorkerEnded


async def check_all(names: Iterable[str], now: datetime) -> list[Checked]:
    """Check every file that the names mean. Raises SourceError if a name means no file."""
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(Worker())
        searches = [await worker.find(name) for name in names]
        checked = [
            not_checked(folder.name, f"{folder.name}: {folder.reason}")
            for found in searches
            for folder in found.unsearched
        ]
        for archive in (archive for found in searches for archive in found.archives):
            if not worker.alive:
                worker = await stack.enter_async_context(Worker())
            try:
                checked.append(await worker.check(archive, now))
            except WorkerEnded as error:
                checked.append(not_checked(archive.name, str(error)))
            if not worker.alive:
                await worker.end()
        return checked
