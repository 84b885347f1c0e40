"""Files as people keep them, with figures of our own: loaded exactly, or rejected with lines that help."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from kasparro.sources.archives.explain import check
from kasparro.sources.archives.files import ArchiveFile
from kasparro.sources.archives.overrides import NO_OVERRIDES
from tests.support.archives import NOW, NULL, Outcome, Read, table

EXPORT_HEADER = "timeOpen;timeClose;timeHigh;timeLow;name;open;high;low;close;volume;marketCap;timestamp"


def export(number: str, name_of_day: str = "2025-01-0") -> str:
    """An export of CoinMarketCap over three days, with the number of its currency."""
    return table(
        EXPORT_HEADER,
        *(
            f'"{name_of_day}{day}T00:00:00.000Z";"{name_of_day}{day}T23:59:59.999Z";'
            f'"{name_of_day}{day}T08:00:00.000Z";"{name_of_day}{day}T02:10:00.000Z";"{number}";'
            f"9{day}10.5;9{day}90.25;9{day}00;9{day}50.125;2{day}500.5;18{day}900.25;"
            f'"{name_of_day}{day}T23:59:59.999Z"'
            for day in (1, 2, 3)
        ),
    )


def lines_of(outcome: Outcome) -> str:
    """The lines that a refusal offers."""
    return outcome.problem.partition(" next to it can say: ")[2]


# Rule 1: the time of a candle.


def candles(begin: datetime, step: timedelta, count: int, form: str, zone: str = "UTC") -> list[str]:
    """Rows of candles whose times are written in a zone; closes are 100.5, 101.5, …"""
    moments = [begin + n * step for n in range(count)]
    if form == "%s":
        written = [f"{moment.timestamp():.0f}" for moment in moments]
    else:
        written = [moment.astimezone(ZoneInfo(zone)).strftime(form) for moment in moments]
    return [f"{time},100,200,50,{100 + n}.5" for n, time in enumerate(written)]


OHLC = "Open,High,Low,Close"


async def test_days_that_begin_at_21_or_22_utc_close_with_the_following_day(load: Read) -> None:
    """Dukascopy's days are those of a zone with summer time, written in GMT."""
    athens = ZoneInfo("Europe/Athens")
    days = [datetime(2017, 10, 25, tzinfo=athens) + n * timedelta(days=1) for n in range(8)]
    rows = [
        f"{day.astimezone(UTC):%d.%m.%Y %H:%M:%S.000},100,200,50,{100 + n}.5" for n, day in enumerate(days)
    ]
    outcome = await load(table(f"Gmt time,{OHLC}", *rows), "BTCUSD_Candlestick_1_D_ASK.csv")
    assert outcome.values("source_id", "observed_at", "price_usd")[3:6] == [
        ("btc", "2017-10-28 20:59:59", "103.5"),
        ("btc", "2017-10-29 21:59:59", "104.5"),
        ("btc", "2017-10-30 21:59:59", "105.5"),
    ]


@pytest.mark.parametrize(
    ("begin", "step", "first_close"),
    [
        (datetime(2021, 3, 1, 16, tzinfo=UTC), timedelta(days=1), "2021-03-02 15:59:59"),
        (datetime(2021, 3, 1, 0, 30, tzinfo=UTC), timedelta(hours=1), "2021-03-01 01:29:59"),
        (datetime(2021, 3, 1, 2, tzinfo=UTC), timedelta(hours=4), "2021-03-01 05:59:59"),
        (datetime(2021, 3, 1, tzinfo=UTC), timedelta(minutes=5), "2021-03-01 00:04:59"),
        (datetime(2021, 3, 5, tzinfo=UTC), timedelta(days=7), "2021-03-11 23:59:59"),
        (datetime(2021, 3, 1, tzinfo=UTC), timedelta(days=3), "2021-03-03 23:59:59"),
    ],
)
async def test_times_with_a_zone_begin_candles_wherever_all_of_them_are(
    load: Read, begin: datetime, step: timedelta, first_close: str
) -> None:
    for form in ("%s", "%Y-%m-%dT%H:%M:%SZ"):
        rows = candles(begin, step, 12, form)
        outcome = await load(table(f"time,{OHLC}", *rows), "BTC-USD.csv")
        assert outcome.values("observed_at", "price_usd")[0] == (first_close, "100.5")


async def test_times_without_a_zone_off_midnight_ask_for_it(load: Read, load_with: Read) -> None:
    rows = candles(
        datetime(2021, 3, 1, tzinfo=UTC), timedelta(days=1), 12, "%Y-%m-%d %H:%M", "Asia/Singapore"
    )
    outcome = await load(table(f"time,{OHLC}", *rows), "BTC-USD.csv")
    assert "its times do not show their zone" in outcome.problem
    assert 'timezone = "Asia/Singapore"' in lines_of(outcome)
    outcome = await load_with(table(f"time,{OHLC}", *rows), lines_of(outcome), "BTC-USD.csv")
    assert outcome.values("observed_at", "price_usd")[0] == ("2021-03-01 23:59:59", "100.5")


