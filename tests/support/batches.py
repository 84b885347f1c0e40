"""Records and batches for tests, and runs that load them."""

from datetime import UTC, datetime
from typing import Any

from kasparro.model.batch import Batch, BatchBuilder, Checkpoint
from kasparro.model.record import Record, Reject
from kasparro.store.loader import Loader
from kasparro.store.locks import LEASE_S
from kasparro.store.pool import Connection, Database
from kasparro.store.runs import RunRecord

T0 = datetime(2026, 1, 31, 23, 59, tzinfo=UTC)
Row = dict[str, Any]


def make_record(source_id: str = "btc-bitcoin", at: datetime = T0, **values: Any) -> Record:
    """A record of Bitcoin, observed at `at`; `values` replace or add fields."""
    return Record(**{"symbol": "BTC", "name": "Bitcoin", "source_id": source_id, "observed_at": at, **values})


def make_batch(*records: Record, rejects: int = 0, checkpoint: Checkpoint | None = None) -> Batch:
    """A batch of these records and of so many rejects."""
    builder = BatchBuilder()
    for record in records:
        builder.add(record)
    for number in range(rejects):
        builder.reject(Reject(reason="bad", field="price", raw=f"raw {number}\x00\udc80"))
    return builder.take(checkpoint)


async def start_loader(database: Database, source: str = "coinpaprika") -> Loader:
    """A loader in a run of its own."""
    run = await RunRecord.start(database, "etl", (source,), T0)
    return Loader(database, run.id, source)


async def load_batches(
    database: Database, *batches: Batch, source: str = "coinpaprika"
) -> tuple[int, int, int]:
    """Load in a run of its own; returns how many records it inserted, updated and left unchanged."""
    session = await database.session("a run of the tests", LEASE_S)
    try:
        # A service on this database marks runs as abandoned if no session holds the lock.
        await session.execute("SELECT pg_advisory_lock(hashtextextended('kasparro run', 0))")
        run = await RunRecord.start(database, "etl", (source,), T0)
        loader = Loader(database, run.id, source)
        for batch in batches:
            await loader.load(batch, datetime.now(UTC))
        counts = await run.counts(source)
    finally:
        await session.close()
    assert counts["valid"] == counts["inserted"] + counts["updated"] + counts["unchanged"]
    assert counts["fetched"] == counts["valid"] + counts["rejected"]
    return counts["inserted"], counts["updated"], counts["unchanged"]


async def load_records(
    database: Database,
    source: str,
    *records: Record,
    now: datetime | None = None,
    lacks: tuple[str, ...] = (),
) -> None:
    """Load one batch of these records in a run of its own."""
    builder = BatchBuilder(lacks)
    for record in records:
        builder.add(record)
    now = now or datetime.now(UTC)
    run = await RunRecord.start(database, "etl", (source,), now)
    await Loader(database, run.id, source).load(builder.take(None), now)


async def fetch_rows(connection: Connection, table: str) -> list[Row]:
    """All rows of a table, ordered by source_id and observed_at."""
    return [
        dict(row) for row in await connection.fetch(f"SELECT * FROM {table} ORDER BY source_id, observed_at")
    ]
