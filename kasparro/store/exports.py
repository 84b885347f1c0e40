"""Reads rows as CSV or lines of JSON by COPY, which formats them without a value in Python for each row."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from kasparro.concurrency import cancel_all, timeout
from kasparro.errors import StatementTimeout
from kasparro.store.pool import EXPORT_TIMEOUT_S, Connection
from kasparro.store.selection import Selection
from kasparro.store.sql import statements, templates

_SQL = templates("read/exports.sql")
_CONFIGURE = statements("operations/sessions.sql")["configure"]

Form: TypeAlias = Literal["csv", "ndjson"]

# Until an export ends, PostgreSQL keeps all rows that were replaced since it started.
EXPORT_S = 3_600.0
# COPY lasts as long as the client reads. Meanwhile it would keep parallel workers, which could only sort. A
# server process that has no rows yet notices by itself if its connection is closed.
_SETTINGS = {
    "statement_timeout": f"{EXPORT_S:.0f}s",
    "max_parallel_workers_per_gather": "0",
    "client_connection_check_interval": "1s",
}
# An export holds two parts of about this size, and what is in the buffers of the connection.
PART_BYTES = 64 * 1024

# PostgreSQL sends 8 KiB at a time. To read each piece as soon as it comes takes twice the processor time, so
# they gather for so long: a socket holds about 200 KiB, and then PostgreSQL waits. A small piece is probably
# the last one. While a large one was read, the next ones have gathered.
GATHER_S = 0.001
SMALL_BYTES, LARGE_BYTES = 4 * 1024, 64 * 1024

# How COPY writes each form. Between the pieces of a line of JSON it puts the delimiter, which JSON itself has
# only escaped.
_DELIMITER = b"\x01"
_OPTIONS: Mapping[Form, Mapping[str, Any]] = MappingProxyType(
    {
        "csv": {"format": "csv"},
        "ndjson": {"format": "text", "delimiter": _DELIMITER.decode(), "null": "null"},
    }
)


def export(
    connection: Connection, selection: Selection, form: Form, *, spreadsheet: bool = False
) -> AsyncGenerator[bytes, None]:
    """All rows of a selection, in parts of whole lines, all of one moment.

    CSV for a spreadsheet has no formulas.
    """
    options = {"spreadsheet": spreadsheet} if form == "csv" else {}
    statement = _SQL[form].compose(selection.variables(), **options)
    texts = [name for name in selection.shown if name in selection.rows.texts]
    return copied(connection, statement.text, statement.values(selection.values()), form, texts)


async def copied(
    connection: Connection, query: str, values: Sequence[Any], form: Form, texts: Sequence[str] = ()
) -> AsyncGenerator[bytes, None]:
    """What a query returns, in parts of whole lines, all of one moment.

    The query is one of `macros/lines.sql`; `texts` are the columns that CSV has in quotes. PostgreSQL makes
    the next part meanwhile, and no more. Raises StatementTimeout if a part takes too long. If the reader
    stops before the end, the connection is closed.
    """
    options = {**_OPTIONS[form], **({"force_quote": texts} if texts and form == "csv" else {})}
    parts: asyncio.Queue[bytes] = asyncio.Queue()
    pending: list[bytes] = []
    size = 0

    async def collect(data: bytes) -> None:
        nonlocal size
        # In these pieces, because the processor's cache still holds them.
        lines = _lines_of_csv(data) if form == "csv" else _lines_of_json(data)
        pending.append(lines)
        size += len(lines)
        if size >= PART_BYTES:
            parts.put_nowait(b"".join(pending))
            pending.clear()
            size = 0
            # Until somebody has taken the part, nothing more is read.
            await parts.join()
        if SMALL_BYTES < len(data) < LARGE_BYTES:
            await asyncio.sleep(GATHER_S)

    async def copy() -> None:
        text = query.removesuffix(";")
        await connection.copy_from_query(text, *values, output=collect, timeout=EXPORT_S, **options)
        parts.put_nowait(b"".join(pending))

    def end(copying: asyncio.Task[None]) -> None:
        parts.put_nowait(b"")
        if not copying.cancelled():
            # If nobody waits for it any more, asyncio would log its error as never retrieved.
            copying.exception()

    transaction = connection.transaction(readonly=True)
    await transaction.start()
    closed = False
    try:
        await connection.fetchval(_CONFIGURE, [*_SETTINGS], [*_SETTINGS.values()], True, None)
        copying = asyncio.create_task(copy())
        copying.add_done_callback(end)
        try:
            while part := await _next(parts):
                yield part
            await copying
        finally:
            if not copying.done():
                # A server process that waits to send rows does not heed a request to cancel the COPY, and
                # asyncpg reads no further rows after one.
                connection.terminate()
                closed = True
                await cancel_all([copying])
    except BaseException:
        if not closed:
            await transaction.rollback()
        raise
    await transaction.commit()


async def _next(parts: asyncio.Queue[bytes]) -> bytes:
    try:
        async with timeout(EXPORT_TIMEOUT_S):
            part = await parts.get()
    except TimeoutError:
        raise StatementTimeout(f"an export had no rows for {EXPORT_TIMEOUT_S} s") from None
    parts.task_done()
    return part


def _lines_of_csv(copied: bytes) -> bytes:
    # RFC 4180 has a carriage return before the line feed. Here it is the last cell of each line, in quotes.
    # No text has the same bytes, because quotes in a quoted text are doubled.
    return copied.replace(b',"\r"\n', b"\r\n")


def _lines_of_json(copied: bytes) -> bytes:
    lines = copied.translate(None, _DELIMITER)
    # COPY doubles backslashes. Most texts have none, and to look for one is faster than to replace pairs.
    return lines.replace(b"\\\\", b"\\") if b"\\" in lines else lines