@pytest.mark.parametrize(
    ("zone", "step", "header"),
    [
        ("America/Los_Angeles", timedelta(days=7), "timestamp;price;volume"),
        ("America/New_York", timedelta(days=1), "timestamp;price;volume"),
        ("Europe/Berlin", timedelta(days=1), "time;close;high;low;open"),
        ("Australia/Sydney", timedelta(days=1), "time;close;high;low;open"),
    ],
)
async def test_times_that_move_where_clocks_change_ask_for_their_zone(
    load: Read, load_with: Read, zone: str, step: timedelta, header: str
) -> None:
    begin = datetime(2017, 1, 2, tzinfo=UTC)
    further = ";900;9.5;9" if "open" in header else ";9"
    rows = [
        f'"{(begin + n * step).astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M:%S}";{100 + n}.5{further}'
        for n in range(0, 360, step // timedelta(days=1))
    ]
    content = table(header, *rows)
    outcome = await load(content, "btc-usd.csv")
    assert "they move by an hour where clocks change" in outcome.problem
    assert f'timezone = "{zone}"' in lines_of(outcome)
    outcome = await load_with(content, lines_of(outcome), "btc-usd.csv")
    clocks = {at[11:] for (at,) in outcome.values("observed_at")}
    assert clocks == ({"23:59:59"} if "open" in header else {"00:00:00"})


async def test_bare_days_with_a_zone_begin_in_that_zone(load_with: Read) -> None:
    rows = [f"2024-03-{day},1,2,0.5,{day}.5" for day in (29, 30, 31)]
    outcome = await load_with(table(f"date,{OHLC}", *rows), 'timezone = "Europe/Berlin"', "BTC-USD.csv")
    assert outcome.values("observed_at", "price_usd") == [
        ("2024-03-29 22:59:59", "29.5"),
        ("2024-03-30 22:59:59", "30.5"),
        ("2024-03-31 21:59:59", "31.5"),
    ]


@pytest.mark.parametrize(
    ("step", "form", "second_close"),
    [
        (timedelta(hours=1), "%Y-%m-%d,%H:%M:%S", "2025-01-02 01:59:59"),
        (timedelta(minutes=5), "%Y.%m.%d,%H:%M", "2025-01-02 00:09:59"),
        (timedelta(hours=1), "%Y%m%d,%H%M%S", "2025-01-02 01:59:59"),
    ],
)
async def test_day_and_clock_in_two_columns_are_one_time(
    load: Read, step: timedelta, form: str, second_close: str
) -> None:
    rows = candles(datetime(2025, 1, 2, tzinfo=UTC), step, 40, form)
    outcome = await load(table(f"date,time,{OHLC}", *rows), "BTC-USD.csv")
    assert outcome.values("observed_at", "price_usd")[1] == (second_close, "101.5")


@pytest.mark.parametrize(
    ("name", "step", "problem"),
    [
        ("BTCUSD_1d.csv", timedelta(hours=1), "its name says that its candles are 1d long, but most"),
        ("BTCUSD_1h.csv", timedelta(days=1), "its name says that its candles are 1h long, but most"),
        ("btc-usd-daily.csv", timedelta(minutes=1), "its name says that its candles are 1d long, but most"),
    ],
)
async def test_name_and_rows_have_to_agree_on_the_length(
    load: Read, load_with: Read, name: str, step: timedelta, problem: str
) -> None:
    content = table(f"time,{OHLC}", *candles(datetime(2021, 3, 1, tzinfo=UTC), step, 30, "%s"))
    outcome = await load(content, name)
    assert problem in outcome.problem
    outcome = await load_with(content, lines_of(outcome), name)
    last = datetime(2021, 3, 1, tzinfo=UTC) + 30 * step - timedelta(seconds=1)
    assert outcome.values("observed_at")[-1] == (f"{last:%Y-%m-%d %H:%M:%S}",)


async def test_overrides_and_rows_have_to_agree_on_the_length(load_with: Read) -> None:
    rows = candles(datetime(2021, 3, 1, tzinfo=UTC), timedelta(days=1), 30, "%s")
    outcome = await load_with(table(f"time,{OHLC}", *rows), 'period = "1h"', "BTC-USD.csv")
    assert (
        "its overrides say that its candles are 1h long, but most of its times are 1d apart"
        in outcome.problem
    )


async def test_1m_in_a_name_is_a_minute_or_a_month_as_the_rows_are(load: Read) -> None:
    rows = [
        f"{datetime(2021, month, 1, tzinfo=UTC).timestamp():.0f},1,2,0.5,{month}.5" for month in range(1, 9)
    ]
    outcome = await load(table(f"time,{OHLC}", *rows), "BTCUSD-1M.csv")
    assert outcome.values("observed_at")[1] == ("2021-02-28 23:59:59",)
    rows = candles(datetime(2021, 3, 1, tzinfo=UTC), timedelta(minutes=1), 9, "%s")
    outcome = await load(table(f"time,{OHLC}", *rows), "BTCUSD-1M.csv")
    assert outcome.values("observed_at")[1] == ("2021-03-01 00:01:59",)


async def test_row_beside_the_grid_is_rejected(load: Read) -> None:
    """The last row of a chart is often the moment of the download."""
    rows = candles(datetime(2021, 3, 1, tzinfo=UTC), timedelta(days=1), 30, "%Y-%m-%d %H:%M:%S")
    outcome = await load(table(f"time,{OHLC}", *rows, "2021-03-31 14:22:08,1,2,0.5,9.5"), "BTC-USD.csv")
    assert len(outcome.values("price_usd")) == 30
    assert outcome.rejects[0].reason == "not the beginning of a candle of 1d"


async def test_times_without_a_common_place_ask_what_they_are(load: Read, load_with: Read) -> None:
    moments = [datetime(2021, 3, 1 + n, 7 * n % 24, 11 * n % 60, tzinfo=UTC) for n in range(20)]
    content = table(f"time,{OHLC}", *(f"{at:%Y-%m-%dT%H:%M:%SZ},1,2,0.5,{at.day}.5" for at in moments))
    outcome = await load(content, "BTC-USD.csv")
    assert 'period = "1d"' in lines_of(outcome)
    outcome = await load_with(content, 'period = "1d"\ncandle_times = "end"', "BTC-USD.csv")
    assert "its times do not fit that" in outcome.problem


@pytest.mark.parametrize(
    ("longer", "shorter"),
    [(timedelta(days=1), timedelta(hours=1)), (timedelta(days=7), timedelta(days=1))],
)
async def test_two_lengths_in_one_file_are_rejected(
    load: Read, longer: timedelta, shorter: timedelta
) -> None:
    begin = datetime(2021, 3, 1, tzinfo=UTC)
    rows = candles(begin, longer, 30, "%s") + candles(begin + 30 * longer, shorter, 80, "%s")
    outcome = await load(table(f"time,{OHLC}", *rows), "BTC-USD.csv")
    assert "some of its candles are" in outcome.problem
    assert "write a file for each length" in outcome.problem


async def test_missing_candles_are_no_other_length(load: Read) -> None:
    rows = candles(datetime(2021, 3, 1, tzinfo=UTC), timedelta(days=1), 60, "%Y-%m-%d")
    kept = [row for n, row in enumerate(rows) if n % 7 not in {5, 6} and n not in range(20, 31)]
    outcome = await load(table(f"date,{OHLC}", *kept), "BTC-USD.csv")
    assert len(outcome.values("observed_at")) == len(kept)


@pytest.mark.parametrize(
    ("first", "loads"), [("2021-03-01", True), ("2021-03-07", False), ("2021-03-05", False)]
)
async def test_weeks_of_bare_days_begin_on_mondays_or_ask(load: Read, first: str, loads: bool) -> None:
    begin = datetime.fromisoformat(first).replace(tzinfo=UTC)
    content = table(f"date,{OHLC}", *candles(begin, timedelta(days=7), 12, "%Y-%m-%d"))
    outcome = await load(content, "BTC-USD.csv")
    assert bool(outcome.rows) == loads
    if not loads:
        assert "may be their first day or their last" in outcome.problem
        assert "candle_times" in lines_of(outcome)


async def test_months_of_bare_days_are_first_or_last_days(load: Read) -> None:
    days = ["2023-01-31", "2023-02-28", "2023-03-31", "2023-04-30", "2023-05-31", "2023-06-15"]
    ends = table(f"date,{OHLC}", *(f"{day},1,2,0.5,1.{n}" for n, day in enumerate(days)))
    outcome = await load(ends, "BTC-USD.csv")
    assert outcome.values("observed_at")[1] == ("2023-02-28 23:59:59",)
    assert [reject.reason for reject in outcome.rejects] == ["not the end of a candle of 1mo"]
    middle = table(f"date,{OHLC}", *(f"2023-0{month}-15,1,2,0.5,1.{month}" for month in range(1, 9)))
    assert "at different places" in (await load(middle, "BTC-USD.csv")).problem


async def test_ends_of_days_shortly_before_midnight_stay(load: Read) -> None:
    """GOOGLEFINANCE of Google Sheets."""
    content = table("Date,Close", *(f"2021-01-{day} 23:58:00,{day}.5" for day in range(13, 20)))
    outcome = await load(content, "BTC-USD.csv")
    assert outcome.values("observed_at", "price_usd")[0] == ("2021-01-13 23:58:00", "13.5")


async def test_candles_of_a_second_close_in_it(load: Read) -> None:
    rows = candles(datetime(2021, 3, 1, tzinfo=UTC), timedelta(seconds=1), 30, "%s")
    outcome = await load(table(f"time,{OHLC}", *rows), "BTC-USD_1s.csv")
    assert outcome.values("observed_at", "price_usd")[1] == ("2021-03-01 00:00:01", "101.5")


@pytest.mark.parametrize("layout", ["candles", "quotes"])
@pytest.mark.parametrize("month", [3, 10])
async def test_hours_that_clocks_change_show_local_times(load: Read, layout: str, month: int) -> None:
    begin = datetime(2021, month, 20, tzinfo=UTC)
    rows = candles(begin, timedelta(hours=1), 24 * 20, "%Y-%m-%d %H:%M", "Europe/Berlin")
    header = f"time,{OHLC}" if layout == "candles" else "time,a,b,c,price_usd"
    outcome = await load(table(header, *rows), "BTC-USD.csv")
    assert "they lack or repeat just the hours that clocks change" in outcome.problem
    assert 'timezone = "Europe/Berlin"' in lines_of(outcome)


@pytest.mark.parametrize(
    ("header", "zone"),
    [
        ("Time (UTC+8)", "2021-02-28 16:59:59"),
        ("Time GMT-5", "2021-03-01 05:59:59"),
        ("Time (KST)", "2021-02-28 15:59:59"),
        ("Time (EST)", None),
        ("Local time", None),
    ],
)
async def test_zone_in_a_header_counts_or_is_asked_for(load: Read, header: str, zone: str | None) -> None:
    rows = candles(datetime(2021, 3, 1, tzinfo=UTC), timedelta(hours=1), 30, "%Y-%m-%d %H:%M:%S")
    outcome = await load(table(f"{header},{OHLC}", *rows), "BTC-USD.csv")
    if zone is None:
        assert "does not show one zone" in outcome.problem
        assert lines_of(outcome).startswith("timezone = ")
    else:
        assert outcome.values("observed_at")[0] == (zone,)


async def test_zone_of_a_column_that_the_overrides_name_counts(load: Read, load_with: Read) -> None:
    rows = candles(datetime(2021, 3, 1, tzinfo=UTC), timedelta(hours=1), 30, "%Y-%m-%d %H:%M:%S")
    content = table(f"candle_date_time_kst,{OHLC}", *rows)
    outcome = await load_with(content, lines_of(await load(content, "BTC-USD.csv")), "BTC-USD.csv")
    assert outcome.values("observed_at")[0] == ("2021-02-28 15:59:59",)


async def test_column_of_days_with_an_unknown_name_outranks_the_day_of_the_name(
    load: Read, load_with: Read
) -> None:
    content = table("when,price_usd", *(f"2024-01-{day},{day}.5" for day in range(13, 20)))
    for name in ("bitcoin_2024-01-31.csv", "bitcoin.csv"):
        outcome = await load(content, name)
        assert lines_of(outcome) == 'columns."when" = "observed_at"  # a guess: check it'
        outcome = await load_with(content, lines_of(outcome), name)
        assert outcome.values("observed_at")[0] == ("2024-01-13 23:59:59",)


async def test_times_of_other_events_are_no_times_of_the_figures(load: Read) -> None:
    content = table(
        "name,symbol,price_usd,athTimestamp", "Bitcoin,BTC,5.5,2021-11-10", "Ether,ETH,1.5,2021-11-11"
    )
    assert "neither a column nor the file name gives the time" in (await load(content, "x.csv")).problem


async def test_symbol_with_a_point_is_no_pair(load: Read) -> None:
    content = table("date,symbol,price_usd", "2021-01-13,SOLVBTC.JUP,5.5", "2021-01-13,BTC.V,6.5")
    assert (await load(content, "x.csv")).values("symbol") == [("SOLVBTC.JUP",), ("BTC",)]


async def test_constant_time_is_not_that_of_each_row(load: Read) -> None:
    content = table(
        f"date,{OHLC},last_updated",
        *(f"2024-01-{day},1,2,0.5,{day}.5,2024-02-01T00:00:00Z" for day in (13, 14, 15)),
    )
    outcome = await load(content, "BTC-USD.csv")
    assert outcome.values("observed_at")[0] == ("2024-01-13 23:59:59",)


async def test_buckets_of_bitmex_end_at_their_time(load: Read) -> None:
    content = table(
        "timestamp,symbol,open,high,low,close,homeNotional,foreignNotional",
        *(f"2021-01-{day}T00:00:00.000Z,XBTUSD,1,2,0.5,{day}.5,7,8" for day in (13, 14, 15)),
    )
    outcome = await load(content, "buckets.csv")
    assert outcome.values("symbol", "observed_at", "price_usd")[0] == ("BTC", "2021-01-12 23:59:59", "13.5")


# Rules 2 and 4: the coin.


@pytest.mark.parametrize(
    ("name", "coin"),
    [
        ("Tether USDt_1_1_2025-2_1_2025_historical_data_coinmarketcap.csv", "tether-usdt"),
        ("Lido Staked ETH_1_1_2025-2_1_2025_historical_data_coinmarketcap.csv", "lido-staked-eth"),
        ("STASIS EURO_1_1_2025-2_1_2025_historical_data_coinmarketcap.csv", "stasis-euro"),
        ("Bitcoin_1_1_2025-2_1_2025_historical_data_coinmarketcap (2).csv", "bitcoin"),
    ],
)
async def test_export_of_a_coin_that_is_named_after_a_currency(load: Read, name: str, coin: str) -> None:
    outcome = await load(export("2781"), name)
    assert set(outcome.values("source_id", "name")) == {(coin, NULL)}


async def test_bare_numbers_are_no_names_whatever_the_overrides_name(load_with: Read) -> None:
    outcome = await load_with(
        export("2781").replace("close;", "close_price;"),
        'columns.close_price = "price_usd"',
        "coin_bitcoin.csv",
    )
    assert set(outcome.values("source_id")) == {("bitcoin",)}


async def test_name_with_words_of_unknown_meaning_asks_for_the_coin(load: Read, load_with: Read) -> None:
    content = table("date,close_usd", "2021-01-01,5.5", "2021-01-02,6.5")
    outcome = await load(content, "bitcoin ricos.csv")
    assert "its name has words of unknown meaning ('ricos')" in outcome.problem
    assert lines_of(outcome) == 'coin.id = "bitcoin"  # a guess: check it'
    outcome = await load_with(content, lines_of(outcome), "bitcoin ricos.csv")
    assert outcome.values("source_id", "price_usd")[0] == ("bitcoin", "5.5")


@pytest.mark.parametrize("overrides", ["", 'coin.id = "bitcoin"'])
async def test_several_prices_for_one_time_are_several_coins(load_with: Read, overrides: str) -> None:
    rows = [f"2021-01-0{n // 3 + 1},{'abc'[n % 3]},{n}.5" for n in range(9)]
    outcome = await load_with(table("date,thing,price_usd", *rows), overrides, "bitcoin.csv")
    assert "several coins" in outcome.problem


async def test_columns_and_name_have_to_agree_on_the_coin(load: Read) -> None:
    outcome = await load(
        table("date,symbol,close_usd", "2021-01-01,ETH,5", "2021-01-02,ETH,6"), "BTC-USD.csv"
    )
    assert "all its rows are about ETH, but its name has the pair BTC/USD" in outcome.problem


@pytest.mark.parametrize("prices", [("31030.5", "972.25"), ("31030.5", "2.5")])
async def test_few_rows_of_a_second_coin_reject_a_file(load: Read, prices: tuple[str, str]) -> None:
    rows = [f"2021-{1 + n // 28:02}-{1 + n % 28:02},{prices[0]}" for n in range(200)]
    content = table("date,close_usd", *rows, *(f"2021-01-{day:02},{prices[1]}" for day in range(1, 21)))
    assert "several coins or markets" in (await load(content, "BTC-USD.csv")).problem


@pytest.mark.parametrize(
    ("symbol", "coin"),
    [
        ("tBTCUSD", "BTC"),
        ("XXBTZUSD", "BTC"),
        ("BITSTAMP:BTCUSD", "BTC"),
        ("ZECUSD", "ZEC"),
        ("BTC-USD-SWAP", "BTC"),
        ("USDT_BTC", "BTC"),
    ],
)
async def test_pairs_in_a_column_are_read_as_in_a_name(load_with: Read, symbol: str, coin: str) -> None:
    content = table(
        f"date,symbol,{OHLC}", f"2021-01-13,{symbol},1,2,0.5,5.5", f"2021-01-14,{symbol},1,2,0.5,6.5"
    )
    outcome = await load_with(content, "pegged_as_usd = true", "x.csv")
    assert set(outcome.values("symbol")) == {(coin,)}


@pytest.mark.parametrize("header", ["eth_price_usd", "Ethereum Price (USD)", "ETH-USD"])
async def test_coin_in_the_header_of_the_price_has_to_be_that_of_the_name(
    load_with: Read, header: str
) -> None:
    content = table(f"date,{header}", "2021-01-13,5.5", "2021-01-14,6.5")
    overrides = f'columns."{header}" = "price_usd"'
    assert "but btc" in (await load_with(content, overrides, "btc.csv")).problem.replace("bitcoin", "btc")
    outcome = await load_with(content, overrides, "prices.csv")
    assert outcome.values("source_id")[0][0] in {"eth", "ethereum"}


# Rule 3: the currency.


@pytest.mark.parametrize("number", ["2790", "2791", "2797", "1", "825"])
async def test_number_of_another_currency_rejects_an_export(load: Read, load_with: Read, number: str) -> None:
    name = "Bitcoin_1_1_2025-2_1_2025_historical_data_coinmarketcap.csv"
    outcome = await load(export(number), name)
    assert f"not USD (by CoinMarketCap's number {number} in its column name)" in outcome.problem
    assert lines_of(outcome) == ""
    outcome = await load_with(export(number), 'currency = "USD"', name)
    assert outcome.values("source_id", "price_usd")[0] == ("bitcoin", "9150.125")


async def test_export_with_two_currencies_is_rejected(load: Read) -> None:
    mixed = export("2781") + export("2790", "2025-02-0").partition("\n")[2]
    outcome = await load(mixed, "Bitcoin_1_1_2025-2_1_2025_historical_data_coinmarketcap.csv")
    assert "CoinMarketCap's number 2781, 2790" in outcome.problem


async def test_layouts_whose_sites_offer_currencies_settle_none(load: Read) -> None:
    content = table("snapped_at,price,market_cap,total_volume", "2021-05-20 00:00:00 UTC,0.5,1,2")
    assert "its currency is unknown" in (await load(content, "bitcoin.csv")).problem
    content = table(
        "id,symbol,current_price,market_cap,last_updated", "bitcoin,btc,30000.5,1,2021-05-20T00:00:00Z"
    )
    assert "its currency is unknown" in (await load(content, "markets.csv")).problem


@pytest.mark.parametrize(("price", "loads"), [("1.0005", True), ("0.8512", False), ("83.25", False)])
async def test_stablecoins_show_the_currency(load: Read, price: str, loads: bool) -> None:
    content = table(
        "id,symbol,current_price,market_cap,last_updated",
        "bitcoin,btc,30000.5,1,2021-05-20T00:00:00Z",
        f"tether,usdt,{price},1,2021-05-20T00:00:00Z",
    )
    outcome = await load(content, "markets.csv")
    assert bool(outcome.rows) == loads


async def test_dollar_signs_count_where_a_stablecoin_has_an_odd_price(load_with: Read) -> None:
    content = table(
        "ID,Name,Symbol,Market Cap,Price,Circulating Supply",
        '1,Bitcoin,BTC,"$40,100,200,300",$2450.25,"16,366,000"',
        '3,Ripple,XRP,"$12,300,400,500",$0.319225,"38,531,000,250*"',
        '7,Tether,USDT,"$100,400,500",$1.03,"97,000,250†"',
        '9,Bond,BND,?,$0.25,"1,344 (1)"',
    )
    outcome = await load_with(content, "observed_at = 2017-06-12T00:00:00Z", "crypto_data.csv")
    assert outcome.values("symbol", "price_usd", "circulating_supply") == [
        ("BTC", "2450.25", "16366000"),
        ("XRP", "0.319225", "38531000250"),
        ("USDT", "1.03", "97000250"),
        ("BND", "0.25", "1344"),
    ]


async def test_pegged_coins_count_as_dollars_where_a_folder_says_so(load: Read, load_with: Read) -> None:
    rows = candles(datetime(2024, 12, 1, tzinfo=UTC), timedelta(hours=1), 5, "%s")
    for content, name in (
        (table(f"time,{OHLC}", *rows), "BTCUSDT-1h-2024-12.csv"),
        (table("date,symbol,close,high,low,open", "2024-12-01,BTC/USDC,5,6,4,5"), "x.csv"),
        (table(f"time,symbol,{OHLC}", *(row.replace(",", ",BTCFDUSD,", 1) for row in rows)), "y.csv"),
    ):
        outcome = await load(content, name)
        assert lines_of(outcome).startswith("pegged_as_usd = true  # if ")
        assert (await load_with(content, "pegged_as_usd = true", name)).values("price_usd")[0][0] in {
            "5",
            "100.5",
        }
    content = table("date,symbol,close,high,low,open", "2024-12-01,BTC/EUR,5,6,4,5")
    assert "in EUR, not USD" in (await load_with(content, "pegged_as_usd = true", "z.csv")).problem


@pytest.mark.parametrize(
    "header",
    ["Price €", "Price in EUR", "Value (EUR)", "BTC/EUR", "price_in_gbp", "Kurs in Euro", "Price A$"],
)
async def test_currency_in_any_header_of_a_price_counts(load_with: Read, header: str) -> None:
    content = table(f"date;{header}", "2021-01-13;5.5", "2021-01-14;6.5")
    outcome = await load_with(content, f'columns."{header}" = "price_usd"', "bitcoin.csv")
    assert "not USD (by its header)" in outcome.problem
    assert lines_of(outcome) == ""


@pytest.mark.parametrize("header", ["Price ($)", "Price (US$)", "Close USD", "Price in USD"])
async def test_dollars_in_a_header_need_no_help(load: Read, header: str) -> None:
    content = table(f"date;{header}", "2021-01-13;5.5", "2021-01-14;6.5")
    assert (await load(content, "bitcoin.csv")).values("price_usd") == [("5.5",), ("6.5",)]


@pytest.mark.parametrize("price", ["{} EUR", "EUR {}", "₱{}", "AR${}", "C${}"])
async def test_codes_and_signs_in_cells_are_evidence(load: Read, price: str) -> None:
    content = table("date,price", *(f"2021-01-{day},{price.format(f'{day}.5')}" for day in (13, 14)))
    outcome = await load(content, "bitcoin.csv")
    assert "by the signs in its cells" in outcome.problem
    assert lines_of(outcome) == ""
    dollars = table("date,price", "2021-01-13,5.5 USD", "2021-01-14,USD 6.5")
    assert (await load(dollars, "bitcoin.csv")).values("price_usd") == [("5.5",), ("6.5",)]


async def test_column_of_pairs_shows_the_currency_whatever_its_name(load: Read) -> None:
    content = table("date,market,price", "2021-01-13,BTC/EUR,5.5", "2021-01-14,BTC/EUR,6.5")
    assert "in EUR, not USD (by the pairs in its symbols)" in (await load(content, "x.csv")).problem
    assert (await load(content.replace("EUR", "USD"), "x.csv")).values("symbol")[0] == ("BTC",)


async def test_generic_names_of_columns_settle_no_currency(load: Read) -> None:
    content = table("date,open,high,low,close,volume,market_cap", "2021-01-13,1,2,0.5,1.5,7,8")
    assert "its currency is unknown" in (await load(content, "bitcoin.csv")).problem


async def test_volume_of_single_quotes_may_count_coins(load: Read) -> None:
    content = table("timestamp,price_usd,volume", "2021-01-13T10:00:00Z,5.5,0.25")
    assert (await load(content, "bitcoin.csv")).values("price_usd", "volume_24h_usd") == [("5.5", NULL)]


# Kinds of files.


async def test_market_cap_that_equals_the_volume_is_none(load: Read) -> None:
    """Alpha Vantage."""
    for header in (
        "timestamp,open,high,low,close,volume,market cap",
        "date,open,high,low,close,volume,market cap",
    ):
        content = table(
            header,
            "2021-06-07,35801.5,36350.25,35500.75,36210.5,2801.125,2801.125",
            "2021-06-06,35520,36480,35225.5,35801.5,47651.25,47651.25",
        )
        outcome = await load(content, "currency_daily_BTC_USD.csv")
        assert outcome.values(
            "source_id", "observed_at", "price_usd", "market_cap_usd", "volume_24h_usd"
        ) == [
            ("btc", "2021-06-07 23:59:59", "36210.5", NULL, NULL),
            ("btc", "2021-06-06 23:59:59", "35801.5", NULL, NULL),
        ]


async def test_columns_in_angle_brackets(load: Read, load_with: Read) -> None:
    """MetaTrader 5, whose clock is the broker's, and Stooq's bulk data."""
    content = table(
        "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>",
        *(f"2025.01.02\t0{n}:00:00\t94{n}80.9\t97000\t90000\t9{n}967.5\t734\t0\t10" for n in range(6)),
    )
    outcome = await load(content, "BTCUSD_H1.csv")
    assert "in a zone that the file does not show" in outcome.problem
    outcome = await load_with(content, lines_of(outcome), "BTCUSD_H1.csv")
    assert outcome.values("source_id", "observed_at", "price_usd", "volume_24h_usd")[1] == (
        "btc",
        "2025-01-01 23:59:59",
        "91967.5",
        NULL,
    )
    content = table(
        "<TICKER>,<PER>,<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>,<OPENINT>",
        *(f"BTCUSD,60,20250102,0{n}0000,96967,97010,96100,96{n}10,0,0" for n in range(6)),
    )
    outcome = await load(content, "btcusd.txt")
    assert outcome.values("symbol", "observed_at", "price_usd")[1] == ("BTC", "2025-01-02 01:59:59", "96110")


@pytest.mark.parametrize(
    "content", ["<html>\n<body>price, date</body>", "<!doctype html>", '<?xml version="1.0"?>']
)
async def test_page_or_xml_is_no_table(load: Read, content: str) -> None:
    assert "web page" in (problem := (await load(content, "btc.csv")).problem) or "XML" in problem


async def test_series_of_fred(load: Read) -> None:
    content = table("observation_date,CBBTCUSD", "2020-09-03,10226.5", "2020-09-04,.", "2020-09-05,10153.25")
    outcome = await load(content, "CBBTCUSD.csv")
    assert outcome.values("source_id", "observed_at", "price_usd") == [
        ("btc", "2020-09-03 23:59:59", "10226.5"),
        ("btc", "2020-09-05 23:59:59", "10153.25"),
    ]
    content = table("date,value", "2020-09-03,10226.5")
    assert lines_of(await load(content, "CBBTCUSD.csv")).count("coin.id") == 1


async def test_averages_of_fred_are_no_prices(load: Read) -> None:
    content = table(
        "observation_date,CBBTCUSD", *(f"2020-0{month}-01,1022{month}.5" for month in range(1, 9))
    )
    assert "they are averages" in (await load(content, "CBBTCUSD.csv")).problem


async def test_quandl_and_blockchain_com(load: Read) -> None:
    content = table('"Timestamp","market-price"', "2009-01-17 00:00:00,0.0", "2024-01-02 00:00:00,44168.5")
    assert (await load(content, "market-price.csv")).values("source_id", "price_usd") == [
        ("btc", "0"),
        ("btc", "44168.5"),
    ]
    content = table("Date,Value", "2024-01-02,44168.5", "2024-01-01,42168.5")
    assert (await load(content, "BCHAIN-MKPRU.csv")).values("source_id", "price_usd")[0] == ("btc", "44168.5")


INVESTING = {
    "en": ('"Date","Price","Open","High","Low","Vol.","Change %"', "Jan {d}, 2024", "44,{d}9.5"),
    "de": ('"Datum","Zuletzt","Eröffn.","Hoch","Tief","Vol.","+/- %"', "{d}.01.2024", "44.{d}9,5"),
    "fr": (
        '"Date","Dernier","Ouv."," Plus Haut","Plus Bas","Vol.","Variation %"',
        "{d}/01/2024",
        "44.{d}9,5",
    ),
    "es": ('"Fecha","Último","Apertura","Máximo","Mínimo","Vol.","% var."', "{d}.01.2024", "44.{d}9,5"),
    "pt": ('"Data","Último","Abertura","Máxima","Mínima","Vol.","Var%"', "{d}.01.2024", "44.{d}9,5"),
    "it": ('"Data","Ultimo","Apertura","Massimo","Minimo","Vol.","Var. %"', "{d}.01.2024", "44.{d}9,5"),
    "tr": ('"Tarih","Şimdi","Açılış","Yüksek","Düşük","Hac.","Fark %"', "{d}.01.2024", "44.{d}9,5"),
    "pl": ('"Data","Ostatnio","Otwarcie","Max.","Min.","Wol.","Zmiana%"', "{d}.01.2024", "44.{d}9,5"),
    "ru": ('"Дата","Цена","Откр.","Макс.","Мин.","Объём","Изм. %"', "{d}.01.2024", "44.{d}9,5"),
    "ja": ('"日付け","終値","始値","高値","安値","出来高","変化率 %"', "2024年01月{d}日", "44,{d}9.5"),
    "ko": ('"날짜","종가","시가","고가","저가","거래량","변동 %"', "2024- 01- {d}", "44,{d}9.5"),
    "zh": ('"日期","收盘","开盘","高","低","交易量","涨跌幅"', "2024-1-{d}", "44,{d}9.5"),
}


@pytest.mark.parametrize("language", INVESTING)
async def test_editions_of_investing_com(load: Read, language: str) -> None:
    header, day, figure = INVESTING[language]
    rows = [
        ",".join(
            f'"{cell}"'
            for cell in (
                day.format(d=d),
                figure.format(d=d),
                figure.format(d=d),
                "99.999,5" if "." in figure[:3] else "99,999.5",
                "0,5" if figure.endswith(",5") else "0.5",
                "76.26K",
                "-0.03%",
            )
        )
        for d in (15, 14, 13)
    ]
    outcome = await load(table(header, *rows), "BTC_USD Historical Data.csv")
    assert outcome.values("source_id", "observed_at", "price_usd", "volume_24h_usd") == [
        ("btc", f"2024-01-{d} 23:59:59", f"44{d}9.5", NULL) for d in (15, 14, 13)
    ]


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("Data,Otwarcie,Najwyzszy,Najnizszy,Zamkniecie,Wolumen", "btcusd_d.csv"),
        ("Date,Open,High,Low,Close,Volume", "btcusd_d.csv"),
        ("datetime,open,high,low,close,volume", "BTC_USD 1d.csv"),
        ("Date,Open,High,Low,Close Close price adjusted for splits.,Volume", "BTC-USD.csv"),
        ("Date,Open,High,Low,Close,Adj Close", "BTC-USD.csv"),
    ],
)
async def test_headers_of_stooq_and_yahoo(load: Read, header: str, name: str) -> None:
    outcome = await load(table(header, "2024-01-02,1,2,0.5,1.5,9", "2024-01-03,1,2,0.5,1.75,9"), name)
    assert outcome.values("source_id", "observed_at", "price_usd") == [
        ("btc", "2024-01-02 23:59:59", "1.5"),
        ("btc", "2024-01-03 23:59:59", "1.75"),
    ]


