"""Archives that are forgotten, renamed or described in another way: what they gave is taken back."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kasparro.model.batch import MERGED_ROWS
from kasparro.sources.archives.forget import ForgottenArchive
from kasparro.sources.archives.source import Archives
from kasparro.store.pool import Database
from tests.support.archives import NOW
from tests.support.commands import run_command, started_command
from tests.support.locks import WAITING
from tests.support.runs import ManualClock, run_and_report, run_sources, source_outcomes

pytestmark = pytest.mark.slow

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

CLOCK = ManualClock(NOW)


def closes(path: Path, *prices: object, first_day: int = 1) -> Path:
    """Write a file of daily closes from a day of January 2024 on."""
    rows = "".join(f"2024-01-{first_day + day:02},{price}\n" for day, price in enumerate(prices))
    path.write_text(f"date,price_usd\n{rows}")
    return path


async def run(database: Database, folder: Path) -> str:
    """Run the source csv; returns its status."""
    return await run_sources(database, [Archives(str(folder))], clock=CLOCK)


async def forget(database: Database, name: str) -> None:
    """Forget a file."""
    assert await run_sources(database, [ForgottenArchive(name)], "forget", clock=CLOCK) == "succeeded"


async def history(connection: Connection) -> list[tuple[str, int, int]]:
    """The coin, day and price of each row of the history."""
    rows = await connection.fetch(
        "SELECT source_id, extract(day FROM observed_at)::int, price_usd::int FROM unified_history"
        " ORDER BY source_id, observed_at"
    )
    return [tuple(row) for row in rows]


async def coins(connection: Connection) -> dict[str, int]:
    """The coins of unified_data with their prices."""
    rows = await connection.fetch("SELECT source_id, price_usd::int FROM unified_data ORDER BY source_id")
    return {row["source_id"]: row["price_usd"] for row in rows}


async def known(connection: Connection) -> dict[str, bool]:
    """The known files by name, and whether they were forgotten."""
    rows = await connection.fetch(
        "SELECT name, forgotten_at IS NOT NULL AS forgotten FROM archive_files ORDER BY name"
    )
    return {row["name"]: row["forgotten"] for row in rows}


async def test_renamed_file_moves_to_the_coin_of_its_new_name(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    path = closes(tmp_path / "eth-usd.csv", 1, 2)
    await run(database, tmp_path)
    assert await coins(connection) == {"eth": 2}
    path.rename(tmp_path / "btc-usd.csv")

    assert await run(database, tmp_path) == "succeeded"

    assert await coins(connection) == {"btc": 2}
    assert await history(connection) == [("btc", 1, 1), ("btc", 2, 2)]
    assert await known(connection) == {"btc-usd.csv": False}


async def test_new_name_that_says_the_same_only_renames_the_file(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    path = closes(tmp_path / "btc-usd.csv", 1, 2)
    await run(database, tmp_path)
    path.rename(tmp_path / "btc-usd (1).csv")

    assert await run(database, tmp_path) == "succeeded"

    assert (await source_outcomes(connection))["csv"]["fetched"] == 0
    assert await coins(connection) == {"btc": 2}
    assert await known(connection) == {"btc-usd (1).csv": False}


async def test_new_name_decides_between_files_again(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    closes(tmp_path / "m-btc-usd.csv", 1, 2)
    (tmp_path / "m-btc-usd.csv.toml").write_text('coin.id = "btc"')
    path = closes(tmp_path / "btc-usd.csv", 7, 8)
    await run(database, tmp_path)
    assert await history(connection) == [("btc", 1, 1), ("btc", 2, 2)]
    (tmp_path / "z").mkdir()
    path.rename(tmp_path / "z" / "btc-usd.csv")

    await run(database, tmp_path)

    assert await history(connection) == [("btc", 1, 7), ("btc", 2, 8)]


async def test_copies_that_name_two_coins_both_load(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    for name in ("btc-usd.csv", "eth-usd.csv", "btc-usd (1).csv"):
        closes(tmp_path / name, 1, 2)

    await run(database, tmp_path)

    assert await coins(connection) == {"btc": 2, "eth": 2}


async def test_copy_with_a_better_name_loads_in_the_next_run(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    (tmp_path / "btc.csv").write_text("date,price\n2018-01-01,9\n")
    assert await run(database, tmp_path) == "failed"
    (tmp_path / "my-btc-usd.csv").write_bytes((tmp_path / "btc.csv").read_bytes())
    (tmp_path / "my-btc-usd.csv.toml").write_text('coin.id = "btc"')

    assert await run(database, tmp_path) == "succeeded"

    assert await coins(connection) == {"btc": 9}


@pytest.mark.parametrize("content", ["same", "grown", "changed"])
async def test_changed_overrides_move_the_records(
    database: Database, connection: Connection, tmp_path: Path, content: str
) -> None:
    path = closes(tmp_path / "eth-usd.csv", 1, 2)
    await run(database, tmp_path)
    (tmp_path / "eth-usd.csv.toml").write_text('coin.id = "btc"')
    prices = {"same": (1, 2), "grown": (1, 2, 3), "changed": (1, 4)}[content]
    closes(path, *prices)

    assert await run(database, tmp_path) == "succeeded"

    assert await coins(connection) == {"btc": prices[-1]}
    assert await history(connection) == [("btc", day, price) for day, price in enumerate(prices, 1)]


async def test_changed_overrides_move_the_times(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    (tmp_path / "btc-usd.csv").write_text("time,price_usd\n2024-01-01 12:00,1\n2024-01-02 12:00,2\n")
    await run(database, tmp_path)
    (tmp_path / "btc-usd.csv.toml").write_text('timezone = "Europe/Berlin"')

    await run(database, tmp_path)

    hours = await connection.fetch("SELECT DISTINCT extract(hour FROM observed_at)::int FROM unified_history")
    assert [row[0] for row in hours] == [11]
    newest = await connection.fetchval("SELECT extract(hour FROM observed_at)::int FROM unified_data")
    assert newest == 11


async def test_earlier_rows_of_a_file_that_is_overwritten_stay(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    """As those of a file that a script writes every hour."""
    path = closes(tmp_path / "btc-usd.csv", 1)
    await run(database, tmp_path)
    closes(path, 2, first_day=2)
    await run(database, tmp_path)
    closes(path, 3, first_day=3)

    await run(database, tmp_path)

    assert await history(connection) == [("btc", 1, 1), ("btc", 2, 2), ("btc", 3, 3)]
    assert await known(connection) == {"btc-usd.csv": False}
    await forget(database, "btc-usd.csv")
    assert await history(connection) == []


async def test_readers_always_see_the_coin_while_its_file_is_loaded_once_more(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    rows = "".join(f"2024-01-01 {n // 3600:02}:{n // 60 % 60:02}:{n % 60:02},{n}\n" for n in range(30_000))
    (tmp_path / "btc-usd.csv").write_text(f"time,price_usd\n{rows}")
    await run(database, tmp_path)
    (tmp_path / "btc-usd.csv.toml").write_text('timezone = "Europe/Berlin"')
    seen, done = set(), asyncio.Event()

    async def read() -> None:
        while not done.is_set():
            async with database.reading() as reader:
                seen.add(await reader.fetchval("SELECT count(*) FROM unified_data"))

    reading = asyncio.create_task(read())
    await run(database, tmp_path)
    done.set()
    await reading

    assert seen == {1}
    assert await connection.fetchval("SELECT count(*) FROM unified_history") == 30_000


async def test_forgotten_file_stays_out_until_it_changes(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    path = closes(tmp_path / "btc-usd.csv", 1, 2)
    await run(database, tmp_path)
    await forget(database, "btc-usd.csv")

    assert await run(database, tmp_path) == "succeeded"
    assert await coins(connection) == {}
    assert await known(connection) == {"btc-usd.csv": True}
    closes(path, 1, 2, 3)
    await run(database, tmp_path)
    assert await coins(connection) == {"btc": 3}
    assert await known(connection) == {"btc-usd.csv": False}


@pytest.mark.parametrize("change", ["name", "overrides"])
async def test_new_name_or_overrides_load_a_forgotten_file(
    database: Database, connection: Connection, tmp_path: Path, change: str
) -> None:
    path = closes(tmp_path / "btc-usd.csv", 1, 2)
    await run(database, tmp_path)
    await forget(database, "btc-usd.csv")
    if change == "name":
        path.rename(tmp_path / "btc-usd-max.csv")
    else:
        (tmp_path / "btc-usd.csv.toml").write_text('currency = "USD"')

    await run(database, tmp_path)

    assert await coins(connection) == {"btc": 2}


async def test_an_upgrade_brings_no_forgotten_file_back(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    closes(tmp_path / "btc-usd.csv", 1, 2)
    await run(database, tmp_path)
    await forget(database, "btc-usd.csv")
    await connection.execute(
        "UPDATE archive_files SET key = '1:' || content || ':' || split_part(key, ':', 3) || ':other'"
    )

    await run(database, tmp_path)

    assert await coins(connection) == {}
    assert await known(connection) == {"btc-usd.csv": True}


async def test_copy_of_a_forgotten_file_takes_its_place(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    for name in ("btc-usd.csv", "btc-usd-max.csv"):
        closes(tmp_path / name, 1, 2)
    await run(database, tmp_path)
    await forget(database, "btc-usd-max.csv")

    await run(database, tmp_path)
    assert await coins(connection) == {"btc": 2}
    await forget(database, "btc-usd.csv")
    await run(database, tmp_path)

    assert await coins(connection) == {}


async def test_run_that_forgets_a_file_is_reported(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    closes(tmp_path / "a.csv", 1, 2, 3)
    closes(tmp_path / "b.csv", 1, 5, 3, 4)
    (tmp_path / "kasparro.toml").write_text('coin.id = "btc"')
    await run(database, tmp_path)

    report = await run_and_report(database, [ForgottenArchive("b.csv")], "forget")

    (csv,) = report.sources
    assert (report.trigger, report.status) == ("forget", "succeeded")
    assert (csv.records.fetched, csv.records.valid) == (4, 4)
    assert (csv.records.updated, csv.records.unchanged, csv.records.inserted) == (2, 2, 0)
    assert csv.note == (
        "records removed: 1, now from another file: 1, also in another file: 2; coins removed: 0, "
        "coins with another newest record: 1"
    )
    assert await history(connection) == [("btc", 1, 1), ("btc", 2, 2), ("btc", 3, 3)]


async def test_several_prices_for_one_time_reject_the_file(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    closes(tmp_path / "eth-usd.csv", 1)
    path = closes(tmp_path / "hours-usd.csv", 5, *range(2, 20))
    path.write_text(path.read_text() + "2024-01-01,6\n2024-01-01,7\n")
    (tmp_path / "hours-usd.csv.toml").write_text('coin.id = "btc"\ncurrency = "USD"')

    assert await run(database, tmp_path) == "partial"

    (reject,) = await connection.fetch("SELECT location, reason FROM rejects")
    assert reject["location"] == "hours-usd.csv"
    assert reject["reason"] == (
        "several prices for one coin and time: btc at 2024-01-01T23:59:59+00:00 is 5 and 7"
    )
    assert "btc" not in await coins(connection)


async def test_repeated_and_rounded_rows_are_no_reason_to_reject(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    path = closes(tmp_path / "btc-usd.csv", *(f"12345.{day}7" for day in range(20)))
    path.write_text(path.read_text() + "2024-01-07,12345.67\n2024-01-07,12345.7\n")

    assert await run(database, tmp_path) == "succeeded"


async def test_several_prices_far_apart_reject_a_long_file_in_every_run(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    rows = "".join(f"coin-{n},1,1515230661\n" for n in range(MERGED_ROWS + 10))
    path = tmp_path / "long.csv"
    path.write_text(f"id,price_usd,last_updated\n{rows}coin-0,2,1515230661\n")

    for _ in range(2):
        assert await run(database, tmp_path) == "failed"
        (reject,) = await connection.fetch(
            "SELECT reason FROM rejects WHERE run_id = (SELECT max(id) FROM runs)"
        )
        assert reject["reason"].startswith("several prices for one coin and time: coin-0 at")
        assert await coins(connection) == {}
    # The second run does not load the rows before it rejects the file.
    assert (await source_outcomes(connection))["csv"]["valid"] == 0
    path.write_text(f"id,price_usd,last_updated\n{rows}")
    assert await run(database, tmp_path) == "succeeded"
    assert len(await coins(connection)) == MERGED_ROWS + 10


async def test_disagreeing_files_make_every_run_partial(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    closes(tmp_path / "a.csv", *range(100, 120))
    closes(tmp_path / "b.csv", *range(105, 125))
    (tmp_path / "kasparro.toml").write_text('coin.id = "btc"')

    for _ in range(2):
        assert await run(database, tmp_path) == "partial"
        error = (await source_outcomes(connection))["csv"]["error"]
        assert error.startswith(
            "a.csv and b.csv disagree: their prices of btc differ by more than 1 % at 19 of 19 moments"
        )
    await forget(database, "b.csv")
    assert await run(database, tmp_path) == "succeeded"


@pytest.mark.parametrize("names", [("a.csv", "b.csv"), ("b.csv", "a.csv"), ("a.csv", "a (1).csv")])
async def test_unfinished_last_candle_gives_way(
    database: Database, connection: Connection, tmp_path: Path, names: tuple[str, str]
) -> None:
    """Whatever the order of the files and of their rows."""
    header = "date;open;high;low;close;volume;market cap\n"
    may = "2024-05-01;60;71;56;67;874;1329\n"
    (tmp_path / names[0]).write_text(f"{header}{may}2024-05-02;67;68;67;99;0;0\n")
    (tmp_path / names[1]).write_text(f"{header}2024-05-02;67;71;58;62;751;1235\n{may}")
    (tmp_path / "kasparro.toml").write_text('coin.id = "btc"\ncurrency = "USD"\nperiod = "1d"')

    assert await run(database, tmp_path) == "succeeded"

    assert await history(connection) == [("btc", 1, 67), ("btc", 2, 62)]
    assert await connection.fetchval("SELECT market_cap_usd::int FROM unified_data") == 1235


async def test_zero_next_to_a_price_is_null_in_candles(
    database: Database, connection: Connection, tmp_path: Path
) -> None:
    (tmp_path / "btc-usd.csv").write_text(
        "Date,Open,High,Low,Close,Volume,Market Cap\n"
        "2009-05-01,0,0,0,0,0,0\n2009-05-02,1,2,1,2,10,20\n2009-05-03,2,3,2,3,0,0.00\n"
    )

    await run(database, tmp_path)

    rows = await connection.fetch(
        "SELECT volume_24h_usd::int, market_cap_usd::int FROM unified_history ORDER BY observed_at"
    )
    assert [tuple(row) for row in rows] == [(0, 0), (10, 20), (None, None)]


@pytest.fixture
async def loaded(database_url: str, database: Database, tmp_path: Path) -> dict[str, str]:
    """The environment of commands, with a folder of two loaded archives."""
    closes(tmp_path / "btc-usd.csv", 1, 2)
    (tmp_path / "list.csv").write_text("id,price_usd,last_updated\nbtc,1.5,1704153599\neth,7,1704153599\n")
    await run(database, tmp_path)
    return {"DATABASE_URL": database_url, "KASPARRO_ARCHIVES": str(tmp_path)}


async def test_list_shows_what_each_file_gave(loaded: dict[str, str], tmp_path: Path) -> None:
    closes(tmp_path / "btc-usd.csv", 1, 2, 3)
    (tmp_path / "list.csv").unlink()

    code, out, _ = await run_command("archives", "--json", **loaded)

    closes_file, list_file = json.loads(out)["archives"]
    assert code == 0
    assert {name: closes_file[name] for name in ("file", "state", "rows", "coin", "coins")} == {
        "file": "btc-usd.csv",
        "state": "changed",
        "rows": 2,
        "coin": "btc",
        "coins": 1,
    }
    assert (closes_file["first_observed_at"], closes_file["last_observed_at"]) == (
        "2024-01-01T23:59:59Z",
        "2024-01-02T23:59:59Z",
    )
    assert {name: list_file[name] for name in ("file", "state", "rows", "coin", "coins")} == {
        "file": "list.csv",
        "state": "gone",
        "rows": 2,
        "coin": None,
        "coins": 2,
    }
    _, out, _ = await run_command("archives", **loaded)
    assert "2 coins" in out


async def test_forget_takes_a_file_back(
    loaded: dict[str, str], connection: Connection, tmp_path: Path
) -> None:
    code, out, _ = await run_command("archives", "forget", str(tmp_path / "btc-usd.csv"), **loaded)

    assert code == 0
    assert "records removed: 1, now from another file: 1" in out.replace("\n", " ")
    _, out, _ = await run_command("archives", "--json", **loaded)
    assert [(file["file"], file["state"], file["rows"]) for file in json.loads(out)["archives"]] == [
        ("btc-usd.csv", "forgotten", 0),
        ("list.csv", "loaded", 2),
    ]
    assert await coins(connection) == {"btc": 2, "eth": 7}
    code, _, err = await run_command("archives", "forget", "btc-usd.csv", **loaded)
    assert code == 1
    assert "no archive btc-usd.csv is loaded" in err


@asynccontextmanager
async def half_done(
    connection: Connection, loaded: dict[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A `kasparro archives forget` that has deleted records and cannot commit before the block ends."""
    async with connection.transaction():
        await connection.execute("SELECT FROM instance FOR UPDATE")
        async with started_command("archives", "forget", "btc-usd.csv", **loaded) as process:
            other = await asyncpg.connect(loaded["DATABASE_URL"])
            try:
                async with asyncio.timeout(60):
                    while not await other.fetchval(WAITING):  # noqa: ASYNC110 - it is another process
                        await asyncio.sleep(0.02)
            finally:
                await other.close()
            yield process


