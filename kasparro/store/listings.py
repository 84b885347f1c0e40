"""Keeps which coins each upstream lists, and finds the coins that a whole list lacks."""

from datetime import datetime, timedelta

import msgspec

from kasparro.model.batch import Batch, CrawledPage
from kasparro.store.pool import Connection
from kasparro.store.sql import statements
from kasparro.store.text import sanitize

_SQL = statements("load/listings.sql")

# The states of a row (listing_state).
LISTED, DELISTED, NO_LIST = 0, 1, 2
# A coin is expected back for this long. Then its absence is no news any more.
EXPECTED_FOR = timedelta(days=7)
# A list that is limited to a number of coins is judged without its last tenth, where coins come and go.
EDGE = 0.1


class MissingCoin(msgspec.Struct, frozen=True):
    """A coin that earlier lists had, with the last rank and name that the source gave it."""

    source_id: str
    rank: int | None
    name: str | None


class ListReport(msgspec.Struct, frozen=True):
    """What a whole list lacks: of the `usual` coins, which all recent lists had, those that are `missing`."""

    usual: int
    missing: list[MissingCoin]


async def note_listed(connection: Connection, source: str, batch: Batch, now: datetime) -> CrawledPage | None:
    """Note the coins that a batch lists, also those whose records were rejected or are unchanged.

    Returns the batch's page as it is to be stored: without validators if it repeats a coin of an earlier page
    of its crawl, which may have been an unchanged one.
    """
    page = batch.page
    if batch.listed:
        began_at, coins = now if page is None else page.crawl_started_at, [*batch.listed]
        if page is not None and await connection.fetchval(
            _SQL["repeats_coins"], source, page.number, coins, began_at
        ):
            page = msgspec.structs.replace(page, etag=None, last_modified=None)
        await connection.execute(
            _SQL["list_coins"],
            source,
            coins,
            [None if reason is None else sanitize(reason) for reason in batch.listed.values()],
            1 if page is None else page.number,
            now if page is None else page.fetched_at,
            began_at,
        )
    elif page is not None and page.read_at < page.fetched_at:
        await connection.execute(_SQL["confirm_page"], source, page.number, page.fetched_at, page.read_at)
    return page


async def judge(
    connection: Connection, source: str, list_began_at: datetime, now: datetime, limit: int | None
) -> ListReport:
    """Note which coins are missing from the whole list whose crawl began then, and report the usual ones.

    `limit` is the number of coins that the list is limited to, None for no limit.
    """
    await connection.execute(_SQL["mark_missing"], source, list_began_at, now)
    judged = None if limit is None else int(limit * (1 - EDGE))
    rows = await connection.fetch(_SQL["missing_coins"], source, list_began_at, now - EXPECTED_FOR, judged)
    return ListReport(
        rows[0]["usual"] if rows else 0,
        [MissingCoin(row["source_id"], row["rank"], row["name"]) for row in rows],
    )


async def stage_states(connection: Connection, source: str) -> int:
    """Stage the rows whose listing state has changed; how many they are."""
    count: int = await connection.fetchval(_SQL["stage_states"], source)
    return count


async def settle_states(connection: Connection, source: str, version: int) -> None:
    """Write the listing states of the staged rows with this data version."""
    await connection.execute(_SQL["settle_states"], source, version)


async def add_usual_list(connection: Connection, source: str, list_began_at: datetime) -> None:
    """Judge later lists by this one too."""
    await connection.execute(_SQL["add_usual_list"], source, list_began_at)
