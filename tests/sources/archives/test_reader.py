"""One archive at a time: what becomes of its rows, whatever its shape, packing and damage."""

import gzip
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from backports import zstd

from kasparro.model.record import Record, lines_of
from kasparro.sources.archives.files import ArchiveFile
from kasparro.sources.archives.recognise import recognise, sampled
from tests.sources.archives.conftest import NOW, Read, read

TICKERS = """\
id,name,symbol,rank,price_usd,24h_volume_usd,market_cap_usd,available_supply,total_supply,max_supply,\
percent_change_1h,percent_change_24h,percent_change_7d,last_updated
bitcoin,Bitcoin,BTC,1,16973.8,22081300000.0,284909052105,16785225,16785225,21000000.0,-0.42,5.76,26.04,1515230661
swisscoin,Swisscoin,SIC,1325,1.2e-11,,,,10200000000.0,,,4.39,-22.84,1512540278
"""
EXPORT = "snapped_at,price,market_cap,total_volume\n2013-04-28 00:00:00 UTC,135.3,1500517590,0\n"


async def test_a_ticker_dump_gives_every_field_exactly(load: Read) -> None:
    outcome = await load(TICKERS, "tickers.csv")
    expected = Record(
        source_id="bitcoin",
        symbol="BTC",
        name="Bitcoin",
        observed_at=datetime(2018, 1, 6, 9, 24, 21, tzinfo=UTC),
        rank=1,
        price_usd="16973.8",
        market_cap_usd="284909052105",
        volume_24h_usd="22081300000",
        circulating_supply="16785225",
        total_supply="16785225",
        max_supply="21000000",
        percent_change_1h="-0.42",
        percent_change_24h="5.76",
        percent_change_7d="26.04",
    )
    lines = lines_of(expected, 0)
    key, content = (text.decode()[:-1].split("\t") for text in (lines.keys, lines.contents))
    assert [*outcome.rows[0].values()] == [*key, *content[1:]]
    assert outcome.rows[1]["price_usd"] == "0.000000000012"
    assert outcome.rows[1]["market_cap_usd"] == r"\N"
    assert (outcome.position, outcome.complete, outcome.problems) == (2, True, [])


async def test_candles_give_the_close_at_the_periods_last_second(load: Read) -> None:
    content = (
        'Date,Open*,High,Low,Close**,Volume,Market Cap\n"Dec 31, 2022",$1,$4,$0.5,$3,"$1,234","$9,876"\n'
    )
    (row,) = (await load(content, "coin_Dogecoin.csv")).rows
    assert row["source_id"] == "dogecoin"
    assert (row["symbol"], row["name"]) == (r"\N", r"\N")
    assert row["observed_at"] == "2022-12-31 23:59:59+00:00"
    assert (row["price_usd"], row["volume_24h_usd"], row["market_cap_usd"]) == ("3", "1234", "9876")


async def test_a_coin_without_an_id_column_is_called_by_symbol_and_name(load: Read) -> None:
    content = (
        "Name,Symbol,Date,Open,High,Low,Close,Volume,Marketcap\n"
        "Crypto.com Coin,CRO,2018-12-15 23:59:59,1,1,1,1,1,1\n"
    )
    (row,) = (await load(content)).rows
    assert (row["source_id"], row["symbol"], row["name"]) == ("cro-crypto-com-coin", "CRO", "Crypto.com Coin")


