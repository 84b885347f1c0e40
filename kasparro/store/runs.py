"""The records that runs keep of themselves in the database."""

from collections.abc import Sequence
from datetime import datetime
from typing import Self

import asyncpg
import msgspec
import structlog

from kasparro.errors import LeaseLost
from kasparro.store import listings
from kasparro.store.locks import AdvisoryLease
from kasparro.store.pool import Connection, Database
from kasparro.store.sql import statements
from kasparro.store.text import sanitize

log = structlog.get_logger()
_SQL = statements("operations/runs.sql")
_QUALITY = statements("operations/quality.sql")


class Baseline(msgspec.Struct, frozen=True):
    """What earlier runs of a source left, as JSON: the profile of its fields, the metrics of its assessed
    runs without anomalies, newest first, and the metrics and anomalies of the newest assessed run."""

    profile: str | None
    usual: list[str]
    newest: str | None
    anomalies: str


class StoredAssessment(msgspec.Struct, frozen=True, kw_only=True):
    """The assessment of a source run, as JSON; without a profile the earlier one stays."""

    metrics: str | None
    drift: str | None
    anomalies: str | None
    profile: str | None


class RunRecord:
    """What one run writes about itself, from its start to its end. All methods raise DatabaseUnavailable."""

    def __init__(self, database: Database, run_id: int) -> None:
        self._database = database
        self.id = run_id

    @classmethod
    async def start(
        cls,
        database: Database,
        trigger: str,
        sources: tuple[str, ...],
        now: datetime,
        *,
        lock: AdvisoryLease | None = None,
    ) -> Self:
        """Start a run. The caller holds the run lock, so a run that is still `running` is dead.

        With `lock`, the session that holds it writes: a process that has lost the lock ends nobody's run.
        """
        async with (lock or database).writing() as connection, connection.transaction():
            await _interrupt(connection, now)
            run_id = await connection.fetchval(_SQL["start_run"], trigger, now)
            for source in sources:
                await connection.execute(_SQL["start_source"], run_id, source, now)
        return cls(database, run_id)

    async def finish_source(
        self,
        source: str,
        status: str,
        error: str | None,
        now: datetime,
        *,
        calls: int = 0,
        note: str | None = None,
        upstream_unavailable: bool = False,
        assessment: StoredAssessment | None = None,
        usual_list: datetime | None = None,
    ) -> None:
        """Write a source's outcome together with its assessment.

        `usual_list` is when the crawl began of a whole list that lacks no usual coins.
        Raises LeaseLost if another process has ended the run.
        """
        async with self._database.writing() as connection, connection.transaction():
            # An upstream may send text that PostgreSQL cannot store.
            error, note = (None if line is None else sanitize(line) for line in (error, note))
            await self._write(
                connection,
                _SQL["finish_source"],
                self.id,
                source,
                status,
                now,
                error,
                calls,
                note,
                upstream_unavailable,
            )
            if usual_list is not None:
                await listings.add_usual_list(connection, source, usual_list)
            if assessment is not None:
                await connection.execute(
                    _QUALITY["save_assessment"],
                    self.id,
                    source,
                    assessment.metrics,
                    assessment.drift,
                    assessment.anomalies,
                )
                if assessment.profile is not None:
                    await connection.execute(
                        _QUALITY["save_profile"], source, self.id, assessment.profile, now
                    )

    async def baseline(self, source: str, runs: int) -> Baseline:
        """What to compare the source with, from up to this many earlier runs."""
        async with self._database.writing() as connection:
            profile = await connection.fetchval(_QUALITY["profile"], source)
            newest = await connection.fetchrow(_QUALITY["newest_assessment"], source, self.id)
            usual = await connection.fetch(_QUALITY["baseline"], source, self.id, runs)
        return Baseline(
            profile,
            [row["metrics"] for row in usual],
            newest["metrics"] if newest else None,
            newest["anomalies"] if newest else "[]",
        )

    async def counts(self, source: str) -> asyncpg.Record:
        """The source's counts so far: fetched, valid, rejected, inserted, updated, unchanged."""
        async with self._database.writing() as connection:
            (row,) = await connection.fetch(_SQL["counts"], self.id, source)
        return row

    async def finish(self, status: str, error: str | None, now: datetime) -> None:
        """Write the run's outcome. Raises LeaseLost if another process has ended the run."""
        async with self._database.writing() as connection:
            await self._write(connection, _SQL["finish_run"], self.id, status, now, error)

    async def abandon(self, status: str, error: str, now: datetime) -> None:
        """End the run and its sources in their present state."""
        async with self._database.writing() as connection, connection.transaction():
            await connection.execute(_SQL["abandon_sources"], self.id, now, sanitize(error))
            await connection.execute(_SQL["finish_run"], self.id, status, now, sanitize(error))

    async def count_call(self, source: str, month: datetime, limit: int | None) -> bool:
        """Count an upstream call before it is made; False if the month's budget is spent."""
        async with self._database.writing() as connection:
            calls = await connection.fetchval(_SQL["count_call"], source, month.date().replace(day=1), limit)
        return calls is not None

    async def save_calls(self, source: str, calls: int) -> None:
        """Write how many upstream calls the source has made in this run, after its outcome was written."""
        async with self._database.writing() as connection:
            await connection.execute(_SQL["save_calls"], self.id, source, calls)

    async def uncount_call(self, source: str, month: datetime) -> None:
        """Take a counted call back, because nothing was sent."""
        async with self._database.writing() as connection:
            await connection.execute(_SQL["uncount_call"], source, month.date().replace(day=1))

    async def calls(self, source: str, month: datetime) -> int:
        """The upstream calls of this month."""
        async with self._database.writing() as connection:
            calls: int = await connection.fetchval(_SQL["calls"], source, month.date().replace(day=1))
        return int(calls)

    async def recent_source_runs(self, source: str, count: int) -> list[asyncpg.Record]:
        """The newest runs of the source that called its upstream, newest first: `finished_at` and
        `upstream_unavailable`."""
        async with self._database.writing() as connection:
            return await connection.fetch(_SQL["recent_source_runs"], source, count)

    async def _write(self, connection: Connection, statement: str, *values: object) -> None:
        if await connection.fetchrow(statement, *values) is None:
            raise LeaseLost(f"run {self.id} was ended by another process")


