"""Computes the stored daily candles of the history, and thins its old months."""

import asyncio
import itertools
from collections.abc import Collection, Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import structlog

from kasparro.model.history_retention import HistoryRetention, ThinnedTo
from kasparro.store.locks import AdvisoryLease
from kasparro.store.sql import statements, templates

log = structlog.get_logger()
_SQL = templates("operations/history.sql")
_VERSION = statements("load/progress.sql")

# Longer than the server's own limit in the statement `long_timeout`, so that the server reports first.
TIMEOUT_S = 61 * 60.0
# How often a thinned month tries to take its place, and the pause between two attempts. A batch or an export
# that reads the history is in its way.
ATTEMPTS = 60
ATTEMPT_PAUSE_S = 1.0
# A thinned month takes its place only if it has less than this part of the records.
WORTHWHILE = 0.9
_UNITS: dict[ThinnedTo, str] = {"1h": "hour", "1d": "day"}


class _Month(msgspec.Struct, frozen=True):
    # A month of all sources: to what it is thinned, whether completely, and whether its candles are current.
    begins: date
    ends: date
    thinned_to: ThinnedTo | None
    completely: bool
    settled: bool

    @property
    def table(self) -> str:
        return f"unified_history_{self.begins:%Y_%m}"

    @property
    def bounds(self) -> dict[str, str]:
        return {"begins_at": f"{self.begins} UTC", "ends_at": f"{self.ends} UTC"}


async def compute_candles(lease: AdvisoryLease, now: datetime) -> int:
    """Compute the candles of months that lack days; returns how many months. The lease is `history`.

    Readers use stored candles only where they are current, so this changes no response. Killed at any moment,
    the next call continues. Raises DatabaseUnavailable.
    """
    async with lease.writing() as session:
        months = await _fetch(session, "stale_months", now=now)
    for source, month in months:
        async with lease.writing() as session:
            begins_at = await _value(session, "begin_candles", source=source, month=month)
        async with lease.writing() as session, session.transaction():
            await _execute(session, "long_timeout")
            await _execute(session, "write_candles", source=source, month=month, begins_at=begins_at)
            await _execute(session, "finish_candles", source=source, month=month, now=now)
        log.debug("candles_computed", source=source, month=f"{month:%Y-%m}")
    return len(months)


async def thin(lease: AdvisoryLease, retention: HistoryRetention, now: datetime) -> int:
    """Thin the months that have reached an age of the retention; returns how many. The lease is `history`.

    Each thinned month is made beside the other and takes its place in an instant, unless a batch has changed
    it meanwhile; then the next call makes it again. Killed at any moment, the next call continues. Raises
    DatabaseUnavailable.
    """
    async with lease.writing() as session:
        for (table,) in await _fetch(session, "leftovers"):
            await session.execute(_SQL["drop"].compose(table=table).text, timeout=TIMEOUT_S)
        if not retention.steps:
            return 0
        present = await _value(session, "present", now=now)
        months = _by_month(await _fetch(session, "months", now=present))
    thinned = 0
    for month in months:
        interval = retention.interval(present - datetime.combine(month.ends, datetime.min.time(), UTC))
        if interval is None or not month.settled:
            continue
        # A month that was thinned further, with other settings, stays as it is.
        interval = _longest({interval, month.thinned_to or interval})
        if month.completely and month.thinned_to == interval:
            continue
        if await _thin_month(lease, month, interval):
            thinned += 1
    return thinned


