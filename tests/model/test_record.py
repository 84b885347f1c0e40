"""Checks accept exactly what their docstrings say, and COPY text has exact values and stable hashes."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kasparro.model.record import (
    EARLIEST,
    CopyLines,
    Record,
    RejectedValue,
    canonical_decimal,
    check_id,
    check_text,
    check_time,
    compose_id,
    copy_lines,
    copy_record,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PLAIN = Record(source_id="btc-bitcoin", symbol="BTC", name="Bitcoin", observed_at=NOW, price_usd="1.5")


@given(st.decimals(allow_nan=False, allow_infinity=False, places=None, min_value=-(10**50), max_value=10**50))
def test_canonical_decimal_keeps_the_value(value: Decimal) -> None:
    for text in (str(value), f"{value:e}", f"{value:E}"):
        try:
            read = canonical_decimal(text, "price_usd")
        except RejectedValue:
            assert value.adjusted() < -30
        else:
            assert Decimal(read) == value
            assert "e" not in read.lower()


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20, places=12))
def test_equal_values_have_one_notation(value: Decimal) -> None:
    assert (
        canonical_decimal(f"{value:f}", "x")
        == canonical_decimal(f"{value:f}000", "x")
        == canonical_decimal(f"{value:.40e}", "x")
    )


@given(st.text(alphabet="0123456789+-.eE ,_xX٣", max_size=12))
def test_canonical_decimal_accepts_only_what_decimal_accepts(text: str) -> None:
    try:
        read = canonical_decimal(text, "x")
    except RejectedValue:
        return
    assert Decimal(read) == Decimal(text)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("1.2e-11", "0.000000000012"),
        ("0", "0"),
        ("-0.0", "0"),
        ("0e99999999999", "0"),
        ("123456789012345678.123456789", "123456789012345678.123456789"),
        ("16723525.0", "16723525"),
        ("2e-8", "0.00000002"),
        ("007", "7"),
        ("+.5", "0.5"),
        ("-1.5E+2", "-150"),
    ],
)
def test_canonical_notation(text: str, plain: str) -> None:
    assert canonical_decimal(text, "x") == plain


@pytest.mark.parametrize(
    "text", ["", " ", "abc", "1,5", "1e", ".", "--1", "NaN", "Infinity", "0x1f", "１２", "1_000", " 1", "1\n"]
)
def test_other_text_than_numbers_is_rejected(text: str) -> None:
    with pytest.raises(RejectedValue, match="not a number") as rejected:
        canonical_decimal(text, "price_usd")
    assert rejected.value.field == "price_usd"


@pytest.mark.parametrize("text", ["1" * 400, "1e400", "1e-400", "9" * 61, "1e9999999999999999999999"])
def test_numbers_with_too_many_digits_are_rejected(text: str) -> None:
    with pytest.raises(RejectedValue):
        canonical_decimal(text, "x")


def content_hash(record: Record, position: int = 0) -> bytes:
    """The content hash in the record's line of keys."""
    return copy_record(record, position).keys.split(b"\t")[1]


def test_hash_depends_on_what_the_source_reports() -> None:
    plain = content_hash(PLAIN)

    other_position = content_hash(PLAIN, 7)
    other_price = content_hash(replace(PLAIN, price_usd="1.6"))
    other_time = content_hash(replace(PLAIN, observed_at=NOW - timedelta(days=1)))

    assert plain == other_position
    assert len({plain, other_price, other_time}) == 3


def test_hash_ignores_the_time_of_fetching() -> None:
    without_time = replace(PLAIN, has_source_time=False)

    first = content_hash(without_time)
    later = content_hash(replace(without_time, observed_at=NOW + timedelta(hours=1)))

    assert first == later


def test_null_empty_and_zero_have_different_hashes() -> None:
    hashes = {
        content_hash(replace(PLAIN, **change))
        for change in (
            {"symbol": None},
            {"symbol": ""},
            {"symbol": "\\N"},
            {"price_usd": None},
            {"price_usd": "0"},
        )
    }
    assert len(hashes) == 5


def test_times_before_2009_and_in_the_future_are_rejected() -> None:
    assert check_time(NOW + timedelta(minutes=9), "t", NOW) == NOW + timedelta(minutes=9)
    for bad in (
        EARLIEST - timedelta(seconds=1),
        NOW + timedelta(minutes=11),
        datetime.max.replace(tzinfo=UTC),
    ):
        with pytest.raises(RejectedValue):
            check_time(bad, "t", NOW)


def test_composed_ids_look_like_those_of_coinpaprika() -> None:
    assert compose_id("BTC", "Bitcoin") == "btc-bitcoin"
    assert compose_id("B@", "Wrapped  Token (v2)") == "b-wrapped-token-v2"
    assert compose_id("柴犬", "柴犬") == "柴犬-柴犬"
    with pytest.raises(RejectedValue):
        compose_id("$$", "---")


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "a\x00", "x" * 201])
def test_unusable_ids_are_rejected(text: str) -> None:
    with pytest.raises(RejectedValue):
        check_id(text)


def test_names_are_unchanged_or_rejected() -> None:
    odd = "=HYPERLINK(1)\u200b<b>比特币</b>\t\n\\N"
    assert check_text(odd, "name", 100) == odd
    for bad in ("a\x00b", "x" * 101):
        with pytest.raises(RejectedValue):
            check_text(bad, "name", 100)


@given(st.lists(st.tuples(st.datetimes(timezones=st.just(UTC)), st.text(), st.text()), min_size=1))
def test_copy_lines_equals_copy_record_of_each(values: list[tuple[datetime, str, str]]) -> None:
    records = [
        replace(PLAIN, observed_at=at, source_id=source_id, name=name) for at, source_id, name in values
    ]
    apart = [copy_record(record, position) for position, record in enumerate(records, start=3)]

    together = copy_lines(
        3,
        [lines.keys.decode()[:-1].split("\t", 3)[3] for lines in apart],
        [lines.contents.decode()[:-1].split("\t", 1)[1] for lines in apart],
    )

    assert together == CopyLines(
        b"".join(lines.keys for lines in apart), b"".join(lines.contents for lines in apart)
    )
