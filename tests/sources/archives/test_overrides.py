"""Overrides in a TOML file next to an archive settle what the file leaves open."""

import tracemalloc
from pathlib import Path

import pytest

from kasparro.sources.archives.overrides import NO_OVERRIDES, Overrides, OverridesRejected
from tests.support.archives import Read, overrides_for


async def test_columns_and_coin_of_an_unknown_layout(load_with: Read) -> None:
    outcome = await load_with(
        "wann;wert;menge;xyz\n31.12.2021;46.219,50;1.000;7\n01.01.2022;47.000,10;2.000;8\n",
        """
        currency = "USD"
        coin = { id = "bitcoin", symbol = "BTC", name = "Bitcoin" }

        [columns]
        wann = "observed_at"
        wert = "price_usd"
        menge = "volume_24h_usd"
        """,
    )
    assert outcome.problems == []
    first = outcome.rows[0]
    assert (first["source_id"], first["symbol"], first["name"]) == ("bitcoin", "BTC", "Bitcoin")
    assert (first["observed_at"], first["price_usd"], first["volume_24h_usd"]) == (
        "2021-12-31 23:59:59+00:00",
        "46219.5",
        "1000",
    )


@pytest.mark.parametrize(
    ("content", "name", "overrides", "stored"),
    [
        ("date,price\n01/02/2018,5\n", "btc-usd.csv", 'day_order = "day-first"', "2018-02-01 23:59:59"),
        ("date,price\n01/02/2018,5\n", "btc-usd.csv", 'day_order = "month-first"', "2018-01-02 23:59:59"),
        ("date;price\n2018-01-01;1,234\n", "btc-usd.csv", 'decimal = ","', "1.234"),
        ("date;price\n2018-01-01;1,234\n", "btc-usd.csv", 'decimal = "."', "1234"),
        ("date,price\n2018-01-01,5\n", "btc.csv", 'currency = "USD"', "5"),
        ("date,price_eur\n2018-01-01,5\n", "btc.csv", 'currency = "USD"', "5"),
        ("date,price_eur,price_usd\n2018-01-01,5,6\n", "btc.csv", 'currency = "USD"', "6"),
        ("date,symbol,price\n2018-01-01,BTC/USDT,5\n", "x.csv", 'currency = "USD"', "5"),
        ("date,price_usd\n2018-01-01,5\n", "prices.csv", 'coin.id = "b"', "b"),
        ("symbol,price_usd\nBTC,5\n", "now.csv", "observed_at = 2018-01-06T09:24:21Z", "2018-01-06 09:24:21"),
        ("symbol,price_usd\nBTC,5\n", "now.csv", "observed_at = 2018-01-06", "2018-01-06 23:59:59"),
        (
            "date,price\n2018-01-01 12:00,5\n",
            "btc-usd.csv",
            'timezone = "Europe/Berlin"',
            "2018-01-01 11:00:00",
        ),
        ("time,price\n1515230661000.0,5\n", "btc-usd.csv", 'epoch = "ms"', "2018-01-06 09:24:21"),
        (
            "time,open,high,low,close\n2018-01-01 00:00,1,1,1,5\n",
            "btc-usd.csv",
            'period = "1h"',
            "2018-01-01 00:59:59",
        ),
        ("2018-01-01,5,6\n2018-01-02,6,7\n", "btc-usd.csv", 'header = ["date", "open", "close"]', "6"),
        ("date|a;b|price_usd\n2018-01-01|x;y|5\n", "btc.csv", 'delimiter = "|"', "5"),
        ("name,date,price_usd\nЭфир,2018-01-01,5\n".encode("cp1251"), "x.csv", 'encoding = "cp1251"', "Эфир"),
        (
            "date,price_usd,price,symbol\n2018-01-01,5,6,BTC\n",
            "x.csv",
            'currency = "USD"\ncolumns.price_usd = "ignore"',
            "6",
        ),
    ],
)
async def test_override_settles_an_open_question(
    load_with: Read, content: str | bytes, name: str, overrides: str, stored: str
) -> None:
    outcome = await load_with(content, overrides, name)
    assert outcome.problems == []
    assert stored in {cell.removesuffix("+00:00") for cell in outcome.rows[0].values()}


