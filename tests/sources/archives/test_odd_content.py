"""Odd content from programs, spreadsheets and accidents: values are exact, or rejected with a reason."""

import gzip

import pytest

from tests.support.archives import NULL, Read, table

DAYS = ("2021-12-31", "2021-12-30")


async def test_yfinance_ticker_below_the_header(load: Read) -> None:
    content = table(
        "Price,Close,High,Low,Open,Volume",
        "Ticker,BTC-USD,BTC-USD,BTC-USD,BTC-USD,BTC-USD",
        "Date,,,,,",
        "2024-01-01,44167.33,44175.44,42214.98,42280.23,18426978443",
        "2024-01-02,,,,,",
    )
    outcome = await load(content, "prices.csv")
    assert outcome.values("source_id", "symbol", "observed_at", "price_usd", "volume_24h_usd") == [
        ("btc", "BTC", "2024-01-01 23:59:59", "44167.33", "18426978443")
    ]
    assert [(reject.line, reject.reason) for reject in outcome.rejects] == [(5, "no close: ''")]
    several = content.replace("BTC-USD,BTC-USD\n", "BTC-USD,ETH-USD\n", 1)
    assert "columns of several tickers (BTC-USD, ETH-USD)" in (await load(several, "x.csv")).problem
    euro = content.replace("BTC-USD", "BTC-EUR")
    assert "in EUR, not USD" in (await load(euro, "x.csv")).problem


@pytest.mark.parametrize(
    "content",
    [
        table("date,symbol,price_usd", "2021-12-31,BTC,1.5,", "2021-12-30,BTC,2.5, "),
        table("date,symbol,price_usd,", "2021-12-31,BTC,1.5,", "2021-12-30,BTC,2.5,"),
        table("date,symbol,price_usd,", "2021-12-31,BTC,1.5", "2021-12-30,BTC,2.5"),
        table('"date", "symbol", "price_usd"', '"2021-12-31", "BTC", "1.5"', '"2021-12-30", "BTC", "2.5"'),
        table("sep=,", "date,symbol,price_usd", "2021-12-31,BTC,1.5", "2021-12-30,BTC,2.5"),
        table("# a comment", "# two", "date,symbol,price_usd", "2021-12-31,BTC,1.5", "2021-12-30,BTC,2.5"),
        table(
            "Report",
            "",
            "Data,,",
            ",,USD",
            "date,symbol,price_usd",
            "2021-12-31,BTC,1.5",
            "2021-12-30,BTC,2.5",
        ),
        table("date,symbol,price_usd", "2021-12-31,BTC,1.5", "2021-12-30,BTC,2.5", end="\r"),
        "date,symbol,price_usd\r\n2021-12-31,BTC,1.5\n\r\n2021-12-30,BTC,2.5\r\r\n",
        table("date,symbol,price_usd", '2021-12-31,BTC,"\n1.5\n"', "2021-12-30,BTC,2.50"),
        table("date,symbol,price_usd", "2021-12-31,BTC,$ 1.5", "2021-12-30,BTC,USD 2.50"),
        table("timestamp,symbol,price_usd", "1.6409952e+12,BTC,1.5", "1.6409088E+12,BTC,2.5"),
    ],
)
async def test_surrounding_noise_is_ignored(load: Read, content: str) -> None:
    outcome = await load(content, "x.csv")
    assert outcome.values("symbol", "price_usd") == [("BTC", "1.5"), ("BTC", "2.5")]
    assert outcome.rejects == []


async def test_rejects_have_their_line_with_any_line_ends(load: Read) -> None:
    content = (
        "date,symbol,price_usd\r\n"
        "2021-12-31,BTC,1\r\n"
        '2021-12-30,"B\nT\r\nC",2\n'
        "\n"
        "2021-12-29,BTC,three\r"
        "2021-12-28,BTC,4\r\n"
        "2021-12-27,BTC\n"
    )
    outcome = await load(content, "x.csv")
    assert [(reject.line, reject.reason) for reject in outcome.rejects] == [
        (7, "not a number: 'three'"),
        (9, "2 cells where the header has 3"),
    ]
    assert len(outcome.rows) == 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04" + bytes(200), "a ZIP archive or a spreadsheet"),
        (b"PAR1" + bytes(200), "a Parquet file"),
        (b"SQLite format 3\x00" + bytes(200), "a SQLite database"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b'{"prices":[[1609459200000,29022.41]],"market_caps":[]}', "JSON"),
        (b'[{"price": 1, "date": 2}]', "JSON"),
        (b"<!DOCTYPE html><html><body>429 Too Many Requests, price, date</body></html>", "a web page"),
        (bytes(5_000), "not text"),
        (b"", "empty"),
        (b"\n\n\n", "no table"),
        (b"date symbol price\n2021-12-31 BTC 1.5\n", "no table"),
        (gzip.compress(b"PK\x03\x04" + bytes(200), mtime=0), "a ZIP archive"),
        (b"date,symbol,price_usd\n44201,BTC,1\n44202,BTC,2\n", "the day numbers of a spreadsheet ('44201')"),
        (b"date,BTC,ETH\n2021-12-31,1,2\n", "none of its columns is known to hold a price"),
        (
            b"timestamp,symbol,price_usd\n1.51476E+12,BTC,1\n1.51485E+12,BTC,2\n",
            "an epoch time rounded to 6 digits: '1.51476E+12'",
        ),
    ],
)
async def test_other_file_types_are_rejected_by_name(load: Read, content: bytes, reason: str) -> None:
    outcome = await load(content, "bitcoin.csv")
    assert outcome.rows == []
    assert reason in outcome.problem