async def test_a_period_that_is_not_over_is_no_close(load: Read) -> None:
    content = "Date,Open,High,Low,Close\n2026-05-30,1,1,1,1\n2026-05-31,1,1,1,2\n2026-06-01,1,1,1,3\n"
    outcome = await load(content)
    assert [row["price_usd"] for row in outcome.rows] == ["1", "2"]
    assert outcome.rejects[0].reason.startswith("its period is not over yet")


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
async def test_damage_within_compressed_data_is_told(load: Read, pack: Callable[[bytes], bytes]) -> None:
    rows = "".join(
        f"2018-01-01 {n // 3600:02}:{n // 60 % 60:02}:{n % 60:02} UTC,{n}.5,1,1\n" for n in range(20_000)
    )
    packed = bytearray(pack((EXPORT + rows).encode()))
    for place in range(len(packed) // 2, len(packed) // 2 + 40):
        packed[place] ^= 0xFF
    outcome = await load(bytes(packed))
    assert "its compressed data is damaged (" in outcome.problem
    assert not outcome.complete


@pytest.mark.parametrize("rank", ["0", "1.5", "-3", "2147483648"])
async def test_a_rank_that_is_none_is_refused(load: Read, rank: str) -> None:
    outcome = await load(
        f"date,symbol,rank,price_usd\n2018-01-01,BTC,1,5\n2018-01-02,BTC,{rank},6\n", "coins.csv"
    )
    assert [row["rank"] for row in outcome.rows] == ["1"]
    assert [(one.field, one.reason) for one in outcome.rejects] == [("rank", f"not a rank: '{rank}'")]


async def test_a_time_to_come_is_refused(load: Read) -> None:
    outcome = await load("date,symbol,price_usd\n2026-05-30 00:00:00,BTC,1\n2036-05-30 00:00:00,BTC,2\n")
    assert [row["price_usd"] for row in outcome.rows] == ["1"]
    (reject,) = outcome.rejects
    assert (reject.field, reject.line) == ("observed_at", 3)
    assert reject.reason == "in the future: 2036-05-30T00:00:00+00:00"


async def test_rows_in_another_currency_than_dollars_are_refused_one_by_one(load: Read) -> None:
    pairs = await load("date,symbol,close\n2018-01-01,BTC/USD,1\n2018-01-02,BTC/EUR,2\n", "prices.csv")
    told = await load(
        "date,symbol,price,currency\n2018-01-01,BTC,1,USD\n2018-01-02,BTC,2,GBP\n", "prices.csv"
    )
    for outcome, reason in ((pairs, "in EUR, not USD"), (told, "in GBP, not USD")):
        assert [row["price_usd"] for row in outcome.rows] == ["1"]
        assert [(reject.field, reject.reason) for reject in outcome.rejects] == [("currency", reason)]


async def test_of_two_columns_of_one_name_the_first_is_read_and_the_other_told(tmp_path: Path) -> None:
    path = tmp_path / "prices.csv"
    path.write_text("date,symbol,price_usd,Price_USD*\n2018-01-01,BTC,1,2\n")
    with ArchiveFile.at(path) as file:
        columns = recognise(await sampled(file), path.name, NOW).columns
    assert [column.field for column in columns] == ["time", "symbol", "price_usd", None]
    assert columns[3].note == "the same name as column 3, which is read"


async def test_a_row_refused_keeps_field_reason_line_and_text(load: Read) -> None:
    lines = [f"c{n},Coin,C,1,1,1,1,1,1,1,1,1,1,1515230661" for n in range(8)]
    lines[1] = '"c1","two\nlines",C,1,1,1,1,1,1,1,1,1,1,1515230661'
    lines[3] = "c3,Coin,C,1,-5,1,1,1,1,1,1,1,1,1515230661"
    lines[5] = "c5,Coin,C,1,1,1,14.748.800.659.179.600,1,1,1,1,1,1,1515230661"
    lines[6] = "c6,Coin"
    lines.insert(4, "")
    header = TICKERS.partition("\n")[0]
    outcome = await load("\r\n".join([header, *lines]), "tickers.csv")
    assert [(reject.line, reject.field) for reject in outcome.rejects] == [
        (6, "price_usd"),
        (9, "market_cap_usd"),
        (10, None),
    ]
    assert outcome.rejects[0].reason == "below zero: '-5'"
    assert outcome.rejects[1].raw == lines[6]
    assert outcome.rejects[2].reason == "2 cells where the header has 14"
    assert {reject.location for reject in outcome.rejects} == {"tickers.csv"}
    assert len(outcome.rows) == 5


async def test_a_file_of_which_over_half_is_refused_is_not_loaded(load: Read) -> None:
    outcome = await load(EXPORT + "2013-04-29,x,1,1\n2013-04-30,y,1,1\n")
    assert not outcome.rows
    assert "2 of 3 rows would be refused, most often: price_usd: not a number" in outcome.problem


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        ("", "btc-usd.csv", "empty"),
        ("DateTime,Price\n2024-01-02 00:00:00,41387.7\n", "BTC_price_2024_EURO.csv", "in EUR, not USD"),
        (
            "snapped_at,price,market_cap,total_volume\n2018-01-01,0.1,1,1\n",
            "eth-btc-max.csv",
            "in BTC, not USD",
        ),
        ("date,price_brl\n2018-01-01,5\n", "btc.csv", "in BRL, not USD"),
        ("date,price\n2018-01-01,€5\n", "btc.csv", "in EUR, not USD"),
        ("date,price\n2018-01-01,5\n", "btc.csv", "nothing tells the currency"),
        ("symbol,price_usd\nBTC,5\n", "now.csv", "tells the time"),
        ("date,price_usd\n2018-01-01,5\n", "prices.csv", "which coin"),
        ("id,symbol,name\nbitcoin,btc,Bitcoin\n", "list.csv", "price"),
        ("date,price_usd\n01/02/2018,5\n02/02/2018,6\n", "btc.csv", "day from the month"),
        ("date;price_usd\n2018-01-01;1,234\n2018-01-02;2,345\n", "btc.csv", "1,234"),
        ("price_usd\n2018-01-01,5\n", "btc.csv", "one cell"),
        ("2018-01-01,5\n2018-01-02,6\n", "btc.csv", "no header"),
    ],
)
async def test_what_a_file_does_not_tell_is_never_guessed(
    load: Read, content: str, name: str, reason: str
) -> None:
    outcome = await load(content, name)
    assert not outcome.rows
    assert reason in outcome.problem
    assert "\n" not in outcome.problem


