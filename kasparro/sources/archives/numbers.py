"""Reads numbers as archives write them: grouped, with a currency or percent sign, shortened, or missing."""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from kasparro.model.record import RejectedValue, canonical_decimal
from kasparro.sources.archives.errors import FileRejected, Guess

DecimalSign = Literal[".", ","]
NumberKind = Literal["money", "supply", "percent"]

# Words for an unknown value.
NULLS = frozenset(
    {"", "-", "--", "- -", "—", "–", "?", ".", "n/a", "na", "#n/a", "none", "null", "nil", "nan", r"\n"}  # noqa: RUF001
)
# Signs that always mean US dollars when they are next to a number.
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

# Digits in groups of three, all with the same separator. Apostrophes and blanks, also narrow and no-break
# ones, separate groups in both notations.
_POINT = re.compile(r"(?:\d{1,3}(?:([,'’ \u00a0\u202f\u2009])\d{3})(?:\1\d{3})*|\d+)?(?:\.\d*)?", re.ASCII)  # noqa: RUF001
_COMMA = re.compile(r"(?:\d{1,3}(?:([.'’ \u00a0\u202f\u2009])\d{3})(?:\1\d{3})*|\d+)?(?:,\d*)?", re.ASCII)  # noqa: RUF001
_WRITTEN = re.compile(
    r"(?P<sign>[+-]?)(?P<currency>(?:us\$|\$us|\$|usd)[ \u00a0]?)?(?P<inner>[+-]?)"
    r"(?P<body>[\d.,'’ \u00a0\u202f\u2009]*[\d.,])(?P<exponent>e[+-]?\d+)?"  # noqa: RUF001
    r"[ \u00a0\u202f]?(?:(?P<magnitude>k|tsd|thousand|millions?|mio|mln|mrd|mlrd|m|bn?|t)\.?)?"
    r"(?P<tail>[ \u00a0\u202f]?(?:%|usd|\$)| \S{1,20})?",
    re.ASCII | re.IGNORECASE,
)
# The marks that pages put behind a figure to refer to a note: `38,531,000,250*`, `1,344 (1)`.
_FOOTNOTE = re.compile(r"(?<=\S)\s?(?:[*†‡§]+|[(\[]\d[)\]])$")
_FOOTNOTE_ENDS = frozenset("*†‡§)]")
# What `canonical_decimal` returns, except for trailing zeros: most cells need only this match.
_PLAIN = re.compile(r"(?:0|[1-9]\d{0,59})(?:\.\d{1,100})?|-[1-9]\d{0,59}(?:\.\d{1,100})?", re.ASCII)
# Many such numbers, not below zero, or empty texts, one per line.
# The groups of a line are not possessive: before Python 3.11.5 nested possessive groups match too much (`0`,
# `1.`, `0`).
_PLAIN_LINE = r"(?:(?:0|[1-9][0-9]{0,59}+)(?:\.[0-9]{1,100}+)?)?"
_PLAIN_LINES = re.compile(rf"(?:{_PLAIN_LINE}\n)*+{_PLAIN_LINE}")


class Notation(msgspec.Struct, frozen=True):
    """How the numbers of a file are written: the sign before the fraction."""

    decimal: DecimalSign = "."

    def read(self, text: str, field: str, kind: NumberKind) -> str | None:
        """The exact value in plain digits; None if the cell means null.

        Money may have a dollar sign, percents a percent sign, and supplies a unit (`18,777,093 BTC`). Raises
        RejectedValue for a text that has no meaning or several.
        """
        if self.decimal == "." and (plain := read_plain(text)) is not None:
            return plain
        text = text.strip()
        if text[-1:] in _FOOTNOTE_ENDS:
            text = _FOOTNOTE.sub("", text)
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
        except RejectedValue as rejected:
            out_of_bounds = rejected.reason.startswith("number out of bounds")
            raise (rejected if out_of_bounds else _not_a_number(text, field)) from None


def read_plain(text: str) -> str | None:
    """The value of a number in plain digits, with or without a decimal point; None for other texts."""
    if _PLAIN.fullmatch(text):
        if text[-1] == "0" and "." in text:
            return text.rstrip("0").removesuffix(".")
        return text
    return None


