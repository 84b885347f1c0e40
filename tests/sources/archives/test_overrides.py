"""What a user says of an archive in a TOML file beside it: it settles what the file leaves open."""

import tracemalloc
from pathlib import Path

import pytest

from kasparro.sources.archives.files import ArchiveFile
from kasparro.sources.archives.overrides import NO_OVERRIDES, Overrides, OverridesRejected
from kasparro.sources.archives.reader import read_archive
from tests.sources.archives.conftest import Outcome, Read, collected, job_for
from tests.sources.archives.conftest import described as describe

N = r"\N"


@pytest.fixture
def described(tmp_path: Path) -> Read:
    """Write a file and its description, and read it: `await described(content, said, "btc-usd.csv")`."""

    async def load(content: str | bytes, said: str, name: str = "prices.csv") -> Outcome:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.with_name(f"{name}.toml").write_text(said, encoding="utf-8")
        with ArchiveFile.at(path) as file:
            return await collected(read_archive(file, job_for(path, said=describe(path))))

    return load


async def test_columns_and_coin_of_an_unknown_layout(described: Read) -> None:
    outcome = await described(
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
    ("content", "name", "said", "stored"),
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
async def test_what_is_said_settles_what_is_open(
    described: Read, content: str | bytes, name: str, said: str, stored: str
) -> None:
    outcome = await described(content, said, name)
    assert outcome.problems == []
    assert stored in {cell.removesuffix("+00:00") for cell in outcome.rows[0].values()}


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("date,price\n01/02/2018,5\n02/02/2018,6\n", "btc-usd.csv"),
        ("date;price_usd\n2018-01-01;1,234\n2018-01-02;2,345\n", "btc.csv"),
        ("date,price\n2018-01-01,5\n", "btc.csv"),
        ("date,price_eur\n2018-01-01,5\n", "btc.csv"),
        ("date,price_usd\n2018-01-01,5\n", "prices.csv"),
        ("symbol,price_usd\nBTC,5\n", "now.csv"),
        ("time,open,high,low,close\n2018-01-01 00:07,1,1,1,5\n", "btc-usd.csv"),
        ("2018-01-01,5\n2018-01-02,6\n", "btc.csv"),
        ("id,symbol,name\nbitcoin,btc,Bitcoin\n", "list.csv"),
    ],
)
async def test_what_is_left_open_names_the_setting_that_settles_it(
    load: Read, content: str, name: str
) -> None:
    problem = (await load(content, name)).problem
    assert f"{name}.toml beside it can tell: " in problem


