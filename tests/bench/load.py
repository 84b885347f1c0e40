"""Rows per second of `kasparro etl --source csv`, compared with psql on the same file and tables.

psql does the same two merges, without validation.
"""

import csv
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from kasparro.embedded.server import find_programs
from kasparro.store.migrations import migrate
from kasparro.store.pool import Database
from tests.bench import breakdown, measure

COINS, MOMENTS, ROUNDS = 5_000, 200, 3
DAY_S, HOUR_S = 86_400, 3_600
# Moments of each coin, and the seconds between two of them.
SHAPES = ((MOMENTS, DAY_S), (60, HOUR_S))
# A shorter file is enough for the breakdown by step.
PROFILED_MOMENTS = 40
BEGIN = 1_514_764_800  # 2018-01-01 in epoch seconds, the unit of the dumps

HEADER = (
    "id",
    "name",
    "symbol",
    "rank",
    "price_usd",
    "24h_volume_usd",
    "market_cap_usd",
    "available_supply",
    "total_supply",
    "max_supply",
    "percent_change_1h",
    "percent_change_24h",
    "percent_change_7d",
    "last_updated",
)


def write_dump(
    path: Path, coins: int = COINS, moments: int = MOMENTS, since: int = 0, step_s: int = DAY_S
) -> int:
    """Write a ticker dump of these coins, at moments `step_s` apart, without the first `since` moments;
    returns the number of rows."""
    chance = random.Random(1)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(HEADER)
        for moment in range(since, moments):
            for coin in range(coins):
                supply = 10**6 + coin * 1_000
                price = f"{chance.random() * 1_000:.6f}"
                rows.writerow(
                    [
                        f"coin-{coin}",
                        f"Coin {coin}",
                        f"C{coin}",
                        coin + 1,
                        price,
                        f"{chance.randrange(10**9)}.0",
                        f"{chance.randrange(10**12)}.0",
                        f"{supply}.0",
                        f"{supply}.0",
                        f"{2 * supply}.0" if coin % 3 else "",
                        f"{chance.uniform(-5, 5):.2f}",
                        f"{chance.uniform(-9, 9):.2f}",
                        f"{chance.uniform(-20, 20):.2f}",
                        BEGIN + step_s * moment,
                    ]
                )
    return coins * (moments - since)


def psql_script(path: Path) -> str:
    """A script for psql: COPY into columns of the right types, then the two merges, in one transaction.

    It makes content hashes too, since the tables require them.
    """
    types = {"rank": "integer", "last_updated": "bigint", "id": "text", "name": "text", "symbol": "text"}
    columns = ", ".join(f'"{name}" {types.get(name, "numeric")}' for name in HEADER)
    values = (
        'symbol, name, rank, price_usd, market_cap_usd, "24h_volume_usd", available_supply, total_supply, '
        "max_supply, percent_change_1h, percent_change_24h, percent_change_7d"
    )
    fields = (
        "symbol, name, rank, price_usd, market_cap_usd, volume_24h_usd, circulating_supply, total_supply, "
        "max_supply, percent_change_1h, percent_change_24h, percent_change_7d"
    )
    assignments = ", ".join(f"{field} = excluded.{field}" for field in fields.split(", "))
    return f"""
\\set ON_ERROR_STOP on
BEGIN;
CREATE TEMPORARY TABLE dump ({columns}) ON COMMIT DROP;
\\copy dump FROM '{path}' WITH (FORMAT csv, HEADER)
SELECT create_history_partition(month) FROM (
    SELECT DISTINCT date_trunc('month', to_timestamp(last_updated) AT TIME ZONE 'UTC')::date AS month
    FROM dump
) AS months;
INSERT INTO unified_history (source, source_id, observed_at, {fields}, recorded_at, content_hash)
SELECT 'csv', id, to_timestamp(last_updated), {values}, now(), md5(dump::text)::uuid
FROM dump
ON CONFLICT (source, source_id, observed_at) DO UPDATE
SET {assignments}, recorded_at = excluded.recorded_at, content_hash = excluded.content_hash
WHERE unified_history.content_hash <> excluded.content_hash;
INSERT INTO unified_data (
    source, source_id, observed_at, {fields}, first_seen_at, updated_at, content_hash
)
SELECT DISTINCT ON (id)
    'csv', id, to_timestamp(last_updated), {values}, now(), now(), md5(dump::text)::uuid
FROM dump
ORDER BY id, last_updated DESC
ON CONFLICT (source, source_id) DO UPDATE
SET {assignments}, observed_at = excluded.observed_at, updated_at = excluded.updated_at,
    content_hash = excluded.content_hash
WHERE unified_data.content_hash <> excluded.content_hash
    AND unified_data.observed_at <= excluded.observed_at;
COMMIT;
"""


