"""Runs over folders of archives: the outcome with rejected files, and how they are named."""

import gzip
import json
import random
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import pytest

from kasparro.model.record import FILE_REJECTED
from kasparro.pipeline import source_run
from kasparro.simulator import Simulator
from kasparro.simulator.faults import Status
from kasparro.sources.archives.source import Archives
from kasparro.store.loader import REJECTS_LIMIT
from kasparro.store.pool import Database
from kasparro.web import reports
from kasparro.web.schemas import RejectedFile, RunReport
from tests.conftest import LogEvents
from tests.support.commands import run_command
from tests.support.runs import apis, run_sources, source_outcomes

pytestmark = pytest.mark.slow

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

GOOD = "id,symbol,name,price_usd,last_updated\nbitcoin,BTC,Bitcoin,1.5,1515230661\n"
UNNAMED_PRICE = "id,symbol,name,last_updated,wert_usd\nbitcoin,BTC,Bitcoin,1515230661,1.5\n"
NO_PRICE = "none of its columns is known to hold a price (id, symbol, name, last_updated, wert_usd)"
PRICE = 'columns."wert_usd" = "price_usd"  # a guess: check it'


def damaged() -> bytes:
    """A truncated compressed file; its first rows can be read."""
    chance = random.Random(1)
    rows = "".join(f"coin-{number},{chance.random()},1515230661\n" for number in range(5_000))
    return gzip.compress(f"id,price_usd,last_updated\n{rows}".encode())[:-2_000]


async def last_report(connection: Connection) -> RunReport:
    """The newest run, as in /runs/{id}."""
    found = await reports.run_report(connection, await connection.fetchval("SELECT max(id) FROM runs"))
    assert found is not None
    return found


async def run_three_times(database: Database, connection: Connection, folder: Path) -> list[str]:
    """The statuses of three runs over an unchanged folder."""
    statuses = []
    for _ in range(3):
        status = await run_sources(database, [Archives(str(folder))])
        assert (await source_outcomes(connection))["csv"]["status"] == status
        statuses.append(status)
    return statuses


def without_price(folder: Path) -> None:
    (folder / "list.csv").write_text(UNNAMED_PRICE)


def mostly_rejected(folder: Path) -> None:
    (folder / "most.csv").write_text(GOOD + "a,A,A,x,1515230661\nb,B,B,y,1515230661\n")


def misconfigured(folder: Path) -> None:
    (folder / "other.csv").write_text(GOOD.replace("1.5", "2.5"))
    (folder / "other.csv.toml").write_text("dezimal = 1\n")


def truncated(folder: Path) -> None:
    (folder / "prices.csv.gz").write_bytes(damaged())


BAD = [without_price, mostly_rejected, misconfigured, truncated]


@pytest.mark.parametrize("damage", BAD)
@pytest.mark.parametrize("good", [GOOD, GOOD.partition("\n")[0] + "\n"], ids=["a row", "a header alone"])
async def test_rejected_file_makes_every_run_partial(
    database: Database, connection: Connection, tmp_path: Path, damage: Callable[[Path], None], good: str
) -> None:
    (tmp_path / "good.csv").write_text(good)
    damage(tmp_path)

    assert await run_three_times(database, connection, tmp_path) == ["partial"] * 3