def read_plain_all(texts: Sequence[str]) -> list[str] | None:
    """The values of numbers in plain digits that are not below zero, and "" for empty texts; None if there is
    another text among them.
    """
    lines = "\n".join(texts)
    if _PLAIN_LINES.fullmatch(lines) is None or lines.count("\n") >= len(texts):
        return None
    # Comparing the last character takes a third of the time of `endswith`.
    return [
        text if text[-1:] != "0" or "." not in text else text.rstrip("0").removesuffix(".") for text in texts
    ]


def _affixes_fit(match: re.Match[str], kind: NumberKind) -> bool:
    tail = (match["tail"] or "").strip().lower()
    if match["currency"] and (kind != "money" or tail):
        return False
    if not tail:
        return True
    if kind == "money":
        return tail in DOLLARS
    return tail == "%" if kind == "percent" else tail != "%"


def _not_a_number(text: str, field: str) -> RejectedValue:
    quoted = repr(text if len(text) <= 60 else f"{text[:60]}…")
    return RejectedValue(field, f"not a number: {quoted}")


_POINT_SIGN = Guess({"decimal": "."}, 'a guess: it may also be ","')
_COMMA_SIGN = Guess({"decimal": ","}, 'a guess: it may also be "."')
_BODY = re.compile(r"\d[\d.,'’ \u00a0\u202f\u2009]*", re.ASCII)  # noqa: RUF001
_BLANKS = re.compile(r"['’ \u00a0\u202f\u2009]")  # noqa: RUF001


def decimal_sign(cells: Iterable[str], delimiter: str) -> DecimalSign:
    """The sign before the fraction in the numbers of a file, by all the given cells together.

    `0.5`, `12.34`, `1,234.5` and `1,234,567` show a point, `0,5`, `12,34` and `1.234,5` a comma. `1,234` and
    `1.234` alone show neither. If no cell shows either, `1.234` has the decimal point that programs write,
    but `1,234` leaves the question open. So does `1.234.567`, unless the delimiter is a comma.

    Raises FileRejected if the question stays open.
    """
    point = comma = lone_comma = grouped_by_points = 0
    cells = [*cells]
    # Without any comma the first cell that shows a point decides.
    has_comma = "," in "\n".join(cells)
    for cell in cells:
        if point and not has_comma:
            return "."
        if "," not in cell:
            # A short way for plain cells, which are most of a million cells.
            whole, dot, fraction = cell.partition(".")
            if not dot:
                continue
            if whole.isdigit() and fraction.isdigit():
                point += len(fraction) != 3 or len(whole) > 3 or whole == "0"
                continue
        match = _BODY.search(cell)
        if match is None:
            continue
        # Apostrophes and blanks separate groups in both notations.
        body = _BLANKS.sub("", match[0]).rstrip(",.")
        commas, points = body.count(","), body.count(".")
        if not commas and not points:
            continue
        if commas and points:
            point, comma = (point + 1, comma) if body.rfind(".") > body.rfind(",") else (point, comma + 1)
        elif commas > 1:
            point += 1
        elif points > 1:
            grouped_by_points += 1
        else:
            whole, _, fraction = body.partition("," if commas else ".")
            if len(fraction) != 3 or len(whole) > 3 or whole == "0":
                point, comma = (point, comma + 1) if commas else (point + 1, comma)
            elif commas:
                lone_comma += 1
    if point and comma:
        if max(point, comma) < 20 * min(point, comma):
            raise FileRejected(
                "its numbers have points and commas before fractions", _POINT_SIGN, question="number"
            )
        return "." if point > comma else ","
    if comma or point:
        return "," if comma else "."
    if lone_comma:
        raise FileRejected(
            "nothing shows whether 1,234 in it is 1234 or a decimal fraction", _COMMA_SIGN, question="number"
        )
    if grouped_by_points and delimiter != ",":
        raise FileRejected(
            "nothing shows whether points in its numbers separate groups or fractions",
            _COMMA_SIGN,
            question="number",
        )
    return "."
