"""Turns the items of an API's pages into batches, and drops repetitions of a coin within a crawl."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import datetime

import msgspec

from kasparro.model.batch import BATCH_ROWS, Batch, BatchBuilder
from kasparro.model.record import Record, Reject, RejectedValue, check_id


class Crawl:
    """One crawl of an API's list.

    A coin may appear on two pages, because coins change pages during a crawl. The newer record counts, and
    of two with the same time the first. So the same pages crawled again write nothing.
    """

    def __init__(self) -> None:
        self._newest = dict[str, datetime]()
        self._rejected = set[str]()

    async def batches(
        self, items: Sequence[msgspec.Raw], read: Callable[[msgspec.Raw], Record]
    ) -> AsyncGenerator[Batch, None]:
        """The items as batches of at most BATCH_ROWS."""
        builder = BatchBuilder()
        for start in range(0, len(items), BATCH_ROWS):
            await self.add_items(builder, items[start : start + BATCH_ROWS], read)
            yield builder.take()

    async def add_items(
        self, builder: BatchBuilder, items: Sequence[msgspec.Raw], read: Callable[[msgspec.Raw], Record]
    ) -> None:
        """Read each item and add it to the builder. A bad item becomes a reject."""
        for count, item in enumerate(items):
            if count % 100 == 0:
                # A hundred items take about a millisecond. Requests are served in between.
                await asyncio.sleep(0)
            builder.note(item)
            try:
                record = read(item)
            except RejectedValue as error:
                self._reject(builder, item, Reject(reason=error.reason, field=error.field, raw=_text(item)))
                continue
            except (msgspec.DecodeError, ValueError) as error:
                self._reject(builder, item, _mismatch(item, error))
                continue
            except RecursionError:
                self._reject(builder, item, Reject(reason="nested too deeply", raw=_text(item)))
                continue
            builder.list_coin(record.source_id)
            known = self._newest.get(record.source_id)
            if known is None or known < record.observed_at:
                self._newest[record.source_id] = record.observed_at
                builder.add(record)
            else:
                builder.repeat()

    def _reject(self, builder: BatchBuilder, item: msgspec.Raw, reject: Reject) -> None:
        builder.reject(reject)
        source_id = _id_of(item)
        # Once in a crawl: the database counts the crawls that reject a coin.
        if source_id is not None and source_id not in self._newest and source_id not in self._rejected:
            self._rejected.add(source_id)
            builder.list_coin(
                source_id, f"{reject.field}: {reject.reason}" if reject.field else reject.reason
            )


class _Identified(msgspec.Struct, frozen=True):
    id: str


_decode_id = msgspec.json.Decoder(_Identified).decode


def _id_of(item: msgspec.Raw) -> str | None:
    """The coin of an item without a record, if that much of it can be read."""
    try:
        return check_id(_decode_id(item).id)
    except (RejectedValue, ValueError, RecursionError):
        return None


_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
_MISSING = re.compile(r"Object missing required field `([^`]*)`")


def _mismatch(item: msgspec.Raw, error: Exception) -> Reject:
    message = f"not UTF-8: byte {error.start}" if isinstance(error, UnicodeDecodeError) else str(error)
    path, missing = _PATH.search(message), _MISSING.match(message)
    field = ".".join(match[1] for match in (path, missing) if match and match[1])
    return Reject(reason=_PATH.sub("", message), field=field or None, raw=_text(item))


def _text(item: msgspec.Raw) -> str:
    return bytes(item).decode("utf-8", "backslashreplace")
