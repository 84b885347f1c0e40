"""Stands for an archive in the run that forgets it: one batch, which takes its records back."""

from collections.abc import AsyncGenerator

import msgspec

from kasparro.model.batch import Batch, BatchBuilder
from kasparro.sources.archives.source import Archives
from kasparro.sources.base import SourceContext


class ForgottenArchive:
    """The source `csv` in a run that forgets the archive `file`."""

    name = Archives.name

    def __init__(self, file: str) -> None:
        self._file = file

    async def extract(self, context: SourceContext) -> AsyncGenerator[Batch, None]:
        """One batch, without records."""
        del context
        yield msgspec.structs.replace(BatchBuilder().take(), forgets=self._file)