async def test_hint_after_hint_leads_from_unknown_names_to_a_file_that_loads(described: Read) -> None:
    hints = {
        'columns."HEADER" = "price_usd", and columns."HEADER" = "observed_at"': (
            'columns."Wert" = "price_usd"\ncolumns."Tag" = "observed_at"'
        ),
        'currency = "USD"': 'currency = "USD"',
        'day_order = "day-first" or day_order = "month-first"': 'day_order = "day-first"',
        'coin.id = "bitcoin", or columns."HEADER" = "symbol"': 'coin.id = "bitcoin"',
    }
    said, told = "", list[str]()
    while True:
        outcome = await described("Tag;Wert;Umsatz\n01.02.2018;9.120,50;1.000\n", said, "kurse.csv")
        if not outcome.problems:
            break
        hint = outcome.problem.partition(" beside it can tell: ")[2]
        said += f"{hints[hint]}\n"
        told.append(hint)

    assert told == [*hints]
    assert outcome.rows[0]["price_usd"] == "9120.5"


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("Tag,Close\n2018-01-01,5\n", 'columns."HEADER" = "observed_at"'),
        ("date,Wert\n2018-01-01,5\n", 'columns."HEADER" = "price_usd"'),
        ("2018-01-01,5\n2018-01-02,5\n", 'header = ["timestamp", "open", "high", …]'),
    ],
)
async def test_what_a_header_lacks_is_what_the_hint_says(load: Read, content: str, hint: str) -> None:
    assert (await load(content, "btc-usd.csv")).problem.endswith(f"can tell: {hint}")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("decimel = ','", "unknown key 'decimel'; did you mean decimal?"),
        ("zzz = 1", "unknown key 'zzz'; allowed: columns, header,"),
        ("decimal = ';'", 'decimal is \';\', which is not allowed; allowed: "." or ","'),
        ("day_order = 'american'", "day_order is 'american'"),
        ("epoch = 'us'", "epoch is 'us'"),
        ("timezone = 'Europe/Atlantis'", "timezone is 'Europe/Atlantis'"),
        ("timezone = '../../etc/passwd'", "timezone is"),
        ("encoding = 'utf-99'", "encoding is 'utf-99'"),
        ("encoding = 'base64'", "encoding is 'base64'"),
        ("period = '7m'", "period is '7m'"),
        ("currency = 'dollars'", "currency is 'dollars'"),
        ("observed_at = 'soon'", "observed_at is 'soon'"),
        ("coin = { sign = 'B' }", "coin is"),
        ("coin = {}", "coin is"),
        ("columns.a = 'price'", "columns is"),
        ("columns.a = 'price_usd'\ncolumns.b = 'price_usd'", "columns is"),
        ("header = []", "header is"),
        ("decimal", "no TOML"),
        ("decimal = '\x1b[31m'", "no TOML"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_file_and_key(tmp_path: Path, said: str, told: str) -> None:
    (tmp_path / "kasparro.toml").write_text(said)
    with pytest.raises(OverridesRejected) as refused:
        describe(tmp_path / "btc.csv")
    assert str(refused.value).startswith("kasparro.toml: ")
    assert told in str(refused.value)
    assert str(refused.value).isprintable()


def test_a_files_own_description_outranks_its_folders_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "kasparro.toml").write_text('currency = "USD"\ndecimal = ","\n')
    (tmp_path / "btc.csv.toml").write_text('decimal = "."\n')
    assert describe(tmp_path / "btc.csv") == Overrides(currency="USD", decimal=".")
    assert describe(tmp_path / "eth.csv") == Overrides(currency="USD", decimal=",")
    assert describe(tmp_path / "sub" / "eth.csv") == NO_OVERRIDES


async def test_a_column_that_is_not_there_is_told(described: Read) -> None:
    outcome = await described("date,price\n2018-01-01,5\n", 'columns.Kurs = "price_usd"', "btc-usd.csv")
    assert "no column 'Kurs'" in outcome.problem


async def test_another_currency_than_dollars_is_refused_whoever_says_so(described: Read) -> None:
    outcome = await described("date,price\n2018-01-01,5\n", 'currency = "EUR"', "btc.csv")
    assert "in EUR, not USD (by its description)" in outcome.problem


@pytest.mark.parametrize(
    "said",
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
def test_what_stands_in_texts_and_comments_is_no_structure(tmp_path: Path, said: str) -> None:
    (tmp_path / "kasparro.toml").write_text(said)
    assert describe(tmp_path / "btc.csv") != NO_OVERRIDES


@pytest.mark.parametrize(
    "encoding", ["UTF8", "latin-1", "Windows-1251", "ISO-8859-15", "Shift_JIS", "koi8_r"]
)
def test_text_encodings_are_known_by_all_their_names(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "kasparro.toml").write_text(f'encoding = "{encoding}"')
    assert describe(tmp_path / "btc.csv").encoding == encoding


@pytest.mark.parametrize(
    "prefix", ["", "'''", '"""', '"', "'", "#", '"""\\', "a = '''x''''", 'b = """x"""""\n']
)
def test_no_open_text_hides_a_key_of_many_parts(tmp_path: Path, prefix: str) -> None:
    """What a scan takes for a text and the parser for a key would cost the square of its length."""
    (tmp_path / "kasparro.toml").write_bytes(prefix.encode() + b"\n" + b"x." * 25_000 + b"a=1")
    tracemalloc.start()
    try:
        with pytest.raises(OverridesRejected, match=r"no TOML"):
            describe(tmp_path / "btc.csv")
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
    finally:
        tracemalloc.stop()
