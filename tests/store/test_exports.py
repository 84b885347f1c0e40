"""Exports by COPY: bounded memory, and an end in PostgreSQL whatever happens to the reader."""

import asyncio
import random
from contextlib import aclosing, suppress

import asyncpg
import pytest

from kasparro.errors import StatementTimeout
from kasparro.store import exports
from kasparro.store.pool import Connection, Database
from kasparro.store.selection import Selection
from tests.support.exports import MANY_ROWS, export_pids, insert_many_rows, wait_until_no_export

pytestmark = pytest.mark.slow

# More lines than any buffer holds, and none.
ENDLESS = "SELECT repeat('x', 1000), generate_series(1, 1000000000)"
SILENT = "SELECT pg_sleep(1000)"


async def read(database: Database, query: str) -> int:
    """The number of lines that a query returns."""
    async with database.exporting() as reader:
        return sum([part.count(b"\n") async for part in exports.copied(reader, query, (), "csv")])


async def test_parts_are_whole_lines(database: Database, connection: Connection) -> None:
    await insert_many_rows(connection)
    count = 0
    async with database.exporting() as reader:
        async for part in exports.export(reader, Selection(fields=("source_id",)), "csv"):
            lines = part.split(b"\r\n")
            assert lines.pop() == b""
            assert all(line.startswith(b'"coin-') and line.endswith(b'"') for line in lines)
            count += len(lines)
    assert count == MANY_ROWS


async def test_postgresql_waits_for_a_reader_that_stops(database: Database, connection: Connection) -> None:
    async with (
        database.exporting() as reader,
        aclosing(exports.copied(reader, ENDLESS, (), "csv")) as parts,
    ):
        await anext(parts)
        (pid,) = await export_pids(connection)
        waits_for = None
        async with asyncio.timeout(20):
            while waits_for != "ClientWrite":
                await asyncio.sleep(0.02)
                waits_for = await connection.fetchval(
                    "SELECT wait_event FROM pg_stat_activity WHERE pid = $1", pid
                )
    await wait_until_no_export(connection)


@pytest.mark.parametrize("query", [ENDLESS, SILENT])
async def test_cancelled_reader_ends_the_statement(
    database: Database, connection: Connection, query: str
) -> None:
    reading = asyncio.create_task(read(database, query))
    async with asyncio.timeout(20):
        while not await export_pids(connection):  # noqa: ASYNC110 - PostgreSQL has no event for it
            await asyncio.sleep(0.02)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await wait_until_no_export(connection)
    assert await read(database, "SELECT 1") == 1


@pytest.mark.parametrize("query", [ENDLESS, "SELECT 1, 2", "SELECT repeat('x', 100000)"])
async def test_an_export_may_end_at_any_moment(
    database: Database, connection: Connection, query: str
) -> None:
    """Also when PostgreSQL has sent everything, so that it does not answer a request to cancel."""
    moments = random.Random(1)
    async with asyncio.timeout(30):
        for _ in range(60):
            reading = asyncio.create_task(read(database, query))
            await asyncio.sleep(moments.uniform(0, 0.03 if query is ENDLESS else 0.012))
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
    await wait_until_no_export(connection)
    assert await read(database, "SELECT 1") == 1


async def test_no_rows_for_too_long(
    database: Database, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "EXPORT_TIMEOUT_S", 0.1)
    with pytest.raises(StatementTimeout):
        await read(database, SILENT)
    await wait_until_no_export(connection)


async def test_an_error_in_the_middle_ends_the_export(database: Database) -> None:
    with pytest.raises(asyncpg.DivisionByZeroError):
        await read(database, "SELECT 1 / (100000 - n), repeat('x', 10) FROM generate_series(1, 100000) AS n")
    assert await read(database, "SELECT 1") == 1