async def mark_abandoned_runs(database: Database, now: datetime) -> bool:
    """Mark runs of dead processes as interrupted, unless a run is at work; True if there was one.

    The run lock is taken only if there is something to mark, because meanwhile no run can start. Raises
    DatabaseUnavailable.
    """
    async with database.writing() as connection:
        if not await connection.fetchval(_SQL["any_running"]):
            return False
    async with AdvisoryLease(database, "run") as lock:
        if not await lock.acquire():
            return False
        async with lock.writing() as session, session.transaction():
            await _interrupt(session, now)
    return True


async def _interrupt(connection: Connection, now: datetime) -> None:
    await connection.execute(_SQL["terminate_open_batches"])
    await connection.execute(_SQL["interrupt_sources"], now)
    for row in await connection.fetch(_SQL["interrupt_runs"], now):
        log.warning("run_marked_interrupted", run=row["id"], reason="its process ended")


async def last_start(database: Database) -> datetime | None:
    """When the newest run over all sources that was not interrupted started. Raises DatabaseUnavailable."""
    async with database.writing() as connection:
        value: datetime | None = await connection.fetchval(_SQL["last_start"])
    return value


async def unavailable_sources(database: Database, sources: Sequence[str]) -> list[str]:
    """The sources whose newest run failed because the upstream sent nothing usable.

    Raises DatabaseUnavailable.
    """
    async with database.writing() as connection:
        return [row["source"] for row in await connection.fetch(_SQL["unavailable_sources"], sources)]
