"""Reads the points and candles of all rows of an asset, in the order of time."""

import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

import asyncpg
import msgspec

from kasparro.store.history import LENGTHS, Interval, Part, start_of, values, whole_days
from kasparro.store.pool import Connection
from kasparro.store.sql import templates

_SQL = templates("read/history.sql")

# Intervals that are read at once, and at most after a read that found none; and points.
INTERVALS_AT_ONCE = 500
MOST_INTERVALS = 16_000
POINTS_AT_ONCE = 500


async def parts(connection: Connection, asset: str) -> list[Part] | None:
    """The parts of the history that belong to an asset; None if there is no such asset."""
    statement = _SQL["asset_parts"].compose()
    rows = await connection.fetch(statement.text, *statement.values({"asset": asset}))
    if not rows:
        return None
    return [Part(*row) for row in rows if row["since"] is not None and row["since"] < row["until"]]


def between(found: Sequence[Part], since: datetime, until: datetime) -> list[Part]:
    """What lies between two moments; the second one is not part of it."""
    clipped = [
        msgspec.structs.replace(part, since=max(part.since, since), until=min(part.until, until))
        for part in found
    ]
    return [part for part in clipped if part.since < part.until]


@asynccontextmanager
async def snapshot(connection: Connection) -> AsyncGenerator[None]:
    """All reads within see one moment of the data."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        # Before the snapshot: while a thinned month takes the place of another, nobody has this lock.
        await connection.execute(_SQL["lock"].compose().text)
        yield


async def points(connection: Connection, found: Sequence[Part]) -> AsyncGenerator[list[asyncpg.Record]]:
    """The records with a price of these parts, those of one moment at a time: source, observed_at and the
    values of a point. It needs a transaction."""
    if not found:
        return
    statement = _SQL["asset_points"].compose(parts=len(found))
    cursor = await connection.cursor(statement.text, *statement.values(values(found)))
    of_moment: list[asyncpg.Record] = []
    while rows := await cursor.fetch(POINTS_AT_ONCE):
        for row in rows:
            if of_moment and of_moment[0]["observed_at"] != row["observed_at"]:
                yield of_moment
                of_moment = []
            of_moment.append(row)
    if of_moment:
        yield of_moment


async def candles(
    connection: Connection, found: Sequence[Part], interval: Interval
) -> AsyncGenerator[list[asyncpg.Record]]:
    """The candles of these parts, those of one interval at a time: source, time, prices and count."""
    days = [piece for part in found for piece in (whole_days(part) if interval != "1h" else [part])]
    if not days:
        return
    length = LENGTHS[interval]
    at, end = start_of(interval, min(part.since for part in days)), max(part.until for part in days)
    intervals = INTERVALS_AT_ONCE
    while at < end:
        following = at + intervals * length
        intervals = min(2 * intervals, MOST_INTERVALS)
        if pieces := between(days, at, following):
            of_days = tuple(piece.of_days for piece in pieces)
            statement = _SQL["asset_candles"].compose(interval=interval, days_of_parts=of_days)
            rows = await connection.fetch(statement.text, *statement.values(values(pieces)))
            if rows:
                intervals = INTERVALS_AT_ONCE
            for _, of_interval in itertools.groupby(rows, lambda row: row["time"]):
                yield list(of_interval)
        at = following
