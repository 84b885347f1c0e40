"""Writes exact decimals as the two upstreams do, without floats."""

from typing import NamedTuple


class Notation(NamedTuple):
    """How a JSON writer writes small numbers.

    `zeros` is how many zeros may follow the point before it uses an exponent. `width` is the smallest number
    of digits of that exponent.
    """

    zeros: int
    width: int


RUBY = Notation(zeros=4, width=2)
"""CoinGecko's writer: 0.00012, then 1.2e-05."""

GO = Notation(zeros=6, width=1)
"""CoinPaprika's writer: 0.0000012, then 1.2e-7."""


def numeral(mantissa: int, scale: int, notation: Notation) -> str:
    """The shortest JSON text of `mantissa / 10**scale` with all digits."""
    if mantissa == 0:
        return "0"
    sign = "-" if mantissa < 0 else ""
    written = str(abs(mantissa))
    digits = written.rstrip("0")
    scale -= len(written) - len(digits)
    if scale <= 0:
        return f"{sign}{digits}{'0' * -scale}"
    whole = len(digits) - scale
    if whole > 0:
        return f"{sign}{digits[:whole]}.{digits[whole:]}"
    if -whole < notation.zeros:
        return f"{sign}0.{'0' * -whole}{digits}"
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{fraction}e-{1 - whole:0{notation.width}d}"


def shortened(mantissa: int, scale: int, significant: int) -> tuple[int, int]:
    """The number truncated to this many significant digits, but never in its integer part."""
    surplus = min(len(str(abs(mantissa))) - significant, scale)
    if surplus <= 0:
        return mantissa, scale
    quotient = abs(mantissa) // 10**surplus
    return (quotient if mantissa >= 0 else -quotient), scale - surplus