@pytest.mark.parametrize(
    "lines",
    [
        ["Date,Close,High,Low,Open,Volume", ",BTC-USD,BTC-USD,BTC-USD,BTC-USD,BTC-USD"],
        ["Price,Close,High,Low,Open,Volume", "Ticker,BTC-USD,BTC-USD,BTC-USD,BTC-USD,BTC-USD", "Date,,,,,"],
        ["Ticker,BTC-USD,BTC-USD,BTC-USD,BTC-USD,BTC-USD", "Price,Close,High,Low,Open,Volume", "Date,,,,,"],
        [
            ",".join(
                [
                    "Date",
                    *(f"\"('{name}', 'BTC-USD')\"" for name in ("Close", "High", "Low", "Open", "Volume")),
                ]
            )
        ],
    ],
)
async def test_headers_of_yfinance(load: Read, lines: list[str]) -> None:
    rows = [
        "2016-01-01,434.335,436.25,427.515,430.72,36278901",
        "2016-01-02,433.44,436.06,431.87,434.62,30096601",
    ]
    outcome = await load(table(*lines, *rows), "prices.csv")
    assert outcome.values("source_id", "observed_at", "price_usd", "volume_24h_usd") == [
        ("btc", "2016-01-01 23:59:59", "434.335", "36278901"),
        ("btc", "2016-01-02 23:59:59", "433.44", "30096601"),
    ]
    several = table(*(line.replace("BTC-USD", "ETH-USD", 1) for line in lines), *rows)
    assert "columns of several tickers (BTC-USD, ETH-USD)" in (await load(several, "prices.csv")).problem


