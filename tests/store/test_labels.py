"""Symbol, name and rank of a coin if some of its records lack these columns."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kasparro.model.batch import Batch, BatchBuilder
from kasparro.model.record import LABELS, Record
from kasparro.store.pool import Connection, Database
from tests.support.batches import fetch_rows, load_batches

T0 = datetime(2026, 1, 20, tzinfo=UTC)
# Columns that depend on the time of loading.
CLOCKS = {"first_seen_at", "updated_at", "recorded_at", "fetched_at", "version"}
OBSERVED = [f"{label}_observed_at" for label in LABELS]


class Quote(NamedTuple):
    """A coin at a moment; a file that lacks a label leaves it out."""

    coin: str
    day: int
    price: int
    symbol: str | None
    name: str | None
    rank: int | None


class File(NamedTuple):
    """A file whose rows lack some labels."""

    lacks: tuple[str, ...]
    quotes: tuple[Quote, ...]

    def batch(self, quotes: Sequence[Quote] | None = None) -> Batch:
        """A batch of these quotes; by default of all quotes of the file."""
        builder = BatchBuilder(self.lacks)
        for quote in self.quotes if quotes is None else quotes:
            symbol, name, rank = (None if label in self.lacks else getattr(quote, label) for label in LABELS)
            builder.add(
                Record(
                    source_id=quote.coin,
                    observed_at=at(quote.day),
                    price_usd=str(quote.price),
                    symbol=symbol,
                    name=name,
                    rank=rank,
                )
            )
        return builder.take()


def at(day: int) -> datetime:
    """A moment; two days in a row may be in two partitions."""
    return T0 + timedelta(days=9 * day)


def quote(coin: str = "bitcoin", day: int = 0, price: int = 1, **labels: Any) -> Quote:
    """A quote; a label that is not given is null."""
    return Quote(coin, day, price, *(labels.get(label) for label in LABELS))


def markets(*quotes: Quote) -> File:
    """A file with all labels."""
    return File((), quotes)


def closes(*quotes: Quote) -> File:
    """A file with no labels."""
    return File(LABELS, quotes)


async def shown(connection: Connection) -> dict[str, dict[str, Any]]:
    """The rows as a client sees them, by coin."""
    found = await connection.fetch(
        "SELECT source_id, symbol, name, rank, price_usd::integer AS price, observed_at,"
        " CASE WHEN rank IS NOT NULL THEN coalesce(rank_observed_at, observed_at) END AS rank_observed_at"
        " FROM unified_data"
    )
    return {row["source_id"]: dict(row) for row in found}


async def contents(connection: Connection) -> list[list[dict[str, Any]]]:
    """The rows of both tables, without the times of loading."""
    tables = []
    for table in ("unified_data", "unified_history"):
        found = [
            {key: value for key, value in row.items() if key not in CLOCKS}
            for row in await fetch_rows(connection, table)
        ]
        for row in found:
            row.update({key: row[key] or row["observed_at"] for key in OBSERVED if key in row})
        tables.append(found)
    return tables


async def tuples(connection: Connection) -> list[tuple[Any, ...]]:
    """The location of each row and the transaction that wrote it: any write changes this."""
    found = await connection.fetch(
        "SELECT tableoid, ctid::text, xmin::text FROM unified_data"
        " UNION ALL SELECT tableoid, ctid::text, xmin::text FROM unified_history"
    )
    return sorted(tuple(row) for row in found)


async def truncate_tables(connection: Connection) -> None:
    await connection.execute("TRUNCATE unified_data, unified_history, unified_data_versions")


FULL = quote(day=1, price=10, symbol="BTC", name="Bitcoin", rank=1)


async def test_newer_record_without_labels_keeps_them_and_replaces_the_values(
    database: Database, connection: Connection
) -> None:
    first = FULL._replace(price=10)
    await load_batches(database, markets(first).batch())
    await connection.execute("UPDATE unified_data SET market_cap_usd = 5, total_supply = 6")

    assert await load_batches(database, closes(quote(day=2, price=20)).batch()) == (0, 1, 0)

    (row,) = await fetch_rows(connection, "unified_data")
    assert (row["symbol"], row["name"], row["rank"]) == ("BTC", "Bitcoin", 1)
    assert (row["price_usd"], row["observed_at"]) == (20, at(2))
    assert (row["market_cap_usd"], row["total_supply"]) == (None, None)
    assert row["rank_observed_at"] == at(1)


async def test_older_record_gives_labels_to_a_row_that_lacks_them(
    database: Database, connection: Connection
) -> None:
    await load_batches(database, closes(quote(day=2, price=20)).batch())
    before = await connection.fetchrow("SELECT updated_at, version FROM unified_data")
    assert before is not None

    assert await load_batches(database, markets(FULL).batch()) == (0, 1, 0)

    (row,) = await fetch_rows(connection, "unified_data")
    assert (row["symbol"], row["name"], row["rank"]) == ("BTC", "Bitcoin", 1)
    assert (row["price_usd"], row["observed_at"]) == (20, at(2))
    # Caches and snapshot cursors see the change.
    assert row["updated_at"] > before["updated_at"]
    assert row["version"] > before["version"]
    (earlier,) = await connection.fetch(
        "SELECT symbol, price_usd, replaced_by_version FROM unified_data_versions"
    )
    assert (earlier["symbol"], earlier["price_usd"], earlier["replaced_by_version"]) == (
        None,
        20,
        row["version"],
    )


async def test_null_label_is_a_value(database: Database, connection: Connection) -> None:
    await load_batches(database, markets(FULL).batch())
    await load_batches(database, markets(quote(day=2, symbol="BTC")).batch())

    assert (await shown(connection))["bitcoin"]["name"] is None
    assert (await shown(connection))["bitcoin"]["rank"] is None


async def test_correction_without_labels_keeps_those_of_its_moment(
    database: Database, connection: Connection
) -> None:
    await load_batches(database, markets(FULL).batch())

    assert await load_batches(database, closes(FULL._replace(price=11)).batch()) == (0, 1, 0)

    for table in ("unified_data", "unified_history"):
        (row,) = await fetch_rows(connection, table)
        assert (row["symbol"], row["rank"], row["price_usd"]) == ("BTC", 1, 11)


async def test_corrected_label_of_an_older_moment_reaches_the_row(
    database: Database, connection: Connection
) -> None:
    await load_batches(database, markets(FULL).batch())
    await load_batches(database, closes(quote(day=2)).batch())
    await load_batches(database, markets(FULL._replace(symbol="XBT")).batch())

    assert (await shown(connection))["bitcoin"]["symbol"] == "XBT"


async def test_rows_of_an_earlier_program_get_labels_when_files_are_read_again(
    database: Database, connection: Connection
) -> None:
    # That version did not know lacking fields: it stored null, and hashed the record with null.
    await load_batches(database, markets(FULL).batch())
    await load_batches(database, markets(quote(day=2, price=20)).batch())
    await connection.execute(
        "UPDATE unified_data SET symbol_observed_at = '-infinity', name_observed_at = '-infinity',"
        " rank_observed_at = '-infinity'"
    )

    await load_batches(database, closes(quote(day=2, price=20)).batch())
    await load_batches(database, markets(FULL).batch())

    row = (await shown(connection))["bitcoin"]
    assert (row["symbol"], row["name"], row["rank"], row["price"]) == ("BTC", "Bitcoin", 1, 20)
    assert await connection.fetchval("SELECT lacks_symbol FROM unified_history WHERE price_usd = 20")


QUOTES = st.builds(
    Quote,
    coin=st.sampled_from("ab"),
    day=st.integers(0, 6),
    price=st.integers(1, 3),
    symbol=st.none() | st.sampled_from("XY"),
    name=st.none() | st.sampled_from("MN"),
    rank=st.none() | st.integers(1, 3),
)


def _moment(quote: Quote) -> tuple[str, int]:
    return quote.coin, quote.day


@st.composite
def folders(draw: Callable[..., Any]) -> list[File]:
    """Files that do not overlap: no two of them have a quote of one coin at one moment."""
    drawn = draw(st.lists(QUOTES, min_size=1, max_size=12, unique_by=_moment))
    files = draw(st.lists(st.lists(st.sampled_from(LABELS), unique=True), min_size=1, max_size=4))
    shares = [draw(st.integers(0, len(files) - 1)) for _ in drawn]
    return [
        File(
            tuple(label for label in LABELS if label in lacks),
            tuple(quote for quote, share in zip(drawn, shares, strict=True) if share == number),
        )
        for number, lacks in enumerate(files)
    ]


def expected(files: Sequence[File]) -> dict[str, dict[str, Any]]:
    """The newest quote of each coin, with each label from the newest quote whose file has it."""
    found: dict[str, dict[str, Any]] = {}
    drawn = sorted(
        ((quote, file.lacks) for file in files for quote in file.quotes), key=lambda pair: pair[0].day
    )
    for quote, lacks in drawn:
        row = found.setdefault(quote.coin, dict.fromkeys((*LABELS, "rank_observed_at"), None))
        row |= {"source_id": quote.coin, "price": quote.price, "observed_at": at(quote.day)}
        row |= {label: getattr(quote, label) for label in LABELS if label not in lacks}
        if "rank" not in lacks:
            row["rank_observed_at"] = at(quote.day) if quote.rank is not None else None
    return found


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=folders(), random=st.randoms(use_true_random=False))
async def test_order_of_files_and_batches_does_not_matter(
    database: Database, connection: Connection, files: list[File], random: Any
) -> None:
    await truncate_tables(connection)
    await load_batches(database, *(file.batch() for file in files))
    assert await shown(connection) == expected(files)
    in_order = await contents(connection)

    before = await tuples(connection)
    for file in files:
        assert await load_batches(database, file.batch()) == (0, 0, len(file.quotes))
    assert await tuples(connection) == before

    await truncate_tables(connection)
    shuffled = random.sample(files, len(files))
    for file in shuffled:
        quotes = random.sample(file.quotes, len(file.quotes))
        border = random.randint(0, len(quotes))
        await load_batches(database, file.batch(quotes[:border]), file.batch(quotes[border:]))
    assert await contents(connection) == in_order


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    drawn=st.lists(
        st.tuples(st.lists(st.sampled_from(LABELS), unique=True), st.lists(QUOTES, max_size=5)), max_size=4
    )
)
async def test_contradicting_files_give_the_same_rows_when_read_again(
    database: Database,
    connection: Connection,
    drawn: list[tuple[list[str], list[Quote]]],
) -> None:
    files = [
        File(tuple(label for label in LABELS if label in lacks), tuple(quotes)) for lacks, quotes in drawn
    ]
    await truncate_tables(connection)
    await load_batches(database, *(file.batch() for file in files))
    once = await contents(connection)

    await load_batches(database, *(file.batch() for file in files))

    assert await contents(connection) == once
    newest = {row["source_id"]: row["observed_at"] for row in await fetch_rows(connection, "unified_history")}
    assert {coin: row["observed_at"] for coin, row in (await shown(connection)).items()} == newest
