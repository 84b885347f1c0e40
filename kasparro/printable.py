"""Makes text from outside safe to print: no character in it can control a terminal or forge a line."""

import codecs
import re
import unicodedata
from typing import Final

# The joiners are invisible, but they shape Persian and Indic words and join emoji.
_JOINERS: Final = "\u200c\u200d"
# Python calls new emoji unprintable until its Unicode tables know them. These blocks hold nothing else.
_PICTOGRAPHS: Final = range(0x1F000, 0x1FB00)
# Everything outside of plain ASCII text: what JSON text may have to escape.
_UNUSUAL: Final = re.compile("[^ -~]")


# Looked up here, at the start: a process that has given up its rights may be unable to load the codec.
_unicode_escape: Final = codecs.lookup("unicode_escape").encode


def printable(text: str, limit: int | None = None) -> str:
    """One line of text with control characters and other invisible ones as escapes, such as `\\x1b`.

    Letters, marks, symbols and spaces of all scripts stay. Text longer than `limit` is cut, and its length
    is stated.
    """
    shown = text if limit is None else text[:limit]
    if not shown.isprintable():
        shown = "".join(char if _shows(char) else escape(char) for char in shown)
    if limit is not None and (len(shown) > limit or len(text) > limit):
        return f"{shown[:limit]}… ({len(text):,} characters)"
    return shown


def printable_lines(text: str) -> str:
    """Text of several lines, such as a traceback: its line ends stay."""
    return "\n".join(map(printable, text.split("\n")))


def printable_json(text: str) -> str:
    """JSON text on one line, with the same characters as JSON's own escapes: its values stay exact."""
    return _UNUSUAL.sub(lambda found: found[0] if _shows(found[0]) else _json_escape(found[0]), text)


def escape(char: str) -> str:
    """A character as Python writes it in a string."""
    return _unicode_escape(char)[0].decode("ascii")


def _shows(char: str) -> bool:
    return (
        char.isprintable()
        or char in _JOINERS
        or unicodedata.category(char) == "Zs"
        or ord(char) in _PICTOGRAPHS
    )


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
