"""Stores payloads compressed, reads them again, and deletes them after their retention."""

import asyncio
import sys
from datetime import datetime

import msgspec
import structlog

from kasparro.model.payload import Payload, Retention
from kasparro.store.pool import Database
from kasparro.store.sql import statements

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

log = structlog.get_logger()
_SQL = statements("operations/payloads.sql")
# Storing a payload may take this long; the records that it contains wait meanwhile.
SAVE_TIMEOUT_S = 10


class StoredPayloads(msgspec.Struct, frozen=True):
    """The payloads of one source in a run.

    `calls` it made, `stored` payloads of these, how many of them say that nothing had changed (304), the ids
    of the `readable` ones in order, and when the run ended.
    """

    source: str
    calls: int
    stored: int
    unchanged: int
    readable: list[int]
    ended_at: datetime


async def compressed(body: bytes) -> bytes:
    """A body as it is stored; compressed in a thread."""
    return await asyncio.to_thread(zstd.compress, body)


async def save(database: Database, run_id: int, source: str, payload: Payload, body: bytes) -> None:
    """Store a payload with its `compressed` body. Raises DatabaseUnavailable."""
    async with database.writing() as connection:
        await connection.execute(
            _SQL["save_payload"],
            run_id,
            source,
            payload.path,
            _json(payload.parameters),
            payload.received_at,
            payload.status,
            _json(payload.headers),
            payload.complete,
            len(payload.body),
            len(body),
            body,
            payload.items_limit,
            timeout=SAVE_TIMEOUT_S,
        )


async def stored(database: Database, run_id: int) -> list[StoredPayloads] | None:
    """The payloads of a run by source; None if there is no such run. Raises DatabaseUnavailable."""
    async with database.writing() as connection:
        if not await connection.fetchval(_SQL["known_run"], run_id):
            return None
        return [StoredPayloads(**row) for row in await connection.fetch(_SQL["run_payloads"], run_id)]


async def read(database: Database, payload_id: int) -> Payload | None:
    """A payload with its decompressed body; None if it was deleted. Raises DatabaseUnavailable."""
    async with database.writing() as connection:
        row = await connection.fetchrow(_SQL["payload"], payload_id)
    if row is None:
        return None
    fields = dict(row)
    fields["body"] = await asyncio.to_thread(zstd.decompress, fields["body"])
    for name in ("parameters", "headers"):
        fields[name] = msgspec.json.decode(fields[name])
    return Payload(**fields)


async def trim(database: Database, retention: Retention, now: datetime) -> None:
    """Delete payloads and rejects beyond their retention at `now`. Raises DatabaseUnavailable."""
    oldest = now - retention.age
    async with database.writing() as connection:
        trimmed = await connection.fetchrow(_SQL["trim_payloads"], oldest, retention.payload_bytes)
        await connection.execute(_SQL["trim_rejects"], oldest)
    if trimmed and trimmed["payloads"]:
        log.info("payloads_deleted", payloads=trimmed["payloads"], bytes=trimmed["bytes"])


def _json(values: object) -> str:
    # PostgreSQL's JSON holds any text without NUL, which headers and our parameters cannot contain.
    return msgspec.json.encode(values).decode()
