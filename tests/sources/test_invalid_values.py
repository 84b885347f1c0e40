"""A bad value costs itself: only an id, a price and a time are worth a record."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.model.record import FRACTION_DIGITS, WHOLE_DIGITS, Record, RejectedValue
from kasparro.sources import coingecko, coinpaprika

NOW = datetime(2026, 8, 16, 18, tzinfo=UTC)
# The record's fields and how both APIs name them.
GECKO = {
    "market_cap_usd": "market_cap",
    "volume_24h_usd": "total_volume",
    "circulating_supply": "circulating_supply",
    "total_supply": "total_supply",
    "max_supply": "max_supply",
    "percent_change_1h": "price_change_percentage_1h_in_currency",
    "percent_change_24h": "price_change_percentage_24h_in_currency",
    "percent_change_7d": "price_change_percentage_7d_in_currency",
}
SIGNED = {"percent_change_1h", "percent_change_24h", "percent_change_7d"}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**90), 10**90),
    st.decimals(allow_nan=False, allow_infinity=False).map(lambda value: msgspec.Raw(str(value).encode())),
    st.text(),
    st.sampled_from(["-1", "1e77", "1.5", "38,531,000,250*", "NaN", "", " 7 "]),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner))


def gecko(**values: Any) -> Record:
    item = {"id": "some-token", "symbol": "smt", "name": "Some Token", "current_price": 3.25}
    known = {"market_cap": 1, "market_cap_rank": 9, "total_volume": 2}
    return coingecko.to_record(msgspec.Raw(msgspec.json.encode(item | known | values)), NOW)


def paprika(usd: dict[str, Any], **values: Any) -> Record:
    item = {"id": "smt-some-token", "symbol": "SMT", "name": "Some Token", "rank": 9}
    quotes = {"USD": {"price": 3.25, "volume_24h": 2, "market_cap": 1} | usd}
    return coinpaprika.to_record(msgspec.Raw(msgspec.json.encode(item | {"quotes": quotes} | values)), NOW)


def exact(value: Any) -> Decimal | None:
    """The number that a JSON value is, if it is one."""
    text = bytes(value).decode() if isinstance(value, msgspec.Raw) else str(value).strip()
    try:
        return None if isinstance(value, bool | list | dict) else Decimal(text)
    except ArithmeticError:
        return None


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(GECKO.values(), VALUES)))
def test_values_are_exact_or_null_and_counted(values: dict[str, Any]) -> None:
    record = gecko(**values)

    assert (record.source_id, record.price_usd) == ("some-token", "3.25")
    invalid = {value.field for value in record.invalid}
    for field, name in GECKO.items():
        stored, sent = getattr(record, field), values.get(name)
        if name not in values or sent is None or sent == "" or (isinstance(sent, str) and not sent.strip()):
            assert field not in invalid
        elif stored is None:
            assert field in invalid
        else:
            assert field not in invalid
            assert Decimal(stored) == exact(sent)
            assert field in SIGNED or Decimal(stored) >= 0
            whole, _, fraction = stored.lstrip("-").partition(".")
            assert (len(whole) <= WHOLE_DIGITS, len(fraction) <= FRACTION_DIGITS) == (True, True)


@pytest.mark.parametrize("name", ["symbol", "name"])
@pytest.mark.parametrize("value", [7, [], "a\x00b", "x" * 2_000])
def test_a_bad_text_costs_itself(name: str, value: Any) -> None:
    for record in (gecko(**{name: value}), paprika({}, **{name: value})):
        assert (getattr(record, name), record.price_usd) == (None, "3.25")
        assert [found.field for found in record.invalid] == [name]


@pytest.mark.parametrize("value", [-3, 1.5, "first", 2**40])
def test_a_bad_rank_costs_itself(value: Any) -> None:
    for record in (gecko(market_cap_rank=value), paprika({}, rank=value)):
        assert (record.rank, record.price_usd) == (None, "3.25")
        assert [found.field for found in record.invalid] == ["rank"]


def test_a_missing_field_is_not_a_null_one() -> None:
    item = b'{"id":"some-token","current_price":3.25,"market_cap":null,"market_cap_rank":null}'
    record = coingecko.to_record(msgspec.Raw(item), NOW)

    assert record.price_usd == "3.25"
    assert [(found.field, found.reason) for found in record.invalid] == [
        ("symbol", "missing"),
        ("name", "missing"),
        ("volume_24h_usd", "missing"),
    ]


@pytest.mark.parametrize("price", ["soon", -1, 1e80, [], True])
def test_a_price_that_cannot_be_read_costs_the_record(price: Any) -> None:
    with pytest.raises(RejectedValue):
        gecko(current_price=price)
    with pytest.raises(RejectedValue):
        paprika({"price": price})


def test_a_null_price_stays_null() -> None:
    assert (gecko(current_price=None).price_usd, paprika({"price": None}).price_usd) == (None, None)
