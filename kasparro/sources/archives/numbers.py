"""Numbers as archives write them: grouped, signed with a currency or percent, shortened, or missing."""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from kasparro.model.record import RejectedValue, canonical_decimal

Sign = Literal[".", ","]
Kind = Literal["money", "supply", "percent"]

# What programs and people write where they know no value.
NULLS = frozenset(
    {"", "-", "--", "- -", "—", "–", "?", "n/a", "na", "#n/a", "none", "null", "nil", "nan", r"\n"}  # noqa: RUF001
)
# A sign that stands for nothing else than US dollars beside a figure.
DOLLARS = ("us$", "$us", "$", "usd")
MAGNITUDES = {
    "": 0,
    "k": 3,
    "tsd": 3,
    "thousand": 3,
    "m": 6,
    "mio": 6,
    "mln": 6,
    "million": 6,
    "millions": 6,
    "b": 9,
    "bn": 9,
    "mrd": 9,
    "mlrd": 9,
    "t": 12,
}

# Digits in groups of three under one and the same sign; apostrophes and blanks, among them the narrow and
# the unbroken, group in either notation.
_POINT = re.compile(r"(?:\d{1,3}(?:([,'’ \u00a0\u202f\u2009])\d{3})(?:\1\d{3})*|\d+)?(?:\.\d*)?", re.ASCII)  # noqa: RUF001
_COMMA = re.compile(r"(?:\d{1,3}(?:([.'’ \u00a0\u202f\u2009])\d{3})(?:\1\d{3})*|\d+)?(?:,\d*)?", re.ASCII)  # noqa: RUF001
_WRITTEN = re.compile(
    r"(?P<sign>[+-]?)(?P<currency>(?:us\$|\$us|\$|usd)[ \u00a0]?)?(?P<inner>[+-]?)"
    r"(?P<body>[\d.,'’ \u00a0\u202f\u2009]*[\d.,])(?P<exponent>e[+-]?\d+)?"  # noqa: RUF001
    r"[ \u00a0\u202f]?(?:(?P<magnitude>k|tsd|thousand|millions?|mio|mln|mrd|mlrd|m|bn?|t)\.?)?"
    r"(?P<tail>[ \u00a0\u202f]?(?:%|usd|\$)| \S{1,20})?",
    re.ASCII | re.IGNORECASE,
)
# Exactly what `digits` returns, but for zeros behind the point: most cells need one match and nothing else.
_PLAIN = re.compile(r"(?:0|[1-9]\d{0,59})(?:\.\d{1,100})?|-[1-9]\d{0,59}(?:\.\d{1,100})?", re.ASCII)
# Many of them that are not below zero, or empty, a line each.
# The groups of a line are not possessive: in Python before 3.11.5 such groups, one in the other, take what
# they do not match (`0`, `1.`, `0`).
_PLAIN_LINE = r"(?:(?:0|[1-9][0-9]{0,59}+)(?:\.[0-9]{1,100}+)?)?"
_PLAIN_LINES = re.compile(rf"(?:{_PLAIN_LINE}\n)*+{_PLAIN_LINE}")


class Ambiguous(Exception):
    """The rows of a file do not tell how something in it is meant; the text says what and why, `setting` is
    the line of a description that would settle it."""

    def __init__(self, text: str, setting: str) -> None:
        super().__init__(text)
        self.setting = setting


class Notation(msgspec.Struct, frozen=True):
    """How the numbers of one file are written: which sign divides whole from fraction."""

    decimal: Sign = "."

    def read(self, text: str, field: str, kind: Kind) -> str | None:
        """The exact value in plain digits, None where the cell tells none.

        A currency sign is taken with money, a percent sign with percents, a unit (`18,777,093 BTC`) with
        supplies. Raises RejectedValue for whatever has more than one meaning or none.
        """
        if self.decimal == "." and (plain := read_plain(text)) is not None:
            return plain
        text = text.strip()
        if text.lower() in NULLS:
            return None
        match = _WRITTEN.fullmatch(text)
        if match is None or (match["sign"] and match["inner"]):
            raise _not_a_number(text, field)
        body = match["body"]
        grouped = (_POINT if self.decimal == "." else _COMMA).fullmatch(body)
        if grouped is None or not _affixes_fit(match, kind):
            raise _not_a_number(text, field)
        if grouped[1]:
            body = body.replace(grouped[1], "")
        body = body.replace(",", ".")
        shift = MAGNITUDES[(match["magnitude"] or "").lower()]
        if shift and match["exponent"]:
            raise _not_a_number(text, field)
        exponent = f"e{shift}" if shift else match["exponent"] or ""
        try:
            return canonical_decimal(f"{match['sign'] or match['inner']}{body}{exponent}", field)
        except RejectedValue as refused:
            bounds = refused.reason.startswith("number out of bounds")
            raise (refused if bounds else _not_a_number(text, field)) from None


