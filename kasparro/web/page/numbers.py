"""Writes exact numbers for people: short, aligned, and never rounded into something else."""

from decimal import ROUND_HALF_EVEN, Context, Decimal

# Enough digits for every value that the database can hold.
_CONTEXT = Context(prec=200_000, Emax=999_999, Emin=-999_999, rounding=ROUND_HALF_EVEN)

MINUS = "\N{MINUS SIGN}"
_SPACE = "\N{NARROW NO-BREAK SPACE}"
_TIMES = "\N{MULTIPLICATION SIGN}"
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
# So many zeros after the point are still written out.
_ZEROS_SHOWN = 4
_SIGNIFICANT = 4
_UNITS = ((12, "T"), (9, "B"), (6, "M"), (3, "K"))


def exact(value: Decimal) -> str:
    """All digits, without an exponent."""
    return f"{value:f}"


def price(value: Decimal) -> str:
    """A price without its currency: two to four decimals from 1, four significant digits below.

    A number counts the zeros of a very small price: 0.0₁₀12 has ten of them after the point.
    """
    size = abs(value)
    if size >= 10**12:
        return compact(value)
    if size >= 1 or not size:
        return _signed(value, f"{_rounded(size, 2 if size >= 10 or not size else 4):,f}")
    zeros = -size.adjusted() - 1
    rounded = _rounded(size, zeros + _SIGNIFICANT)
    digits = f"{rounded:f}"
    if rounded < 1 and (zeros := -rounded.adjusted() - 1) > _ZEROS_SHOWN:
        significant = digits[2 + zeros :].rstrip("0")
        return _signed(value, f"0.0{str(zeros).translate(_SUBSCRIPTS)}{significant}")
    return _signed(value, digits)


def compact(value: Decimal) -> str:
    """An amount with three significant digits and a unit: 1.32 T."""
    size = abs(value)
    if not size:
        return "0"
    # Rounding may reach the next unit: 999,999 is 1.00 M.
    size = _rounded(size, 2 - size.adjusted())
    exponent = size.adjusted()
    if exponent >= 15:
        digits = f"{_CONTEXT.scaleb(size, -exponent):.2f}"
        return _signed(value, f"{digits}{_SPACE}{_TIMES}{_SPACE}10{str(exponent).translate(_SUPERSCRIPTS)}")
    for power, unit in _UNITS:
        if exponent >= power:
            scaled = _CONTEXT.scaleb(size, -power)
            return _signed(value, f"{_rounded(scaled, 2 - scaled.adjusted()):f}{_SPACE}{unit}")
    return _signed(value, f"{size:f}") if exponent >= 0 else price(value)


def percent(value: Decimal) -> str:
    """A change in percent with its sign and two decimals; from 1,000 without decimals."""
    rounded = _rounded(value, 0 if abs(value) >= 1_000 else 2)
    sign = "+" if rounded > 0 else MINUS if rounded < 0 else ""
    return f"{sign}{abs(rounded):,f}%"


def share(value: Decimal) -> str:
    """A part of something in percent, with two decimals."""
    return f"{_rounded(value, 2):,f}%"


def direction(value: Decimal) -> str:
    """`up`, `down` or `flat`, as `percent` shows the change."""
    rounded = _rounded(value, 2)
    return "up" if rounded > 0 else "down" if rounded < 0 else "flat"


def duration(seconds: float) -> str:
    """A duration in its largest unit; below ten seconds with one decimal."""
    return f"{seconds:.1f}{_SPACE}s" if seconds < 10 else whole_duration(seconds)


def whole_duration(seconds: float) -> str:
    """A duration in its largest unit, as `time.js` writes it."""
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{int(seconds // length)}{_SPACE}{unit}"
    return f"{int(seconds)}{_SPACE}s"


def _rounded(value: Decimal, decimals: int) -> Decimal:
    return value.quantize(Decimal(1).scaleb(-decimals), context=_CONTEXT)


def _signed(value: Decimal, digits: str) -> str:
    return f"{MINUS}{digits}" if value < 0 else digits
