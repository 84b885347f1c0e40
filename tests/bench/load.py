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

from kasparro.store.database import Database
from kasparro.store.embedded import find_programs
from kasparro.store.migrations import migrate
from kasparro.store.statements import statements
from tests.bench import measure

COINS, TIMES, ROUNDS = 5_000, 40, 3
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
    """What psql does: COPY into text columns, cast them into the loader's staging table, then its merges.

    The content hash is made there too, since the tables require one.
    """
    columns = ", ".join(f'"{name}" text' for name in HEADER)
    load = statements("load/batch.sql")
    merge = "\n".join(
        load[name].replace("$1", "'csv'").replace("$2", "now()") + "\n" for name in ("history", "newest")
    )
    return f"""
\\set ON_ERROR_STOP on
BEGIN;
{load["staging"]}
CREATE TEMPORARY TABLE raw ({columns}) ON COMMIT DROP;
\\copy raw FROM '{path}' WITH (FORMAT csv, HEADER)
INSERT INTO staging
SELECT 0, md5(raw::text)::uuid, true, to_timestamp(last_updated::numeric), id, symbol, name, rank::integer,
    price_usd::numeric, market_cap_usd::numeric, "24h_volume_usd"::numeric, available_supply::numeric,
    total_supply::numeric, max_supply::numeric, percent_change_1h::numeric, percent_change_24h::numeric,
    percent_change_7d::numeric
FROM raw;
{load["partitions"]}
{merge}
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
        rates: dict[str, list[float]] = {"psql": [], "kasparro": [], "again": []}
        async with measure.server() as url:
            for _ in range(ROUNDS):
                bare = await measure.fresh(url, "bench_psql")
                async with Database(bare) as database:
                    await migrate(database)
                rates["psql"].append(
                    rows
                    / await _timed(
                        str(find_programs().path("psql")), "-qX", "-o", "/dev/null", "-f", str(script), bare
                    )
                )
                ours = await measure.fresh(url, "bench_kasparro")
                async with Database(ours) as database:
                    await migrate(database)
                rates["kasparro"].append(rows / await _etl(path, ours, rows))
                # One more line end: other bytes, so another file to the checkpoints, with the same rows.
                again = path.with_name("again.csv")
                again.write_bytes(path.read_bytes() + b"\r\n")
                rates["again"].append(rows / await _etl(again, ours, rows))
    ratio = statistics.median(rates["kasparro"]) / statistics.median(rates["psql"])
    again_ratio = statistics.median(rates["again"]) / statistics.median(rates["kasparro"])
    print(f"load of {rows:,} rows, {ROUNDS} rounds by turns")
    for name, values in rates.items():
        print(f"  {name:10} {measure.spread(values, 'rows/s')}")
    print(f"  kasparro / psql    {ratio:.2f}")
    print(f"  again / kasparro   {again_ratio:.2f}")


async def _etl(path: Path, url: str, rows: int) -> float:
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
    report = json.loads(output)
    if report["records"]["valid"] != rows:
        raise RuntimeError(f"not all rows were loaded: {report}")
    return took


async def _timed(*command: str) -> float:
    began = time.perf_counter()
    await measure.process(*command)
    return time.perf_counter() - began
