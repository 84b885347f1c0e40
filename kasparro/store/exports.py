"""Reads rows as CSV or lines of JSON by COPY, which formats them without a value in Python for each row."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from asyncpg.protocol import NO_TIMEOUT

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
# COPY lasts as long as the client reads. Meanwhile it would keep parallel workers, which could only sort.
_SETTINGS = {"statement_timeout": f"{EXPORT_S:.0f}s", "max_parallel_workers_per_gather": "0"}
# An export holds two parts of this size at most, and what is in the buffers of the connection.
PART_BYTES = 64 * 1024

# COPY puts the delimiter between the pieces of a line of JSON. JSON escapes control characters, so the
# delimiter can be removed, and COPY never uses the quote.
_DELIMITER = b"\x01"
_OPTIONS: Mapping[Form, Mapping[str, Any]] = MappingProxyType(
    {
        "csv": {"format": "csv"},
        "ndjson": {"format": "csv", "delimiter": _DELIMITER.decode(), "quote": "\x02", "null": "null"},
    }
)
# COPY ends lines with a line feed, and RFC 4180 with a carriage return before it. The last cell of a line is
# a carriage return, which COPY quotes. No text has the same bytes: in a quoted text, quotes are doubled.
_LINE_END = b',"\r"\n'


async def export(
    connection: Connection, selection: Selection, form: Form, *, spreadsheet: bool = False
) -> AsyncGenerator[bytes, None]:
    """All rows of a selection, in parts of whole lines, all of one moment.

    CSV for a spreadsheet has no formulas.
    """
    options = {"spreadsheet": spreadsheet} if form == "csv" else {}
    statement = _SQL[form].compose(selection.variables(), **options)
    texts = [name for name in selection.shown if name in selection.rows.texts]
    async for part in copied(connection, statement.text, statement.values(selection.values()), form, texts):
        yield part


async def copied(
    connection: Connection, query: str, values: Sequence[Any], form: Form, texts: Sequence[str] = ()
) -> AsyncGenerator[bytes, None]:
    """What a query returns, in parts of whole lines, all of one moment.

    The query is one of `macros/lines.sql`; `texts` are the columns that CSV has in quotes. PostgreSQL makes
    the next part meanwhile, and no more. Raises StatementTimeout if a part takes too long.
    """
    options = {**_OPTIONS[form], **({"force_quote": texts} if texts and form == "csv" else {})}
    parts: asyncio.Queue[bytes] = asyncio.Queue()
    pending: list[bytes] = []
    size = 0

    async def collect(data: bytes) -> None:
        nonlocal size
        # In pieces, which the processor's cache still holds.
        lines = data.replace(_LINE_END, b"\r\n") if form == "csv" else data.translate(None, _DELIMITER)
        pending.append(lines)
        size += len(lines)
        if size >= PART_BYTES:
            parts.put_nowait(b"".join(pending))
            pending.clear()
            size = 0
            # Until somebody has taken the part, nothing more is read.
            await parts.join()

    async def copy() -> None:
        text = query.removesuffix(";")
        await connection.copy_from_query(text, *values, output=collect, timeout=NO_TIMEOUT, **options)
        parts.put_nowait(b"".join(pending))

    async with connection.transaction(readonly=True):
        await connection.fetchval(_CONFIGURE, [*_SETTINGS], [*_SETTINGS.values()], True, None)
        copying = asyncio.create_task(copy())
        # The end, however it comes about.
        copying.add_done_callback(lambda _: parts.put_nowait(b""))
        try:
            while part := await _next(parts):
                yield part
            await copying
        finally:
            await cancel_all([copying])


async def _next(parts: asyncio.Queue[bytes]) -> bytes:
    try:
        async with timeout(EXPORT_TIMEOUT_S):
            part = await parts.get()
    except TimeoutError:
        raise StatementTimeout(f"an export had no rows for {EXPORT_TIMEOUT_S} s") from None
    parts.task_done()
    return part
