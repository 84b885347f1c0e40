"""Reading one archive: rows, rejects and checkpoints, with any compression and damage."""

import gzip
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from backports import zstd

from kasparro.model.record import Record, copy_record
from kasparro.sources.archives import text
from kasparro.sources.archives.detect import detect
from kasparro.sources.archives.detect.sample import read_sample
from kasparro.sources.archives.files import ArchiveFile
from kasparro.sources.archives.portions import Portion
from kasparro.sources.archives.reader import read_archive
from tests.support.archives import NOW, Read, job_for, overrides_for, read

TICKERS = """\
id,name,symbol,rank,price_usd,24h_volume_usd,market_cap_usd,available_supply,total_supply,max_supply,\
percent_change_1h,percent_change_24h,percent_change_7d,last_updated
bitcoin,Bitcoin,BTC,1,16973.8,22081300000.0,284909052105,16785225,16785225,21000000.0,-0.42,5.76,26.04,1515230661
swisscoin,Swisscoin,SIC,1325,1.2e-11,,,,10200000000.0,,,4.39,-22.84,1512540278
"""
EXPORT = "snapped_at,price,market_cap,total_volume\n2013-04-28 00:00:00 UTC,135.3,1500517590,0\n"


async def test_ticker_dump_gives_every_field_exactly(load: Read) -> None:
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
    lines = copy_record(expected, 0)
    key, content = (text.decode()[:-1].split("\t") for text in (lines.keys, lines.contents))
    assert [*outcome.rows[0].values()] == [*key, *content[1:]]
    assert outcome.rows[1]["price_usd"] == "0.000000000012"
    assert outcome.rows[1]["market_cap_usd"] == r"\N"
    assert (outcome.position, outcome.complete, outcome.problems) == (2, True, [])


async def test_quotes_around_cells_change_nothing(load: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "PLAIN_CHARACTERS", 300)
    header = ["id", "symbol", "name", "price_usd", "market_cap_usd", "percent_change_24h", "last_updated"]
    rows = [
        [f"coin-{n}", f"C{n}", f"Coin {n}", f"{n}.50", "1000.0", f"-{n}.0", f"{1_515_230_661 + n}"]
        for n in range(400)
    ]
    # Rows that need more attention than most.
    rows[30][3] = "no price"
    rows[60] = []
    rows[90] = [""] * 7
    rows[120] += ["", ""]
    rows[150] = rows[150][:3]
    rows[180][4] = "-5"
    rows[210][6] = "2018-01-06"
    plain, quoted = (
        "".join(f"{','.join(mark + cell + mark for cell in row)}\r\n" for row in [header, *rows])
        for mark in ("", '"')
    )

    outcome, expected = await load(plain, "plain.csv"), await load(quoted, "quoted.csv")

    assert outcome.rows == expected.rows
    assert len(outcome.rows) == 400 - 4
    assert (outcome.position, outcome.complete) == (expected.position, expected.complete) == (400, True)
    assert [(each.reason, each.line) for each in outcome.rejects] == [
        (each.reason, each.line) for each in expected.rejects
    ]
    assert [(each.reason, each.place) for each in outcome.invalid] == [
        (each.reason, each.place) for each in expected.invalid
    ]


async def test_candle_is_its_close_at_the_last_second_of_the_period(load: Read) -> None:
    content = (
        'Date,Open*,High,Low,Close**,Volume,Market Cap\n"Dec 31, 2022",$1,$4,$0.5,$3,"$1,234","$9,876"\n'
    )
    (row,) = (await load(content, "coin_Dogecoin.csv")).rows
    assert row["source_id"] == "dogecoin"
    assert (row["symbol"], row["name"]) == (r"\N", r"\N")
    assert row["observed_at"] == "2022-12-31 23:59:59+00:00"
    assert (row["price_usd"], row["volume_24h_usd"], row["market_cap_usd"]) == ("3", "1234", "9876")


async def test_source_id_without_an_id_column_is_symbol_and_name(load: Read) -> None:
    content = (
        "Name,Symbol,Date,Open,High,Low,Close,Volume,Marketcap\n"
        "Crypto.com Coin,CRO,2018-12-15 23:59:59,1,1,1,1,1,1\n"
    )
    (row,) = (await load(content, "coins.csv")).rows
    assert (row["source_id"], row["symbol"], row["name"]) == ("cro-crypto-com-coin", "CRO", "Crypto.com Coin")