def klines(begin: datetime, step: timedelta, count: int, unit: int) -> list[str]:
    """Rows of Binance's archive, in units of a second."""
    rows = []
    for n in range(count):
        opened = int((begin + n * step).timestamp()) * unit
        closed = opened + int(step.total_seconds()) * unit - 1
        rows.append(
            f"{opened},96{n}07.5,96{n}72.25,96{n}01,96{n}40.75,532.95,{closed},51410648.7,154693,246.2,237.1,0"
        )
    return rows


async def test_binance_klines_in_two_units(load: Read, load_with: Read) -> None:
    hour = timedelta(hours=1)
    rows = klines(datetime(2024, 12, 31, 21, tzinfo=UTC), hour, 3, 10**3)
    rows += klines(datetime(2025, 1, 1, tzinfo=UTC), hour, 3, 10**6)
    content, name = table(*rows), "BTCUSDT-1h-2024-12.csv"
    expected = [
        ("btc", f"2024-12-31 {h}:59:59", f"96{n}40.75", NULL) for n, h in enumerate(("21", "22", "23"))
    ] + [("btc", f"2025-01-01 0{h}:59:59", f"96{h}40.75", NULL) for h in range(3)]
    fields = ("source_id", "observed_at", "price_usd", "volume_24h_usd")
    assert (await load_with(content, "pegged_as_usd = true", name)).values(*fields) == expected
    outcome = await load_with(content, 'pegged_as_usd = true\nepoch = "ms"', name)
    assert "remove the key epoch, and each time is read by its length" in outcome.problem
    micro = table(*klines(datetime(2025, 1, 1, tzinfo=UTC), hour, 3, 10**6))
    outcome = await load_with(micro, 'pegged_as_usd = true\nepoch = "us"', name)
    assert outcome.values(*fields) == expected[3:]


