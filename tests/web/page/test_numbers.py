"""Numbers for people."""

from decimal import Decimal

import pytest

from kasparro.web.page import numbers

# The narrow space that keeps a number and its unit on one line.
_ = "\N{NARROW NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("digits", "shown"),
    [
        ("91204.1283", "91,204.13"),
        ("118142961.899676295445666961", "118,142,961.90"),
        ("1324567890123", f"1.32{_}T"),
        ("12.3", "12.30"),
        ("1.00034", "1.0003"),
        ("0.99996", "1.0000"),
        ("0.5", "0.5000"),
        ("0.00001234567", "0.00001235"),
        ("0.000000000012", "0.0₁₀12"),
        ("1e-30", "0.0₂₉1"),
        ("0", "0.00"),
        ("-0.5", "−0.5000"),
    ],
)
def test_price(digits: str, shown: str) -> None:
    assert numbers.price(Decimal(digits)) == shown


@pytest.mark.parametrize(
    ("digits", "shown"),
    [
        ("1324567890123", f"1.32{_}T"),
        ("999999", f"1.00{_}M"),
        ("999499", f"999{_}K"),
        ("123.456", "123"),
        ("12.345", "12.3"),
        ("0.5", "0.5000"),
        ("0", "0"),
        ("-2500", f"−2.50{_}K"),
        ("1e25", f"1.00{_}×{_}10²⁵"),
        ("999999999999999", f"1.00{_}×{_}10¹⁵"),
    ],
)
def test_amount(digits: str, shown: str) -> None:
    assert numbers.compact(Decimal(digits)) == shown


@pytest.mark.parametrize(
    ("digits", "shown", "direction"),
    [
        ("1.236", "+1.24%", "up"),
        ("-0.8", "−0.80%", "down"),
        ("-0.001", "0.00%", "flat"),
        ("1234.5", "+1,234%", "up"),
    ],
)
def test_change(digits: str, shown: str, direction: str) -> None:
    assert numbers.percent(Decimal(digits)) == shown
    assert numbers.direction(Decimal(digits)) == direction


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(4.21, f"4.2{_}s"), (59.9, f"59{_}s"), (119, f"119{_}s"), (7_300, f"2{_}h"), (200_000, f"2{_}d")],
)
def test_duration(seconds: float, shown: str) -> None:
    assert numbers.duration(seconds) == shown


def test_all_digits() -> None:
    assert numbers.exact(Decimal("1E-30")) == "0.000000000000000000000000000001"
