"""Candles in plain Python, and the upkeep of a history in tests."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import msgspec

from kasparro.model.history_retention import HistoryRetention, ThinnedTo, Thinning
from kasparro.store import history
from kasparro.store.history import Interval
from kasparro.store.history_upkeep import compute_candles, thin
from kasparro.store.locks import AdvisoryLease
from kasparro.store.pool import Database

# Of one coin: a moment and a price.
Price = tuple[datetime, Decimal]
Candle = tuple[datetime, Decimal, Decimal, Decimal, Decimal, int]


def began(interval: Interval, moment: datetime) -> datetime:
    """When the hour, the day or the week (from Monday) of a moment began, in UTC."""
    moment = moment.astimezone(UTC)
    if interval == "1h":
        return moment.replace(minute=0, second=0, microsecond=0)
    days = timedelta(days=moment.weekday() if interval == "1w" else 0)
    return datetime.combine(date(moment.year, moment.month, moment.day) - days, time.min, UTC)


def plain_candles(interval: Interval, prices: Iterable[Price]) -> list[Candle]:
    """The candles of these prices."""
    found: dict[datetime, list[Decimal]] = {}
    for moment, price in sorted(prices):
        found.setdefault(began(interval, moment), []).append(price)
    return [
        (begin, group[0], max(group), min(group), group[-1], len(group)) for begin, group in found.items()
    ]


async def read_candles(database: Database, source: str, source_id: str, interval: Interval) -> list[Candle]:
    """All candles of a coin."""
    async with database.reading() as connection:
        part = await history.span(connection, source, source_id)
        if part is None:
            return []
        part = history.within(part, interval, None, None)
        rows = await history.page(connection, part, interval, 10_000)
    found = []
    for _, line in rows:
        row = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        moment = msgspec.json.decode(row["time"], type=datetime)
        first, high, low, last = (Decimal(bytes(row[name]).decode()) for name in history.CANDLE[1:5])
        found.append((moment, first, high, low, last, int(bytes(row["count"]))))
    return found


def retention(interval: ThinnedTo, age: timedelta = timedelta(days=1)) -> HistoryRetention:
    """Thin to this interval from this age on."""
    return HistoryRetention((Thinning(age, interval),))


async def keep_up(
    database: Database, now: datetime, thinned_to: ThinnedTo | None = None, *, candles: bool = True
) -> int:
    """Compute candles and thin every month that is over for a day, as if no run worked; returns how many
    months were thinned."""
    async with database.writing() as connection:
        # While a run loads records of a source, its candles wait.
        await connection.execute("UPDATE run_sources SET status = 'succeeded'")
    async with AdvisoryLease(database, "history") as lease:
        assert await lease.acquire()
        if candles:
            await compute_candles(lease, now)
        if thinned_to is None:
            return 0
        return await thin(lease, retention(thinned_to), now)
