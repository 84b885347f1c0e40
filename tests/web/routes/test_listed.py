"""Listed and delisted coins in /data, its exports and its cursors."""

from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest

from kasparro.store.pool import Connection
from tests.support.json_responses import get_exact, source_ids
from tests.web.conftest import LONG_AGO, Insert

LISTED, DELISTED, NO_LIST = 0, 1, 2
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
async def coins(insert: Insert, connection: Connection) -> None:
    """Two coins of one rank in each source. CoinGecko has delisted the first one."""
    for source in ("coingecko", "coinpaprika", "csv"):
        await insert(*({"source": source, "source_id": f"{source}-{n}", "rank": 5} for n in (1, 2)))
    for source in ("coingecko", "coinpaprika"):
        for number in (1, 2):
            delisted = (source, number) == ("coingecko", 1)
            await list_coin(
                connection, source, f"{source}-{number}", NOON - timedelta(days=delisted), delisted=delisted
            )


async def list_coin(
    connection: Connection, source: str, source_id: str, at: datetime, *, delisted: bool = False
) -> None:
    """Write what a run writes of a coin on a list, without a new data version."""
    await connection.execute(
        "INSERT INTO listings "
        "(source, source_id, listed_at, listed_from, missing_since, page, rejected_runs) "
        "VALUES ($1, $2, $3, $3, $4, 1, 0) "
        "ON CONFLICT (source, source_id) DO UPDATE SET listed_at = excluded.listed_at",
        source,
        source_id,
        at,
        NOON if delisted else None,
    )
    await connection.execute(
        "UPDATE unified_data SET listing_state = $3 WHERE source = $1 AND source_id = $2",
        source,
        source_id,
        DELISTED if delisted else LISTED,
    )


async def ids(client: aiohttp.ClientSession, path: str) -> list[str]:
    return source_ids(await get_exact(client, path))


ORDER = ["coingecko-2", "coinpaprika-1", "coinpaprika-2", "coingecko-1", "csv-1", "csv-2"]


@pytest.mark.usefixtures("coins")
async def test_delisted_rows_come_after_live_ones_of_the_same_rank(client: aiohttp.ClientSession) -> None:
    assert await ids(client, "/data") == ORDER
    assert await ids(client, "/data?sort=-rank") == ORDER
    assert await ids(client, "/data?sort=source&limit=2") == ["coingecko-1", "coingecko-2"]


@pytest.mark.parametrize("limit", [1, 2, 4])
@pytest.mark.parametrize("sort", ["rank", "-rank"])
@pytest.mark.usefixtures("coins")
async def test_cursors_follow_that_order(client: aiohttp.ClientSession, limit: int, sort: str) -> None:
    found, path = list[str](), f"/data?limit={limit}&sort={sort}"
    while True:
        page: Any = await get_exact(client, path)
        found += source_ids(page)
        if page["pagination"]["next_cursor"] is None:
            break
        path = f"/data?limit={limit}&sort={sort}&cursor={page['pagination']['next_cursor']}"

    assert found == ORDER


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("listed=true", ["coingecko-2", "coinpaprika-1", "coinpaprika-2"]),
        ("listed=false", ["coingecko-1"]),
        ("listed=true&source=csv", []),
        ("listed=false&source=csv,coingecko", ["coingecko-1"]),
        ("listed_since=2026-06-01T12:00:00Z", ["coingecko-2", "coinpaprika-1", "coinpaprika-2"]),
        ("listed_since=2026-05-31T12:00:00Z&source=coingecko", ["coingecko-2", "coingecko-1"]),
        ("listed_since=2026-06-01T12:00:01Z", []),
        ("listed=false&as_of=2024-06-02", ["coingecko-1"]),
    ],
)
@pytest.mark.usefixtures("coins")
async def test_filters_select_listed_or_delisted_rows(
    client: aiohttp.ClientSession, query: str, expected: list[str]
) -> None:
    assert await ids(client, f"/data?{query}") == expected
    async with client.get(f"/data.ndjson?{query}&fields=source_id") as response:
        lines = (await response.text()).split()
    assert [line.split('"')[3] for line in lines] == expected


@pytest.mark.usefixtures("coins")
async def test_listed_at_is_shown_on_request(client: aiohttp.ClientSession) -> None:
    fields = "fields=source_id,listed_at"
    page = (await get_exact(client, f"/data?{fields}"))["data"]
    row = await get_exact(client, f"/data/coingecko/coingecko-1?{fields}")
    async with client.get(f"/data.csv?{fields}&source=coingecko,csv") as response:
        lines = (await response.text()).splitlines()

    assert page[0] == {"source_id": "coingecko-2", "listed_at": "2026-06-01T12:00:00.000000Z"}
    assert page[4] == {"source_id": "csv-1", "listed_at": None}
    assert row == {"source_id": "coingecko-1", "listed_at": "2026-05-31T12:00:00.000000Z"}
    assert lines[1:4] == [
        '"coingecko-2",2026-06-01T12:00:00.000000Z',
        '"coingecko-1",2026-05-31T12:00:00.000000Z',
        '"csv-1",',
    ]
    assert "listed_at" not in (await get_exact(client, "/data"))["data"][0]


@pytest.mark.parametrize(
    "path",
    [
        "/data?fields=source_id,listed_at&id=coinpaprika-1",
        "/data?listed_since=2026-06-01T13:00:00Z",
        "/data/coinpaprika/coinpaprika-1?fields=listed_at",
    ],
)
@pytest.mark.usefixtures("coins")
async def test_a_moved_listed_at_is_never_served_from_a_cache(
    client: aiohttp.ClientSession, connection: Connection, path: str
) -> None:
    """A run that changes no row moves listed_at, and makes no data version."""
    async with client.get(path) as response:
        before, etag = await response.text(), response.headers["ETag"]
    await list_coin(connection, "coinpaprika", "coinpaprika-1", NOON + timedelta(hours=1))
    async with client.get(path, headers={"If-None-Match": etag}) as response:
        after = await response.text()

    assert (response.status, response.headers["Cache-Control"]) == (200, "no-cache")
    assert (before != after, "coinpaprika-1" in after or "13:00:00" in after) == (True, True)
    if "pagination" in after:
        assert '"total":1,' in after


@pytest.mark.usefixtures("coins")
async def test_updated_since_goes_by_changes_of_the_record(client: aiohttp.ClientSession) -> None:
    assert await ids(client, f"/data?updated_since={LONG_AGO + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}") == []