async def test_unfinished_period_is_rejected(load: Read) -> None:
    content = "Date,Open,High,Low,Close\n2026-05-30,1,1,1,1\n2026-05-31,1,1,1,2\n2026-06-01,1,1,1,3\n"
    outcome = await load(content)
    assert [row["price_usd"] for row in outcome.rows] == ["1", "2"]
    assert outcome.rejects[0].reason.startswith("its period is not over yet")


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
async def test_damaged_compressed_data_is_a_problem(load: Read, pack: Callable[[bytes], bytes]) -> None:
    rows = "".join(
        f"2018-01-01 {n // 3600:02}:{n // 60 % 60:02}:{n % 60:02} UTC,{n}.5,1,1\n" for n in range(20_000)
    )
    packed = bytearray(pack((EXPORT + rows).encode()))
    for index in range(len(packed) // 2, len(packed) // 2 + 40):
        packed[index] ^= 0xFF
    outcome = await load(bytes(packed))
    assert "its compressed data is damaged (" in outcome.problem
    assert not outcome.complete


@pytest.mark.parametrize("rank", ["0", "1.5", "-3", "2147483648"])
async def test_invalid_rank_is_null(load: Read, rank: str) -> None:
    outcome = await load(
        f"date,symbol,rank,price_usd\n2018-01-01,BTC,1,5\n2018-01-02,BTC,{rank},6\n", "coins.csv"
    )
    assert [(row["rank"], row["price_usd"]) for row in outcome.rows] == [("1", "5"), (r"\N", "6")]
    assert [(value.field, value.reason, value.place) for value in outcome.invalid] == [
        ("rank", f"not a rank: '{rank}'", "line 3")
    ]


async def test_future_time_is_rejected(load: Read) -> None:
    outcome = await load("date,symbol,price_usd\n2026-05-30 00:00:00,BTC,1\n2036-05-30 00:00:00,BTC,2\n")
    assert [row["price_usd"] for row in outcome.rows] == ["1"]
    (reject,) = outcome.rejects
    assert (reject.field, reject.line) == ("observed_at", 3)
    assert reject.reason == "in the future: 2036-05-30T00:00:00+00:00"


async def test_rows_in_other_currencies_are_rejected_singly(load: Read) -> None:
    pairs = await load("date,symbol,close\n2018-01-01,BTC/USD,1\n2018-01-02,BTC/EUR,2\n", "prices.csv")
    by_column = await load(
        "date,symbol,price,currency\n2018-01-01,BTC,1,USD\n2018-01-02,BTC,2,GBP\n", "prices.csv"
    )
    for outcome, reason in ((pairs, "in EUR, not USD"), (by_column, "in GBP, not USD")):
        assert [row["price_usd"] for row in outcome.rows] == ["1"]
        assert [(reject.field, reject.reason) for reject in outcome.rejects] == [("currency", reason)]


async def test_first_of_two_columns_with_the_same_name_is_read(tmp_path: Path) -> None:
    path = tmp_path / "prices.csv"
    path.write_text("date,symbol,price_usd,Price_USD*\n2018-01-01,BTC,1,1\n")
    with ArchiveFile.at(path) as file:
        columns = detect(await read_sample(file), path.name, NOW).columns
    assert [column.field for column in columns] == ["time", "symbol", "price_usd", None]
    assert columns[3].note == "the same name as column 3, which is read"


async def test_two_columns_with_the_same_name_and_other_values_are_not_guessed(load: Read) -> None:
    outcome = await load("date,symbol,price_usd,Price_USD*\n2018-01-01,BTC,1,2\n", "prices.csv")
    assert "two of its columns are called 'Price_USD*' and have different values" in outcome.problem


async def test_rejected_row_has_field_reason_line_and_text(load: Read) -> None:
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
        (10, None),
    ]
    assert [(value.place, value.field) for value in outcome.invalid] == [("line 9", "market_cap_usd")]
    assert outcome.rejects[0].reason == "below zero: '-5'"
    assert outcome.rejects[1].raw == "c6,Coin"
    assert outcome.rejects[1].reason == "2 cells where the header has 14"
    assert {reject.location for reject in outcome.rejects} == {"tickers.csv"}
    assert len(outcome.rows) == 6


