"""Reads single values out of an API's JSON: exact numbers, ranks, and what a refused item says of itself."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import datetime
from typing import Annotated

import msgspec

from kasparro.model.batch import BATCH_ROWS, Batch, BatchBuilder
from kasparro.model.record import (
    RANK_LIMIT,
    Record,
    Reject,
    RejectedValue,
    canonical_decimal,
    moment,
    positive,
)

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
    """As `number`, for what cannot be below zero: prices, caps, volumes, supplies. Raises RejectedValue."""
    return positive(number(raw, field), field)


def zero_is_unknown(value: str | None) -> str | None:
    """The value, or None for the 0 of a source that writes it for unknown."""
    return None if value == "0" else value


def rank(raw: msgspec.Raw, field: str) -> int | None:
    """A rank, from 1 up; None for null and for the 0 of an unranked coin. Raises RejectedValue."""
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
        told = msgspec.convert(text, _Aware)
    except msgspec.ValidationError:
        raise RejectedValue(field, f"not an RFC 3339 time: {text[:60]!r}") from None
    return moment(told, field, now)


class Crawl:
    """One pass over an API's list, in which a coin may come up more than once.

    Pages shift while they are walked. Of two records of a coin the newer stands, and of two of one moment
    the first, so that walking the same pages again writes nothing.
    """

    def __init__(self) -> None:
        self._newest: dict[str, datetime] = {}

    async def batches(
        self, items: Sequence[msgspec.Raw], read: Callable[[msgspec.Raw], Record]
    ) -> AsyncGenerator[Batch, None]:
        """The items as batches of a bounded size."""
        builder = BatchBuilder()
        for start in range(0, len(items), BATCH_ROWS):
            await self.take(builder, items[start : start + BATCH_ROWS], read)
            yield builder.take()

    async def take(
        self, builder: BatchBuilder, items: Sequence[msgspec.Raw], read: Callable[[msgspec.Raw], Record]
    ) -> None:
        """Read each item on its own, so that a bad one costs only itself."""
        for count, item in enumerate(items):
            if count % 100 == 0:
                # A hundred items are about a millisecond; requests get their turn in between.
                await asyncio.sleep(0)
            builder.note(item)
            try:
                record = read(item)
            except RejectedValue as refused:
                builder.refuse(Reject(reason=refused.reason, field=refused.field, raw=_text(item)))
                continue
            except (msgspec.DecodeError, ValueError) as error:
                builder.refuse(_mismatch(item, error))
                continue
            except RecursionError:
                builder.refuse(Reject(reason="nested too deeply", raw=_text(item)))
                continue
            known = self._newest.get(record.source_id)
            if known is None or known < record.observed_at:
                self._newest[record.source_id] = record.observed_at
                builder.add(record)
            else:
                builder.repeat()


_WHERE = re.compile(r" - at `\$\.?([^`]*)`$")
_MISSING = re.compile(r"Object missing required field `([^`]*)`")


def _mismatch(item: msgspec.Raw, error: Exception) -> Reject:
    said = f"not UTF-8: byte {error.start}" if isinstance(error, UnicodeDecodeError) else str(error)
    where, missing = _WHERE.search(said), _MISSING.match(said)
    path = [found[1] for found in (where, missing) if found and found[1]]
    return Reject(reason=_WHERE.sub("", said), field=".".join(path) or None, raw=_text(item))


def _text(item: msgspec.Raw) -> str:
    return bytes(item).decode("utf-8", "backslashreplace")