async def test_killed_forget_leaves_everything_as_it_was(
    loaded: dict[str, str], database: Database, connection: Connection, tmp_path: Path
) -> None:
    before = await history(connection), await coins(connection), await known(connection)

    async with half_done(connection, loaded) as process:
        process.send_signal(signal.SIGKILL)
        await process.wait()

    assert (await history(connection), await coins(connection), await known(connection)) == before
    code, _, _ = await run_command("archives", "forget", "btc-usd.csv", **loaded)
    assert code == 0
    assert await connection.fetchval("SELECT status FROM runs WHERE trigger = 'forget' ORDER BY id") == (
        "interrupted"
    )
    assert await known(connection) == {"btc-usd.csv": True, "list.csv": False}


async def test_one_run_or_forgetting_at_a_time(loaded: dict[str, str], connection: Connection) -> None:
    async with half_done(connection, loaded):
        for command in (("archives", "forget", "list.csv"), ("etl", "--source", "csv")):
            code, _, err = await run_command(*command, **loaded)
            assert code == 3
            assert "another run is at work on this database" in err


FILES = st.dictionaries(
    st.sampled_from(("a.csv", "b (1).csv", "b.csv")),
    st.tuples(
        st.sampled_from(("btc", "eth")),
        st.lists(st.integers(1, 3), min_size=1, max_size=4),
        st.integers(1, 3),
    ),
    min_size=1,
)


