"""What a replay of a run consists of: each source's kept payloads, or why it has none."""

from datetime import datetime
from functools import partial

import msgspec

from kasparro.errors import KasparroError
from kasparro.sources.base import Source
from kasparro.sources.registry import READERS
from kasparro.sources.replay import Replay, SkippedSource
from kasparro.store import payloads
from kasparro.store.payloads import Kept
from kasparro.store.pool import Database


class NothingToReplay(KasparroError):
    """A run is not there, or has no payload that could be read again."""


class PreparedReplay(msgspec.Struct, frozen=True):
    """A run's sources as they can be read again, and when the run ended."""

    sources: list[Source]
    fetched_at: datetime


async def prepare_replay(database: Database, run_id: int) -> PreparedReplay:
    """What can be read again of a run. Raises NothingToReplay, DatabaseUnavailable."""
    found = await payloads.kept(database, run_id)
    if found is None:
        raise NothingToReplay(f"there is no run {run_id}; GET /runs lists them")
    if not any(one.good for one in found):
        raise NothingToReplay(
            f"run {run_id} has no payload that could be read again: only lists that the APIs answered are, "
            "as long as KASPARRO_PAYLOAD_RETENTION and KASPARRO_PAYLOAD_MAX_SIZE keep them"
        )
    return PreparedReplay([_source(database, one) for one in found], max(one.ended_at for one in found))


def _source(database: Database, kept: Kept) -> Source:
    if kept.source not in READERS:
        return SkippedSource(kept.source, "archives are read again from their files")
    if not kept.good:
        return SkippedSource(kept.source, "no good answer of this run is kept")
    fetch = partial(payloads.read, database)
    unkept = max(kept.calls - kept.kept, 0)
    return Replay(
        kept.source, READERS[kept.source], kept.good, fetch, unkept=unkept, unchanged=kept.unchanged
    )