async def test_file_with_over_half_rejected_is_not_loaded(load: Read) -> None:
    outcome = await load(EXPORT + "2013-04-29,x,1,1\n2013-04-30,y,1,1\n")
    assert not outcome.rows
    assert "2 of 3 rows would be rejected, most often: price_usd: not a number" in outcome.problem


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
        ("date,price\n2018-01-01,5\n", "btc.csv", "its currency is unknown"),
        ("symbol,price_usd\nBTC,5\n", "now.csv", "gives the time"),
        ("date,price_usd\n2018-01-01,5\n", "prices.csv", "which coin"),
        ("id,symbol,name\nbitcoin,btc,Bitcoin\n", "list.csv", "price"),
        ("date,price_usd\n01/02/2018,5\n02/02/2018,6\n", "btc.csv", "which number is the day"),
        ("date;price_usd\n2018-01-01;1,234\n2018-01-02;2,345\n", "btc.csv", "1,234"),
        ("price_usd\n2018-01-01,5\n", "btc.csv", "one cell"),
        ("2018-01-01,5\n2018-01-02,6\n", "btc.csv", "no header"),
    ],
)
async def test_missing_facts_are_not_guessed(load: Read, content: str, name: str, reason: str) -> None:
    outcome = await load(content, name)
    assert not outcome.rows
    assert reason in outcome.problem


async def test_dollar_column_is_read_and_euro_column_ignored(load: Read) -> None:
    outcome = await load(
        "date_iso;symbol;price_eur;price_usd\n2024-01-02;BTC;41387,70;44168,68\n", "bitcoin_eur.csv"
    )
    assert [row["price_usd"] for row in outcome.rows] == ["44168.68"]


async def test_stablecoin_prices_reveal_another_currency(load: Read) -> None:
    content = "timestamp,coinId,price,marketCap,totalVolume\n1640563200000,tether,{},1,1\n"
    assert "another currency" in (await load(content.format("5.71"), "day.csv")).problem
    assert len((await load(content.format("1.001"), "day.csv")).rows) == 1


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
async def test_compressed_archive_loads(load: Read, pack: Callable[[bytes], bytes]) -> None:
    outcome = await load(pack(TICKERS.encode()), "tickers.csv.gz")
    assert len(outcome.rows) == 2
    assert outcome.complete


@pytest.mark.slow
async def test_truncated_archive_gives_the_rows_before_its_end(load: Read) -> None:
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
async def test_encoding_is_detected(load: Read, encoding: str) -> None:
    content = '"price, usd",symbol,name,last_updated\n1.5,CAF,Café,2018-01-01T00:00:00Z\n'
    (row,) = (await load(content.encode(encoding), "x.csv")).rows
    assert row["name"] == "Café"


async def test_undecodable_row_costs_that_row(load: Read) -> None:
    good = "".join(f"S{n},Naïve,1.5,2018-01-01T00:00:00Z\n" for n in range(5)).encode()
    outcome = await load(
        b"symbol,name,price_usd,last_updated\n" + good + b"CAF,Caf\xe9,1,2018-01-01T00:00:00Z\n", "x.csv"
    )
    assert len(outcome.rows) == 5
    assert "encoding" in outcome.rejects[0].reason


async def test_odd_headers_delimiters_and_rows(load: Read) -> None:
    content = (
        "https://example.org/a title line\n\n"
        " Name \tSYMBOL*\t\tPrice USD\tPrice USD\tLast Updated\n"
        "\t\t\t\t\t\n"
        "Bit\x00coin\tBTC\t\t1\t1\t2018-01-01\n"
        ' Ether\tETH\t\t"3"\t3\t2018-01-01\n'
        "Tether\tUSDT\t\t1\t1\t2018-01-01\n"
    )
    outcome = await load(content, "x.tsv")
    assert [(row["name"], row["price_usd"]) for row in outcome.rows] == [("Ether", "3"), ("Tether", "1")]
    assert outcome.rejects[0].field == "name"
    assert "\x00" not in outcome.rejects[0].raw


async def test_interrupted_file_resumes_at_its_checkpoint(load: Read, tmp_path: Path) -> None:
    content = EXPORT + "".join(f"2013-05-{day:02} 00:00:00 UTC,{day},1,1\n\n" for day in range(1, 31))
    whole = await load(content)
    rest = await read(tmp_path / "bitcoin-usd.csv", position=7)
    assert [row["observed_at"] for row in rest.rows] == [row["observed_at"] for row in whole.rows[4:]]
    assert (rest.position, rest.complete) == (whole.position, True)


async def test_unclosed_quote_costs_its_row(load: Read) -> None:
    content = (
        EXPORT
        + "".join(f"2013-05-{day:02} 00:00:00 UTC,{day},1,1\n" for day in range(1, 20))
        + '"2013-06-01,1'
    )
    outcome = await load(content)
    assert len(outcome.rows) == 20
    assert len(outcome.rejects) == 1


