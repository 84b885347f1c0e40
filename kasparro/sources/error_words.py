"""Finds the words of an upstream in the body of a response that reports an error."""

import html
import re
from typing import Any

import msgspec

# The keys under which APIs write what went wrong, without case and separators.
_KEYS = {"error", "errors", "message", "errormessage", "detail", "title"}
# The part of a body that is searched: messages are short, and other requests wait meanwhile.
_SEARCHED = 1 << 16
_TITLE = re.compile(rb"<title[^<>]{0,200}>([^<]{1,500})<", re.IGNORECASE)
# Some bodies say the same in several places.
_TEXTS = 3
# Of a body in which no words are found, only the beginning is shown.
_BEGINNING = 200
# A long message keeps its beginning and its end; the advice often comes last.
_WHOLE, _HEAD, _TAIL = 1_000, 700, 290


def find_words(body: bytes) -> str:
    """What the body of an error says, as the upstream wrote it.

    These are the texts under the keys that APIs use for it, at any depth, or the title of an HTML page. If
    there are none, it is the beginning of the body.
    """
    if body.lstrip()[:1] == b"<":
        match = _TITLE.search(body, 0, _SEARCHED)
        return html.unescape(match[1].decode("utf-8", "replace")) if match else ""
    try:
        decoded = msgspec.json.decode(body[:_SEARCHED])
    # JSON that is nested too deeply is a RecursionError.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        decoded = None
    if isinstance(decoded, str):
        return decoded
    if texts := _texts(decoded):
        return ": ".join(texts[:_TEXTS])
    beginning = body[: 4 * _BEGINNING].decode("utf-8", "replace")[:_BEGINNING]
    return beginning if any(map(str.isalnum, beginning)) else ""


def shorten(words: str) -> str:
    """Words of an upstream as one line of limited length. What shows them escapes control characters."""
    line = " ".join(words.split())
    return line if len(line) <= _WHOLE else f"{line[:_HEAD]} … {line[-_TAIL:]}"


def _texts(decoded: Any) -> list[str]:
    """The different texts that are values of the keys; if there are none, those anywhere inside their
    values."""
    values: list[str] = []
    inside: list[str] = []
    # Without recursion and in one pass, because the upstream decides on depth and length.
    stack = [(decoded, False, False)]
    while stack:
        part, is_inside, is_value = stack.pop()
        if isinstance(part, dict):
            for key, value in reversed(part.items()):
                named = re.sub("[_-]", "", key.lower()) in _KEYS
                stack.append((value, is_inside or named, named))
        elif isinstance(part, list):
            stack += [(item, is_inside, is_value) for item in reversed(part)]
        elif isinstance(part, str) and part.strip() and is_inside:
            (values if is_value else inside).append(part)
    return list(dict.fromkeys(values or inside))
