"""Numbers in archives: each accepted text has exactly one meaning, and that value is stored."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.model.record import RejectedValue
from kasparro.sources.archives.errors import FileRejected
from kasparro.sources.archives.numbers import DecimalSign, Notation, NumberKind, decimal_sign, read_plain_all

POINT = Notation(".")
COMMA = Notation(",")

finite = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**15), max_value=10**15, places=12)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("1,234.56", "money", "1234.56"),
        ("$1.5", "money", "1.5"),
        ("$0", "money", "0"),
        ("-$1.5", "money", "-1.5"),
        ("+2.01%", "percent", "2.01"),
        ("-0.24 %", "percent", "-0.24"),
        ("-0.00", "percent", "0"),
        ("287.86K", "money", "287860"),
        ("541.43B", "money", "541430000000"),
        ("1.5e-9", "money", "0.0000000015"),
        ("1.71461E+11", "money", "171461000000"),
        ("18,777,093.00 BTC", "supply", "18777093"),
        ("1.00B THETA", "supply", "1000000000"),
        (" 42 ", "money", "42"),
        ("1 234 567.5", "money", "1234567.5"),
        ("1'234.5", "money", "1234.5"),
        ("007", "money", "7"),
        ("1.10", "money", "1.1"),
        ("100", "money", "100"),
    ],
)
def test_notations_are_exact(text: str, kind: NumberKind, value: str) -> None:
    assert POINT.read(text, "price_usd", kind) == value


@pytest.mark.parametrize(
    ("text", "value"), [("102.923,61", "102923.61"), ("102923,6143", "102923.6143"), ("1.234.567", "1234567")]
)
def test_decimal_comma(text: str, value: str) -> None:
    assert COMMA.read(text, "price_usd", "money") == value


@pytest.mark.parametrize("text", ["", "-", "--", "- -", "N/A", "None", "null", "?", "nan", " "])
def test_null_words_are_null_and_zero_is_not(text: str) -> None:
    assert POINT.read(text, "price_usd", "money") is None
    assert POINT.read("0.0", "price_usd", "money") == "0"


@pytest.mark.parametrize(
    "text",
    [
        "14.748.800.659.179.600",
        "$0.0...06606",
        "$541.43B$541426059990",
        "1,23,4",
        "12,34",
        "1,2345",
        "1.2.3",
        "0x10",
        "1e5K",
        "+-1",
        "(1.5)",
        "inf",
        "€1.5",
        "1.5 BTC",
        "1.5%",
        ",",
        "1\x00",
        "١٢",
        "1_000",
    ],
)
def test_damaged_number_is_rejected(text: str) -> None:
    with pytest.raises(RejectedValue, match="not a number"):
        POINT.read(text, "price_usd", "money")


def test_currency_sign_in_supply_or_percent_is_rejected() -> None:
    for kind in ("supply", "percent"):
        with pytest.raises(RejectedValue):
            POINT.read("$5", "max_supply", kind)


@given(finite)
def test_reads_every_format_of_decimal(value: Decimal) -> None:
    for text in (str(value), f"{value:f}", f"{value:,f}", f"{value:e}"):
        read = POINT.read(text, "x", "percent")
        assert read is not None
        assert Decimal(read) == value
        assert "e" not in read.lower()
    swapped = f"{value:,f}".translate(str.maketrans(",.", ".,"))
    assert Decimal(str(COMMA.read(swapped, "x", "percent"))) == value


@given(st.text("0123456789.,-+eE $%KMB'", max_size=14))
def test_accepted_text_gives_a_canonical_decimal(text: str) -> None:
    try:
        read = POINT.read(text, "x", "money")
    except RejectedValue:
        return
    if read is not None:
        value = Decimal(read)
        assert f"{value:f}" == read
        assert "." not in read or not read.endswith("0")


@pytest.mark.parametrize(
    ("cells", "sign"),
    [
        (["1,234", "0.5"], "."),
        (["1.234", "0,5"], ","),
        (["41387,70606", "44168,68"], ","),
        (["1,234,567", "1,234"], "."),
        (["1.234", "2.345"], "."),
        (["12", "", "N/A"], "."),
        (["$39,979.12", "$1"], "."),
        (["628899051.8", "539.692.714.905"], "."),
    ],
)
def test_rows_settle_the_decimal_sign(cells: list[str], sign: DecimalSign) -> None:
    assert decimal_sign(cells, ",") == sign


@pytest.mark.parametrize(
    ("cells", "delimiter"),
    [(["1,234", "2,345"], ","), (["0.5", "0,5"], ","), (["14.748.800.659", "1.234"], ";")],
)
def test_undecided_rows_are_ambiguous(cells: list[str], delimiter: str) -> None:
    with pytest.raises(FileRejected):
        decimal_sign(cells, delimiter)


whole_parts = st.integers(0, 10**15)
fractions = st.integers(0, 999_999)


@given(whole_parts, fractions, st.sampled_from([",", "'", "’", " ", "\u00a0", "\u202f", ""]))
def test_group_separators_are_ignored(whole: int, fraction: int, sign: str) -> None:
    text = f"{whole:,}".replace(",", sign) + f".{fraction:06}"
    assert POINT.read(text, "x", "money") == _canonical(Decimal(f"{whole}.{fraction:06}"))
    text = f"{whole:,}".replace(",", "." if sign == "," else sign) + f",{fraction:06}"
    assert COMMA.read(text, "x", "money") == _canonical(Decimal(f"{whole}.{fraction:06}"))


@given(
    finite,
    st.sampled_from(["${}", "$ {}", "US${}", "$US{}", "usd{}", "USD {}", "{}$", "{} $", "{} USD", "{}usd"]),
)
def test_dollar_signs_are_ignored_in_money(value: Decimal, written: str) -> None:
    value = abs(value)
    text = written.format(f"{value:f}")
    try:
        assert POINT.read(text, "x", "money") == _canonical(value)
    except RejectedValue:
        # A blank after the sign is not accepted.
        assert written == "$ {}"
    with pytest.raises(RejectedValue):
        POINT.read(text, "x", "percent")


@given(finite, st.sampled_from(["{}%", "{} %", "+{}%"]))
def test_percent_signs_are_ignored_in_percents(value: Decimal, written: str) -> None:
    value = abs(value)
    assert POINT.read(written.format(f"{value:f}"), "x", "percent") == _canonical(value)
    assert POINT.read(f"-{value:f}%", "x", "percent") == _canonical(-value)
    with pytest.raises(RejectedValue):
        POINT.read(written.format(f"{value:f}"), "x", "money")


@given(
    st.decimals(0, 10**6, places=4),
    st.sampled_from([("K", 3), ("k", 3), ("M", 6), ("m", 6), ("B", 9), ("b", 9), ("bn", 9), ("T", 12)]),
)
def test_magnitude_suffixes(value: Decimal, magnitude: tuple[str, int]) -> None:
    letter, power = magnitude
    for text in (f"{value:f}{letter}", f"{value:f} {letter}", f"${value:f}{letter}"):
        assert POINT.read(text, "x", "money") == _canonical(value.scaleb(power))
    assert COMMA.read(f"{value:f}{letter}".replace(".", ","), "x", "money") == _canonical(value.scaleb(power))


@given(st.decimals(0, 10**6, places=4), st.integers(-40, 20), st.sampled_from("eE"))
def test_exponents(value: Decimal, power: int, letter: str) -> None:
    for sign in ("", "+") if power >= 0 else ("",):
        text = f"{value:f}{letter}{sign}{power}"
        assert POINT.read(text, "x", "money") == _canonical(value.scaleb(power))


@given(st.lists(finite.map(abs), min_size=1), st.sampled_from([".", ","]))
def test_detected_decimal_sign_is_the_written_one(values: list[Decimal], sign: DecimalSign) -> None:
    cells = [f"{value:,f}" for value in values]
    if sign == ",":
        cells = [cell.translate(str.maketrans(",.", ".,")) for cell in cells]
    assert decimal_sign(cells, ";") == sign


def _canonical(value: Decimal) -> str:
    text = f"{value:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in {"-0", "0"} else text


def test_number_ending_in_a_point_is_not_plain() -> None:
    """Possessive groups of Python 3.11.2 matched it, and `1.` was stored with a different hash than `1`."""
    assert read_plain_all(["0", "1.", "0"]) is None
