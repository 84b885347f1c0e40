"""How many rows a selection has, without counting them for every page."""

import time
from collections import OrderedDict

import asyncpg
import msgspec

from kasparro.store.pool import Connection
from kasparro.store.selection import DATA, Filters, RowList
from kasparro.store.sql import statements

_SQL = statements("read/row_counts.sql")

# How often the rows of whole sources are counted, unless the version is moved manually.
RECOUNT_S = 60.0
FILTERS_REMEMBERED = 1_000


class Totals:
    """The number of rows of each selection of one list.

    Whole sources are counted now and then. In between, their numbers grow by what the batches report as
    inserted; after a version that no batch made, they are counted again. The rows of other filters are
    counted once for each data version, and so are all rows of /assets.
    """

    def __init__(self, rows: RowList = DATA) -> None:
        self._rows = rows
        self.version = 0
        """The data version of the page that was read last."""
        self._uncounted: dict[str, int] = {}
        self._manual_edits = -1
        self._expires = float("-inf")
        self._filtered: OrderedDict[Filters, tuple[int, int]] = OrderedDict()

    def needed(self, filters: Filters) -> str | None:
        """What the statement of a page must return for its total: `inserts`, `count` or nothing."""
        if self._rows is DATA and filters == Filters(sources=filters.sources):
            return "inserts"
        return None if filters in self._filtered else "count"

    async def of(self, connection: Connection, filters: Filters, page: asyncpg.Record) -> int | None:
        """The total for a page that returned what `needed` said.

        None if the data has moved on since: then the page must be read again.
        """
        if "inserted" in page:
            if page["manual_edits"] != self._manual_edits or time.monotonic() > self._expires:
                await self._count(connection)
            if page["manual_edits"] != self._manual_edits:
                return None
            inserted = msgspec.json.decode(page["inserted"] or b"{}", type=dict[str, int])
            sources = filters.sources or self._uncounted | inserted
            return sum(self._uncounted.get(source, 0) + inserted.get(source, 0) for source in set(sources))
        if filters.listed_since is not None:
            # What it selects changes also without a new data version.
            total: int = page["total"]
            return total
        if "total" in page:
            self._filtered[filters] = page["version"], page["total"]
            if len(self._filtered) > FILTERS_REMEMBERED:
                self._filtered.popitem(last=False)
        version, total = self._filtered.get(filters, (None, 0))
        if version != page["version"]:
            self._filtered.pop(filters, None)
            return None
        return total

    async def _count(self, connection: Connection) -> None:
        rows = await connection.fetch(_SQL["row_counts"])
        self._uncounted = {row["source"]: row["uncounted"] for row in rows if row["source"] is not None}
        self._manual_edits = rows[0]["manual_edits"]
        self._expires = time.monotonic() + RECOUNT_S
