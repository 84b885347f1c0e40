"""Numbers are written exactly, as each upstream writes them."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.simulator.number_format import GO, RUBY, Notation, numeral, shortened


@given(st.integers(-(10**30), 10**30), st.integers(0, 40), st.sampled_from([RUBY, GO]))
def test_numeral_is_exact(mantissa: int, scale: int, notation: Notation) -> None:
    assert Decimal(numeral(mantissa, scale, notation)) == Decimal(f"{mantissa}e-{scale}")


@pytest.mark.parametrize(
    ("mantissa", "scale", "ruby", "go"),
    [
        (12, 13, "1.2e-12", "1.2e-12"),
        (926, 8, "9.26e-06", "0.00000926"),
        (2, 8, "2e-08", "2e-8"),
        (15, 5, "0.00015", "0.00015"),
        (109311, 0, "109311", "109311"),
        (-2120, 3, "-2.12", "-2.12"),
        (0, 9, "0", "0"),
    ],
)
def test_exponents_of_each_writer(mantissa: int, scale: int, ruby: str, go: str) -> None:
    assert (numeral(mantissa, scale, RUBY), numeral(mantissa, scale, GO)) == (ruby, go)


def test_shortened_never_truncates_the_integer_part() -> None:
    assert shortened(123_456_789, 1, 6) == (12_345_678, 0)
    assert shortened(-123_456_789, 9, 6) == (-123_456, 6)
    assert shortened(12, 1, 6) == (12, 1)
