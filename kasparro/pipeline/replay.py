"""Prepares a replay: each source of an earlier run with its stored payloads."""

from datetime import datetime
from functools import partial

import msgspec

from kasparro.errors import KasparroError
from kasparro.sources import registry
from kasparro.sources.base import Source
from kasparro.sources.replay import Replay, SkippedSource
from kasparro.store import payloads
from kasparro.store.payloads import StoredPayloads
from kasparro.store.pool import Database


class NothingToReplay(KasparroError):
    """The run does not exist, or none of its payloads can be replayed."""


class PreparedReplay(msgspec.Struct, frozen=True):
    """The sources of an earlier run, ready to be replayed, and when that run ended."""

    sources: list[Source]
    fetched_at: datetime


async def prepare_replay(database: Database, run_id: int) -> PreparedReplay:
    """Prepare the replay of a run. Raises NothingToReplay, DatabaseUnavailable."""
    stored = await payloads.stored(database, run_id)
    if stored is None:
        raise NothingToReplay(f"there is no run {run_id}; GET /runs lists all runs")
    if not any(source.readable for source in stored):
        raise NothingToReplay(
            f"run {run_id} has no payload to replay; only lists that an API sent can be replayed, "
            "until KASPARRO_PAYLOAD_RETENTION and KASPARRO_PAYLOAD_MAX_SIZE remove them"
        )
    return PreparedReplay(
        [_source(database, source) for source in stored], max(source.ended_at for source in stored)
    )


def _source(database: Database, stored: StoredPayloads) -> Source:
    definition = registry.definitions().get(stored.source)
    if definition is None:
        return SkippedSource(stored.source, "no installed package has this source")
    if definition.read is None:
        return SkippedSource(stored.source, "archives are not replayed; a run reads their files again")
    if not stored.readable:
        return SkippedSource(stored.source, "no usable payload of this run is stored")
    return Replay(
        stored.source,
        definition.read,
        stored.readable,
        partial(payloads.read, database),
        missing=max(stored.calls - stored.stored, 0),
        unchanged=stored.unchanged,
        read_contracts=definition.read_contracts,
    )