async def _thin_month(lease: AdvisoryLease, month: _Month, interval: ThinnedTo) -> bool:
    names = {"month": month.table}
    values = {"month": month.begins, "interval": interval}
    begins_at = datetime.combine(month.begins, datetime.min.time(), UTC)
    async with lease.writing() as session, session.transaction():
        await _execute(session, "long_timeout")
        before = await session.fetchval(_SQL["count"].compose(**names).text, timeout=TIMEOUT_S)
        await session.execute(_SQL["create_thinned"].compose(**names).text)
        fill = _SQL["fill_thinned"].compose(**names, unit=_UNITS[interval])
        status = await session.execute(fill.text, *fill.values({"begins_at": begins_at}), timeout=TIMEOUT_S)
        after = int(status.split()[-1])
        await session.execute(_SQL["bound_thinned"].compose(**names, **month.bounds).text, timeout=TIMEOUT_S)
        await session.execute(_SQL["analyze_thinned"].compose(**names).text, timeout=TIMEOUT_S)
    fields = {"month": f"{month.begins:%Y-%m}", "interval": interval, "records": before, "left": after}
    if after > WORTHWHILE * before:
        # Most intervals have one record already.
        async with lease.writing() as session, session.transaction():
            if await _value(session, "settled", **values):
                await _execute(session, "note_thinned", **values)
            await session.execute(_SQL["drop"].compose(table=f"{month.table}_new").text)
        log.debug("history_not_thinned", **fields)
        return False
    for _ in range(ATTEMPTS):
        async with lease.writing() as session:
            try:
                replaced = await _replace(session, month, interval)
            except asyncpg.LockNotAvailableError:
                replaced = None
            if replaced is not None:
                await session.execute(_VERSION["confirm_version"])
                await session.execute(
                    _SQL["drop"].compose(table=f"{month.table}_{'old' if replaced else 'new'}").text
                )
                log.info("history_thinned" if replaced else "history_changed_while_thinned", **fields)
                return replaced
        await asyncio.sleep(ATTEMPT_PAUSE_S)
    # The next call deletes the thinned table.
    log.info("history_in_use_while_thinned", **fields)
    return False


async def _replace(session: Any, month: _Month, interval: ThinnedTo) -> bool:
    # Whether the thinned month has taken its place; not if the month has changed. Raises
    # LockNotAvailableError while somebody reads or writes the history.
    names = {"month": month.table, **month.bounds}
    values = {"month": month.begins, "interval": interval}
    async with session.transaction():
        await _execute(session, "short_lock_timeout")
        # From here on nobody writes to the month, and every earlier change is noted.
        await session.execute(_SQL["lock"].compose(month=month.table).text)
        if not await _value(session, "settled", **values):
            return False
        for name in ("detach", "set_aside", "rename", "attach", "drop_bound"):
            await session.execute(_SQL[name].compose(**names).text)
        await _execute(session, "note_thinned", **values)
        # The points have changed, and cached responses with them.
        await session.execute(_VERSION["increment_version"])
    return True


def _longest(intervals: Collection[ThinnedTo]) -> ThinnedTo:
    return max(intervals, key=lambda interval: list(_UNITS).index(interval))


def _by_month(rows: Iterable[asyncpg.Record]) -> list[_Month]:
    found = []
    for begins, group in itertools.groupby(rows, key=lambda row: row["month"]):
        sources = list(group)
        states = {row["thinned_to"] for row in sources if row["thinned_to"] is not None}
        found.append(
            _Month(
                begins,
                (begins + timedelta(days=31)).replace(day=1),
                _longest(states) if states else None,
                all(row["thinned_completely"] for row in sources),
                all(row["settled"] for row in sources),
            )
        )
    return found


async def _fetch(session: Any, name: str, **values: Any) -> list[asyncpg.Record]:
    statement = _SQL[name].compose()
    rows: list[asyncpg.Record] = await session.fetch(
        statement.text, *statement.values(values), timeout=TIMEOUT_S
    )
    return rows


async def _value(session: Any, name: str, **values: Any) -> Any:
    ((value, *_), *_) = await _fetch(session, name, **values)
    return value


async def _execute(session: Any, name: str, **values: Any) -> None:
    statement = _SQL[name].compose()
    await session.execute(statement.text, *statement.values(values), timeout=TIMEOUT_S)