async def test_a_column_in_another_currency_is_left_and_the_one_in_dollars_taken(load: Read) -> None:
    outcome = await load(
        "date_iso;symbol;price_eur;price_usd\n2024-01-02;BTC;41387,70;44168,68\n", "bitcoin_eur.csv"
    )
    assert [row["price_usd"] for row in outcome.rows] == ["44168.68"]


async def test_stablecoins_tell_that_prices_are_not_in_dollars(load: Read) -> None:
    content = "timestamp,coinId,price,marketCap,totalVolume\n1640563200000,tether,{},1,1\n"
    assert "another currency" in (await load(content.format("5.71"), "day.csv")).problem
    assert len((await load(content.format("1.001"), "day.csv")).rows) == 1


@pytest.mark.parametrize("packed", [gzip.compress, zstd.compress])
async def test_compressed_archives_stream(load: Read, packed: "object") -> None:
    assert callable(packed)
    outcome = await load(packed(TICKERS.encode()), "tickers.csv.gz")
    assert len(outcome.rows) == 2
    assert outcome.complete


async def test_a_truncated_archive_keeps_the_rows_before_the_cut(load: Read) -> None:
    rows = "".join(
        f"2018-01-01T{n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}Z,{n}.{n * 7919 % 1000},1,1\n"
        for n in range(40_000)
    )
    content = gzip.compress(("snapped_at,price,market_cap,total_volume\n" + rows).encode())
    outcome = await load(content[: len(content) // 2], "btc-usd-max.csv.gz")
    assert 1_000 < len(outcome.rows) < 40_000
    assert not outcome.complete
    assert outcome.position == len(outcome.rows)
    assert "middle of its compressed data" in outcome.problem


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
async def test_encodings_are_found(load: Read, encoding: str) -> None:
    content = '"price, usd",symbol,name,last_updated\n1.5,CAF,Café,2018-01-01T00:00:00Z\n'
    (row,) = (await load(content.encode(encoding), "x.csv")).rows
    assert row["name"] == "Café"


async def test_a_row_that_is_not_utf8_costs_that_row(load: Read) -> None:
    good = "".join(f"S{n},Naïve,1.5,2018-01-01T00:00:00Z\n" for n in range(5)).encode()
    outcome = await load(
        b"symbol,name,price_usd,last_updated\n" + good + b"CAF,Caf\xe9,1,2018-01-01T00:00:00Z\n", "x.csv"
    )
    assert len(outcome.rows) == 5
    assert "encoding" in outcome.rejects[0].reason


async def test_odd_headers_delimiters_and_rows_are_read(load: Read) -> None:
    content = (
        "https://example.org/a title line\n\n"
        " Name \tSYMBOL*\t\tPrice USD\tPrice USD\tLast Updated\n"
        "\t\t\t\t\t\n"
        "Bit\x00coin\tBTC\t\t1\t2\t2018-01-01\n"
        ' Ether\tETH\t\t"3"\t4\t2018-01-01\n'
        "Tether\tUSDT\t\t1\t1\t2018-01-01\n"
    )
    outcome = await load(content, "x.tsv")
    assert [(row["name"], row["price_usd"]) for row in outcome.rows] == [("Ether", "3"), ("Tether", "1")]
    assert outcome.rejects[0].field == "name"
    assert "\x00" not in outcome.rejects[0].raw


async def test_an_interrupted_file_goes_on_where_its_checkpoint_stands(load: Read, tmp_path: Path) -> None:
    content = EXPORT + "".join(f"2013-05-{day:02} 00:00:00 UTC,{day},1,1\n\n" for day in range(1, 31))
    whole = await load(content)
    rest = await read(tmp_path / "bitcoin-usd.csv", position=7)
    assert [row["observed_at"] for row in rest.rows] == [row["observed_at"] for row in whole.rows[4:]]
    assert (rest.position, rest.complete) == (whole.position, True)


async def test_an_unsettled_quote_does_not_take_the_file_with_it(load: Read) -> None:
    content = (
        EXPORT
        + "".join(f"2013-05-{day:02} 00:00:00 UTC,{day},1,1\n" for day in range(1, 20))
        + '"2013-06-01,1'
    )
    outcome = await load(content)
    assert len(outcome.rows) == 20
    assert len(outcome.rejects) == 1