async def test_one_refusal_names_everything_that_is_open(load: Read) -> None:
    problem = (await load("Tag;Wert;Umsatz\n01.02.2018;9.120,50;1.000\n", "kurse.csv")).problem
    assert problem == (
        "kurse.csv: none of its columns is known to hold a price and a time (Tag, Wert, Umsatz); its "
        "currency is unknown: no header, cell or pair gives it; its rows do not show which number is the "
        "day: '01.02.2018' and all others can be read as day-first and as month-first; neither a column "
        "nor the file name says which coin it is about; kurse.csv.toml next to it can say: "
        'columns."Tag" = "observed_at"  # a guess: check it\n'
        'columns."Wert" = "price_usd"  # a guess: check it\n'
        'currency = "USD"  # if its prices are in US dollars\n'
        'day_order = "day-first"  # a guess: it may also be "month-first"\n'
        '# coin.id = "bitcoin"  # replace it by the coin'
    )


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("date,price\n01/02/2018,5\n02/02/2018,6\n", "btc-usd.csv"),
        ("date;price_usd\n2018-01-01;1,234\n2018-01-02;2,345\n", "btc.csv"),
        ("date,price\n2018-01-01,5\n", "btc.csv"),
        ("date,price_usd\n2018-01-01,5\n", "my-btc-export-of-uncle.csv"),
        ("time,open,high,low,close\n2018-01-01 00:07,1,1,1,5\n", "btc-usd.csv"),
        ("2018-01-01,5\n2018-01-02,6\n", "btc.csv"),
        ("Tag,Close\n2018-01-01,5\n", "btc-usd.csv"),
        ("date,Wert\n2018-01-01,5\n", "btc-usd.csv"),
        ("AssetName;Wert;Stand\nBitcoin;9120,5;2018-01-31\nEther;800,25;2018-01-31\n", "kurse.csv"),
        ("1514764800,5,6,4,5.5,9\n1514851200,5.5,7,5,6.5,8\n", "unknown.csv"),
    ],
)
async def test_pasting_the_lines_of_a_refusal_once_loads_the_file(
    load: Read, load_with: Read, content: str, name: str
) -> None:
    lines = (await load(content, name)).problem.partition(" next to it can say: ")[2]
    assert lines
    if "# coin.id" in lines:
        lines = lines.replace("# coin.id", "coin.id")
    outcome = await load_with(content, lines, name)
    assert outcome.problems == []
    assert outcome.rows


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("date,price_eur\n2018-01-01,5\n", "btc.csv"),
        ("date,price\n2018-01-01,5\n", "BTC_price_2024_EURO.csv"),
        ("date,price\n2018-01-01,5\n", "BTC-GBP.csv"),
        ("date,id,price\n2018-01-01,tether,83.2\n2018-01-01,bitcoin,1100000\n", "rupees.csv"),
    ],
)
async def test_evidence_for_another_currency_has_no_lines_to_paste(
    load: Read, load_with: Read, content: str, name: str
) -> None:
    problem = (await load(content, name)).problem
    assert "can say: currency" not in problem
    assert "the key currency in its overrides can say so" in problem
    assert (await load_with(content, 'currency = "USD"', name)).problems == []


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ("decimel = ','", "unknown key 'decimel'; did you mean decimal?"),
        ("zzz = 1", "unknown key 'zzz'; allowed: columns, header,"),
        ("decimal = ';'", 'decimal is \';\', which is not allowed; allowed: "." or ","'),
        ("day_order = 'american'", "day_order is 'american'"),
        ("epoch = 'minutes'", "epoch is 'minutes'"),
        ("timezone = 'Europe/Atlantis'", "timezone is 'Europe/Atlantis'"),
        ("timezone = '../../etc/passwd'", "timezone is"),
        ("encoding = 'utf-99'", "encoding is 'utf-99'"),
        ("encoding = 'base64'", "encoding is 'base64'"),
        ("period = '7m'", "period is '7m'"),
        ("period = '1M'", "period is '1M'"),
        ("candle_times = 'middle'", "candle_times is 'middle'"),
        ("pegged_as_usd = 'yes'", "pegged_as_usd is 'yes'"),
        ("currency = 'dollars'", "currency is 'dollars'"),
        ("observed_at = 'soon'", "observed_at is 'soon'"),
        ("coin = { sign = 'B' }", "coin is"),
        ("coin = {}", "coin is"),
        ("columns.a = 'price'", "columns is"),
        ("columns.a = 'price_usd'\ncolumns.b = 'price_usd'", "columns is"),
        ("header = []", "header is"),
        ("decimal", "not TOML"),
        ("decimal = '\x1b[31m'", "not TOML"),
    ],
)
def test_invalid_overrides_are_rejected_with_file_and_key(tmp_path: Path, overrides: str, error: str) -> None:
    (tmp_path / "kasparro.toml").write_text(overrides)
    with pytest.raises(OverridesRejected) as rejected:
        overrides_for(tmp_path / "btc.csv")
    assert str(rejected.value).startswith("kasparro.toml: ")
    assert error in str(rejected.value)
    assert str(rejected.value).isprintable()