async def test_kraken_ohlcvt(load: Read) -> None:
    rows = [f"{1381017600 + 86400 * n},122.5,130,120,12{n}.5,0.1,{n}" for n in range(5)]
    outcome = await load(table(*rows), "XBTUSD_1440.csv")
    assert outcome.values("source_id", "observed_at", "price_usd")[1] == (
        "btc",
        "2013-10-07 23:59:59",
        "121.5",
    )


async def test_rows_of_numbers_that_are_no_candles_are_not_taken_for_them(load: Read) -> None:
    rows = [f"{1381017600 + 86400 * n},122.5,120,121,12{n}.5,0.1,{n}" for n in range(5)]
    assert "it has no header" in (await load(table(*rows), "XBTUSD_1440.csv")).problem


async def test_coincodex_has_one_moment_of_two_columns(load: Read) -> None:
    content = table(
        "Start,End,Open,High,Low,Close,Volume,Market Cap",
        "2024-03-04,2024-03-05,63080.5,68363.25,62812,68208.375,72073139983.5,1283150500899.25",
        "2024-03-03,2024-03-04,61943.5,63182.5,61424,63080.5,39212044007.5,1221676759562",
    )
    outcome = await load(content, "bitcoin_2024-03-03_2024-03-05.csv")
    assert outcome.values("source_id", "observed_at", "price_usd", "volume_24h_usd")[0] == (
        "bitcoin",
        "2024-03-04 23:59:59",
        "68208.375",
        "72073139983.5",
    )


