"""Decodes single JSON values of an API: exact numbers, ranks, texts and times."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Annotated, TypeVar

import msgspec

from kasparro.model.record import (
    RANK_LIMIT,
    InvalidValue,
    RejectedValue,
    canonical_decimal,
    check_not_negative,
    check_text,
    check_time,
)

V = TypeVar("V")

NULL = msgspec.Raw(b"null")
# The default of a field that the API always sends: if it is not there, that is not the same as null.
MISSING = msgspec.Raw(b"")


def number(raw: msgspec.Raw, field: str) -> str | None:
    """The exact digits of a JSON number, or of a number in a string; None for null and the empty string.

    Raises RejectedValue.
    """
    text = bytes(raw).decode()
    if not text:
        raise RejectedValue(field, "missing")
    if text == "null":
        return None
    if text.startswith('"'):
        text = str(msgspec.json.decode(text)).strip()
        if not text:
            return None
    return canonical_decimal(text, field)


def amount(raw: msgspec.Raw, field: str) -> str | None:
    """As `number`, for values that cannot be negative: prices, caps, supplies. Raises RejectedValue."""
    return check_not_negative(number(raw, field), field)


def zero_is_unknown(value: str | None) -> str | None:
    """The value, or None for 0. For fields in which a source writes 0 for unknown."""
    return None if value == "0" else value


def rank(raw: msgspec.Raw, field: str) -> int | None:
    """A rank from 1; None for null and for the 0 of an unranked coin. Raises RejectedValue."""
    value = number(raw, field)
    if value is None or value == "0":
        return None
    if not value.isdigit() or int(value) > RANK_LIMIT:
        raise RejectedValue(field, f"not a rank: {value}")
    return int(value)


def text(raw: msgspec.Raw, field: str, limit: int) -> str | None:
    """A JSON string; None for null. Raises RejectedValue."""
    if raw == NULL:
        return None
    if raw == MISSING:
        raise RejectedValue(field, "missing")
    try:
        return check_text(msgspec.json.decode(raw, type=str), field, limit)
    except msgspec.ValidationError:
        raise RejectedValue(field, f"not a text: {bytes(raw)[:60].decode(errors='replace')}") from None


class OptionalValues:
    """Reads the values of a coin's item that its record can do without.

    A value that the record's `field` cannot have becomes None, and `invalid` says so.
    """

    def __init__(self, source_id: str) -> None:
        self._source_id = source_id
        self.invalid: tuple[InvalidValue, ...] = ()

    def number(self, field: str, raw: msgspec.Raw) -> str | None:
        """As the function `number`."""
        return self._read(number, field, raw)

    def amount(self, field: str, raw: msgspec.Raw) -> str | None:
        """As the function `amount`."""
        return self._read(amount, field, raw)

    def rank(self, field: str, raw: msgspec.Raw) -> int | None:
        """As the function `rank`."""
        return self._read(rank, field, raw)

    def text(self, field: str, raw: msgspec.Raw, limit: int) -> str | None:
        """As the function `text`."""
        return self._read(partial(text, limit=limit), field, raw)

    def _read(self, read: Callable[[msgspec.Raw, str], V | None], field: str, raw: msgspec.Raw) -> V | None:
        try:
            return read(raw, field)
        except RejectedValue as error:
            reason = error.reason
        except ValueError:
            reason = f"not readable: {bytes(raw)[:60]!r}"
        self.invalid += (InvalidValue(field=field, reason=reason, place=self._source_id),)
        return None


_Aware = Annotated[datetime, msgspec.Meta(tz=True)]


def when(text: str | None, field: str, now: datetime) -> datetime | None:
    """An RFC 3339 time in UTC; None for null and the empty string. Raises RejectedValue."""
    if not text:
        return None
    try:
        at = msgspec.convert(text, _Aware)
    except msgspec.ValidationError:
        raise RejectedValue(field, f"not an RFC 3339 time: {text[:60]!r}") from None
    return check_time(at, field, now)
