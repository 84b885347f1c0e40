"""Times in archives: accepted texts mean what `datetime` says, and no order of day and month is guessed."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from kasparro.model.record import RejectedValue
from kasparro.sources.archives.errors import FileRejected
from kasparro.sources.archives.times import (
    MONTH,
    Epoch,
    Grid,
    Order,
    Stamp,
    day_order,
    epoch_unit,
    period_words,
    read_time,
)

NOW = datetime(2026, 6, 1, tzinfo=UTC)
moments = st.datetimes(datetime(2009, 1, 4), datetime(2026, 5, 1))  # noqa: DTZ001 - st.datetimes needs naive bounds


@pytest.mark.parametrize(
    ("text", "order", "expected"),
    [
        ("2018-12-15 23:59:59", None, "2018-12-15 23:59:59"),
        ("2018-12-15", None, "2018-12-15 00:00:00"),
        ("2021-05-20 00:00:00 UTC", None, "2021-05-20 00:00:00"),
        ("2025-10-06T18:57:42.558Z", None, "2025-10-06 18:57:42.558000"),
        ("2018-01-01 02:00:00+02:00", None, "2018-01-01 00:00:00"),
        ("2023-08-02 10:26:18 +0000 UTC", None, "2023-08-02 10:26:18"),
        ("20180105", None, "2018-01-05 00:00:00"),
        ("Dec 31, 2022", None, "2022-12-31 00:00:00"),
        ("31 December 2022", None, "2022-12-31 00:00:00"),
        ("05-Sep-17", None, "2017-09-05 00:00:00"),
        ("29-04-13 23:59", "dmy", "2013-04-29 23:59:00"),
        ("31.12.2022", "dmy", "2022-12-31 00:00:00"),
        ("12/27/2021, 12:00:00 AM", "mdy", "2021-12-27 00:00:00"),
        ("12/27/2021, 12:30:00 PM", "mdy", "2021-12-27 12:30:00"),
        ("1515230661", None, "2018-01-06 09:24:21"),
        ("1515230661.0", None, "2018-01-06 09:24:21"),
        ("1640563200000", None, "2021-12-27 00:00:00"),
    ],
)
def test_notations_give_the_time_in_utc(text: str, order: Order | None, expected: str) -> None:
    assert read_time(text, order).at == datetime.fromisoformat(expected).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2018-13-01",
        "2018-02-30",
        "31/04/2018",
        "2018-01-01 25:00:00",
        "1/2",
        "43105",
        "13:00",
        "Foo 1, 2018",
    ],
)
def test_text_that_is_not_a_time_is_rejected(text: str) -> None:
    with pytest.raises(RejectedValue, match="not a date"):
        read_time(text, "dmy")


def test_numeric_day_needs_an_order() -> None:
    with pytest.raises(RejectedValue):
        read_time("01/02/2018", None)


@given(moments)
def test_reads_formats_of_datetime(at: datetime) -> None:
    aware = at.replace(tzinfo=UTC)
    whole = aware.replace(microsecond=0)
    assert read_time(at.isoformat(), None).at == aware
    assert read_time(at.isoformat(" "), None).at == aware
    assert read_time(aware.isoformat(), None).at == aware
    assert read_time(f"{at:%b %d, %Y}", None) == Stamp(
        datetime(at.year, at.month, at.day, tzinfo=UTC), date_only=True
    )
    assert read_time(f"{at:%d.%m.%Y %H:%M:%S}", "dmy").at == whole
    assert read_time(f"{at:%m/%d/%Y, %I:%M:%S %p}", "mdy").at == whole
    assert read_time(str(int(whole.timestamp())), None).at == whole
    assert read_time(str(int(whole.timestamp()) * 1000), None).at == whole


@given(st.text("0123456789-/.: TZ+AMPMJanFeb,", max_size=24))
def test_accepted_time_is_in_utc(text: str) -> None:
    try:
        at = read_time(text, "dmy").at
    except RejectedValue:
        return
    assert at.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("cells", "order"),
    [
        (["02-10-17 23:59", "13-10-17 23:59"], "dmy"),
        (["2/17/2010 0:00", "2/3/2010 0:00"], "mdy"),
        (["18-01-31", "18-02-01"], "ymd"),
        (["2018-01-02", "1515230661"], None),
    ],
)
def test_rows_settle_the_order(cells: list[str], order: Order | None) -> None:
    assert day_order(cells, NOW) == order


def test_rows_that_fit_two_orders_are_ambiguous() -> None:
    with pytest.raises(FileRejected, match="which number is the day"):
        day_order(["01/02/2018", "03/04/2018"], NOW)


def test_rows_that_fit_no_order_are_ambiguous() -> None:
    with pytest.raises(FileRejected, match="fit no order"):
        day_order(["31/12/2018", "41/42/2018", "51/52/2018", "61/62/2018"], NOW)


def test_single_broken_row_does_not_decide_the_order() -> None:
    assert day_order([*(f"{day}/01/2018" for day in range(1, 29)), "01/31/2018"], NOW) == "dmy"


def test_repeated_and_skipped_local_times_are_rejected() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert read_time("2024-01-02 01:00", None, zone=berlin).at == datetime(2024, 1, 2, tzinfo=UTC)
    with pytest.raises(RejectedValue, match="repeated when"):
        read_time("2025-10-26 02:00", None, zone=berlin)
    with pytest.raises(RejectedValue, match="skipped when"):
        read_time("2025-03-30 02:30", None, zone=berlin)


@pytest.mark.parametrize(
    ("text", "length", "begins", "close"),
    [
        ("2018-01-31", "1d", True, "2018-01-31 23:59:59"),
        ("2018-01-31 00:00:00", "1d", True, "2018-01-31 23:59:59"),
        ("2018-12-15 23:59:59", "1d", False, "2018-12-15 23:59:59"),
        ("2018-12-16 00:00:00", "1d", False, "2018-12-15 23:59:59"),
        ("2018-12-15 23:59", "1d", False, "2018-12-15 23:59:00"),
        ("2025-01-15 00:01:00", "1m", True, "2025-01-15 00:01:59"),
        ("2018-02-01", "1mo", True, "2018-02-28 23:59:59"),
        ("2018-12-01", "1mo", True, "2018-12-31 23:59:59"),
        ("2024-02-29", "1mo", False, "2024-02-29 23:59:59"),
        ("2024-03-01 00:00:00", "1mo", True, "2024-03-31 23:59:59"),
        ("2024-03-01 00:00:00", "1mo", False, "2024-02-29 23:59:59"),
    ],
)
def test_close_is_of_the_last_second_of_a_candle(text: str, length: str, begins: bool, close: str) -> None:
    (td,) = period_words(length)
    grid = Grid(length=td, begins=begins)
    assert grid.close(read_time(text, None), UTC) == datetime.fromisoformat(close).replace(tzinfo=UTC)


def test_day_of_a_zone_ends_with_that_day_also_when_clocks_change() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    grid = Grid(length=timedelta(days=1), begins=True, zone="Europe/Berlin")
    closes = [
        grid.close(read_time(day, None, zone=berlin), berlin)
        for day in ("2024-03-30", "2024-03-31", "2024-10-27")
    ]
    assert closes == [
        datetime(2024, 3, 30, 22, 59, 59, tzinfo=UTC),
        datetime(2024, 3, 31, 21, 59, 59, tzinfo=UTC),
        datetime(2024, 10, 27, 22, 59, 59, tzinfo=UTC),
    ]


@pytest.mark.parametrize("begins", [True, False])
def test_time_beside_the_grid_is_rejected(begins: bool) -> None:
    grid = Grid(length=timedelta(hours=1), begins=begins)
    with pytest.raises(RejectedValue, match="of a candle of 1h"):
        grid.close(read_time("2024-03-30 10:20:00", None), UTC)


@pytest.mark.parametrize(
    ("word", "lengths"),
    [
        ("1d", {timedelta(days=1)}),
        ("D1", {timedelta(days=1)}),
        ("H4", {timedelta(hours=4)}),
        ("15min", {timedelta(minutes=15)}),
        ("1M", {timedelta(minutes=1), MONTH}),
        ("1m", {timedelta(minutes=1)}),
        ("1mo", {MONTH}),
        ("monthly", {MONTH}),
        ("7m", set()),
        ("2mo", set()),
        ("BTC", set()),
    ],
)
def test_words_of_lengths(word: str, lengths: set[timedelta]) -> None:
    assert period_words(word) == lengths


NOTATIONS: list[tuple[str, Order | None]] = [
    ("%Y-%m-%d %H:%M:%S", None),
    ("%Y-%m-%dT%H:%M:%SZ", None),
    ("%Y-%m-%d %H:%M:%S UTC", None),
    ("%Y-%m-%d %H:%M:%S GMT", None),
    ("%Y-%m-%d %H:%M:%S+00:00", None),
    ("%Y-%m-%d %H:%M:%S+00", None),
    ("%Y-%m-%d %H:%M:%S +0000 UTC", None),
    ("%Y/%m/%d %H:%M:%S", None),
    ("%Y.%m.%d %H:%M:%S", None),
    ("%Y%m%d %H:%M:%S", None),
    ("%b %d, %Y %H:%M:%S", None),
    ("%B %d %Y %H:%M:%S", None),
    ("%b-%d-%Y %H:%M:%S", None),
    ("%d %b %Y %H:%M:%S", None),
    ("%d-%b-%y %H:%M:%S", None),
    ("%a, %d %b %Y %H:%M:%S GMT", None),
    ("%d.%m.%Y %H:%M:%S", "dmy"),
    ("%d/%m/%y %H:%M:%S", "dmy"),
    ("%m/%d/%Y %I:%M:%S %p", "mdy"),
    ("%m-%d-%y, %I:%M:%S%p", "mdy"),
    ("%y-%m-%d %H:%M:%S", "ymd"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("written", "order"), NOTATIONS)
@given(at=moments)
def test_every_notation_is_exact(written: str, order: Order | None, at: datetime) -> None:
    whole = at.replace(tzinfo=UTC, microsecond=0)
    assert read_time(whole.strftime(written), order).at == whole
    day = written.partition(" %H")[0].partition("T%H")[0].partition(", %I")[0].partition(" %I")[0]
    stamp = read_time(whole.strftime(day), order)
    assert (stamp.at, stamp.date_only) == (whole.replace(hour=0, minute=0, second=0), True)


@given(moments)
def test_hour_without_minutes_needs_am_or_pm(at: datetime) -> None:
    whole = at.replace(tzinfo=UTC, minute=0, second=0, microsecond=0)
    assert read_time(whole.strftime("%Y-%m-%d %I-%p"), None).at == whole
    with pytest.raises(RejectedValue):
        read_time(whole.strftime("%Y-%m-%d %H"), None)


@given(moments, st.sampled_from([(1, "s"), (10**3, "ms"), (10**6, "us"), (10**9, "ns")]))
def test_epoch_unit_is_known_by_its_length(at: datetime, unit: tuple[int, str]) -> None:
    whole = at.replace(tzinfo=UTC, microsecond=0)
    text = str(int(whole.timestamp()) * unit[0])
    assert read_time(text, None).at == whole
    assert epoch_unit(text) == unit[1]


@given(moments, st.sampled_from(["s", "ms"]), st.integers(0, 999))
def test_given_epoch_unit_is_used(at: datetime, unit: Epoch, thousandths: int) -> None:
    exact = at.replace(tzinfo=UTC, microsecond=thousandths * 1_000)
    ticks = int(exact.replace(microsecond=0).timestamp())
    text = f"{ticks}.{thousandths:03}" if unit == "s" else f"{ticks}{thousandths:03}.0"
    assert read_time(text, None, epoch=unit).at == exact


@given(st.lists(moments, min_size=1, max_size=40), st.sampled_from(NOTATIONS[16:]))
def test_detected_order_is_the_written_one(days: list[datetime], notation: tuple[str, Order | None]) -> None:
    written, order = notation
    cells = [day.strftime(written) for day in days]
    try:
        assert day_order(cells, NOW) == order
    except FileRejected:
        # All days fit another order too; a day after the 12th in a year of four digits would decide.
        event("ambiguous")