async def test_coinmarketcap_chart_by_month(load: Read) -> None:
    content = table(
        "name;open;high;low;close;volume;marketCap;timestamp",
        *(f'"2781";1{m}0;2{m}0;50;1{m}5.5;9{m};8{m};"2024-0{m}-01T00:00:00.000Z"' for m in range(1, 6)),
    )
    outcome = await load(content, "BTC_All_graph_coinmarketcap.csv")
    assert outcome.values("source_id", "observed_at", "price_usd", "market_cap_usd", "volume_24h_usd")[1] == (
        "btc",
        "2024-02-29 23:59:59",
        "125.5",
        "82",
        NULL,
    )
    euros = content.replace("2781", "2790")
    assert "CoinMarketCap's number 2790" in (await load(euros, "BTC_All_graph_coinmarketcap.csv")).problem


async def test_words_of_scrapers(load: Read) -> None:
    content = table(
        "AssetName,Ticker,LastPrice,CapturedAt",
        "Bitcoin,BTC,92839.5,2025-12-10 15:58:59",
        "Tether,USDT,1.0004,2025-12-10 15:58:59",
    )
    assert (await load(content, "market_data.csv")).values("source_id", "observed_at", "price_usd")[0] == (
        "btc-bitcoin",
        "2025-12-10 15:58:59",
        "92839.5",
    )