def read_plain(text: str) -> str | None:
    """The value of a number that is written plainly, with a decimal point; None for all others."""
    if _PLAIN.fullmatch(text):
        if text[-1] == "0" and "." in text:
            return text.rstrip("0").removesuffix(".")
        return text
    return None


def read_plain_all(texts: Sequence[str]) -> list[str] | None:
    """The values of many numbers, none of them below zero, "" where a text is empty; None where any of them
    is not written plainly.
    """
    lines = "\n".join(texts)
    if _PLAIN_LINES.fullmatch(lines) is None or lines.count("\n") >= len(texts):
        return None
    return [
        text.rstrip("0").removesuffix(".") if text.endswith("0") and "." in text else text for text in texts
    ]


def _affixes_fit(match: re.Match[str], kind: Kind) -> bool:
    tail = (match["tail"] or "").strip().lower()
    if match["currency"] and (kind != "money" or tail):
        return False
    if not tail:
        return True
    if kind == "money":
        return tail in DOLLARS
    return tail == "%" if kind == "percent" else tail != "%"


def _not_a_number(text: str, field: str) -> RejectedValue:
    shown = repr(text if len(text) <= 60 else f"{text[:60]}…")
    return RejectedValue(field, f"not a number: {shown}")


_POINT_SETTING, _COMMA_SETTING = 'decimal = "."', 'decimal = "," (or ".")'
_BODY = re.compile(r"\d[\d.,'’ \u00a0\u202f\u2009]*", re.ASCII)  # noqa: RUF001
_BLANKS = re.compile(r"['’ \u00a0\u202f\u2009]")  # noqa: RUF001


def decimal_sign(cells: Iterable[str], delimiter: str) -> Sign:
    """The sign before the fraction in a file, settled by all the cells given, never by one of them.

    `0.5`, `12.34`, `1,234.5` and `1,234,567` speak for the point, `0,5`, `12,34`, `1.234,5` for the comma;
    `1,234` and `1.234` alone speak for neither. Where nothing speaks, a point is the point that every program
    writes; a comma, or points that group as well, leave it unsettled.
    """
    point = comma = lone_comma = dotted = 0
    for cell in cells:
        if "," not in cell:
            # Most cells are plain, and there may be a million of them.
            whole, dot, fraction = cell.partition(".")
            if not dot:
                continue
            if whole.isdigit() and fraction.isdigit():
                point += len(fraction) != 3 or len(whole) > 3 or whole == "0"
                continue
        match = _BODY.search(cell)
        if match is None:
            continue
        # Apostrophes and blanks group in either notation, so they speak for none.
        body = _BLANKS.sub("", match[0]).rstrip(",.")
        commas, points = body.count(","), body.count(".")
        if not commas and not points:
            continue
        if commas and points:
            point, comma = (point + 1, comma) if body.rfind(".") > body.rfind(",") else (point, comma + 1)
        elif commas > 1:
            point += 1
        elif points > 1:
            dotted += 1
        else:
            whole, _, fraction = body.partition("," if commas else ".")
            if len(fraction) != 3 or len(whole) > 3 or whole == "0":
                point, comma = (point, comma + 1) if commas else (point + 1, comma)
            elif commas:
                lone_comma += 1
    if point and comma:
        if max(point, comma) < 20 * min(point, comma):
            raise Ambiguous("its numbers use both the point and the comma before fractions", _POINT_SETTING)
        return "." if point > comma else ","
    if comma or point:
        return "," if comma else "."
    if lone_comma:
        raise Ambiguous("nothing tells whether 1,234 in it means a thousand or a fraction", _COMMA_SETTING)
    if dotted and delimiter != ",":
        raise Ambiguous("nothing tells whether the points in its numbers group or divide", _COMMA_SETTING)
    return "."
