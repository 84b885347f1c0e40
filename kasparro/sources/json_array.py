"""Splits a JSON array into its elements, so that each can be decoded or rejected separately."""

import re

import msgspec

# Five times the elements and three times the commas of the longest list of any API. The limits bound memory:
# an element of two bytes takes 70 bytes as a Raw.
ELEMENTS_LIMIT = 100_000
COMMAS_LIMIT = 2_000_000

_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])
# The possessive quantifiers ensure that a string without an end is scanned only once.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{]+|[\]}]+|[,"]', re.DOTALL)


class ArrayTooLong(ValueError):
    """An array has more elements or values than the list of any API."""


def split_array(body: bytes) -> list[msgspec.Raw]:
    """Split a JSON array into its undecoded elements.

    A body may contain NaN, lone surrogates, bytes that are not UTF-8, or elements that are nested too deeply
    for the decoder. Such a body is split at its commas; only brackets and strings are parsed. An error inside
    an element then affects only that element.

    Raises ValueError if the body is not an array, ArrayTooLong if it is too long.
    """
    if body.count(b",") > COMMAS_LIMIT:
        raise ArrayTooLong(f"more than {COMMAS_LIMIT:,} values")
    try:
        found = _ARRAY.decode(body)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _split_by_tokens(body, error)
    if len(found) > ELEMENTS_LIMIT:
        raise _too_long()
    return found


def _too_long() -> ArrayTooLong:
    return ArrayTooLong(f"more than {ELEMENTS_LIMIT:,} records")


def _split_by_tokens(body: bytes, strict: Exception) -> list[msgspec.Raw]:
    text = body.strip(b" \t\r\n")
    if text[:1] != b"[" or text[-1:] != b"]":
        raise ValueError(str(strict))
    elements, depth, start, last = [], 0, 1, len(text)
    for token in _TOKEN.finditer(text):
        found = token[0]
        if found[0] in b"[{":
            depth += len(found)
        elif found[0] in b"]}":
            depth -= len(found)
            if depth < 0 or (depth == 0 and token.end() != last):
                raise ValueError(str(strict))
        elif found == b'"':
            raise ValueError(str(strict))
        elif found == b"," and depth == 1:
            elements.append(msgspec.Raw(text[start : token.start()].strip()))
            start = token.end()
            if len(elements) == ELEMENTS_LIMIT:
                raise _too_long()
    if depth != 0:
        raise ValueError(str(strict))
    final = text[start:-1].strip()
    return [*elements, msgspec.Raw(final)] if final or elements else []
