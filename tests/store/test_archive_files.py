"""Which file gives a record: moments that several files give, and files that are taken back."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kasparro.model.batch import Batch, BatchBuilder, Checkpoint
from kasparro.model.record import LABELS, Record
from kasparro.store import loader
from kasparro.store.archive_files import FileConflict, Settled
from kasparro.store.loader import Loader
from kasparro.store.pool import Connection, Database
from kasparro.store.runs import RunRecord
from tests.support.batches import fetch_rows

T0 = datetime(2026, 1, 20, tzinfo=UTC)
CLOCKS = {"first_seen_at", "updated_at", "recorded_at", "fetched_at", "version"}
OBSERVED = [f"{label}_observed_at" for label in LABELS]


class Quote(NamedTuple):
    """A coin at a moment."""

    coin: str
    day: int
    price: int
    cap: int | None = None
    symbol: str | None = None
    rank: int | None = None


class File(NamedTuple):
    """A file, which lacks some labels; `version` stands for its overrides."""

    name: str
    quotes: tuple[Quote, ...]
    lacks: tuple[str, ...] = LABELS
    version: int = 0

    def batches(self, border: int | None = None, **placed: Any) -> list[Batch]:
        """The batches of the file: one, or two with `border` quotes in the first."""
        parts = [self.quotes] if border is None else [self.quotes[:border], self.quotes[border:]]
        found: list[Batch] = []
        position = 0
        for part in parts:
            builder = BatchBuilder(self.lacks)
            for quote in part:
                builder.add(self._record(quote))
            position += len(part)
            checkpoint = Checkpoint(
                key=f"5:{self.name}::{self.version}",
                name=self.name,
                position=position,
                complete=position == len(self.quotes) and len(found) == len(parts) - 1,
                content=self.name,
                **placed,
            )
            found.append(builder.take(checkpoint))
        return found

    def _record(self, quote: Quote) -> Record:
        return Record(
            source_id=quote.coin,
            observed_at=at(quote.day),
            price_usd=str(quote.price),
            market_cap_usd=None if quote.cap is None else str(quote.cap),
            symbol=None if "symbol" in self.lacks else quote.symbol,
            name=None,
            rank=None if "rank" in self.lacks else quote.rank,
        )


def at(day: int) -> datetime:
    """A moment; two days in a row may be in two partitions."""
    return T0 + timedelta(days=9 * day)


async def load(database: Database, *batches: Batch) -> Settled:
    """Load batches in a run of its own; returns what the last one settled or took back."""
    run = await RunRecord.start(database, "etl", ("csv",), T0)
    csv = Loader(database, run.id, "csv")
    settled = Settled()
    for batch in batches:
        settled = await csv.load(batch, datetime.now(UTC))
    counts = await run.counts("csv")
    assert counts["valid"] == counts["inserted"] + counts["updated"] + counts["unchanged"]
    return settled


async def forget(database: Database, name: str) -> Settled:
    """Forget a file."""
    return await load(database, msgspec.structs.replace(BatchBuilder().take(), forgets=name))


async def prices(connection: Connection, table: str = "unified_history") -> list[tuple[str, int, int]]:
    """The coin, day and price of each row."""
    return [
        (row["source_id"], (row["observed_at"] - T0).days // 9, int(row["price_usd"]))
        for row in await fetch_rows(connection, table)
    ]


async def contents(connection: Connection) -> list[list[dict[str, Any]]]:
    """The rows of the tables, without ids of files and times of loading."""
    names = {row["id"]: row["name"] for row in await connection.fetch("SELECT id, name FROM archive_files")}
    tables = []
    for table in ("unified_data", "unified_history", "shared_records"):
        found = []
        for row in await fetch_rows(connection, table):
            if "file_id" in row:
                row["file_id"] = names.get(row["file_id"])
            row.update({key: row[key] or row["observed_at"] for key in OBSERVED if key in row})
            found.append({key: value for key, value in row.items() if key not in CLOCKS})
        tables.append(sorted(found, key=lambda row: (row["source_id"], row["observed_at"], str(row))))
    return tables


async def empty_tables(connection: Connection) -> None:
    await connection.execute(
        "TRUNCATE unified_data, unified_history, unified_data_versions, shared_records, file_disagreements,"
        " archive_files, insert_counters"
    )


async def test_forgotten_file_leaves_what_others_give(database: Database, connection: Connection) -> None:
    await load(database, *File("a.csv", (Quote("btc", 1, 10), Quote("eth", 1, 5))).batches())
    await load(database, *File("b.csv", (Quote("btc", 2, 20), Quote("btc", 3, 30))).batches())

    assert await forget(database, "b.csv") == Settled(removed=2, coins_updated=1)

    assert await prices(connection) == [("btc", 1, 10), ("eth", 1, 5)]
    assert await prices(connection, "unified_data") == [("btc", 1, 10), ("eth", 1, 5)]


SEVERAL_MONTHS = tuple(Quote(coin, day, 10 + day) for day in range(6) for coin in ("btc", "eth", "ltc"))


@pytest.mark.parametrize("quotes", [SEVERAL_MONTHS, SEVERAL_MONTHS[::-1], SEVERAL_MONTHS[3:9]])
async def test_known_records_of_a_file_are_not_compared(
    database: Database, connection: Connection, monkeypatch: pytest.MonkeyPatch, quotes: tuple[Quote, ...]
) -> None:
    if connection.get_server_version().major < 17:
        pytest.skip("older PostgreSQL compares them")
    await load(database, *File("a.csv", SEVERAL_MONTHS).batches())
    before = await contents(connection)
    monkeypatch.setattr(loader, "_SQL", {**loader._SQL, "compare": "SELECT 1 / 0"})

    await load(database, *File("a.csv", quotes).batches())

    assert await contents(connection) == before


@pytest.mark.parametrize(
    "quotes",
    [
        pytest.param((*SEVERAL_MONTHS[:7], Quote("eth", 2, 99), *SEVERAL_MONTHS[8:]), id="another price"),
        pytest.param((*SEVERAL_MONTHS[:-1], Quote("ltc", 5, 99)), id="another newest price"),
        pytest.param((*SEVERAL_MONTHS, Quote("btc", 6, 99)), id="a later moment"),
        pytest.param((*SEVERAL_MONTHS, Quote("xrp", 2, 99)), id="a new coin"),
    ],
)
async def test_change_among_known_records_of_a_file_is_loaded(
    database: Database, connection: Connection, quotes: tuple[Quote, ...]
) -> None:
    await load(database, *File("a.csv", quotes).batches())
    wanted = await contents(connection)
    await empty_tables(connection)
    await load(database, *File("a.csv", SEVERAL_MONTHS).batches())
    known = await connection.fetchval("SELECT id FROM archive_files")

    await load(database, *File("a.csv", quotes, version=1).batches(continues=known))

    assert await contents(connection) == wanted


async def test_known_records_bring_a_deleted_row_back(database: Database, connection: Connection) -> None:
    await load(database, *File("a.csv", SEVERAL_MONTHS).batches())
    before = await contents(connection)
    await connection.execute("DELETE FROM unified_data WHERE source_id = 'eth'")

    await load(database, *File("a.csv", SEVERAL_MONTHS).batches())

    assert await contents(connection) == before


async def test_known_records_of_another_file_are_noted(database: Database, connection: Connection) -> None:
    await load(database, *File("a.csv", SEVERAL_MONTHS).batches())

    await load(database, *File("b.csv", SEVERAL_MONTHS).batches())

    assert await connection.fetchval("SELECT count(*) FROM shared_records") == 2 * len(SEVERAL_MONTHS)


async def test_coin_that_no_file_gives_disappears(database: Database, connection: Connection) -> None:
    await load(database, *File("a.csv", (Quote("btc-85c84", 1, 10),)).batches())
    before = await connection.fetchval("SELECT data_version FROM instance")

    assert await forget(database, "a.csv") == Settled(removed=1, coins_removed=1)

    assert await prices(connection, "unified_data") == []
    assert await connection.fetchval("SELECT data_version FROM instance") == before + 1
    assert await connection.fetchval("SELECT rows FROM insert_counters") == 0
    (earlier,) = await connection.fetch("SELECT source_id, replaced_by_version FROM unified_data_versions")
    assert (earlier["source_id"], earlier["replaced_by_version"]) == ("btc-85c84", before + 1)


async def test_value_of_the_other_file_returns(database: Database, connection: Connection) -> None:
    quotes = [Quote("btc", day, 10 + day) for day in range(4)]
    wrong = [quote._replace(price=90) for quote in quotes]
    await load(database, *File("a.csv", tuple(quotes)).batches())
    await load(database, *File("b.csv", tuple(wrong)).batches())
    assert [price for _, _, price in await prices(connection)] == [90, 90, 90, 90]

    assert await forget(database, "b.csv") == Settled(changed=4, coins_updated=1)

    assert [price for _, _, price in await prices(connection)] == [10, 11, 12, 13]
    assert await prices(connection, "unified_data") == [("btc", 3, 13)]
    assert await connection.fetchval("SELECT count(*) FROM shared_records") == 0


async def test_record_that_two_files_give_alike_stays(database: Database, connection: Connection) -> None:
    for name in ("a.csv", "b.csv", "c.csv"):
        await load(database, *File(name, (Quote("btc", 1, 10),)).batches())

    assert await forget(database, "a.csv") == Settled(kept=1)
    assert await forget(database, "c.csv") == Settled(kept=1)
    assert await prices(connection, "unified_data") == [("btc", 1, 10)]
    assert await forget(database, "b.csv") == Settled(removed=1, coins_removed=1)


@pytest.mark.parametrize("names", [("a.csv", "b.csv"), ("b.csv", "a.csv"), ("btc.csv", "btc (1).csv")])
async def test_unfinished_last_row_never_replaces_a_row_that_is_followed_up(
    database: Database, connection: Connection, names: tuple[str, str]
) -> None:
    early, late = names
    unfinished = File(early, (Quote("btc", 1, 10), Quote("btc", 2, 21)))
    finished = File(late, (Quote("btc", 2, 20), Quote("btc", 3, 30)))
    for files in ((unfinished, finished), (finished, unfinished)):
        await empty_tables(connection)
        for file in files:
            await load(database, *file.batches())
        assert await prices(connection) == [("btc", 1, 10), ("btc", 2, 20), ("btc", 3, 30)]


async def test_of_two_last_rows_the_one_with_more_figures_counts(
    database: Database, connection: Connection
) -> None:
    unfinished = File("z.csv", (Quote("btc", 1, 10), Quote("btc", 2, 21)))
    finished = File("a.csv", (Quote("btc", 1, 10), Quote("btc", 2, 20, cap=7)))
    for files in ((unfinished, finished), (finished, unfinished)):
        await empty_tables(connection)
        for file in files:
            await load(database, *file.batches())
        assert await prices(connection) == [("btc", 1, 10), ("btc", 2, 20)]


async def test_last_row_counts_once_its_file_has_grown(database: Database, connection: Connection) -> None:
    await load(database, *File("a.csv", (Quote("btc", 1, 10), Quote("btc", 2, 20))).batches())
    short = File("b.csv", (Quote("btc", 1, 11),))
    await load(database, *short.batches())
    assert await prices(connection, "unified_data") == [("btc", 2, 20)]
    assert (await prices(connection))[0] == ("btc", 1, 10)

    grown = short._replace(quotes=(*short.quotes, Quote("btc", 2, 22)), version=1)
    known = await connection.fetchval("SELECT id FROM archive_files WHERE name = 'b.csv'")
    _, tail = grown.batches(border=1, continues=known, grown=True)
    await load(database, tail)

    assert await prices(connection) == [("btc", 1, 11), ("btc", 2, 22)]


async def test_several_prices_in_later_batches_reject_the_file(
    database: Database, connection: Connection
) -> None:
    await load(database, *File("other.csv", (Quote("btc", 1, 10), Quote("btc", 2, 20))).batches())
    first, second = File("a.csv", (Quote("eth", 1, 5), Quote("eth", 1, 6))).batches(border=1)
    run = await RunRecord.start(database, "etl", ("csv",), T0)
    loader = Loader(database, run.id, "csv")
    await loader.load(first, datetime.now(UTC))

    with pytest.raises(FileConflict, match=r"several prices for one coin and time: eth at .* is 5 and 6"):
        await loader.load(second, datetime.now(UTC))

    await loader.load(
        msgspec.structs.replace(BatchBuilder().take(first.checkpoint), rejects_file="two prices"),
        datetime.now(UTC),
    )
    assert await prices(connection, "unified_data") == [("btc", 2, 20)]
    known = await loader.file_named("a.csv")
    assert known is not None
    assert (known.problem, known.complete, known.position) == ("two prices", False, 0)


async def test_corrected_price_of_a_changed_file_is_no_conflict(
    database: Database, connection: Connection
) -> None:
    file = File("a.csv", (Quote("btc", 1, 10),))
    await load(database, *file.batches())
    known = await connection.fetchval("SELECT id FROM archive_files")

    await load(database, *File("a.csv", (Quote("btc", 1, 11),), version=1).batches(continues=known))

    assert await prices(connection) == [("btc", 1, 11)]
    assert await connection.fetchval("SELECT count(*) FROM archive_files") == 1


async def test_disagreeing_files_are_named(database: Database) -> None:
    days = range(20)
    await load(database, *File("a.csv", tuple(Quote("btc", day, 1000 + day) for day in days)).batches())
    await load(database, *File("b.csv", tuple(Quote("btc", day, 1001 + day) for day in days)).batches())
    await load(database, *File("c.csv", tuple(Quote("btc", day, 1100 + day) for day in days)).batches())
    loader = Loader(database, 1, "csv")

    found = await loader.disagreements()

    assert [line.partition(" disagree")[0] for line in found] == ["a.csv and c.csv", "b.csv and c.csv"]
    assert "their prices of btc differ by more than 1 % at 19 of 19 moments" in found[0]
    await forget(database, "c.csv")
    assert await loader.disagreements() == []


QUOTES = st.builds(
    Quote,
    coin=st.sampled_from("ab"),
    day=st.integers(0, 4),
    price=st.integers(1, 3),
    cap=st.none() | st.just(5),
    symbol=st.none() | st.sampled_from("XY"),
    rank=st.none() | st.integers(1, 3),
)
NAMES = ("a.csv", "b (1).csv", "b.csv", "c.csv")


@st.composite
def files(draw: Callable[..., Any]) -> File:
    """A file with at most one quote of each coin and moment."""
    return File(
        draw(st.sampled_from(NAMES)),
        tuple(draw(st.lists(QUOTES, max_size=6, unique_by=lambda quote: (quote.coin, quote.day)))),
        draw(st.sampled_from([(), LABELS, ("symbol", "name"), ("rank",)])),
    )


async def _replace(database: Database, connection: Connection, file: File, border: int) -> None:
    known = await connection.fetch(
        "SELECT id FROM archive_files WHERE name = $1 AND forgotten_at IS NULL", file.name
    )
    replaces = tuple(row["id"] for row in known)
    await load(database, *file.batches(border=min(border, len(file.quotes)), replaces=replaces))


async def _load_from_scratch(
    database: Database, connection: Connection, remaining: Sequence[File]
) -> list[list[dict[str, Any]]]:
    await empty_tables(connection)
    for file in sorted(remaining):
        await load(database, *file.batches())
    return await contents(connection)


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.booleans() | st.just(True), files(), st.integers(0, 6)), min_size=1, max_size=8
    )
)
async def test_tables_equal_a_load_from_scratch_of_the_remaining_files(
    database: Database, connection: Connection, steps: list[tuple[bool, File, int]]
) -> None:
    """In any order of loading, replacing and forgetting files."""
    await empty_tables(connection)
    remaining: dict[str, File] = {}
    for version, (loads, drawn, border) in enumerate(steps):
        file = drawn._replace(version=version)
        if loads:
            await _replace(database, connection, file, border)
            remaining[file.name] = file
        elif remaining.pop(file.name, None) is not None:
            await forget(database, file.name)
    by_steps = await contents(connection)

    assert by_steps == await _load_from_scratch(database, connection, list(remaining.values()))


async def test_new_moments_end_in_the_same_rows_together_and_one_by_one(
    database: Database, connection: Connection
) -> None:
    # A file that gives many moments of few coins is appended without comparing each of its moments.
    earlier = File(
        "a.csv", tuple(Quote(coin, day, day) for day in range(3) for coin in ("btc", "eth", "xmr"))
    )
    later = File(
        "b.csv",
        tuple(
            Quote(coin, day, 10 * day, symbol=coin.upper())
            for day in (6, 8, 5, 7)
            for coin in ("btc", "eth", "sol")
        ),
        lacks=("name", "rank"),
    )
    older = File("c.csv", tuple(Quote("eth", day, 7, rank=day + 9) for day in (-2, -1, -3)), lacks=("name",))
    ends = []
    for together in (True, False):
        await empty_tables(connection)
        for file in (earlier, later, older):
            parts = [file.quotes] if together else [(quote,) for quote in file.quotes]
            position, batches = 0, []
            for part in parts:
                (batch,) = file._replace(quotes=part).batches()
                assert batch.checkpoint is not None
                position += len(part)
                checkpoint = msgspec.structs.replace(
                    batch.checkpoint, position=position, complete=position == len(file.quotes)
                )
                batches.append(msgspec.structs.replace(batch, checkpoint=checkpoint))
            await load(database, *batches)
        ends.append(await contents(connection))
    assert ends[0] == ends[1]
    assert len(ends[0][1]) == 9 + 12 + 3


async def test_later_of_two_equal_prices_counts_among_new_moments(
    database: Database, connection: Connection
) -> None:
    quotes = tuple(Quote("btc", day, day) for day in range(4))
    await load(database, *File("a.csv", (*quotes, Quote("btc", 2, 2, cap=5), Quote("eth", 1, 3))).batches())
    caps = await connection.fetch(
        "SELECT market_cap_usd FROM unified_history WHERE market_cap_usd IS NOT NULL"
    )
    assert [row["market_cap_usd"] for row in caps] == [5]
    assert await prices(connection) == [
        ("btc", 0, 0),
        ("btc", 1, 1),
        ("btc", 2, 2),
        ("btc", 3, 3),
        ("eth", 1, 3),
    ]


async def test_two_prices_among_new_moments_reject_the_file(
    database: Database, connection: Connection
) -> None:
    quotes = tuple(Quote("btc", day, day) for day in range(4))
    with pytest.raises(FileConflict, match="several prices"):
        await load(database, *File("a.csv", (*quotes, Quote("btc", 2, 3))).batches())
    assert await prices(connection) == []
