"""Escapes text from outside, so that no character in it can control a terminal or forge a log line."""

import codecs
import re
import unicodedata
from typing import Final

# Joiners are invisible, but Persian and Indic words and emoji need them.
_JOINERS: Final = "\u200c\u200d"
# Python calls new emoji unprintable until its Unicode tables contain them. These blocks hold only emoji and
# other pictographs.
_PICTOGRAPHS: Final = range(0x1F000, 0x1FB00)
# Characters outside plain ASCII text, which JSON text may have to escape.
_UNUSUAL: Final = re.compile("[^ -~]")

# Looked up at import time: a sandboxed process may be unable to load the codec later.
_unicode_escape: Final = codecs.lookup("unicode_escape").encode


def printable(text: str, limit: int | None = None) -> str:
    """Text as one line, with control characters and other invisible characters escaped, as in `\\x1b`.

    Letters, marks, symbols and spaces of all scripts stay. Text of more than `limit` characters is truncated
    and followed by its length.
    """
    shown = text if limit is None else text[:limit]
    if not shown.isprintable():
        shown = "".join(char if _is_safe(char) else escape(char) for char in shown)
    if limit is not None and (len(shown) > limit or len(text) > limit):
        return f"{shown[:limit]}… ({len(text):,} characters)"
    return shown


def one_line(text: str) -> str:
    """Text from a file as one line that terminals and PostgreSQL accept: valid, with control characters
    escaped.
    """
    text = " ".join(text.encode("utf-8", "replace").decode().replace("\x00", "�").split())
    return (
        text
        if text.isprintable()
        else "".join(character if character.isprintable() else escape(character) for character in text)
    )


def printable_lines(text: str) -> str:
    """Like `printable`, but line ends stay: for text of several lines, such as a traceback."""
    return "\n".join(map(printable, text.split("\n")))


def printable_json(text: str) -> str:
    """A line of JSON text. What `printable` escapes becomes a JSON escape, so the values do not change."""
    return _UNUSUAL.sub(lambda match: match[0] if _is_safe(match[0]) else _json_escape(match[0]), text)


def escape(char: str) -> str:
    """A character as an escape of a Python string, such as `\\x1b`."""
    return _unicode_escape(char)[0].decode("ascii")


def _is_safe(char: str) -> bool:
    return (
        char.isprintable()
        or char in _JOINERS
        or unicodedata.category(char) == "Zs"
        or ord(char) in _PICTOGRAPHS
    )


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