@pytest.mark.slow
async def test_kinds_of_rejects_do_not_grow_with_the_file(tmp_path: Path) -> None:
    """The service counts rejects by kind, and a file could have a million different values."""
    plain = "2021-12-31,BTC,1.5,USD\n"
    strange = "".join(f"2021-12-31,BTC,1.5,X{number}\n" for number in range(500))
    # The strange rows lie where detection takes no sample.
    before = plain * (1_300 * 1024 // len(plain))
    path = tmp_path / "a.csv"
    path.write_text(f"date,symbol,price,currency\n{before}{strange}{plain * 200_000}")

    outcome = await read(path)

    assert len(outcome.rejects) == 500
    assert {reject.kind for reject in outcome.rejects} == {"not in USD"}


@pytest.mark.slow
async def test_batch_is_bounded_by_the_text_of_its_rows(tmp_path: Path) -> None:
    """Rejects hold the text of their rows, and the service holds the batch in memory."""
    large = "2021-12-31,BTC,x," + "y" * 100_000 + "\n"
    small = "2021-12-31,BTC,1,\n"
    path = tmp_path / "a.csv"
    path.write_text("date,symbol,price_usd,note\n" + (large + small) * 600)
    with ArchiveFile.at(path) as file:
        messages = [message async for message in read_archive(file, job_for(path))]
    batches = [message.batch for message in messages if isinstance(message, Portion)]
    assert sum(batch.fetched for batch in batches) == 1_200
    assert len(batches) > 2
    assert batches[-1].checkpoint is not None
    assert batches[-1].checkpoint.complete


COIN_OVERRIDES = '[coin]\nid = "bitcoin"\nsymbol = "BTC"\n'


@pytest.mark.parametrize(
    ("name", "content", "overrides", "lacks"),
    [
        ("all.csv", "rank,id,symbol,name,price_usd,last_updated\n1,b,B,B,5,1515230661\n", "", ()),
        # A blank cell is null; a column counts even if all its cells are blank.
        ("blank.csv", "rank,id,symbol,name,price_usd,last_updated\n,b,,,5,1515230661\n", "", ()),
        ("ids.csv", "id,price_usd,last_updated\nb,5,1515230661\n", "", ("symbol", "name", "rank")),
        ("names.csv", "name,price_usd,last_updated\nBitcoin,5,1515230661\n", "", ("symbol", "rank")),
        ("symbols.csv", "symbol,price_usd,last_updated\nBTC,5,1515230661\n", "", ("name", "rank")),
        # The file's name gives the coin's id, but neither its symbol nor its name.
        ("bitcoin-usd-max.csv", "snapped_at,price\n2018-02-01,9\n", "", ("symbol", "name", "rank")),
        # If overrides describe the coin, columns about it are ignored, also for fields that they omit.
        ("bitcoin-usd.csv", "date,price\n2018-02-01,9\n", COIN_OVERRIDES, ("name", "rank")),
        ("x.csv", "date,name,symbol,price_usd\n2018-02-01,B,B,9\n", COIN_OVERRIDES, ("name", "rank")),
        # A column of names that holds numbers is not used.
        ("numbers.csv", "symbol,name,price_usd,last_updated\nBTC,1,5,1515230661\n", "", ("name", "rank")),
    ],
)
async def test_batch_names_the_fields_that_the_layout_lacks(
    tmp_path: Path, name: str, content: str, overrides: str, lacks: tuple[str, ...]
) -> None:
    path = tmp_path / name
    path.write_text(content)
    if overrides:
        (tmp_path / f"{name}.toml").write_text(overrides)

    with ArchiveFile.at(path) as file:
        job = job_for(path, overrides=overrides_for(path))
        (message,) = [message async for message in read_archive(file, job)]

    assert isinstance(message, Portion)
    assert (message.batch.rows, message.batch.lacks) == (1, lacks)


async def test_null_and_lacking_fields_have_different_hashes(tmp_path: Path) -> None:
    path = tmp_path / "a-usd.csv"
    hashes = set()
    for header, cells in (("rank,", ","), ("", "")):
        path.write_text(f"{header}id,price_usd,last_updated\n{cells}b,5,1515230661\n")
        (row,) = (await read(path)).rows
        hashes.add(row["content_hash"])

    assert len(hashes) == 2


async def test_several_prices_for_one_time_reject_the_file(tmp_path: Path) -> None:
    path = tmp_path / "btc-usd.csv"
    rows = "".join(f"2024-01-{day:02},{day}\n" for day in range(1, 20))
    path.write_text(f"date,price_usd\n{rows}2024-01-07,8\n2024-01-09,9\n")

    outcome = await read(path)

    assert outcome.rows == []
    assert outcome.problem == (
        "btc-usd.csv: several prices for one coin and time: btc at 2024-01-07T23:59:59+00:00 is 7 and 8"
    )