async def test_line_length_is_bounded(load: Read) -> None:
    rows = table("date,symbol,price_usd", "2021-12-31,BTC,1.5")
    outcome = await load(rows + "x," * 3_000_000, "x.csv")
    assert [row["price_usd"] for row in outcome.rows] == ["1.5"]
    assert "a line in it is longer than 4,194,304 characters" in outcome.problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-0", "0"),
        ("-0.0", "0"),
        ("1e-12", "0.000000000001"),
        ("+5", "5"),
        ("1.2M", "1200000"),
        ("1.2 million", "1200000"),
        ("", NULL),
        ("NaN", NULL),
        ("\N{INFINITY}", None),
        ("inf", None),
        ("1e400", None),
        ("(5)", None),
        ("5-", None),
        ("\N{ARABIC-INDIC DIGIT THREE}", None),
        ("0x10", None),
        ("1_000", None),
        ("<0.01", None),
        ("1.2.3", None),
        ("TRUE", None),
        ("#REF!", None),
        ("\N{VULGAR FRACTION ONE HALF}", None),
        ("1 billion", None),
        ("+ 5", None),
    ],
)
async def test_odd_numbers_are_exact_or_rejected(load: Read, text: str, value: str | None) -> None:
    plain = [f"2021-12-{day:02},BTC,1,2" for day in range(1, 9)]
    outcome = await load(
        table("date,symbol,price_usd,market_cap_usd", *plain, f"2021-12-31,ETH,{text},7"), "x.csv"
    )
    assert [row["price_usd"] for row in outcome.rows[8:]] == ([] if value is None else [value])
    assert [reject.field for reject in outcome.rejects] == (["price_usd"] if value is None else [])


@pytest.mark.parametrize(
    ("rows", "values"),
    [
        (("46 306,4", "7 178,13"), ["46306.4", "7178.13"]),
        (("46\u202f306,4", "7\u00a0178,13"), ["46306.4", "7178.13"]),
        (("46'306.45", "7’178.13"), ["46306.45", "7178.13"]),
        (("876,5 Mrd", "886,25 Mio."), ["876500000000", "886250000"]),
        (("1,5 Mio. $", "2,25\u00a0$"), ["1500000", "2.25"]),
    ],
)
async def test_numbers_of_spreadsheets_in_other_languages(
    load: Read, rows: tuple[str, str], values: list[str]
) -> None:
    content = table(
        "Datum;Symbol;Kurs (USD)", *(f"{day};BTC;{cell}" for day, cell in zip(DAYS, rows, strict=True))
    )
    assert [row["price_usd"] for row in (await load(content, "Mappe1.csv")).rows] == values


async def test_symbols_that_look_like_null_or_formulas(load: Read) -> None:
    symbols = ["TRUE", "NaN", "NULL", "NA", "NONE", "INF", "=1+1", "1INCH", "00", "$PAC", "B@"]
    rows = [f"2021-12-31,{symbol},coin {symbol},{n + 1}" for n, symbol in enumerate(symbols)]
    outcome = await load(table("date,symbol,name,price_usd", *rows), "x.csv")
    assert [row["symbol"] for row in outcome.rows] == symbols
    assert len({row["source_id"] for row in outcome.rows}) == len(symbols)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("Tue Jan 05 2021 10:00:00 GMT+0200 (Central European Time)", "2021-01-05 08:00:00"),
        ("2021-01-05T10:00:00.123456789Z", "2021-01-05 10:00:00.123456"),
        ("1609840800000000", "2021-01-05 10:00:00"),
        ("1.6098408e+18", "2021-01-05 10:00:00"),
        ("2016-12-31T23:59:60Z", None),
        ("2023-02-29", None),
        ("2021-01-05 10:00:00 EST", None),
        ("1.60984E+12", None),
    ],
)
async def test_odd_times_are_exact_or_rejected(load: Read, text: str, at: str | None) -> None:
    outcome = await load(table("date,symbol,price_usd", "2021-01-01,ETH,1", f"{text},BTC,2"), "x.csv")
    assert [row["observed_at"] for row in outcome.rows[1:]] == ([] if at is None else [f"{at}+00:00"])
    assert [reject.field for reject in outcome.rejects] == (["observed_at"] if at is None else [])


@pytest.mark.parametrize(
    ("name", "coin"),
    [
        ("usdt-usd-max.csv", "usdt"),
        ("USDC_USD.csv", "usdc"),
        ("Kurse Bitcoin Dollar.csv", "bitcoin"),
        ("stooq_btcusd_d.csv", "btc"),
        ("BTC_USD_cryptocompare.csv", "btc"),
        ("the-graph-usd.csv", "the-graph"),
        ("yearn-finance-usd.csv", "yearn-finance"),
        ("yahoo_finance_ETH-USD.csv", "eth"),
    ],
)
async def test_coin_in_file_name(load: Read, name: str, coin: str) -> None:
    outcome = await load(table("date,price", "2021-12-31,1.5", "2021-12-30,1.25"), name)
    assert outcome.values("source_id", "price_usd") == [(coin, "1.5"), (coin, "1.25")]
