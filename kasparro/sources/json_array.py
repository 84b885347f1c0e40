"""Cuts a JSON array into its elements, so that each can be read, or refused, on its own."""

import re

import msgspec

# Five times any list there is, and three times as many commas as its records hold. An element that takes two
# bytes to send takes 70 to tell apart.
ELEMENTS_LIMIT = 100_000
COMMAS_LIMIT = 2_000_000

_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])
# Strings whole, brackets in runs. Possessive, so that a string without an end costs one look and no more.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{]+|[\]}]+|[,"]', re.DOTALL)


class TooMany(ValueError):
    """An array holds more than any list that an API has."""


def elements(body: bytes) -> list[msgspec.Raw]:
    """The elements of a JSON array, each still undecoded. Raises ValueError where it is none, TooMany where
    it is longer than any list there is.

    Some encoders write NaN, halves of surrogate pairs or bytes that are not UTF-8, which JSON does not have,
    and nothing bounds how deep an element is nested. Such a body is cut by its brackets, commas and strings
    alone, and what is wrong inside an element is left to cost that element.
    """
    if body.count(b",") > COMMAS_LIMIT:
        raise TooMany(f"more than {COMMAS_LIMIT:,} values")
    try:
        found = _ARRAY.decode(body)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _cut(body, error)
    if len(found) > ELEMENTS_LIMIT:
        raise _too_many()
    return found


def _too_many() -> TooMany:
    return TooMany(f"more than {ELEMENTS_LIMIT:,} records")


def _cut(body: bytes, strict: Exception) -> list[msgspec.Raw]:
    text = body.strip(b" \t\r\n")
    if text[:1] != b"[" or text[-1:] != b"]":
        raise ValueError(str(strict))
    cut, depth, start, last = [], 0, 1, len(text)
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
            cut.append(msgspec.Raw(text[start : token.start()].strip()))
            start = token.end()
            if len(cut) == ELEMENTS_LIMIT:
                raise _too_many()
    if depth != 0:
        raise ValueError(str(strict))
    final = text[start:-1].strip()
    return [*cut, msgspec.Raw(final)] if final or cut else []
