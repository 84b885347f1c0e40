"""Payloads are stored whole, and deleted after their retention."""

import os
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kasparro.model.payload import Payload, Retention
from kasparro.store import payloads
from kasparro.store.pool import Database
from kasparro.store.runs import RunRecord

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
PAYLOADS = st.builds(
    Payload,
    path=st.just("/coins/markets"),
    parameters=st.dictionaries(TEXTS, st.just("1")),
    received_at=st.timedeltas(-9_000 * DAY, 9_000 * DAY).map(lambda away: NOW + away),
    status=st.none() | st.integers(100, 599),
    headers=st.dictionaries(st.sampled_from(["etag", "date"]), TEXTS),
    complete=st.booleans(),
    body=st.binary(max_size=4_000),
)


async def save(database: Database, run_id: int, payload: Payload) -> int:
    """Store a payload; returns its compressed bytes."""
    body = await payloads.compressed(payload.body)
    await payloads.save(database, run_id, "coingecko", payload, body)
    return len(body)


async def start(database: Database) -> int:
    return (await RunRecord.start(database, "etl", ("coingecko",), NOW)).id


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payload=PAYLOADS)
async def test_payload_is_read_as_it_was_saved(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", payload: Payload
) -> None:
    await save(database, await start(database), payload)

    newest = await connection.fetchval("SELECT max(id) FROM payloads")
    assert await payloads.read(database, newest) == payload


@pytest.mark.slow
async def test_missing_payload_and_run_are_none(database: Database) -> None:
    assert await payloads.read(database, 1) is None
    assert await payloads.stored(database, 1) is None


def received(days_ago: float, size: int) -> Payload:
    # Random bytes do not compress.
    at = NOW - days_ago * DAY
    return Payload(path="/coins/markets", parameters={}, received_at=at, body=os.urandom(size))


async def runs_with_payloads(connection: "asyncpg.Connection[asyncpg.Record]") -> list[int]:
    rows = await connection.fetch("SELECT DISTINCT run_id FROM payloads ORDER BY run_id")
    return [row["run_id"] for row in rows]


async def test_payloads_of_old_runs_are_deleted(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    ids = [await start(database) for _ in range(3)]
    for run_id, days_ago in zip(ids, (8, 6.9, 0), strict=True):
        await save(database, run_id, received(days_ago, 10))

    await payloads.trim(database, Retention(age=7 * DAY), NOW)

    assert await runs_with_payloads(connection) == ids[1:]


@pytest.mark.parametrize(("spare_bytes", "remaining"), [(0, 2), (-1, 1)])
async def test_oldest_runs_are_deleted_whole_until_the_rest_fits(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]", spare_bytes: int, remaining: int
) -> None:
    ids = [await start(database) for _ in range(3)]
    sizes = [
        sum([await save(database, run_id, received(0, size)) for size in (5_000, 3_000)]) for run_id in ids
    ]

    await payloads.trim(database, Retention(payload_bytes=sum(sizes[1:]) + spare_bytes), NOW)

    assert await runs_with_payloads(connection) == ids[-remaining:]
    assert await connection.fetchval("SELECT sum(compressed_bytes) FROM payloads") == sum(sizes[-remaining:])


async def test_bodies_are_stored_apart_and_trimming_waits_for_no_reader(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    run_id = await start(database)
    for _ in range(20):
        await save(database, run_id, received(0, 100_000))
    assert await connection.fetchval("SELECT pg_relation_size('payloads')") < 20 * 1_000

    async with connection.transaction(isolation="repeatable_read"):
        before = await connection.fetch("SELECT body FROM payloads")
        await payloads.trim(database, Retention(payload_bytes=0), NOW)
        assert await connection.fetch("SELECT body FROM payloads") == before
    assert await runs_with_payloads(connection) == []
