"""Candles are those of plain Python, whatever is stored, corrected, late or thinned."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kasparro.store.history import LENGTHS, Interval, Part, start_of, whole_days
from kasparro.store.pool import Connection, Database
from kasparro.store.sql import templates
from tests.conftest import new_database
from tests.support.batches import load_records, make_record
from tests.support.citus import on_one_server
from tests.support.histories import began, keep_up, plain_candles, read_candles

BEGIN = datetime(2024, 1, 28, tzinfo=UTC)
NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)
INTERVALS: tuple[Interval, ...] = ("1h", "1d", "1w")

# Moments of a few days, also around the ends of hours, days, weeks and months. 2024-01-28 is a Sunday.
moments = st.builds(
    lambda day, hour, shift: BEGIN + timedelta(days=day, hours=hour) + shift,
    st.sampled_from([0, 1, 3, 4, 33]),
    st.sampled_from([0, 1, 2, 12, 24]),
    st.sampled_from(
        [
            timedelta(0),
            timedelta(microseconds=-1),
            timedelta(seconds=-1),
            timedelta(minutes=20),
            timedelta(minutes=40),
        ]
    ),
)
prices = st.decimals(
    min_value=Decimal("1e-18"), max_value=Decimal("1e12"), places=18, allow_nan=False, allow_infinity=False
) | st.sampled_from([Decimal(0), Decimal("1.0"), Decimal("1.00"), Decimal(1)])
batches = st.dictionaries(moments, st.none() | prices, min_size=1, max_size=25)
steps = st.one_of(
    st.tuples(st.just("load"), batches),
    st.tuples(st.just("candles"), st.none()),
    st.tuples(st.just("thin"), st.sampled_from(["1h", "1d"])),
)


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(sequence=st.lists(steps, min_size=1, max_size=7))
def test_candles_are_those_of_plain_python(
    copied: tuple[str, str] | None, sequence: list[tuple[str, object]]
) -> None:
    asyncio.run(_compare(copied, sequence))


async def _compare(copied: tuple[str, str] | None, sequence: list[tuple[str, object]]) -> None:
    known: dict[datetime, Decimal | None] = {}
    # From this interval on, candles answer as before.
    exact: set[Interval] = set(INTERVALS)
    covered: list[tuple[datetime, datetime]] = []
    async with new_database(copied) as url, Database(url) as database:
        now = NOW
        for kind, what in sequence:
            # A month is computed again after some hours.
            now += timedelta(days=1)
            if kind == "load":
                assert isinstance(what, dict)
                # What a thinned record stands for is known, so it is not loaded again.
                added = {
                    moment: price
                    for moment, price in what.items()
                    if not any(first <= moment < last for first, last in covered)
                }
                for first, last in covered:
                    if last in added and added[last] is None:
                        # Without its price, a record no longer stands for others.
                        known = {at: price for at, price in known.items() if not first <= at < last}
                known |= added
                await load_records(
                    database,
                    "coingecko",
                    *(
                        make_record("bitcoin", moment, price_usd=None if price is None else f"{price:f}")
                        for moment, price in what.items()
                    ),
                )
            elif kind == "candles":
                await keep_up(database, now)
            else:
                assert what in {"1h", "1d"}
                await keep_up(database, now, what)
                covered = await _covered(database)
                if what == "1d":
                    exact.discard("1h")
            priced = [(moment, price) for moment, price in known.items() if price is not None]
            for interval in exact:
                found = await read_candles(database, "coingecko", "bitcoin", interval)
                assert found == plain_candles(interval, priced), (kind, interval)


async def _covered(database: Database) -> list[tuple[datetime, datetime]]:
    async with database.reading() as connection:
        rows = await connection.fetch(
            "SELECT thinned_from, observed_at FROM unified_history WHERE thinned_from IS NOT NULL"
        )
    return [tuple(row) for row in rows]


@given(
    moment=st.datetimes(
        datetime(2009, 1, 1),  # noqa: DTZ001
        datetime(2100, 1, 1),  # noqa: DTZ001
        timezones=st.timezones(),
    )
)
def test_intervals_begin_as_in_plain_python(moment: datetime) -> None:
    for interval in LENGTHS:
        assert start_of(interval, moment.astimezone(UTC)) == began(interval, moment)


def test_part_of_a_link_is_split_at_whole_days() -> None:
    def part(since: datetime, until: datetime) -> Part:
        return Part("csv", "btc", since, until)

    noon, midnight, day = BEGIN + timedelta(hours=12), BEGIN + timedelta(days=1), timedelta(days=1)

    assert whole_days(part(noon, noon + 3 * day)) == [
        part(noon, midnight),
        part(midnight, midnight + 2 * day),
        part(midnight + 2 * day, noon + 3 * day),
    ]
    assert whole_days(part(BEGIN, midnight)) == [part(BEGIN, midnight)]
    assert whole_days(part(noon, noon + day / 4)) == [part(noon, noon + day / 4)]


async def test_stored_candles_are_read(database: Database, connection: Connection) -> None:
    """A year of daily candles reads one row for each day, not every record."""
    await load_records(
        database,
        "coingecko",
        *(make_record("bitcoin", BEGIN + n * timedelta(hours=1), price_usd=str(n)) for n in range(100)),
    )
    await keep_up(database, NOW)
    await connection.execute("UPDATE daily_candles SET close = 7")
    found = await read_candles(database, "coingecko", "bitcoin", "1d")
    assert {candle[4] for candle in found} == {7}
    assert len(found) == 5


@on_one_server
@pytest.mark.parametrize(("name", "variables"), [("points", {"limit": 51}), ("next_price", {})])
async def test_a_page_reads_as_many_records_as_it_shows(
    database: Database, connection: Connection, name: str, variables: dict[str, object]
) -> None:
    # A few records in old months, as those of coins that are not traded any more, and many in later ones.
    years = (datetime(year, 3, 1, tzinfo=UTC) for year in range(2014, 2020))
    await load_records(database, "csv", *(make_record(f"old-{moment.year}", moment) for moment in years))
    await connection.execute(
        "SELECT create_history_partition(month::date)"
        " FROM generate_series('2024-01-01'::date, '2024-12-01', '1 month') AS month"
    )
    await connection.execute(
        "INSERT INTO unified_history (source, source_id, observed_at, price_usd, recorded_at, content_hash)"
        " SELECT 'csv', 'a', moment, 1, moment, gen_random_uuid()"
        " FROM generate_series('2024-01-01Z'::timestamptz, '2024-12-31Z', '1 hour') AS moment"
    )
    await connection.execute("ANALYZE unified_history")
    statement = templates("read/history.sql")[name].compose(**variables)
    values = {
        "source_0": "csv",
        "source_id_0": "a",
        "since_0": datetime(2014, 1, 1, tzinfo=UTC),
        "until_0": datetime(2025, 1, 1, tzinfo=UTC),
    }

    # Plans of readers are made without the values.
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    await connection.execute(f"PREPARE reading AS {statement.text}")
    literals = ", ".join(f"'{value}'" for value in statement.values(values))
    ((text,),) = await connection.fetch(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE reading ({literals})")

    assert _records_read(json.loads(text)[0]["Plan"]) <= 60


def _records_read(plan: dict[str, Any]) -> int:
    found = sum(_records_read(child) for child in plan.get("Plans", []))
    if plan.get("Relation Name", "").startswith("unified_history"):
        found += round((plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"])
    return found