async def main() -> None:
    """Load files of two shapes with psql and with Kasparro, each time into an empty database."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        async with measure.server() as url:
            for moments, step_s in SHAPES:
                await _compare(url, Path(folder), moments, step_s)
            short = Path(folder) / "short.csv"
            profiled = write_dump(short, moments=PROFILED_MOMENTS)
            await breakdown.show(url, short, profiled)


async def _compare(url: str, folder: Path, moments: int, step_s: int) -> None:
    path, script = folder / "dump.csv", folder / "load.sql"
    rows = write_dump(path, moments=moments, step_s=step_s)
    script.write_text(psql_script(path))
    rates: dict[str, list[float]] = {"psql": [], "kasparro": [], "unchanged rows": [], "known file": []}
    peaks = []
    for _ in range(ROUNDS):
        by_psql_url = await _migrated(url, "bench_psql")
        began = time.perf_counter()
        await by_psql(script, by_psql_url)
        rates["psql"].append(rows / (time.perf_counter() - began))
        kasparro_url = await _migrated(url, "bench_kasparro")
        async with measure.peak_memory() as peak:
            rates["kasparro"].append(rows / await _etl(path, kasparro_url, rows))
        peaks.append(peak.megabytes)
        # A blank line before the rows changes the content, but no row. Then the file is known.
        content = path.read_bytes()
        path.write_bytes(content.replace(b"\r\n", b"\r\n\r\n", 1))
        rates["unchanged rows"].append(rows / await _etl(path, kasparro_url, 0))
        rates["known file"].append(rows / await _etl(path, kasparro_url, 0))
        path.write_bytes(content)
    median = {name: statistics.median(values) for name, values in rates.items()}
    print(f"load of {rows:,} rows: {COINS:,} coins at {moments} moments {step_s:,} s apart, {ROUNDS} rounds")
    for name, values in rates.items():
        print(f"  {name:15} {measure.spread(values, 'rows/s')}")
    print(f"  kasparro / psql            {median['kasparro'] / median['psql']:.2f}")
    print(f"  unchanged rows / kasparro  {median['unchanged rows'] / median['kasparro']:.2f}")
    print(f"  known file / kasparro      {median['known file'] / median['kasparro']:.2f}")
    print(f"  peak memory of etl and its worker  {max(peaks):.0f} MB")


async def _migrated(server_url: str, name: str) -> str:
    url = await measure.new_database(server_url, name)
    async with Database(url) as database:
        await migrate(database)
    return url


async def _etl(path: Path, url: str, written: int) -> float:
    # Returns the seconds taken.
    began = time.perf_counter()
    output = await measure.run(
        sys.executable,
        "-m",
        "kasparro",
        "etl",
        "--source",
        "csv",
        "--json",
        DATABASE_URL=url,
        KASPARRO_ARCHIVES=str(path),
        KASPARRO_LOG_LEVEL="error",
    )
    took = time.perf_counter() - began
    records = json.loads(output)["records"]
    if records["inserted"] + records["updated"] != written or records["rejected"]:
        raise RuntimeError(f"expected {written} written rows and no rejects, got {records}")
    return took


async def by_psql(script: Path, url: str) -> None:
    """Run the script of `psql_script`."""
    psql = str(find_programs().path("psql"))
    await measure.run(psql, "-qX", "-o", "/dev/null", "-f", str(script), url)
