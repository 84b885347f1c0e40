"""Times in archives: what is accepted is what `datetime` says it is, and no order of days is guessed."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.record import Refused
from kasparro.sources.archives.numbers import Unsettled
from kasparro.sources.archives.times import Order, Stamp, day_order, period, period_end, read_time

NOW = datetime(2026, 6, 1, tzinfo=UTC)
moments = st.datetimes(datetime(2009, 1, 4), datetime(2026, 5, 1))  # noqa: DTZ001 - strategies want naive ones


@pytest.mark.parametrize(
    ("text", "order", "told"),
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
def test_notations_give_the_time_in_utc(text: str, order: Order | None, told: str) -> None:
    assert read_time(text, order).at == datetime.fromisoformat(told).replace(tzinfo=UTC)


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
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="not a date"):
        read_time(text, "dmy")


def test_an_all_numeric_day_is_refused_without_an_order() -> None:
    with pytest.raises(Refused):
        read_time("01/02/2018", None)


@given(moments)
def test_what_datetime_writes_is_read_as_datetime_means_it(at: datetime) -> None:
    aware = at.replace(tzinfo=UTC)
    whole = aware.replace(microsecond=0)
    assert read_time(at.isoformat(), None).at == aware
    assert read_time(at.isoformat(" "), None).at == aware
    assert read_time(aware.isoformat(), None).at == aware
    assert read_time(f"{at:%b %d, %Y}", None) == Stamp(
        datetime(at.year, at.month, at.day, tzinfo=UTC), bare=True
    )
    assert read_time(f"{at:%d.%m.%Y %H:%M:%S}", "dmy").at == whole
    assert read_time(f"{at:%m/%d/%Y, %I:%M:%S %p}", "mdy").at == whole
    assert read_time(str(int(whole.timestamp())), None).at == whole
    assert read_time(str(int(whole.timestamp()) * 1000), None).at == whole


@given(st.text("0123456789-/.: TZ+AMPMJanFeb,", max_size=24))
def test_whatever_is_accepted_is_an_aware_time_in_utc(text: str) -> None:
    try:
        at = read_time(text, "dmy").at
    except Refused:
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
def test_a_files_own_rows_settle_the_order_of_days(cells: list[str], order: Order | None) -> None:
    assert day_order(cells, NOW) == order


def test_rows_that_fit_two_orders_are_unsettled() -> None:
    with pytest.raises(Unsettled, match="day from the month"):
        day_order(["01/02/2018", "03/04/2018"], NOW)


def test_one_broken_row_does_not_settle_the_order_against_the_others() -> None:
    assert day_order([*(f"{day}/01/2018" for day in range(1, 29)), "01/31/2018"], NOW) == "dmy"


def test_a_local_time_that_the_clock_change_repeats_or_leaves_out_is_refused() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert read_time("2024-01-02 01:00", None, zone=berlin).at == datetime(2024, 1, 2, tzinfo=UTC)
    with pytest.raises(Refused, match="told twice"):
        read_time("2025-10-26 02:00", None, zone=berlin)
    with pytest.raises(Refused, match="left out"):
        read_time("2025-03-30 02:30", None, zone=berlin)


@pytest.mark.parametrize(
    ("text", "length", "end"),
    [
        ("2018-01-31", timedelta(days=1), "2018-01-31 23:59:59"),
        ("2018-01-31 00:00:00", timedelta(days=1), "2018-01-31 23:59:59"),
        ("2018-12-15 23:59:59", timedelta(days=1), "2018-12-15 23:59:59"),
        ("2025-01-15 00:01:00", timedelta(minutes=1), "2025-01-15 00:01:59"),
        ("2018-01-01", timedelta(days=7), "2018-01-07 23:59:59"),
        ("2018-02-01", timedelta(days=31), "2018-02-28 23:59:59"),
    ],
)
def test_a_close_belongs_to_the_last_second_of_its_period(text: str, length: timedelta, end: str) -> None:
    assert period_end(read_time(text, None), length) == datetime.fromisoformat(end).replace(tzinfo=UTC)


def test_the_length_of_candles_is_the_commonest_step() -> None:
    minutes = [read_time(f"2025-01-15 00:{m:02}:00", None) for m in (1, 2, 4, 5, 6)]
    assert period(minutes) == timedelta(minutes=1)
    assert period([read_time("2025-01-15", None)]) == timedelta(days=1)
    assert period([read_time("2025-01-15 10:00:00", None)]) is None