def write(folder: Path, files: dict[str, tuple[str, list[int], int]]) -> None:
    """Make the folder hold these files, each of a coin that its overrides name."""
    for path in folder.iterdir():
        path.unlink()
    for name, (coin, prices, first_day) in files.items():
        closes(folder / name, *prices, first_day=first_day)
        (folder / f"{name}.toml").write_text(f'coin.id = "{coin}"')


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=FILES, after=FILES, forgotten=st.sets(st.sampled_from(("a.csv", "b (1).csv", "b.csv"))))
async def test_tables_equal_a_load_of_the_remaining_files(
    database: Database,
    connection: Connection,
    tmp_path: Path,
    before: dict[str, tuple[str, list[int], int]],
    after: dict[str, tuple[str, list[int], int]],
    forgotten: set[str],
) -> None:
    """Files get other coins, and some are forgotten. A file that stays has the same content."""
    after = {
        name: (coin, *(before[name][1:] if name in before else rest)) for name, (coin, *rest) in after.items()
    }
    await connection.execute("TRUNCATE unified_data, unified_history, shared_records, archive_files")
    write(tmp_path, before)
    await run(database, tmp_path)
    for name in before.keys() & forgotten:
        await forget(database, name)
    for name in before.keys() - after.keys() - forgotten:
        await forget(database, name)
    write(tmp_path, after)
    await run(database, tmp_path)
    rows = await history(connection), await coins(connection)

    await connection.execute("TRUNCATE unified_data, unified_history, shared_records, archive_files")
    remaining = {
        name: given for name, given in after.items() if name not in forgotten or before.get(name) != given
    }
    write(tmp_path, remaining)
    if remaining:
        await run(database, tmp_path)
    assert (await history(connection), await coins(connection)) == rows