async def test_grown_file_of_two_generations_is_rejected_for_its_empty_ids(load: Read) -> None:
    content = table(
        "Symbol,Name,Price,Volume,timestamp,price_usd,volume_24h",
        "DOGE,Dogecoin,0.09,510000.0,,,",
        *(f",,,,2025-12-22 23:{n}0:00,8925{n}.5,381" for n in range(5)),
    )
    outcome = await load(content, "crypto_data.csv")
    assert "would be rejected, most often: id: empty" in outcome.problem


async def test_check_explains_each_answer_by_its_evidence(tmp_path: Path) -> None:
    path = tmp_path / "BTC-USD.csv"
    rows = candles(datetime(2021, 3, 1, 16, tzinfo=UTC), timedelta(days=1), 9, "%s")
    path.write_text(table(f"time,{OHLC},Volume", *(f"{row},9" for row in rows)))
    with ArchiveFile.at(path) as file:
        found = (await check(file, path.name, NO_OVERRIDES, NOW)).recognition
    assert found is not None
    assert {finding.question: (finding.answer, finding.evidence) for finding in found.findings} == {
        "time": ("s, zone UTC", ("columns time", "zone: in its cells")),
        "period": (
            "1d, its times begin candles",
            ("most of its times are 1d apart", "nearly all times are 16:00:00 into a candle in UTC"),
        ),
        "coin": ("btc", ("by its name (the pair BTC/USD)",)),
        "currency": ("USD", ("by its name",)),
        "unit of the volume": ("none is read", ()),
    }
    assert found.findings[4].ruled_out == ("Volume: may count coins or dollars",)


