"""Generates rows for the benchmarks inside PostgreSQL: many, and the same every time."""

import asyncpg

from kasparro.store.migrations import migrate
from kasparro.store.pool import Database

SYMBOLS = 9973

# Values have as many digits as the sources send; the multiplications scatter them.
_VALUES = """
    'c' || n % $1::integer, 'Coin number ' || n, n,
    (n::bigint * 7919 % 1000003) / 9973.0, n::bigint * 104729 % 1000000007,
    (n::bigint * 15485863 % 1000000007) / 100.0, n::bigint * 1000, n::bigint * 1100,
    CASE WHEN n % 3 = 0 THEN n::bigint * 2100 END,
    (n % 1000 - 500) / 100.0, (n % 3000 - 1500) / 100.0, (n % 7000 - 3500) / 100.0
"""
_COLUMNS = """
    symbol, name, rank, price_usd, market_cap_usd, volume_24h_usd, circulating_supply, total_supply,
    max_supply, percent_change_1h, percent_change_24h, percent_change_7d
"""
_CURRENT = f"""
INSERT INTO unified_data (
    source, source_id, {_COLUMNS}, observed_at, first_seen_at, updated_at, content_hash
)
SELECT
    (ARRAY['coingecko', 'coinpaprika', 'csv'])[n % 3 + 1], 'coin-' || n, {_VALUES},
    timestamptz '2025-06-01 12:00Z', timestamptz '2025-05-01 12:00Z', timestamptz '2025-06-01 12:00Z',
    md5(n::text)::uuid
FROM generate_series(1, $2::integer) AS n
"""
_PARTITIONS = """
SELECT create_history_partition(month::date)
FROM generate_series(
    date_trunc('month', timestamp '2025-06-01' - $1::integer * interval '8 hours'), timestamp '2025-06-01',
    interval '1 month'
) AS month
"""
_HISTORY = f"""
INSERT INTO unified_history (source, source_id, {_COLUMNS}, observed_at, recorded_at, content_hash)
SELECT
    (ARRAY['coingecko', 'coinpaprika', 'csv'])[n % 3 + 1], 'coin-' || n, {_VALUES},
    timestamptz '2025-06-01 12:00Z' - age * interval '8 hours', timestamptz '2025-06-01 12:00Z',
    md5(n || ' ' || age)::uuid
FROM generate_series(0, $2::integer - 1) AS age CROSS JOIN generate_series(1, $3::integer) AS n
"""


async def current(url: str, rows: int, symbols: int = SYMBOLS) -> None:
    """Migrate an empty database and put `rows` rows with `symbols` symbols into unified_data."""
    async with Database(url) as database:
        await migrate(database)
    await _run(url, (_CURRENT, symbols, rows))


async def history(url: str, coins: int, moments: int) -> None:
    """Put records of the first `coins` coins into unified_history, at `moments` moments 8 hours apart."""
    await _run(url, (_PARTITIONS, moments), (_HISTORY, SYMBOLS, moments, coins))


async def _run(url: str, *statements: tuple[str | int, ...]) -> None:
    connection = await asyncpg.connect(url)
    for statement, *values in statements:
        await connection.execute(str(statement), *values)
    # As autovacuum leaves a table: rows are visible to index-only scans, and statistics are current.
    await connection.execute("VACUUM (ANALYZE)")
    await connection.execute("CHECKPOINT")
    await connection.close()


_MONTHS = """
SELECT create_history_partition(month::date)
FROM generate_series(timestamp '2025-01-01', timestamp '2025-12-01', interval '1 month') AS month
"""
_HOURS = f"""
INSERT INTO unified_history (source, source_id, {_COLUMNS}, observed_at, recorded_at, content_hash)
SELECT
    (ARRAY['coingecko', 'coinpaprika', 'csv'])[n % 3 + 1], 'coin-' || n, {_VALUES},
    timestamptz '2025-01-01 00:00Z' + hour * interval '1 hour' + n % 3000 * interval '1 second',
    timestamptz '2025-06-01 12:00Z', md5(n || ' ' || hour)::uuid
FROM generate_series($2::integer, $3::integer - 1) AS hour
CROSS JOIN generate_series($4::integer, $5::integer) AS n
"""
_NOTED = """
INSERT INTO history_months AS known (source, month, changed_from, stale_from, thinned_completely)
SELECT source, month::date, month AT TIME ZONE 'UTC', 'infinity', false
FROM unnest(ARRAY['coingecko', 'coinpaprika', 'csv']) AS source
CROSS JOIN generate_series(timestamp '2025-01-01', timestamp '2025-12-01', interval '1 month') AS month
ON CONFLICT (source, month) DO UPDATE SET changed_from = excluded.changed_from
"""


async def hours(url: str, first: int, end: int, coins: range) -> None:
    """Put a record for each of these coins and hours of 2025 into unified_history, in the order of time."""
    await _run(url, (_MONTHS,), (_HOURS, SYMBOLS, first, end, coins.start, coins.stop - 1), (_NOTED,))
