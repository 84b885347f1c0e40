"""Decodes single JSON values of an API: exact numbers, ranks and times."""

from datetime import datetime
from typing import Annotated

import msgspec

from kasparro.model.record import RANK_LIMIT, RejectedValue, canonical_decimal, check_not_negative, check_time

NULL = msgspec.Raw(b"null")


def number(raw: msgspec.Raw, field: str) -> str | None:
    """The exact digits of a JSON number, or of a number in a string; None for null and the empty string.

    Raises RejectedValue.
    """
    text = bytes(raw).decode()
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
