"""Rows a second of `kasparro etl --source csv`, beside psql loading the same file into the same tables with
the same two merges and no validation."""

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

COINS, TIMES, ROUNDS = 5_000, 200, 3
# The load whose time is broken down is this much shorter.
PROFILED_TIMES = 40
BEGIN = 1_514_764_800  # 2018-01-01, in epoch seconds as the dumps have it

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


def write_dump(path: Path, coins: int = COINS, times: int = TIMES) -> int:
    """A ticker dump of so many coins at so many times, a day apart, from a fixed seed; gives its rows."""
    chance = random.Random(1)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(HEADER)
        for day in range(times):
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
                        BEGIN + 86_400 * day,
                    ]
                )
    return coins * times


def psql_script(path: Path) -> str:
    """What psql does: COPY into columns of the right types, then the two merges in one transaction.

    The content hash is made there too, since the tables require one.
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
    told = ", ".join(f"{field} = excluded.{field}" for field in fields.split(", "))
    return f"""
\\set ON_ERROR_STOP on
BEGIN;
CREATE TEMPORARY TABLE told ({columns}) ON COMMIT DROP;
\\copy told FROM '{path}' WITH (FORMAT csv, HEADER)
SELECT create_history_partition(month) FROM (
    SELECT DISTINCT date_trunc('month', to_timestamp(last_updated) AT TIME ZONE 'UTC')::date AS month
    FROM told
) AS months;
INSERT INTO unified_history (source, source_id, observed_at, {fields}, recorded_at, content_hash)
SELECT 'csv', id, to_timestamp(last_updated), {values}, now(), md5(told::text)::uuid
FROM told
ON CONFLICT (source, source_id, observed_at) DO UPDATE
SET {told}, recorded_at = excluded.recorded_at, content_hash = excluded.content_hash
WHERE unified_history.content_hash <> excluded.content_hash;
INSERT INTO unified_data (
    source, source_id, observed_at, {fields}, first_seen_at, updated_at, content_hash
)
SELECT DISTINCT ON (id)
    'csv', id, to_timestamp(last_updated), {values}, now(), now(), md5(told::text)::uuid
FROM told
ORDER BY id, last_updated DESC
ON CONFLICT (source, source_id) DO UPDATE
SET {told}, observed_at = excluded.observed_at, updated_at = excluded.updated_at,
    content_hash = excluded.content_hash
WHERE unified_data.content_hash <> excluded.content_hash
    AND unified_data.observed_at <= excluded.observed_at;
COMMIT;
"""


async def main() -> None:
    """Load one file by turns both ways, each time into an empty database."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dump.csv"
        rows = write_dump(path)
        script = Path(folder) / "load.sql"
        script.write_text(psql_script(path))
        Path(folder).chmod(0o755)
        rates: dict[str, list[float]] = {"psql": [], "kasparro": [], "other bytes": [], "other name": []}
        peaks = []
        async with measure.server() as url:
            for _ in range(ROUNDS):
                bare = await measure.fresh(url, "bench_psql")
                async with Database(bare) as database:
                    await migrate(database)
                began = time.perf_counter()
                await by_psql(script, bare)
                rates["psql"].append(rows / (time.perf_counter() - began))
                ours = await measure.fresh(url, "bench_kasparro")
                async with Database(ours) as database:
                    await migrate(database)
                async with measure.memory() as peak:
                    rates["kasparro"].append(rows / await _etl(path, ours, rows))
                peaks.append(peak.megabytes)
                # The same rows in a file that is another one to the checkpoints, by a line end more, and in
                # one that they know by its content.
                again = path.with_name("again.csv")
                again.write_bytes(path.read_bytes() + b"\r\n")
                rates["other bytes"].append(rows / await _etl(again, ours, 0))
                again.write_bytes(path.read_bytes())
                rates["other name"].append(rows / await _etl(again, ours, 0))
            median = {name: statistics.median(values) for name, values in rates.items()}
            print(f"load of {rows:,} rows, {ROUNDS} rounds by turns")
            for name, values in rates.items():
                print(f"  {name:12} {measure.spread(values, 'rows/s')}")
            print(f"  kasparro / psql          {median['kasparro'] / median['psql']:.2f}")
            print(f"  memory of etl and its worker, at most  {max(peaks):.0f} MB")
            print(f"  other bytes / kasparro   {median['other bytes'] / median['kasparro']:.2f}")
            print(f"  other name / kasparro    {median['other name'] / median['kasparro']:.2f}")
            part, twin = Path(folder) / "part.csv", Path(folder) / "twin.csv"
            profiled = write_dump(part, times=PROFILED_TIMES)
            twin.write_bytes(part.read_bytes() + b"\r\n")
            await breakdown.show(url, part, twin, profiled)


async def _etl(path: Path, url: str, written: int) -> float:
    began = time.perf_counter()
    output = await measure.process(
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
        raise RuntimeError(f"{written} rows were to be written: {records}")
    return took


async def by_psql(script: Path, url: str) -> None:
    """Have psql run the script of `psql_script`."""
    psql = str(find_programs().path("psql"))
    await measure.process(psql, "-qX", "-o", "/dev/null", "-f", str(script), url)