async def test_check_of_a_refused_file_marks_guesses_as_open(tmp_path: Path) -> None:
    path = tmp_path / "ricos.csv"
    path.write_text("date,price\n2021-01-01,5\n2021-01-02,6\n")
    with ArchiveFile.at(path) as file:
        checked = await check(file, path.name, NO_OVERRIDES, NOW)
    assert checked.problem is not None
    assert checked.recognition is not None
    assert {finding.question for finding in checked.recognition.findings if finding.open} == {
        "coin",
        "currency",
    }


@pytest.mark.parametrize("turned", [False, True])
async def test_check_says_that_the_newest_row_may_be_unfinished(tmp_path: Path, turned: bool) -> None:
    path = tmp_path / "btc-usd.csv"
    rows = [f"6{m};7{m};5{m};6{m}.5;9{m};8{m};2024-0{m}-01T00:00:00.000Z" for m in range(1, 6)]
    rows.append("67;68;66;67.5;0;0;2024-06-01T00:00:00Z")
    path.write_text(
        table("open;high;low;close;volume;marketCap;timestamp", *(rows[::-1] if turned else rows))
    )
    with ArchiveFile.at(path) as file:
        found = (await check(file, path.name, NO_OVERRIDES, NOW)).recognition
    assert found is not None
    assert any("may be unfinished" in note for note in found.notes)


async def test_prices_of_an_export_that_a_spreadsheet_damaged_load_from_the_good_column(
    load: Read, load_with: Read
) -> None:
    content = table(
        "timeOpen;timeClose;name;open;high;low;close;close_price;volume;marketCap;timestamp",
        *(
            f"2025-07-{day}T00:00:00.000Z;2025-07-{day}T23:59:59.999Z;2781;1.05{day}.5;1.096.002.500;10.525.500;"
            f"1.087.502.500.375.{day}5;108,7{day}.3;56100200300.25;"
            f"{'72.074.072.560.088' if day % 3 == 1 else '2160300400500.75'};2025-07-{day}T23:59:59.999Z"
            for day in range(10, 29)
        ),
    )
    name = "Bitcoin_1_1_2025-8_1_2025_historical_data_coinmarketcap.csv"
    assert "rows would be rejected, most often: price_usd" in (await load(content, name)).problem
    outcome = await load_with(content, 'columns.close_price = "price_usd"', name)
    assert len(outcome.values("price_usd")) == 19
    assert outcome.values("price_usd", "market_cap_usd")[:2] == [
        ("108710.3", NULL),
        ("108711.3", "2160300400500.75"),
    ]


async def test_seconds_and_milliseconds_in_one_column(tmp_path: Path, load: Read) -> None:
    """CryptoDataDownload changed its unit."""
    days = [datetime(2020, 6, 25, tzinfo=UTC) + n * timedelta(days=1) for n in range(12)]
    rows = [
        f"{day.timestamp():.0f}{'' if n < 6 else '000'},{day:%Y-%m-%d} 00:00:00,BTC/USD,1,2,0.5,1.{n},7.5"
        for n, day in enumerate(days)
    ]
    content = table("unix,date,symbol,open,high,low,close,Volume USD", *reversed(rows))
    outcome = await load(content, "Bitfinex_BTCUSD_d.csv")
    assert [at for (at,) in outcome.values("observed_at")] == [
        f"{day:%Y-%m-%d} 23:59:59" for day in days[::-1]
    ]
    path = tmp_path / "Bitfinex_BTCUSD_d.csv"
    with ArchiveFile.at(path) as file:
        found = (await check(file, path.name, NO_OVERRIDES, NOW)).recognition
    assert found is not None
    assert found.findings[0].answer == "ms and s, zone UTC"