async def test_truncated_file_is_partial_in_every_run(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    truncated(tmp_path)

    assert await run_three_times(database, connection, tmp_path) == ["partial"] * 3


@pytest.mark.parametrize("damage", BAD[:3])
async def test_nothing_loaded_fails_every_run(
    database: Database, connection: Connection, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(tmp_path)

    assert await run_three_times(database, connection, tmp_path) == ["failed"] * 3


async def test_repaired_folder_succeeds(database: Database, connection: Connection, tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_text(GOOD)
    without_price(tmp_path)
    await run_three_times(database, connection, tmp_path)
    (tmp_path / "list.csv").unlink()

    assert await run_three_times(database, connection, tmp_path) == ["succeeded"] * 3


async def test_lost_page_makes_every_run_partial(database: Database, connection: Connection) -> None:
    """The other pages are unchanged."""
    async with Simulator(seed=7, coins=600, manual=True) as simulator:
        sources = apis(simulator)[1:]
        assert await run_sources(database, sources) == "succeeded"
        simulator.add_fault(Status(api="coingecko", code=502, page=2))

        for _ in range(2):
            assert await run_sources(database, sources) == "partial"
            source = (await source_outcomes(connection))["coingecko"]
            assert source["valid"] == source["unchanged"] > 0


async def test_exit_code_is_the_same_in_every_run(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_text(GOOD)
    without_price(tmp_path)
    environment = {"DATABASE_URL": database_url, "KASPARRO_ARCHIVES": str(tmp_path)}

    for _ in range(2):
        code, out, _ = await run_command("etl", "--source", "csv", "--json", **environment)
        assert (code, json.loads(out)["status"]) == (1, "partial")
    (tmp_path / "list.csv").unlink()
    assert (await run_command("etl", "--source", "csv", **environment))[0] == 0


async def test_rejected_files_are_named_with_the_missing_setting(
    database: Database, connection: Connection, tmp_path: Path, logged: LogEvents
) -> None:
    (tmp_path / "good.csv").write_text(GOOD + "a,A,A,x,1515230661\n")
    for number in range(10):
        (tmp_path / f"list-{number}.csv").write_text(
            f"{UNNAMED_PRICE}eth-{number},ETH,Ethereum,1515230661,2\n"
        )
    reason = NO_PRICE

    assert await run_sources(database, [Archives(str(tmp_path))]) == "partial"

    (csv,) = (await last_report(connection)).sources
    names = [f"list-{number}.csv" for number in range(10)]
    assert csv.rejected_files == [RejectedFile(file=name, reason=reason, setting=PRICE) for name in names]
    assert csv.error == (
        "10 files were rejected (list-0.csv, list-1.csv, list-2.csv and 7 more); "
        f"list-0.csv: {reason}; list-0.csv.toml next to it can say: {PRICE}"
    )
    lines = await logged.reached(10, "file_rejected", source="csv", reason=reason, setting=PRICE)
    assert [line["file"] for line in lines] == names
    # They are listed as rejects, and all sums include them.
    part = await reports.rejects(connection, 1, limit=100)
    assert part is not None
    assert part.total == 11
    files = [reject for reject in part.items if reject.line is None]
    assert [(reject.location, reject.reason, reject.setting) for reject in files] == [
        (name, reason, PRICE) for name in names
    ]
    assert [(reject.location, reject.line) for reject in part.items if reject.line] == [("good.csv", 3)]
    assert (csv.records.fetched, csv.records.valid, csv.records.rejected) == (12, 1, 11)
    assert [(count.location, count.reason, count.rejects) for count in csv.rejects] == [
        (None, FILE_REJECTED, 10),
        ("good.csv", "not a number", 1),
    ]


async def test_single_rejected_file_is_named_in_full(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    without_price(tmp_path / "sub")

    await run_sources(database, [Archives(str(tmp_path))])

    (csv,) = (await last_report(connection)).sources
    assert csv.error == (f"sub/list.csv: {NO_PRICE}; list.csv.toml next to it can say: {PRICE}")


async def test_truncated_and_misconfigured_files_are_rejects(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    truncated(tmp_path)
    misconfigured(tmp_path)

    await run_sources(database, [Archives(str(tmp_path))])

    (csv,) = (await last_report(connection)).sources
    described, broken = sorted(csv.rejected_files, key=lambda rejected: rejected.file)
    assert described.file == "other.csv"
    assert described.reason.startswith("not loaded: other.csv.toml: unknown key 'dezimal'")
    assert broken.file == "prices.csv.gz"
    assert "read up to row" in broken.reason
    assert csv.records.fetched == csv.records.valid + csv.records.rejected
    assert csv.records.valid > 0
    # A rejected file says nothing about the records of other files.
    assert "records were rejected" not in (csv.error or "")


async def test_copies_of_a_rejected_file_are_named(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    for name in ("a.csv", "b.csv", "c.csv"):
        (tmp_path / name).write_text(UNNAMED_PRICE)

    await run_sources(database, [Archives(str(tmp_path))])

    (csv,) = (await last_report(connection)).sources
    assert [rejected.file for rejected in csv.rejected_files] == ["a.csv", "b.csv", "c.csv"]


async def test_copy_with_a_telling_name_is_loaded(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    """Its name says what the other copies leave open: coin and currency."""
    for name in ("a.csv", "bitcoin-usd.csv", "z.csv"):
        (tmp_path / name).write_text("date,price\n2018-01-01,9\n")

    assert await run_three_times(database, connection, tmp_path) == ["succeeded"] * 3

    (row,) = await connection.fetch("SELECT source_id, price_usd FROM unified_data")
    assert (row["source_id"], row["price_usd"]) == ("bitcoin", 9)


async def test_thousands_of_rejected_files(
    database: Database,
    connection: Connection,
    tmp_path: Path,
    logged: LogEvents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All are counted; the first are kept and logged."""
    monkeypatch.setattr(source_run, "FILES_LOGGED", 5)
    many = REJECTS_LIMIT + 200
    for number in range(many):
        (tmp_path / f"{number:04}.csv").write_text(f"id,symbol\n{number},A\n")

    assert await run_sources(database, [Archives(str(tmp_path))]) == "failed"

    (csv,) = (await last_report(connection)).sources
    assert (csv.records.fetched, csv.records.rejected) == (many, many)
    assert [(count.reason, count.rejects) for count in csv.rejects] == [(FILE_REJECTED, many)]
    assert len(csv.rejected_files) == 50
    assert await connection.fetchval("SELECT count(*) FROM rejects") == REJECTS_LIMIT
    assert await connection.fetchval("SELECT count(*) FROM reject_counts") == 1
    # One transaction per file would take a minute for 10,000 files.
    assert await connection.fetchval("SELECT batches FROM run_sources") < 10
    await logged.reached(1, "more_files_rejected", logged=5)
    assert len(await logged.reached(5, "file_rejected")) == 5


async def test_etl_names_every_rejected_file(database_url: str, tmp_path: Path) -> None:
    for name in ("one.csv", "two.csv"):
        (tmp_path / name).write_text(f"{UNNAMED_PRICE}{name},A,A,1515230661,2\n")

    code, out, _ = await run_command(
        *("etl", "--source", "csv"), DATABASE_URL=database_url, KASPARRO_ARCHIVES=str(tmp_path)
    )

    assert code == 1
    for name in ("one.csv", "two.csv"):
        assert f"csv: {name}: none of its columns is known to hold a price" in out
        assert f"{name}.toml next to it can say:\n{PRICE}" in out


MARKETS = "rank,id,symbol,name,price_usd,last_updated\n1,bitcoin,BTC,Bitcoin,5,2018-01-01T00:00:00Z\n"
CLOSES = "snapped_at,price,market_cap,total_volume\n2018-02-01 00:00:00 UTC,9,100,\n"


async def only_row(connection: Connection) -> dict[str, Any]:
    """The only row of unified_data."""
    (row,) = await connection.fetch(
        "SELECT symbol, name, rank, price_usd::int AS price, market_cap_usd::int AS cap FROM unified_data"
    )
    return dict(row)


@pytest.mark.parametrize("first", ["markets.csv", "bitcoin-usd-max.csv"])
async def test_file_without_labels_keeps_symbol_name_and_rank(
    database: Database, connection: Connection, tmp_path: Path, first: str
) -> None:
    files = {"markets.csv": MARKETS, "bitcoin-usd-max.csv": CLOSES}
    for name in sorted(files, key=lambda name: name != first):
        (tmp_path / name).write_text(files[name])
        assert await run_sources(database, [Archives(str(tmp_path))]) == "succeeded"

    expected = {"symbol": "BTC", "name": "Bitcoin", "rank": 1, "price": 9, "cap": 100}
    assert await only_row(connection) == expected
    assert await run_sources(database, [Archives(str(tmp_path))]) == "succeeded"
    assert await only_row(connection) == expected


async def test_sample_archive_ranks_the_largest_coins(database: Database, connection: Connection) -> None:
    assert await run_sources(database, [Archives(None)]) == "succeeded"

    rows = await connection.fetch("SELECT symbol FROM unified_data ORDER BY rank LIMIT 3")
    assert [row["symbol"] for row in rows] == ["BTC", "XRP", "ETH"]


async def test_coins_of_other_sources_are_known_in_file_names(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    (tmp_path / "freedom-coin_daily.csv").write_text("date,close_usd\n2024-01-01,1.5\n2024-01-02,2.5\n")
    assert await run_sources(database, [Archives(str(tmp_path))]) == "failed"
    await connection.execute(
        "INSERT INTO unified_data (source, source_id, symbol, name, rank, observed_at, has_source_time,"
        " content_hash, first_seen_at, updated_at, version, symbol_observed_at, name_observed_at,"
        " rank_observed_at) SELECT 'coingecko', 'freedom-coin', 'FRDM', 'Freedom Coin', 7, now(), true,"
        " gen_random_uuid(), now(), now(), 1, now(), now(), now()"
    )

    assert await run_sources(database, [Archives(str(tmp_path))]) == "succeeded"

    rows = await connection.fetch("SELECT source_id, price_usd FROM unified_data WHERE source = 'csv'")
    assert [tuple(row) for row in rows] == [("freedom-coin", Decimal("2.5"))]