def test_overrides_of_a_file_outrank_those_of_its_folder_by_key(tmp_path: Path) -> None:
    (tmp_path / "kasparro.toml").write_text('currency = "USD"\ndecimal = ","\n')
    (tmp_path / "btc.csv.toml").write_text('decimal = "."\n')
    assert overrides_for(tmp_path / "btc.csv") == Overrides(currency="USD", decimal=".")
    assert overrides_for(tmp_path / "eth.csv") == Overrides(currency="USD", decimal=",")
    assert overrides_for(tmp_path / "sub" / "eth.csv") == NO_OVERRIDES


async def test_override_for_a_missing_column_is_rejected(load_with: Read) -> None:
    outcome = await load_with("date,price\n2018-01-01,5\n", 'columns.Kurs = "price_usd"', "btc-usd.csv")
    assert "no column 'Kurs'" in outcome.problem


async def test_other_currency_by_override_is_rejected(load_with: Read) -> None:
    outcome = await load_with("date,price\n2018-01-01,5\n", 'currency = "EUR"', "btc.csv")
    assert "in EUR, not USD (by its overrides)" in outcome.problem


@pytest.mark.parametrize(
    "overrides",
    [
        'columns."a.b.c.d.e.f.g.h.i.j.k" = "price_usd"',
        "# a.b.c.d.e.f.g.h.i.j.k [[[[[[[[[[\ncurrency = 'USD' # [[[[[[[[[[ a.b.c.d.e.f.g.h.i.j",
        'header = ["1.2.3.4.5.6.7.8.9.10", "[[[[[[[[[[", \'{{{{{{{{{{\', "\\"", "a.b.c.d.e.f.g.h.i.j"]',
        'timezone = """\\\n  Europe/Berlin"""\nheader = ["""a.b.c.d.e.f.g.h.i.j"", [[[[[[[[[[""""]',
        "header = ['''a.b.c.d.e.f.g.h.i.j'', [[[[[[[[[[''']",
        "[columns]\n" + "".join(f'"{number}.1" = "ignore"\n' for number in range(2_000)),
        "[coin]\nid = 'x'\n[columns]\na . b = 'ignore'\n".replace("a . b", '"a . b"'),
    ],
)
def test_strings_and_comments_are_not_structure(tmp_path: Path, overrides: str) -> None:
    (tmp_path / "kasparro.toml").write_text(overrides)
    assert overrides_for(tmp_path / "btc.csv") != NO_OVERRIDES


@pytest.mark.parametrize(
    "encoding", ["UTF8", "latin-1", "Windows-1251", "ISO-8859-15", "Shift_JIS", "koi8_r"]
)
def test_encoding_aliases_are_known(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "kasparro.toml").write_text(f'encoding = "{encoding}"')
    assert overrides_for(tmp_path / "btc.csv").encoding == encoding


@pytest.mark.parametrize(
    "prefix", ["", "'''", '"""', '"', "'", "#", '"""\\', "a = '''x''''", 'b = """x"""""\n']
)
def test_open_string_does_not_hide_a_dotted_key(tmp_path: Path, prefix: str) -> None:
    """A key of many parts takes the parser quadratic time, so the check has to see it."""
    (tmp_path / "kasparro.toml").write_bytes(prefix.encode() + b"\n" + b"x." * 25_000 + b"a=1")
    tracemalloc.start()
    try:
        with pytest.raises(OverridesRejected, match=r"not TOML"):
            overrides_for(tmp_path / "btc.csv")
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
    finally:
        tracemalloc.stop()
