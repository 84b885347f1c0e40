"""Reads the history of a coin: its points as they were recorded, or candles of an hour, a day or a week."""

import itertools
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias

import msgspec

from kasparro.store.exports import Form, copied
from kasparro.store.pool import Connection
from kasparro.store.sql import Statement, templates

_SQL = templates("read/history.sql")

Interval: TypeAlias = Literal["raw", "1h", "1d", "1w"]

LENGTHS: dict[Interval, timedelta] = {
    "1h": timedelta(hours=1),
    "1d": timedelta(days=1),
    "1w": timedelta(weeks=1),
}
POINT = ("observed_at", "price_usd", "market_cap_usd", "volume_24h_usd")
CANDLE = ("time", "open", "high", "low", "close", "count")

# Weeks begin on Monday, and this was one.
_MONDAY = datetime(2001, 1, 1, tzinfo=UTC)
_TICK = timedelta(microseconds=1)
# A read of few candles covers twice as many intervals the next time, up to this multiple.
_WIDEST = 16


class Part(msgspec.Struct, frozen=True):
    """The history of a coin from the moment `since` up to `until`, which is not part of it."""

    source: str
    source_id: str
    since: datetime
    until: datetime

    @property
    def of_days(self) -> bool:
        """Whether it begins and ends with a day (UTC), so that stored candles may be used."""
        return self.since == start_of("1d", self.since) and self.until == start_of("1d", self.until)


def fields(interval: Interval) -> tuple[str, ...]:
    """The fields of a point or a candle."""
    return POINT if interval == "raw" else CANDLE


def start_of(interval: Interval, moment: datetime) -> datetime:
    """When the interval of this moment began. Weeks begin on Monday."""
    return moment - (moment - _MONDAY) % LENGTHS[interval]


def values(parts: Sequence[Part]) -> dict[str, Any]:
    """The values of these parts for the macros of `macros/history.sql`."""
    return {
        f"{name}_{number}": value
        for number, part in enumerate(parts)
        for name, value in msgspec.structs.asdict(part).items()
    }


def whole_days(part: Part) -> list[Part]:
    """The part, split where its first and its last whole day begin and end.

    A link may end within a day, and the stored candle of that day has later records, too.
    """
    first, last = _next_start("1d", part.since), start_of("1d", part.until)
    if first >= last:
        return [part]
    bounds = (part.since, first, last, part.until)
    return [
        msgspec.structs.replace(part, since=since, until=until)
        for since, until in itertools.pairwise(bounds)
        if since < until
    ]


async def span(connection: Connection, source: str, source_id: str) -> Part | None:
    """All that the history may have of a coin; None if there is no such coin."""
    statement = _SQL["span"].compose()
    row = await connection.fetchrow(
        statement.text, *statement.values({"source": source, "source_id": source_id})
    )
    if row is None or not row["known"]:
        return None
    begins_at = row["begins_at"] or _MONDAY
    return Part(source, source_id, begins_at, row["ends_at"] or begins_at)


def after(interval: Interval, seen: datetime) -> datetime:
    """The earliest moment of a point or a candle that follows the one of this moment."""
    return seen + (_TICK if interval == "raw" else LENGTHS[interval])


def within(part: Part, interval: Interval, since: datetime | None, until: datetime | None) -> Part:
    """Of the part, the points between two moments, both included, or the candles that begin there."""
    # Bounds may be far outside the part, such as the year 1, where no interval can be computed.
    first = part.since if interval == "raw" else start_of(interval, part.since)
    begin = part.since if since is None else min(max(part.since, since), part.until)
    end = part.until if until is None or until >= part.until else max(until + _TICK, first)
    if interval != "raw":
        begin = first if since is None or since <= first else _next_start(interval, begin)
        # The last candle begins before the end, and all of it belongs to the part.
        end = _next_start(interval, end)
    return msgspec.structs.replace(part, since=begin, until=max(begin, end))


async def page(
    connection: Connection, part: Part, interval: Interval, limit: int
) -> list[tuple[datetime, str]]:
    """The first points or candles of a part that `within` made: the time of each, and its JSON."""
    if interval == "raw":
        statement = _SQL["points"].compose(limit=limit)
        return [tuple(row) for row in await connection.fetch(statement.text, *_arguments(statement, part))]
    # Candles of about `limit` intervals at a time: PostgreSQL would otherwise read all records of a coin for
    # the first few candles.
    statement = _SQL["candles"].compose(interval=interval, of_days=True)
    next_price = _SQL["next_price"].compose()
    found: list[tuple[datetime, str]] = []
    intervals, rest = limit, part
    while len(found) < limit and rest.since < rest.until:
        end = min(rest.since + intervals * LENGTHS[interval], rest.until)
        piece = msgspec.structs.replace(rest, until=end)
        rows = await connection.fetch(statement.text, *_arguments(statement, piece))
        found += [tuple(row) for row in rows]
        rest = msgspec.structs.replace(rest, since=end)
        if not rows:
            following = await connection.fetchval(next_price.text, *_arguments(next_price, rest))
            if following is None:
                break
            rest = msgspec.structs.replace(rest, since=start_of(interval, following))
        if len(rows) < intervals // 2:
            intervals = min(2 * intervals, _WIDEST * limit)
    return found[:limit]


def export(connection: Connection, part: Part, interval: Interval, form: Form) -> AsyncGenerator[bytes, None]:
    """All points or candles of a part that `within` made, in parts of whole lines, all of one moment."""
    csv = form == "csv"
    if interval == "raw":
        statement = _SQL["exported_points"].compose(csv=csv)
    else:
        statement = _SQL["exported_candles"].compose(csv=csv, interval=interval, of_days=True)
    return copied(connection, statement.text, _arguments(statement, part), form)


def _arguments(statement: Statement, part: Part) -> list[Any]:
    return statement.values(values([part]))


def _next_start(interval: Interval, moment: datetime) -> datetime:
    # The first beginning of an interval that is not before the moment.
    return start_of(interval, moment - _TICK) + LENGTHS[interval]
