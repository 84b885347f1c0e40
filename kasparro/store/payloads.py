"""Keeps raw payloads compressed in the database, gives them back, and trims what was kept long enough."""

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
# A payload is worth a short wait: the records that it holds are waiting meanwhile.
KEEP_TIMEOUT_S = 10


class Kept(msgspec.Struct, frozen=True):
    """What is kept of one source's part in a run: how many calls it made, how many of their payloads are
    there, how many of these say that nothing had changed, the ids of those that can be read again in their
    order, and when the run ended."""

    source: str
    calls: int
    kept: int
    unchanged: int
    good: list[int]
    ended_at: datetime


async def compressed(body: bytes) -> bytes:
    """A body as it is kept; made beside the event loop."""
    return await asyncio.to_thread(zstd.compress, body)


async def keep(database: Database, run_id: int, source: str, payload: Payload, body: bytes) -> None:
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
            timeout=KEEP_TIMEOUT_S,
        )


async def kept(database: Database, run_id: int) -> list[Kept] | None:
    """What is kept of a run, source by source; None where there is none. Raises DatabaseUnavailable."""
    async with database.writing() as connection:
        if not await connection.fetchval(_SQL["known_run"], run_id):
            return None
        return [Kept(**row) for row in await connection.fetch(_SQL["run_payloads"], run_id)]


async def read(database: Database, payload_id: int) -> Payload | None:
    """A payload with its body as it was answered; None where it was trimmed. Raises DatabaseUnavailable."""
    async with database.writing() as connection:
        row = await connection.fetchrow(_SQL["payload"], payload_id)
    if row is None:
        return None
    told = dict(row)
    told["body"] = await asyncio.to_thread(zstd.decompress, told["body"])
    for field in ("parameters", "headers"):
        told[field] = msgspec.json.decode(told[field])
    return Payload(**told)


async def trim(database: Database, retention: Retention, now: datetime) -> None:
    """Delete payloads and rejects that are beyond what is to be kept at `now`. Raises DatabaseUnavailable."""
    before = now - retention.age
    async with database.writing() as connection:
        trimmed = await connection.fetchrow(_SQL["trim_payloads"], before, retention.payload_bytes)
        await connection.execute(_SQL["trim_rejects"], before)
    if trimmed and trimmed["payloads"]:
        log.info("payloads trimmed", payloads=trimmed["payloads"], bytes=trimmed["bytes"])


def _json(values: object) -> str:
    # PostgreSQL's JSON holds any text but NUL, which headers and our parameters cannot have.
    return msgspec.json.encode(values).decode()
