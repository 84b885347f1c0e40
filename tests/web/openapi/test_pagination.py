"""Pages by number and by cursor return each row once and in order, for any rows, order and filters."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasparro.store import cursors, queries
from kasparro.store.cursors import CursorPosition
from kasparro.store.pool import Connection, Database
from kasparro.store.row_counts import Totals
from kasparro.store.selection import FIELDS, Filters, Selection
from kasparro.web.openapi import pagination
from kasparro.web.routes.data import DataQuery
from kasparro.web.schemas import Sort
from tests.support.expected_rows import matches, sorted_keys
from tests.web.conftest import LONG_AGO, insert_rows

pytestmark = pytest.mark.slow

KEY = b"a key"

values = st.none() | st.decimals("-3", "3", places=1) | st.just(Decimal("1e-30")) | st.just(Decimal("1e30"))
names = st.none() | st.text("aB%_é漢\U0001f680", max_size=3)
times = st.integers(0, 3).map(lambda days: LONG_AGO + timedelta(days=days, microseconds=days))
row_values = st.fixed_dictionaries(
    {
        "source": st.sampled_from(["coinpaprika", "coingecko", "csv"]),
        "source_id": st.text("abAé/漢\U0001f680", min_size=1, max_size=3),
        "asset": names,
        "symbol": names,
        "name": names,
        "rank": st.none() | st.integers(1, 3),
        "observed_at": times,
        "first_seen_at": times,
        "updated_at": times,
    }
    | {field: values for field, kind in FIELDS.items() if kind is Decimal}
)
tables = st.lists(row_values, max_size=12, unique_by=lambda row: (row["source"], row["source_id"]))


filter_values = st.builds(
    Filters,
    sources=st.sampled_from([(), ("csv",), ("csv", "coingecko")]),
    symbols=st.just(()) | st.lists(st.text("aB%é", min_size=1, max_size=2), max_size=3).map(tuple),
    text=st.none() | st.text("ab%_é漢", min_size=1, max_size=2),
    ids=st.just(()) | st.lists(st.text("abA", min_size=1, max_size=2), max_size=3).map(tuple),
    rank_max=st.none() | st.integers(1, 3),
    price_usd_min=values,
    updated_since=st.none() | times,
)


@settings(max_examples=150)
@given(rows=tables, sort=st.sampled_from(get_args(Sort)), filters=filter_values, limit=st.integers(1, 5))
def test_each_row_once_and_in_order(
    runner: asyncio.Runner,
    shared_database: Database,
    rows: list[dict[str, Any]],
    sort: Any,
    filters: Filters,
    limit: int,
) -> None:
    expected = sorted_keys([row for row in rows if matches(row, filters)], sort)
    query = DataQuery(limit=limit, sort=sort, symbol=filters.symbols, q=filters.text)

    async def check() -> None:
        async with shared_database.writing() as connection, rolled_back(connection):
            await insert_rows(connection, rows)
            totals, selection = Totals(), Selection(filters=filters, sort=sort)
            by_page = []
            for offset in range(0, len(expected) + limit, limit):
                page = await queries.page(connection, totals, selection, limit=limit, offset=offset)
                assert page.total == len(expected)
                assert (page.last is not None) == (offset + limit < len(expected))
                by_page += keys(page.json)
            by_cursor: list[tuple[str, str]] = []
            after: CursorPosition | None = None
            while True:
                page = await queries.page(connection, totals, selection, limit=limit, after=after)
                by_cursor += keys(page.json)
                if page.last is None:
                    break
                # The cursor passes through the text that a client sends.
                described = pagination.pagination(query, "/data", KEY, total=page.total, last=page.last)
                next_query = msgspec.structs.replace(query, cursor=described.next_cursor)
                decoded = pagination.decode_cursor(next_query, "/data", KEY)
                after = cursors.position(selection, decoded)
                assert after == page.last
        assert by_page == expected
        assert by_cursor == expected

    runner.run(check())


@asynccontextmanager
async def rolled_back(connection: Connection) -> AsyncIterator[None]:
    """A transaction that is rolled back at the end."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    finally:
        await transaction.rollback()


def keys(rows: str) -> list[tuple[str, str]]:
    return [(row["source"], row["source_id"]) for row in json.loads(f"[{rows}]")]
